"""From a probe's tries to what is told: thresholds, and which probe holds which back. Pure; `now` is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.agent.pods.probing import LIVENESS, READINESS, STARTUP, Probed, Target, Verdict
from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o

KINDS = (STARTUP, LIVENESS, READINESS)
PERIOD_S, TIMEOUT_S, SUCCESSES, FAILURES = 10, 1, 1, 3  # Kubernetes' defaults
HISTORY = 10  # tries
MESSAGE_CHARS = 1024  # of one try


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try. `passed` None: it could not be asked (the runtime is away), which counts for nothing; `gone`: who asks
    for us went away meanwhile and comes back."""

    passed: bool | None
    message: str = ""
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """One probe's numbers, in seconds and tries, with the defaults filled in."""

    delay_s: float
    period_s: float
    timeout_s: float
    successes: int
    failures: int


def rules_of(probe: o.Probe) -> Rules:
    return Rules(
        delay_s=max(probe.initialDelaySeconds, 0),
        period_s=probe.periodSeconds if probe.periodSeconds > 0 else PERIOD_S,
        timeout_s=probe.timeoutSeconds if probe.timeoutSeconds > 0 else TIMEOUT_S,
        successes=probe.successThreshold if probe.successThreshold > 0 else SUCCESSES,
        failures=probe.failureThreshold if probe.failureThreshold > 0 else FAILURES,
    )


@dataclass(slots=True)
class ProbeState:
    """One probe of one run. `told` is what the pod's machine knows: None before the first verdict."""

    kind: str
    rules: Rules
    told: bool | None = None
    done: bool = False  # nothing more is to be asked of this run
    last: bool | None = None
    alike: int = 0  # tries in a row that ended as `last`
    history: deque[Probed] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def tried(self, outcome: Outcome, at: float, milliseconds: int) -> bool | None:
        """Counts a try that began at `at`; what is to be told now, if anything."""
        if self.done or outcome.passed is None:
            return None
        passed = outcome.passed
        self.history.append(Probed(self.kind, at, passed, outcome.message[:MESSAGE_CHARS], milliseconds))
        self.alike = self.alike + 1 if passed == self.last else 1
        self.last = passed
        if self.alike < (self.rules.successes if passed else self.rules.failures) or passed == self.told:
            return None
        self.told = passed
        self.done = self.kind == STARTUP or (self.kind == LIVENESS and not passed)
        # A container counts as alive until it is told otherwise.
        return None if self.kind == LIVENESS and passed else passed


class RunState:
    """All probes of one run of a container."""

    def __init__(self, id: ContainerID, probes: Mapping[str, o.Probe], *, started: bool, ready: bool) -> None:
        self.id = id
        self.probes = {kind: ProbeState(kind, rules_of(probes[kind])) for kind in KINDS if kind in probes}
        if started:
            self.probes.pop(STARTUP, None)
        if ready and READINESS in self.probes:
            self.probes[READINESS].told = True

    @property
    def held(self) -> bool:
        """Whether the startup probe holds the others back."""
        startup = self.probes.get(STARTUP)
        return startup is not None and startup.told is not True

    def may_ask(self, kind: str) -> bool:
        """False for now, or for ever (`probes[kind].done`)."""
        return not self.probes[kind].done and (kind == STARTUP or not self.held)

    def tried(self, kind: str, outcome: Outcome, at: float, milliseconds: int) -> Verdict | None:
        """The change that this try makes, to be told once."""
        probe = self.probes[kind]
        passed = probe.tried(outcome, at, milliseconds)
        if passed is None:
            return None
        return Verdict(self.id, kind, passed, outcome.message[:MESSAGE_CHARS], tuple(probe.history))


def first_try(target: Target, rules: Rules, now: float, random: float) -> float:
    """Seconds from `now` (CLOCK_REALTIME) until a probe's first try; `random` in 0..1 spreads what begins at once.

    A new container is asked soon after its delay, one that an earlier agent has watched within a period.
    """
    left = min(max(target.started_at + rules.delay_s - now, 0.0), rules.delay_s)
    watched = target.started or target.ready or now - target.started_at > rules.delay_s + rules.period_s
    return left + random * (rules.period_s if watched else min(rules.period_s, 1.0))


def next_try(due: float, period_s: float, now: float) -> float:
    """The next tick of a probe whose last was at `due`, after `now`: missed ones are left out."""
    return due + period_s * max(1, int((now - due) // period_s) + 1)
