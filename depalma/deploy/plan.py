"""Which machine gets what, by the cluster file and the folder of secrets."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec
from msgspec import Struct

from depalma.certificates import AUTHORITY_FILE, HOSTS_FILE, HOSTS_KEY_FILE, member_file
from depalma.config import ClusterConfig, HostConfig, MasterConfig
from depalma.deploy.orders import DaemonOrder, digest
from depalma.errors import ConfigError
from depalma.ownership import OwnerPolicy

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_TARGET = re.compile(r"^[^\s-]\S*$")
_MASTER_SECRETS = ("token", "agent.token", "raft.secret", AUTHORITY_FILE)
_HOSTS = (HOSTS_FILE, HOSTS_KEY_FILE)
#: These are read when a master starts; it looks at its certificates by itself.
_READ_AT_START = ("token", "agent.token", "raft.secret")


class Machine(Struct, frozen=True):
    """What one ssh connection is for."""

    target: str  #: as `ssh` takes it
    daemons: tuple[DaemonOrder, ...]

    def only(self, role: str) -> tuple[DaemonOrder, ...]:
        """Returns its masters or its agents."""
        return tuple(daemon for daemon in self.daemons if daemon.role == role)


def machines(config: ClusterConfig, secrets: Path, release: str) -> list[Machine]:
    """Returns the machines in the order of the file; hosts without an address are left out. Errors: ConfigError."""
    if not _NAME.match(config.cluster):  # it names folders on the machines
        raise ConfigError(
            f"cluster: {config.cluster!r} given; allowed here: letters, digits, '.', '_', '-', at most 63"
        )
    found: dict[str, list[DaemonOrder]] = {}
    for master in config.masters:
        found.setdefault(_target(master, f"masters.{master.id}"), []).append(_master(config, master, secrets, release))
    for host in config.hosts:
        if host.ssh or host.host:
            found.setdefault(_target(host, f"hosts.{host.name}"), []).append(_agent(config, host, secrets, release))
    return [Machine(target, tuple(daemons)) for target, daemons in found.items()]


def unreachable(config: ClusterConfig) -> list[str]:
    """Returns the hosts that cannot be started from here: they have no address."""
    return [host.name for host in config.hosts if not (host.ssh or host.host)]


def _target(entry: MasterConfig | HostConfig, where: str) -> str:
    target = entry.ssh or entry.host
    if not _TARGET.match(target):
        raise ConfigError(f"{where}.ssh: {target!r} given; allowed: what `ssh` takes, without spaces or a leading '-'")
    return target


def _master(config: ClusterConfig, master: MasterConfig, secrets: Path, release: str) -> DaemonOrder:
    names = (*_MASTER_SECRETS, member_file(master.id))
    files = {f"secrets/{name}": _read(secrets / name) for name in names}
    # Clusters of before have no authority for hosts until `cluster init` makes one.
    files |= {f"secrets/{name}": _read(secrets / name) for name in _HOSTS if (secrets / name).exists()}
    start = [files[f"secrets/{name}"] for name in _READ_AT_START]
    files["cluster.yaml"] = _config_file(config)
    # Who else is a master, and which hosts there are, the cluster keeps itself: no restart makes it known better.
    own = msgspec.structs.replace(master, ssh="")
    return DaemonOrder(
        role="master",
        id=master.id,
        fingerprint=_fingerprint(release, config.cluster, own, config.settings, *start),
        files=files,
        files_digest=digest(files),
        url=config.url(master),
    )


def _agent(config: ClusterConfig, host: HostConfig, secrets: Path, release: str) -> DaemonOrder:
    own = msgspec.structs.replace(host, ssh="")
    token = _read(secrets / "agent.token")
    alone = msgspec.structs.replace(config, hosts=(host,))
    files = {"secrets/agent.token": token, "cluster.yaml": _config_file(alone)}
    if config.settings.api_tls != "off":
        files[f"secrets/{AUTHORITY_FILE}"] = _read(secrets / AUTHORITY_FILE)
    # Groups, labels, priority and the owner's wishes are the masters' business: a task is not ended for them.
    # How masters are spoken to an agent learns from them while it runs.
    settings = msgspec.structs.replace(config.settings, api_tls="")
    reads = msgspec.structs.replace(own, groups=(), labels={}, priority=0, owner=OwnerPolicy())
    return DaemonOrder(
        role="agent",
        id=host.name,
        fingerprint=_fingerprint(release, config.cluster, reads, settings, token),
        files=files,
        files_digest=digest(files),
    )


def _config_file(config: ClusterConfig) -> bytes:
    return msgspec.yaml.encode(msgspec.structs.replace(config, secrets="./secrets"))


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; make it with: depalmactl cluster init") from error
