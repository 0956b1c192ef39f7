#!/usr/bin/env bash
# A tour of depalmactl on a local cluster of its own: start, run, map, look, kill the leader, go on, stop.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export PATH="$here/.venv/bin:$PATH"
folder=$(mktemp -d)
export XDG_CONFIG_HOME="$folder" # the tour leaves your own contexts alone
trap 'depalmactl -q dev --stop --dir "$folder/lab" >/dev/null || true; rm -rf "$folder"' EXIT
show() { printf '\n$ %s\n' "$*"; "$@"; }

show depalmactl dev --detach --dir "$folder/lab" --agents 3
show depalmactl run -- echo hello
show depalmactl map --name sizes --wait 'wc -c {}' ::: /etc/passwd /etc/hosts /etc/hostname
show depalmactl logs last
show depalmactl jobs
show depalmactl code add "$here/examples/wordstats"
show depalmactl code status
show depalmactl submit --name naps --array 0-5 -- sleep 1
show depalmactl ps
show depalmactl explain last

leader=$(depalmactl -o json master ls | python3 -c 'import json, sys
print(next(m["id"] for m in json.load(sys.stdin) if m["role"] == "leader"))')
show "$here/bin/kill_cluster.py" "$folder/lab" --id "$leader" --signal KILL
show depalmactl wait last
show depalmactl master ls
show depalmactl events --after 0 -o name | tail -n 3
