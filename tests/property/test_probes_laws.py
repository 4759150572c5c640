"""Whatever the tries say: verdicts are changes, each backed by its threshold, and held probes say nothing."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.pods.probing import LIVENESS, READINESS, STARTUP
from shoal.agent.probes.state import HISTORY, KINDS, Outcome, RunState
from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o

probes = st.builds(o.Probe, successThreshold=st.integers(1, 3), failureThreshold=st.integers(1, 4))
tries = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([True, True, False, False, None])), max_size=60)


@given(st.dictionaries(st.sampled_from(KINDS), probes, min_size=1), tries, st.booleans(), st.booleans())
def test_verdicts(given: dict[str, o.Probe], tries: list[tuple[str, bool | None]], started: bool, ready: bool) -> None:
    run = RunState(ContainerID("p", "c", 0), given, started=started, ready=ready)
    seen: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    counted: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for kind, passed in tries:
        if kind not in run.probes or not run.may_ask(kind):
            continue
        startup_passed = STARTUP not in given or started or True in seen[STARTUP]
        assert kind == STARTUP or startup_passed
        verdict = run.tried(kind, Outcome(passed), 1.0, 1)
        if passed is not None:
            counted[kind].append(passed)
        if verdict is None:
            continue
        seen[kind].append(verdict.passed)
        needed = given[kind].successThreshold if verdict.passed else given[kind].failureThreshold
        assert counted[kind][-needed:] == [verdict.passed] * needed
        assert len(verdict.history) == min(len(counted[kind]), HISTORY)
    assert seen[LIVENESS] in ([], [False])
    assert len(seen[STARTUP]) <= 1
    flips = ([True] if ready else []) + seen[READINESS]
    assert all(before != after for before, after in pairwise(flips))


@given(probes, st.lists(st.booleans(), max_size=60))
def test_readiness_against_a_plain_count(probe: o.Probe, outcomes: list[bool]) -> None:
    """The state that is told last is the one that last reached its threshold."""
    run = RunState(ContainerID("p", "c", 0), {READINESS: probe}, started=False, ready=False)
    state: bool | None = None
    expected: bool | None = None
    for n, outcome in enumerate(outcomes, start=1):
        verdict = run.tried(READINESS, Outcome(outcome), float(n), 0)
        state = verdict.passed if verdict is not None else state
        needed = probe.successThreshold if outcome else probe.failureThreshold
        if n >= needed and outcomes[n - needed : n] == [outcome] * needed:
            expected = outcome
        assert state == expected
