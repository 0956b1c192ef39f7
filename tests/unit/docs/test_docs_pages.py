"""The pages that a stranger reads: links lead somewhere, commands exist, the README's program is the tested one."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from depalma.ctl.main import cli

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "*/README.md", "depalma/**/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link]

    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_the_program_in_the_readme_is_the_example_that_is_tested() -> None:
    program = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]

    assert program.strip() in (ROOT / "examples" / "hello.py").read_text()


def commands_in(page: Path) -> set[str]:
    return set(re.findall(r"(?:^\$ |`)depalmactl ((?:[a-z]+ ?)+)", page.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if commands_in(p) and p.parent.name != "adr"],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_commands_exist(page: Path) -> None:
    unknown = []
    for words in commands_in(page):
        command: click.Command | None = cli
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            command = command.get_command(click.Context(command), word)
            if command is None:
                unknown.append(words)
                break

    assert unknown == []


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text()

    assert [path.name for path in sorted(folder.glob("0*.md")) if f"({path.name})" not in index] == []


def test_the_tree_has_no_word_for_things_to_be_filled_in() -> None:
    found = [
        page.name
        for page in PAGES
        if re.search(r"\bTODO\b|\bTBD\b|^[A-Z]+_(OUTPUT|TABLE)$", page.read_text(), re.MULTILINE)
    ]

    assert found == []
