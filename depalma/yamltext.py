"""YAML files that people write: read whole and strictly, or refused in one message that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from depalma.errors import ConfigError

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that stands twice in a mapping: the first value would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def load(path: Path) -> Any:
    """Returns what stands in the file. Errors: FileNotFoundError, ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: byte {error.object[error.start]:#x} at {error.start}") from error
    return parse(text, where=str(path))


def parse(text: str, *, where: str) -> Any:
    """Returns what the text says. Errors: ConfigError whose message begins with `where`."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        raise ConfigError(f"{where}: not YAML: {error}") from error
