"""How `make test` judges a stage: only what passes alone is forgiven, and it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages import FIXED, MOST_AGAIN, NOISY, ROOT, Outcome, fixed, noisy, summary

FINE = "def test_fine(): pass\n"
FIRST = """
import pathlib
def test_first():
    mark = pathlib.Path(__file__).with_name("mark")
    seen = mark.exists()
    mark.touch()
    assert seen
"""
ALWAYS = "def test_always(): assert False\n"
RUNS = """
import pathlib
def test_runs():
    with open(pathlib.Path(__file__).with_name("runs"), "a") as file:
        file.write("x")
"""
SKIPPED_AGAIN = """
import pathlib, pytest
def test_skipped_again():
    mark = pathlib.Path(__file__).with_name("mark")
    if mark.exists():
        pytest.skip("no more")
    mark.touch()
    assert False
"""
BROKEN = "import nothing_of_that_name\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tests/node").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return tmp_path


def holding(root: Path, *texts: str) -> Path:
    (root / "tests/node/test_it.py").write_text("\n".join(texts))
    return root


def name(test: str) -> str:
    return f"tests/node/test_it.py::{test}"


def test_what_fails_the_first_time_only_is_forgiven_and_named(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = noisy("tests/node", holding(root, FINE, FIRST, RUNS))
    assert outcome == Outcome(True, (name("test_first"),))
    assert (root / "tests/node/runs").read_text() == "x", "what passed is not run again"
    out = capfd.readouterr().out
    assert "1 failed, 2 passed" in out and "1 passed" in out.rpartition("a second look")[2], "both are printed"
    code, lines = summary({"meta": Outcome(True), "node": outcome})
    assert code == 0 and lines[0] == f"node: {name('test_first')} failed at first and passed alone"


def test_what_fails_again_fails_the_stage(root: Path) -> None:
    outcome = noisy("tests/node", holding(root, FINE, FIRST, ALWAYS))
    assert outcome == Outcome(False, (name("test_first"),))
    assert summary({"node": outcome}) == (1, [*summary({"node": outcome})[1][:-1], "failed: node"])


def test_all_is_well(root: Path) -> None:
    assert noisy("tests/node", holding(root, FINE)) == Outcome(True)
    assert summary({"node": Outcome(True)}) == (0, ["all stages passed"])


@pytest.mark.parametrize("text", [SKIPPED_AGAIN, BROKEN])
def test_what_does_not_run_again_has_not_passed(root: Path, text: str) -> None:
    assert noisy("tests/node", holding(root, FINE, text)) == Outcome(False)


def test_many_failures_get_no_second_look(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    many = [FIRST.replace("test_first", f"test_{n}").replace("mark", f"mark{n}") for n in range(MOST_AGAIN + 1)]
    assert noisy("tests/node", holding(root, *many)) == Outcome(False)
    assert "no second look" in capfd.readouterr().out
    assert noisy("tests/node", holding(root, *many)) == Outcome(True), "each failed the first time only"


def test_stages_that_are_deterministic_get_none(root: Path) -> None:
    assert fixed("tests/node", holding(root, FIRST)) == Outcome(False)
    assert set(FIXED) == {"meta", "unit", "property", "sim"} and not set(FIXED) & set(NOISY)


def test_every_folder_of_tests_is_a_stage() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders == {*FIXED, *NOISY}
