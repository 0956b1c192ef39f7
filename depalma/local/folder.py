"""The folder of a local cluster: secrets, cluster file, logs, and `cluster.json`, which says what runs."""

from __future__ import annotations

import errno
import os
import random
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from depalma import secretfiles
from depalma.config import ClusterConfig, HostConfig, MasterConfig, Settings, load, resolved
from depalma.errors import ConfigError

LOOPBACK = "127.0.0.1"
CLUSTER_FILE = "cluster.yaml"
STATE_FILE = "cluster.json"
#: A local cluster that is started renews the masters' certificates that end within this time.
RENEW_WITHIN_DAYS = 60
#: Fast enough to watch on one machine, slow enough for a busy one.
SETTINGS: dict[str, Any] = {"lease_s": 3.0, "heartbeat_s": 0.5}


#: How many ports others are kept from; whoever wanted those before has them by now.
_NOTES = 64
_notes: deque[int] = deque()


class ProcessEntry(Struct, kw_only=True, omit_defaults=True):
    """One daemon, as `cluster.json` tells it. Running `argv` again restarts it where it was."""

    role: str  #: master or agent
    id: str
    pid: int | None  #: None while it does not run
    argv: list[str]
    dir: str
    started: int = 0  #: start time as the kernel counts it: tells a reused pid
    url: str = ""
    raft: str = ""  #: host:port


class ClusterState(Struct, kw_only=True):
    """The whole of `cluster.json`."""

    processes: list[ProcessEntry]
    masters: list[str]
    token_file: str
    ca: str = ""


def make(
    directory: Path, *, masters: int, agents: int, slots: int, settings: dict[str, Any] | None = None
) -> ClusterConfig:
    """Writes secrets (unless there are some) and the cluster file; returns its contents.

    A folder that held a cluster before goes on with its state, and so must have the same number of masters.
    Errors: ConfigError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "log").mkdir(mode=0o700, exist_ok=True)
    ports = _ports_before(directory, masters) or free_ports(2 * masters)
    config = ClusterConfig(
        cluster="local",
        masters=tuple(
            MasterConfig(
                id=f"m{n + 1}",
                host=LOOPBACK,
                port=ports[2 * n],
                raft_port=ports[2 * n + 1],
                dir=str(directory / f"m{n + 1}"),
            )
            for n in range(masters)
        ),
        hosts=tuple(
            HostConfig(name=f"h{n + 1}", host=LOOPBACK, slots=slots, dir=str(directory / f"h{n + 1}"))
            for n in range(agents)
        ),
        secrets=str(directory / "secrets"),
        settings=_settings(settings or {}),
    )
    save(directory, config)
    return resolved(config, directory / CLUSTER_FILE)


def save(directory: Path, config: ClusterConfig) -> None:
    """Writes the cluster file, and the secrets that it needs and that are not there. Errors: ConfigError."""
    ids = [master.id for master in config.masters]
    secretfiles.prepare(directory / "secrets", config.cluster, ids, renew_within_days=RENEW_WITHIN_DAYS,
                        addresses={master.id: master.host for master in config.masters})  # fmt: skip
    write(directory / CLUSTER_FILE, msgspec.yaml.encode(_without_defaults(config)))


def new_master(directory: Path, taken: Iterable[str]) -> MasterConfig:
    """Returns a master with an id that was not used before, on free ports."""
    numbers = [int(name[1:]) for name in taken if name[0] == "m" and name[1:].isdigit()]
    name = f"m{max(numbers, default=0) + 1}"
    port, raft_port = free_ports(2)
    return MasterConfig(id=name, host=LOOPBACK, port=port, raft_port=raft_port, dir=str(directory / name))


def _ports_before(directory: Path, masters: int) -> list[int]:
    """Returns the ports that the folder's cluster had, if they are free. Errors: ConfigError."""
    if not (directory / CLUSTER_FILE).exists():
        return []
    before = load(directory / CLUSTER_FILE).masters
    if len(before) != masters:
        raise ConfigError(f"{directory} holds the state of {len(before)} masters, not {masters}; take another folder")
    ports = [port for master in before for port in (master.port, master.raft_port)]
    return ports if all(_is_free(port) for port in ports) else []


def _settings(chosen: dict[str, Any]) -> Settings:
    try:
        return msgspec.convert({**SETTINGS, **chosen}, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings: {error}") from error


def _without_defaults(config: ClusterConfig) -> dict[str, Any]:
    raw: dict[str, Any] = msgspec.to_builtins(config)
    defaults = msgspec.to_builtins(Settings())
    raw["settings"] = {key: value for key, value in raw["settings"].items() if value != defaults[key]}
    plain = msgspec.to_builtins(HostConfig(name=""))
    raw["hosts"] = [{k: v for k, v in host.items() if k == "name" or v != plain[k]} for host in raw["hosts"]]
    return raw


def write(file: Path, data: bytes) -> None:
    """Replaces a file as a whole, mode 0600."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback that nobody listens on, and that no other process is given by this meanwhile.

    They lie below those that the kernel gives to outgoing connections: a port stays free while its process is dead,
    so that it can be started again.
    """
    low = _ephemeral_begin()
    candidates = range(10_000, low) if low > 11_000 else range(20_000, 32_000)
    chooser = random.SystemRandom()
    found: list[int] = []
    for _ in range(50 * count + 100):
        if len(found) == count:
            return found
        port = chooser.choice(candidates)
        if port not in found and _is_free(port) and _is_taken_note_of(port):
            found.append(port)
    raise ConfigError(f"no {count} free ports on {LOOPBACK}")


def _ephemeral_begin() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _is_taken_note_of(port: int) -> bool:
    """Returns whether nobody else was given the port a moment ago, and lets others know that we were.

    Until somebody listens on it, it looks free to all: two clusters that start at once would both take it. A name in
    the kernel says whose it is, and goes with us.
    """
    note = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        note.bind(f"\0depalma-port-{port}")
    except OSError as error:
        note.close()
        return error.errno != errno.EADDRINUSE  # where there are no such names, chance has to do
    _notes.append(note.detach())
    while len(_notes) > _NOTES:
        os.close(_notes.popleft())
    return True


def entries(config: ClusterConfig, directory: Path) -> list[ProcessEntry]:
    """Returns the daemons of a cluster file, masters first, none of them started."""
    file = str(directory / CLUSTER_FILE)
    made = [master_entry(master, config.url(master), directory) for master in config.masters]
    made += [
        ProcessEntry(
            role="agent",
            id=host.name,
            pid=None,
            argv=[sys.executable, "-m", "depalma.remote", "--config", file, "--name", host.name],
            dir=host.dir,
        )
        for host in config.hosts
    ]
    return made


def master_entry(master: MasterConfig, url: str, directory: Path) -> ProcessEntry:
    """Returns the daemon of a master, not started."""
    file = str(directory / CLUSTER_FILE)
    return ProcessEntry(
        role="master",
        id=master.id,
        pid=None,
        argv=[sys.executable, "-m", "depalma.master", "--config", file, "--id", master.id],
        dir=master.dir,
        url=url,
        raft=f"{master.host}:{master.raft_port}",
    )


def save_state(directory: Path, state: ClusterState) -> None:
    """Writes `cluster.json`."""
    write(directory / STATE_FILE, msgspec.json.format(msgspec.json.encode(state), indent=2))


def load_state(directory: Path) -> ClusterState:
    """Reads `cluster.json`. Errors: ConfigError."""
    file = directory / STATE_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=ClusterState)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; is {directory} a local cluster?") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
