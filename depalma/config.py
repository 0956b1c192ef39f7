"""The cluster file: which masters and hosts there are, and the settings (docs/configuration.md lists each).

Unknown keys are errors; a message names the file, the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from depalma import yamltext
from depalma.certificates import AUTHORITY_FILE, AUTHORITY_WANTS_TLS, member_file
from depalma.errors import ConfigError
from depalma.lease import LeaseTimes, lease_times
from depalma.model import MasterAddress
from depalma.ownership import BadPolicy, OwnerPolicy, check

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
#: What `api_tls` may be: the port takes plain HTTP unless it is `on`, and TLS unless it is `off`.
API_TLS = ("auto", "off", "allow", "prefer", "on")
#: With these the masters speak TLS to each other, and name themselves by https.
SPEAKS_TLS = ("prefer", "on")
#: What a resource cannot be called (the state says the same): it is counted already.
COUNTED_ANYWAY = frozenset({"memory", "memory_bytes", "gpu", "gpus", "slots", "cpus"})
_NAME_RULE = "letters, digits, '.', '_', '-', at most 63, no leading sign"


class MasterConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One master replica."""

    id: str
    host: str
    port: int = 7070  #: API, agents, web page, metrics
    raft_port: int = 7071
    dir: str
    ssh: str = ""  #: how `ssh` reaches its machine; empty = host

    @property
    def directory(self) -> Path:
        """Returns where it keeps its state, `~` expanded."""
        return Path(self.dir).expanduser()


class HostConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One workstation."""

    name: str
    host: str = ""  #: address, for starting it over ssh
    slots: int = 0  #: tasks at once; 0 = as many as the machine has CPUs
    groups: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    priority: int = 0
    gpus: int = 0
    dir: str = ""  #: the agent's folder; empty = ~/.local/state/depalma/agent-NAME
    owner: OwnerPolicy = OwnerPolicy()  #: when the machine may work, and how tasks make way for its owner
    ssh: str = ""  #: how `ssh` reaches its machine; empty = host
    resources: dict[str, int] = {}  #: what it has so many of, such as licences


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting has a default that is right for a local network."""

    lease_s: float = 10.0  #: an agent that heard no leader for this long kills its tasks and stops
    lease_margin: float = 0.25  #: a master moves work after lease_s * (1 + lease_margin)
    heartbeat_s: float = 0.0  #: how often an agent says that it lives; 0 = a tenth of lease_s
    election_s: tuple[float, float] = (0.3, 0.6)
    history_days: float = 30.0  #: finished jobs are kept this long
    history_jobs: int = 100_000  #: and at most so many
    archive_days: float = 365.0  #: what is forgotten by then is kept in each master's archive this long; 0 = no archive
    archive_bytes: int = 2 * 1024 * 1024 * 1024  #: and at most in a file of this size
    open_job_idle_s: float = 86_400.0  #: an open job (an executor's) without work for this long is closed
    max_body_bytes: int = 8 * 1024 * 1024  #: of an API request; blobs are streamed and have their own limit
    max_blob_bytes: int = 2 * 1024 * 1024 * 1024
    on_cut_off: str = "rejoin"  #: exit, or rejoin: what an agent does after it stopped itself
    snapshot_every_entries: int = 20_000
    output_limit_bytes: int = 256 * 1024 * 1024  #: captured output of one attempt and stream; more is cut
    output_keep_days: float = 30.0  #: captured output stays on its host this long
    output_keep_bytes: int = 10 * 1024**3  #: and at most so much of it on each
    output_keep_tag_days: dict[str, float] = {}  #: tag → that of its jobs stays this long instead
    code_lag_s: float = 5.0  #: a host that stays behind the code log for this long is shown as lagging
    code_kick_s: float = 300.0  #: and after this long it gets no work until it has caught up
    environments_kept: int = 3  #: Python environments that an agent keeps beside those in use
    blob_grace_s: float = 600.0  #: a large value that nothing names is kept this long
    api_tls: str | bool = "auto"  #: auto, off, allow, prefer, on: whether the masters' API speaks TLS

    def __post_init__(self) -> None:
        """YAML reads the words on and off as true and false."""
        if isinstance(self.api_tls, bool):
            msgspec.structs.force_setattr(self, "api_tls", "on" if self.api_tls else "off")

    @property
    def lease_times(self) -> LeaseTimes:
        """Returns everything that follows from the lease."""
        return lease_times(self.lease_s, self.lease_margin, self.heartbeat_s)


class ClusterConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    cluster: str = "depalma"
    masters: tuple[MasterConfig, ...]
    hosts: tuple[HostConfig, ...] = ()
    secrets: str = "./secrets"
    settings: Settings = Settings()

    @property
    def scheme(self) -> str:
        """Returns how masters are spoken to."""
        return "https" if self.settings.api_tls in SPEAKS_TLS else "http"

    def url(self, master: MasterConfig | MasterAddress) -> str:
        """Returns the base URL of a master's API."""
        return f"{self.scheme}://{master.host}:{master.port}"

    def master(self, master_id: str) -> MasterConfig:
        """Returns the master of that id. Errors: ConfigError that names those there are."""
        for master in self.masters:
            if master.id == master_id:
                return master
        raise ConfigError(
            f"no master {master_id!r} in the cluster file; there are: {_names(m.id for m in self.masters)}"
        )

    def host(self, name: str) -> HostConfig:
        """Returns the host of that name; one that was added at run time is in no file, and has the defaults.

        Errors: ConfigError if no host can have this name.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        if not _NAME.match(name):
            raise ConfigError(f"host name {name!r} given; allowed: {_NAME_RULE}")
        return HostConfig(name=name)


class Secrets(Struct, frozen=True, kw_only=True):
    """What the folder `secrets` holds; each file 0600, the folder 0700."""

    token: str  #: `token`: users and administrators, as bearer token of the API
    agent_token: str  #: `agent.token`: agents, as bearer token of /v1/agent and of blobs
    raft_secret: bytes  #: `raft.secret`: masters among themselves, over HTTP
    folder: Path  #: where they came from, and where the certificates are

    def __repr__(self) -> str:
        """Shows none of them: values end up in logs and tracebacks."""
        return f"Secrets({str(self.folder)!r})"


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def load(path: Path) -> ClusterConfig:
    """Returns the checked cluster file; `api_tls: auto` has become what it means there. Errors: ConfigError."""
    try:
        return resolved(_checked(yamltext.load(path), str(path)), path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def resolved(config: ClusterConfig, path: Path) -> ClusterConfig:
    """Returns the configuration of a cluster file there, with what `api_tls: auto` means."""
    if config.settings.api_tls != "auto":
        return config
    wants_tls = AUTHORITY_WANTS_TLS in _start_of(secrets_folder(path, config) / AUTHORITY_FILE)
    settings = msgspec.structs.replace(config.settings, api_tls="on" if wants_tls else "allow")
    return msgspec.structs.replace(config, settings=settings)


def _start_of(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(4096)
    except OSError:
        return b""


def parse(text: str, *, where: str = "cluster file") -> ClusterConfig:
    """Returns the checked configuration. Errors: ConfigError whose message begins with `where`."""
    return _checked(yamltext.parse(text, where=where), where)


def _checked(raw: object, where: str) -> ClusterConfig:
    try:
        config = msgspec.convert(raw, ClusterConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error
    problem = _problem(config)
    if problem:
        raise ConfigError(f"{where}: {problem}")
    return config


def _problem(config: ClusterConfig) -> str:
    """Returns what is wrong with a well-typed configuration, or nothing."""
    if len(config.masters) not in (1, 3, 5):
        return f"masters: {len(config.masters)} given; allowed: 1, 3 or 5"
    for field, names in (
        ("masters.id", [m.id for m in config.masters]),
        ("hosts.name", [h.name for h in config.hosts]),
    ):
        for name in names:
            if not _NAME.match(name):
                return f"{field}: {name!r} given; allowed: {_NAME_RULE}"
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            return f"{field}: {doubles[0]!r} is given twice"
    for master in config.masters:
        if problem := _places_problem(master.host, master.ssh, required=True):
            return f"masters[{master.id}].{problem}"
        if not master.dir:
            return f"masters[{master.id}].dir: '' given; allowed: the folder of its state"
    for host in config.hosts:
        if problem := _host_problem(host):
            return f"hosts[{host.name}].{problem}"
    for field, text in (("cluster", config.cluster), ("secrets", config.secrets)):
        if not text or not text.isprintable():
            return f"{field}: {text!r} given; allowed: a printable text that is not empty"
    endpoints = [(m.host, port) for m in config.masters for port in (m.port, m.raft_port)]
    for endpoint in endpoints:
        if not 1 <= endpoint[1] <= 65535:
            return f"masters.port: {endpoint[1]} given; allowed: 1 to 65535"
        if endpoints.count(endpoint) > 1:
            return f"masters: {endpoint[0]}:{endpoint[1]} is used twice"
    return _settings_problem(config.settings)


def _host_problem(host: HostConfig) -> str:
    """The limits are those of the state (state/membership.py), which would refuse the host when a master starts."""
    try:
        check(host.owner)
    except BadPolicy as wrong:
        return str(wrong)
    for field, number, low, high in (
        ("slots", host.slots, 0, 100_000),
        ("gpus", host.gpus, 0, 100_000),
        ("priority", host.priority, -1_000_000, 1_000_000),
        *((f"resources.{name}", number, 0, 1 << 50) for name, number in host.resources.items()),
    ):
        if not low <= number <= high:
            return f"{field}: {number} given; allowed: {low} to {high}"
    for field, names in (("groups", host.groups), ("resources", tuple(host.resources))):
        for name in names:
            if not _NAME.match(name) or (field == "resources" and name in COUNTED_ANYWAY):
                also = f", and not {', '.join(sorted(COUNTED_ANYWAY))}" if field == "resources" else ""
                return f"{field}: {name!r} given; allowed: {_NAME_RULE}{also}"
        if len(set(names)) < len(names) or len(names) > 100:
            return f"{field}: {list(names)} given; allowed: at most 100, each once"
    if len(host.labels) > 100 or any(len(key) + len(value) > 1000 for key, value in host.labels.items()):
        return f"labels: {len(host.labels)} given; allowed: at most 100 of at most 1000 characters"
    return _places_problem(host.host, host.ssh, required=False)


def _places_problem(host: str, ssh: str, *, required: bool) -> str:
    """Refuses what no machine is called, and what ssh would take for an option."""
    for field, text in (("host", host), ("ssh", ssh)):
        wrong = text.startswith("-") or not text.isprintable() or " " in text or len(text) > 255
        if wrong or (required and field == "host" and not text):
            return f"{field}: {text!r} given; allowed: a name or an address, with no space and no leading '-'"
    return ""


#: Whole ranges of settings that depend on no other.
LIMITS: dict[str, tuple[float, float]] = {
    "history_days": (0, 100_000),
    "history_jobs": (0, 10**9),
    "open_job_idle_s": (60, 1e9),
    "max_body_bytes": (4096, 1 << 30),
    "max_blob_bytes": (4096, 1 << 50),
    "snapshot_every_entries": (1, 10**9),
    "output_limit_bytes": (0, 1 << 50),
    "output_keep_bytes": (1 << 20, 1 << 50),
    "code_kick_s": (0.1, 1e9),
    "environments_kept": (1, 1000),
    "blob_grace_s": (60, 1e9),
}


def _settings_problem(settings: Settings) -> str:
    for field, (low, high) in LIMITS.items():
        value = getattr(settings, field)
        if not low <= value <= high:
            return f"settings.{field}: {value} given; allowed: {low:.16g} to {high:.16g}"
    if settings.on_cut_off not in ("exit", "rejoin"):
        return f"settings.on_cut_off: {settings.on_cut_off!r} given; allowed: exit, rejoin"
    if settings.api_tls not in API_TLS:
        return f"settings.api_tls: {settings.api_tls!r} given; allowed: {', '.join(API_TLS)}"
    if not 0.5 <= settings.lease_s <= 3600:
        return f"settings.lease_s: {settings.lease_s} given; allowed: 0.5 to 3600"
    if not 0.15 <= settings.lease_margin <= 10:
        return f"settings.lease_margin: {settings.lease_margin} given; allowed: 0.15 to 10"
    if settings.heartbeat_s and not 0.05 <= settings.heartbeat_s <= settings.lease_s / 3:
        allowed = "0 (a tenth of lease_s), or 0.05 to a third of lease_s"
        return f"settings.heartbeat_s: {settings.heartbeat_s} given; allowed: {allowed}"
    disorder = settings.lease_times.problem()
    if disorder:
        return f"settings.lease_s, lease_margin, heartbeat_s: {disorder}"
    if not 0 <= settings.archive_days <= 100_000:
        return f"settings.archive_days: {settings.archive_days} given; allowed: 0 (no archive) to 100000"
    if settings.archive_bytes < 1024 * 1024:
        return f"settings.archive_bytes: {settings.archive_bytes} given; allowed: 1048576 (1 MiB) or more"
    for field, days in (
        ("output_keep_days", settings.output_keep_days),
        *((f"output_keep_tag_days[{tag}]", days) for tag, days in settings.output_keep_tag_days.items()),
    ):
        if not 0 < days <= 36_500:
            return f"settings.{field}: {days} given; allowed: more than 0, up to 36500"
    if not 0.1 <= settings.code_lag_s <= settings.code_kick_s:
        return f"settings.code_lag_s: {settings.code_lag_s} given; allowed: 0.1 to code_kick_s ({settings.code_kick_s})"
    low, high = settings.election_s
    if not 0.1 <= low < high <= 30:
        return f"settings.election_s: [{low}, {high}] given; allowed: two rising numbers from 0.1 to 30"
    return ""


def secrets_folder(file: Path, config: ClusterConfig) -> Path:
    """Returns the folder of secrets that a cluster file names: relative to the file, `~` expanded."""
    return file.absolute().parent / Path(config.secrets).expanduser()


def load_secrets(folder: Path, master_id: str, *, made_by: Path | str = "FILE") -> Secrets:
    """Returns the secrets of a master; `made_by` is the cluster file, for the advice.

    Errors: ConfigError that names every missing file and what makes them, or a file that others may read.
    """
    tokens = {"token": "token", "agent_token": "agent.token", "raft_secret": "raft.secret"}
    names = [*tokens.values(), AUTHORITY_FILE, member_file(master_id)]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        advice = f"make what is missing with: depalmactl cluster init -f {made_by}"
        raise ConfigError(f"{folder}/ has no {', '.join(missing)}; {advice}")
    values = {field: _read_secret(folder / name) for field, name in tokens.items()}
    return Secrets(
        token=values["token"],
        agent_token=values["agent_token"],
        raft_secret=values["raft_secret"].encode(),
        folder=folder,
    )


def _read_secret(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read it; run: chmod 600 {path}")
        value = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(value) < 32:
        raise ConfigError(f"{path}: too short for a secret ({len(value)} characters, at least 32)")
    return value


def read_agent_token(folder: Path) -> str:
    """Returns the agents' token alone: all that an agent's machine needs of the secrets."""
    path = folder / "agent.token"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
