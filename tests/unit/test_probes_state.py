"""Thresholds, what is told, and what holds what back."""

from __future__ import annotations

import pytest

from shoal.agent.pods.probing import LIVENESS, READINESS, STARTUP, Target, Verdict
from shoal.agent.probes.state import HISTORY, Outcome, Rules, RunState, first_try, next_try, rules_of
from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o

ID = ContainerID("pod", "main", 0)
PASS, FAIL, UNKNOWN = Outcome(True, "fine"), Outcome(False, "broken"), Outcome(None, "who knows")


def run_of(*, started: bool = False, ready: bool = False, **probes: o.Probe) -> RunState:
    return RunState(ID, probes, started=started, ready=ready)


def told(run: RunState, kind: str, *outcomes: Outcome) -> list[bool | None]:
    """What each try tells."""
    found: list[Verdict | None] = [run.tried(kind, outcome, float(n), 1) for n, outcome in enumerate(outcomes)]
    return [verdict.passed if verdict is not None else None for verdict in found]


def test_defaults_are_kubernetes() -> None:
    assert rules_of(o.Probe()) == Rules(delay_s=0, period_s=10, timeout_s=1, successes=1, failures=3)


def test_liveness_is_told_once_after_its_failures_in_a_row() -> None:
    run = run_of(liveness=o.Probe(failureThreshold=3))
    assert told(run, LIVENESS, FAIL, FAIL, PASS, FAIL, FAIL) == [None] * 5
    assert told(run, LIVENESS, FAIL) == [False]
    assert not run.may_ask(LIVENESS)
    assert told(run, LIVENESS, FAIL, FAIL, FAIL, PASS) == [None] * 4


def test_readiness_tells_flips_only() -> None:
    run = run_of(readiness=o.Probe(failureThreshold=2, successThreshold=2))
    assert told(run, READINESS, FAIL, PASS, PASS, PASS) == [None, None, True, None]
    assert told(run, READINESS, FAIL, PASS, FAIL, FAIL, FAIL) == [None, None, None, False, None]
    assert told(run, READINESS, PASS, PASS) == [None, True]


def test_a_readiness_that_never_passed_says_why_once() -> None:
    run = run_of(readiness=o.Probe(failureThreshold=2))
    assert told(run, READINESS, FAIL, FAIL, FAIL, FAIL) == [None, False, None, None]


def test_what_cannot_be_asked_counts_for_nothing() -> None:
    run = run_of(liveness=o.Probe(failureThreshold=2))
    assert told(run, LIVENESS, FAIL, UNKNOWN, FAIL) == [None, None, False]


def test_startup_holds_the_others_back_and_is_asked_no_more() -> None:
    probe = o.Probe(failureThreshold=5)
    run = run_of(startup=probe, liveness=probe, readiness=probe)
    assert [run.may_ask(kind) for kind in (STARTUP, LIVENESS, READINESS)] == [True, False, False]
    assert told(run, STARTUP, FAIL, FAIL, PASS) == [None, None, True]
    assert [run.may_ask(kind) for kind in (STARTUP, LIVENESS, READINESS)] == [False, True, True]


def test_a_failed_startup_is_told_and_nothing_else_is_asked() -> None:
    run = run_of(startup=o.Probe(failureThreshold=2), readiness=o.Probe())
    assert told(run, STARTUP, FAIL, FAIL, FAIL) == [None, False, None]
    assert [run.may_ask(kind) for kind in (STARTUP, READINESS)] == [False, False]


def test_an_agent_that_starts_again_goes_on_from_what_was() -> None:
    run = run_of(started=True, ready=True, startup=o.Probe(), readiness=o.Probe(failureThreshold=1), liveness=o.Probe())
    assert STARTUP not in run.probes
    assert run.may_ask(LIVENESS)
    assert told(run, READINESS, PASS, FAIL) == [None, False]


def test_a_verdict_carries_the_last_tries() -> None:
    run = run_of(liveness=o.Probe(failureThreshold=3))
    told(run, LIVENESS, *[PASS] * 20, FAIL, FAIL)
    verdict = run.tried(LIVENESS, Outcome(False, "x" * 5000), 22.0, 7)
    assert verdict is not None
    assert [probed.passed for probed in verdict.history] == [True] * (HISTORY - 3) + [False] * 3
    assert (verdict.history[-1].at, verdict.history[-1].milliseconds) == (22.0, 7)
    assert len(verdict.message) == len(verdict.history[-1].message) == 1024


@pytest.mark.parametrize(
    ("now", "started", "expected"),
    [
        (100.0, False, 5.25),  # new: soon after its delay
        (103.0, False, 2.25),
        (100.0, True, 9.0),  # watched before: within its delay and a period
        (500.0, False, 4.0),  # so long ago that another agent has watched it
        (20.0, False, 5.25),  # the clock was set back: no more than the delay
    ],
)
def test_the_first_try(now: float, started: bool, expected: float) -> None:
    target = Target(ID, "10.0.0.1", 100.0, {}, started=started)
    rules = rules_of(o.Probe(initialDelaySeconds=5, periodSeconds=16))
    assert first_try(target, rules, now, 0.25) == expected


def test_ticks_keep_their_phase_and_missed_ones_are_left_out() -> None:
    assert next_try(10.0, 2.0, 10.5) == 12.0
    assert next_try(10.0, 2.0, 12.0) == 14.0
    assert next_try(10.0, 2.0, 17.5) == 18.0
