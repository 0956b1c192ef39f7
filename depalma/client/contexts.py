"""Which cluster is meant: arguments, then environment, then the current context of the user's configuration file.

`$XDG_CONFIG_HOME/depalma/config.yaml` (mode 0600) holds named contexts, each the masters and a token *file*:
`{current: lab, contexts: {lab: {masters: [http://10.0.0.1:7070], token_file: /home/me/lab.token}}}`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from depalma.client.connections import NEEDS_AUTHORITY
from depalma.errors import ConfigError
from depalma.trust import BadAuthority, Trust


class Context(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One cluster, as a user of it needs it."""

    masters: tuple[str, ...]  #: base URLs
    token_file: str = ""
    ca: str = ""  #: certificate file of the cluster's own authority, for masters by https


class Contexts(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    current: str = ""
    contexts: dict[str, Context] = {}

    def adding(self, name: str, context: Context, *, use: bool) -> Contexts:
        """Returns these with a new or replaced context, made current if `use` or if it is the only one."""
        contexts = {**self.contexts, name: context}
        return Contexts(current=name if use or not self.current else self.current, contexts=contexts)

    def using(self, name: str) -> Contexts:
        """Returns these with another current one. Errors: ConfigError."""
        self.get(name)
        return Contexts(current=name, contexts=self.contexts)

    def removing(self, name: str) -> Contexts:
        """Returns these without one. Errors: ConfigError."""
        self.get(name)
        rest = {key: value for key, value in self.contexts.items() if key != name}
        return Contexts(current="" if self.current == name else self.current, contexts=rest)

    def get(self, name: str) -> Context:
        """Returns the context of that name. Errors: ConfigError that names those there are."""
        if name not in self.contexts:
            raise ConfigError(f"no context {name!r}; there are: {', '.join(sorted(self.contexts)) or 'none'}")
        return self.contexts[name]


class Connection(Struct, frozen=True):
    """What a client needs to know, and where it came from."""

    masters: tuple[str, ...]
    token: str
    origin: str  #: for people: `argument`, `DEPALMA_MASTERS`, `context lab`
    trust: Trust | None = None  #: for masters by https


def path() -> Path:
    """Returns where the contexts are kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    return folder / "depalma" / "config.yaml"


def load(file: Path | None = None) -> Contexts:
    """Returns the contexts, none if there is no file. Errors: ConfigError."""
    from depalma import yamltext  # a client that is told its masters needs no YAML

    file = file or path()
    try:
        return msgspec.convert(yamltext.load(file) or {}, Contexts)
    except FileNotFoundError:
        return Contexts()
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from error


def save(contexts: Contexts, file: Path | None = None) -> None:
    """Writes the contexts: all or nothing, readable by the user alone."""
    import yaml

    file = file or path()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = yaml.safe_dump(msgspec.to_builtins(contexts), sort_keys=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".config-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def resolve(
    masters: Sequence[str] | str | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    context: str | None = None,
    environ: Mapping[str, str] = os.environ,
    ca: str | os.PathLike[str] | None = None,
) -> Connection:
    """Returns the cluster that is meant. Errors: ConfigError that says what can be given.

    Each of masters, token and authority comes from the first that has it: the arguments (an explicit `context` counts
    as one), `DEPALMA_MASTERS`, `DEPALMA_TOKEN` or `DEPALMA_TOKEN_FILE`, `DEPALMA_CA`, the context `DEPALMA_CONTEXT`,
    the current context.
    """
    urls, origin = _urls(masters), "argument"
    chosen: Context | None = None
    if not urls and context:
        chosen, origin = load().get(context), f"context {context}"
    elif not urls and environ.get("DEPALMA_MASTERS"):
        urls, origin = _urls(environ["DEPALMA_MASTERS"]), "DEPALMA_MASTERS"
    elif not urls:
        contexts = load()
        name = environ.get("DEPALMA_CONTEXT") or contexts.current
        if not name:
            raise ConfigError(
                "no cluster is named: give masters (--masters), set DEPALMA_MASTERS, or choose a context with "
                "`depalmactl context use`"
            )
        chosen, origin = contexts.get(name), f"context {name}"
    if chosen is not None:
        urls = _urls(chosen.masters)
        from_environment = not context and bool(environ.get("DEPALMA_TOKEN") or environ.get("DEPALMA_TOKEN_FILE"))
        if not (token or token_file or from_environment):
            token_file = chosen.token_file or None
        if not (ca or (environ.get("DEPALMA_CA") and not context)):
            ca = chosen.ca or None
    trust = _trust(urls, ca or environ.get("DEPALMA_CA") or "", origin)
    chosen_token = _token(token, token_file, environ)
    if not (isinstance(chosen_token, str) and chosen_token.isascii() and f"x{chosen_token}".isprintable()):
        raise ConfigError(f"token: that for {origin} is not one line of plain characters: wrong file?")
    return Connection(masters=urls, token=chosen_token, origin=origin, trust=trust)


def _trust(urls: Sequence[str], ca: str | os.PathLike[str], origin: str) -> Trust | None:
    """Returns whom to believe, if there is anything to be asked. Errors: ConfigError."""
    secure = [url for url in urls if url.startswith("https:")]
    if secure and len(secure) < len(urls):
        raise ConfigError(f"masters: http and https in one list ({origin}); allowed: one of them for all masters")
    if not secure:
        return None
    if not ca:
        raise ConfigError(f"{secure[0]} ({origin}): {NEEDS_AUTHORITY}")
    try:
        return Trust(ca)
    except BadAuthority as error:
        raise ConfigError(str(error)) from error


def _urls(masters: Sequence[str] | str | None) -> tuple[str, ...]:
    given = masters.split(",") if isinstance(masters, str) else masters or ()
    parts = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"masters: {masters!r} given; allowed: a list of https://HOST:PORT or http://HOST:PORT")
    urls = [part.strip().rstrip("/") for part in parts if part.strip()]
    for url in urls:
        try:
            split = urlsplit(url)
            good = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
        except ValueError:
            good = False
        if not good:
            raise ConfigError(f"masters: {url!r} given; allowed: https://HOST:PORT or http://HOST:PORT")
    return tuple(urls)


def _token(token: str | None, token_file: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> str:
    if token:
        return token
    if token_file is None:
        if environ.get("DEPALMA_TOKEN"):
            return environ["DEPALMA_TOKEN"]
        token_file = environ.get("DEPALMA_TOKEN_FILE") or None
    if token_file is None:
        return ""
    file = Path(token_file).expanduser()
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: it is no token: not UTF-8") from None
