"""Rules of style that a machine can check (CONTRIBUTING.md lists them)."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FUNCTION = 70  # lines
LARGEST_FILE = 1 << 20  # bytes
TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    if name
]
SOURCES = [
    p
    for p in TRACKED
    if p.suffix == ".py" and p.exists() and "_pb2" not in p.name and p.relative_to(ROOT).parts[0] != "tests"
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_functions_are_short_and_modules_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py" or tree.body:
        assert ast.get_docstring(tree), "the module has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} (line {node.lineno}) has {length} lines"


def test_no_file_is_huge_and_none_ends_without_a_newline() -> None:
    for path in TRACKED:
        if path.is_symlink() or not path.is_file():
            continue
        assert path.stat().st_size <= LARGEST_FILE, path
        data = path.read_bytes()
        if b"\0" not in data and data:
            assert data.endswith(b"\n"), f"{path} does not end with a newline"


def test_packages_are_links_to_the_top_level() -> None:
    for name in ("proto", "master", "agent", "deploy"):
        link = ROOT / "src/shoal" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name
