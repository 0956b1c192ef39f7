# Sourced by bin/quickstart, bin/test and .ci/run: finds a Python and keeps the checkout's virtual environment.
# Sets `root` (the checkout). Needs bash, python3 >= 3.11 and a package index; writes only below the checkout.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Prints the first interpreter that runs and is new enough. A name on PATH may be a shim that does not run, so each is tried.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.14; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 </dev/null; then
      command -v "$name"
      return
    fi
  done
  die "Python 3.11 or newer is needed; tried python3, python3.11 to python3.14 (python3 is: $(python3 -V 2>&1 || true))"
}

# make_venv PYTHON FOLDER: a virtual environment with pip, or one clear line.
make_venv() {
  local python=$1 folder=$2 log
  if log=$("$python" -m venv --clear "$folder" 2>&1 </dev/null); then return; fi
  rm -rf "$folder"
  if ! "$python" -c 'import ensurepip' >/dev/null 2>&1; then
    die "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
  fi
  say "$log"
  die "$python -m venv $folder failed (see above)"
}

# ensure_venv FOLDER EXTRAS [PYTHON]: the environment holds this checkout and these extras. Nothing is done when a stamp
# says that the same pyproject.toml was installed with them before, from the same place (scripts name their folder).
ensure_venv() {
  local folder=$1 extras=$2 python=${3:-} stamp wanted log
  stamp="$folder/.installed-${extras:-plain}"
  wanted="$root $(cksum <"$root/pyproject.toml")"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$folder/bin/python" ] &&
    "$folder/bin/python" -c '' >/dev/null 2>&1; then
    return
  fi
  if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1 || { [ -f "$stamp" ] && ! grep -qF "$root " "$stamp"; }; then
    [ -n "$python" ] || python=$(find_python)
    say "making ${folder#"$root"/} with $("$python" -V) ($python)"
    make_venv "$python" "$folder"
  fi
  say "installing depalma${extras:+ with the extras $extras} into ${folder#"$root"/}"
  if ! log=$("$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --editable "$root${extras:+[$extras]}" 2>&1 </dev/null); then
    say "$log"
    die "pip could not install depalma (see above); is a package index reachable?"
  fi
  printf '%s' "$wanted" | tee "$stamp" >"$folder/.installed-plain" # extras include the package itself
}
