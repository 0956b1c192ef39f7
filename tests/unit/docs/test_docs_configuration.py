"""docs/configuration.md lists every field of the cluster file, with the default that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo

from depalma.config import LIMITS, ClusterConfig, HostConfig, MasterConfig, Settings
from depalma.ownership import OwnerPolicy

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
SECTIONS: dict[str, type[Struct]] = {
    "The file": ClusterConfig,
    "A master": MasterConfig,
    "A host": HostConfig,
    "The owner of a host": OwnerPolicy,
    "Settings": Settings,
}


def rows_of(section: str) -> dict[str, str]:
    """Returns the documented default of each key of a section."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE))


def default_of(field: FieldInfo) -> str:
    """Returns how the page writes the field's default."""
    default = field.default
    if default is NODEFAULT and field.default_factory is not NODEFAULT:
        default = field.default_factory()
    if default is NODEFAULT:
        return "required"
    if isinstance(default, Settings | OwnerPolicy):
        return "all defaults"
    if default == "":
        return "empty"
    if isinstance(default, str):
        return f"`{default}`"
    return f"`{str(list(default)) if isinstance(default, tuple) else default}`"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_documented_with_its_default(section: str) -> None:
    expected = {field.name: default_of(field) for field in msgspec.structs.fields(SECTIONS[section])}

    assert rows_of(section) == expected


def test_limits_of_settings_are_those_that_are_checked() -> None:
    text = PAGE.read_text().split("\n## Settings\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*?) ?\|", text, re.MULTILINE))

    for name, (low, high) in LIMITS.items():
        assert told[name] == f"{low:.16g} to {high:.16g}", name
