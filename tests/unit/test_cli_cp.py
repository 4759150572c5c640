"""`shoal cp`: which side is meant, and what a terminal is told of a long copy."""

from __future__ import annotations

import sys

import pytest

from shoal.deploy.cli import cp
from shoal.deploy.cli.cp import Place, Progress, place_of
from shoal.deploy.cli.failures import CommandError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web-0:/etc/x", Place("/etc/x", "web-0")),
        ("prod/web-0:/a:b", Place("/a:b", "web-0", "prod")),
        ("./a:b", Place("./a:b")),
        ("/tmp/a:b", Place("/tmp/a:b")),
        ("folder/sub/a:b", Place("folder/sub/a:b")),
        ("plain", Place("plain")),
        (":/x", Place(":/x")),
    ],
)
def test_which_side_is_meant(text: str, place: Place) -> None:
    assert place_of(text) == place


def test_a_relative_path_in_a_container_is_refused() -> None:
    with pytest.raises(CommandError, match="must be absolute, as in web-0:/tmp/file"):
        place_of("web-0:etc")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(cp, "PATIENT_SECONDS", 0.0)
    monkeypatch.setattr(cp, "TICK_SECONDS", 0.0)
    progress = Progress()
    assert sum(map(len, progress.count([bytes(cp.MIB)] * 3))) == 3 * cp.MIB
    progress.say("warning: x")
    shown = capsys.readouterr().err
    assert ("3.0 MiB, " in shown) == terminal and shown.endswith("warning: x\n")


def test_a_kind_before_the_pod_is_not_taken_for_a_namespace() -> None:
    with pytest.raises(CommandError, match="name a pod itself, as in web-0:/etc"):
        place_of("deploy/web:/etc")
