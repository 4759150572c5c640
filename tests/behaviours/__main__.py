"""`python -m tests.behaviours`: runs every test that carries a behaviour's number and prints all hundred of them.

A test belongs to the number in its name (`test_b17_...`), wherever it lies under tests/. pass: it has tests and all
passed; fail: one failed; not yet: it has none. Exit code 1 when one failed. Arguments go to pytest.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ALL = range(1, 101)
NUMBERED = re.compile(r"^def test_b(\d+)_|^async def test_b(\d+)_", re.MULTILINE)
NUMBER = re.compile(r"test_b(\d+)_")
COLUMNS = 5
TESTS = Path(__file__).parents[1]


class Results:
    """A pytest plugin: the outcome of each numbered test."""

    def __init__(self) -> None:
        self.outcomes: dict[int, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = NUMBER.search(report.nodeid.rpartition("::")[2])
        if found is not None and (report.when == "call" or report.outcome != "passed"):
            self.outcomes.setdefault(int(found[1]), set()).add(report.outcome)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only what is numbered."""
    items[:] = [item for item in items if NUMBER.match(item.name)]


def verdict(outcomes: set[str]) -> str:
    if "failed" in outcomes:
        return "fail"
    return "pass" if "passed" in outcomes else "not yet"


def table(outcomes: Mapping[int, set[str]]) -> str:
    """Twenty lines of five numbers."""
    cells = [f"B{number:<3} {verdict(outcomes.get(number, set())):<8}" for number in ALL]
    rows = len(cells) // COLUMNS
    return "\n".join("  ".join(cells[row::rows]).rstrip() for row in range(rows))


def main(arguments: list[str]) -> int:
    files = sorted(str(path) for path in TESTS.rglob("test_*.py") if NUMBERED.search(path.read_text()))
    results = Results()
    code = pytest.main(["-q", "--no-header", *files, *arguments], plugins=[results, sys.modules[__name__]])
    print(table(results.outcomes))
    counts = dict.fromkeys(("pass", "fail", "not yet"), 0)
    for number in ALL:
        counts[verdict(results.outcomes.get(number, set()))] += 1
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
