"""What the pages name exists: files, folders, targets of make, verbs of the command, the tree of the architecture."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from shoal.deploy.cli.main import VERBS, cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "GLOSSARY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FOLDERS = ("proto", "master", "agent", "deploy", "tests", "bench", "docs", "src")
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`")
TARGET = re.compile(r"^\.?(?:make|`make) ([a-z0-9-]+)|`make ([a-z0-9-]+)`", re.MULTILINE)
COMMAND = re.compile(r"^\$ shoal (.*)$", re.MULTILINE)
VERB = re.compile(r"^\$ shoal ([a-z]+)|`shoal ([a-z]+)", re.MULTILINE)


def found(pattern: re.Pattern[str], page: Path) -> set[str]:
    return {word for match in pattern.finditer(page.read_text()) for word in match.groups() if word}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_name_exists(page: Path) -> None:
    missing = [link for link in found(LINK, page) if not (page.parent / link).exists()]
    missing += [path for path in found(PATH, page) if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_and_verbs_that_pages_name_exist(page: Path) -> None:
    benches = {f"bench-{path.stem}" for path in (ROOT / "bench").glob("*.py")}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | benches
    assert found(TARGET, page) <= targets
    assert found(VERB, page) <= VERBS.keys()


def parse(line: str) -> None:
    """As the command would, options and all, without looking at what they name. Raises click.UsageError."""
    command: click.Command = cli
    words = shlex.split(line.partition(" | ")[0].removesuffix("&"))
    while isinstance(command, click.Group):
        context = click.Context(command, info_name="shoal")
        _, found_command, words = command.resolve_command(context, words)
        assert found_command is not None, line
        command = found_command
    context = click.Context(command, ignore_unknown_options=command.ignore_unknown_options)
    context.allow_extra_args = command.allow_extra_args
    command.make_parser(context).parse_args(words)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_commands_of_pages_parse(page: Path) -> None:
    for line in COMMAND.findall(page.read_text()):
        try:
            parse(line)
        except click.UsageError as error:
            pytest.fail(f"shoal {line}: {error.format_message()}")


def test_a_wrong_option_would_be_found() -> None:
    for wrong in ("plan --nonsense", "scheduler replya x", "rebalance --max-move 3 --dryrun", "nope"):
        with pytest.raises(click.UsageError):
            parse(wrong)


def test_the_tree_s_folders_exist() -> None:
    """Lines of the tree begin with a folder at column 0, or two further with one below the last."""
    tree = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    top, named = "", []
    for line in tree.splitlines():
        if match := re.match(r"(  )?([a-z]+)/? ", line):
            top = top if match[1] else match[2]
            named.append(f"{top}/{match[2]}" if match[1] else top)
    assert {"proto", "master", "master/store", "agent/pods", "deploy", "tests"} <= set(named)
    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()] == []
