"""All tests, stage by stage, each with its seconds: `python -m tests.stages`, with everything set up by `make test`.

The machine's noise reaches node, cluster and behaviours. What fails there is run once more, alone, in a process of its
own: a test that passes then is named as one to be mended, one that fails again fails the stage. The other stages are
deterministic and get no second look.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
FIXED = ("meta", "unit", "property", "sim")
NOISY = ("node", "cluster", "behaviours")
MOST_AGAIN = 10  # with more failures than these the machine is not to blame
NO_CACHE = "-p no:cacheprovider"
TESTS_FAILED = 1  # pytest's exit code; others are no matter of single tests


@dataclass(frozen=True, slots=True)
class Outcome:
    passed: bool
    alone: tuple[str, ...] = ()  # tests that failed at first and passed alone


def say(*words: str) -> None:
    print(*words, flush=True)


def run(*command: str, root: Path = ROOT) -> int:
    return subprocess.run(command, cwd=root, check=False).returncode


def pytest(folder: str, *options: str, root: Path = ROOT) -> int:
    return run(sys.executable, "-m", "pytest", "-q", *options, folder, root=root)


def options_with_cache() -> str:
    """The options of pyproject.toml, but for the one that keeps no cache."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    return str(settings["addopts"]).replace(NO_CACHE, "")


def failures(cache: Path) -> frozenset[str]:
    """Node ids of the failed tests, as pytest's cache has them."""
    path = cache / "v/cache/lastfailed"
    return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()


def passes(report: Path) -> int:
    """How many tests have passed, of a JUnit report."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    return sum(
        int(suite.get("tests", 0)) - sum(int(suite.get(kind, 0)) for kind in ("failures", "errors", "skipped"))
        for suite in suites
    )


def fixed(folder: str, root: Path = ROOT) -> Outcome:
    return Outcome(pytest(folder, root=root) == 0)


def noisy(folder: str, root: Path = ROOT) -> Outcome:
    """A stage whose few failures are looked at a second time."""
    with tempfile.TemporaryDirectory(prefix="shoal-stage-") as made:
        cache, report = Path(made, "cache"), Path(made, "again.xml")
        options = ("-o", f"addopts={options_with_cache()}", "-o", f"cache_dir={cache}")
        code = pytest(folder, *options, root=root)
        failed = failures(cache)
        if code == 0:
            return Outcome(True)
        if code != TESTS_FAILED or not failed:
            return Outcome(False)
        if len(failed) > MOST_AGAIN:
            say(f"== {folder}: {len(failed)} tests failed, more than {MOST_AGAIN}: no second look")
            return Outcome(False)
        say(f"== {folder}: a second look at {len(failed)} failed test(s), alone")
        code = pytest(folder, *options, "--last-failed", f"--junitxml={report}", root=root)
        again = failures(cache)
        # What was skipped has not passed, though the cache forgets that it failed
        if code not in (0, TESTS_FAILED) or passes(report) != len(failed - again):
            return Outcome(False)
        return Outcome(not again, tuple(sorted(failed - again)))


def told(name: str, outcome: Outcome) -> list[str]:
    return [f"{name}: {test} failed at first and passed alone" for test in outcome.alone]


def summary(outcomes: dict[str, Outcome]) -> tuple[int, list[str]]:
    """The exit code of all stages, and what is said last."""
    lines = [line for name, outcome in outcomes.items() for line in told(name, outcome)]
    if lines:
        lines.append("CONTRIBUTING.md: such a test is a fault to be mended")
    failed = [name for name, outcome in outcomes.items() if not outcome.passed]
    lines.append(f"failed: {' '.join(failed)}" if failed else "all stages passed")
    return int(bool(failed)), lines


def stages() -> dict[str, Sequence[str]]:
    """What is no test: name and command."""
    ruff, mypy = str(BIN / "ruff"), str(BIN / "mypy")
    return {
        "format": (ruff, "format", "--check", "-q", "."),
        "lint": (ruff, "check", "-q", "."),
        "types": (mypy, "src", "tests", "bench"),
    }


def outcome_of(name: str) -> Outcome:
    if command := stages().get(name):
        return Outcome(run(*command) == 0)
    return (noisy if name in NOISY else fixed)(f"tests/{name}")


def main() -> int:
    outcomes: dict[str, Outcome] = {}
    for name in (*stages(), *FIXED, *NOISY):
        start = time.monotonic()
        say(f"== {name}")
        outcomes[name] = outcome_of(name)
        for line in told(name, outcomes[name]):
            say(f"== {line}")
        say(f"== {name}: {time.monotonic() - start:.0f} s")
    code, lines = summary(outcomes)
    say("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
