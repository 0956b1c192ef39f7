"""`depalma-agent install --user`: a systemd unit of the user's own for the agent of this machine. Needs no root."""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from depalma import config as cluster_file
from depalma.errors import ConfigError

_UNIT = """\
# Written by `depalma-agent install --user`; run it again after a change of place or name.
[Unit]
Description=Depalma agent {name}
StartLimitIntervalSec=0

[Service]
ExecStart={command}
WorkingDirectory=%h
UMask=0077
Restart=on-failure
RestartSec=2
# Wrong configuration, refused by the cluster, the folder is in use: starting again changes nothing.
RestartPreventExitStatus=2 3 5
# SIGTERM to the agent alone, which ends its tasks in order; what is left after the time is killed.
KillMode=mixed
TimeoutStopSec=60
# The agent makes control groups for its tasks.
Delegate=yes

[Install]
WantedBy=default.target
"""


def unit_name(host: str) -> str:
    """Returns the name of the unit."""
    return f"depalma-agent-{host}.service"


def unit_text(python: str, config: Path, host: str) -> str:
    """Returns the unit: `config` is absolute."""
    words = [python, "-P", "-m", "depalma.remote", "--config", str(config), "--name", host]
    return _UNIT.format(name=host, command=" ".join(map(_quoted, words)))


def _quoted(word: str) -> str:
    """Returns the word as systemd reads it: it unquotes, and expands % and $."""
    for special, safe in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(special, safe)
    return f'"{word}"'


def units_folder() -> Path:
    """Returns where systemd looks for the user's own units."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "systemd" / "user"


def main(argv: Sequence[str]) -> int:
    """Writes the unit, makes systemd start it now and at each boot or login. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="depalma-agent install", description=__doc__)
    parser.add_argument("--user", action="store_true", required=True, help="for this user: the only way there is")
    parser.add_argument("--config", required=True, type=Path, help="the cluster file")
    parser.add_argument("--name", required=True, help="this host's name")
    parser.add_argument("--print", action="store_true", help="write the unit to stdout, and nothing else")
    parser.add_argument("--no-start", action="store_true", help="write the unit only")
    args = parser.parse_args(argv)
    config = args.config.expanduser().absolute()
    try:
        loaded = cluster_file.load(config)
        loaded.host(args.name)
        cluster_file.read_agent_token(cluster_file.secrets_folder(config, loaded))
    except ConfigError as error:
        _say(f"error: {error}")
        return 2
    text = unit_text(sys.executable, config, args.name)
    if args.print:
        sys.stdout.write(text)
        return 0
    changed = _write(units_folder() / unit_name(args.name), text)
    return 0 if args.no_start else _start(unit_name(args.name), changed)


def _write(file: Path, text: str) -> bool:
    """Returns whether the file was not so before."""
    if file.exists() and file.read_text() == text:
        _say(f"{file} is as it should be")
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text)
    os.replace(temporary, file)
    _say(f"{file} written")
    return True


def _start(unit: str, changed: bool) -> int:
    """Returns the exit code: 1 if systemd does not start it, with its reason."""
    for words in (["daemon-reload"], ["enable", unit], ["restart" if changed else "start", unit]):
        try:
            done = subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            _say("error: there is no systemd here: start the agent in another way, or `depalmactl cluster up` does it")
            return 1
        if done.returncode:
            _say(f"error: systemctl --user {' '.join(words)}: {(done.stderr or done.stdout).strip()}")
            return 1
    _say(f"{unit} runs; its log: journalctl --user -u {unit}")
    user = getpass.getuser()
    if shutil.which("loginctl") and not Path(f"/var/lib/systemd/linger/{user}").exists():
        _say(f"it ends when {user} has logged out everywhere, unless: loginctl enable-linger {user}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
