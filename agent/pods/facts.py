"""What a node knows of one container of a pod: its image, its runs, and why it waits. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.agent.images.port import Image
from shoal.agent.pods.backoff import CrashBackoff
from shoal.agent.pods.spec import CONFIG_REASONS
from shoal.agent.runtime.port import ContainerState, Exit
from shoal.agent.state import RunNote
from shoal.proto.references import Reference
from shoal.proto.v1 import objects_pb2 as o

STARTING, RUNNING, ENDED = "starting", "running", "ended"
CODE_LOST = "ContainerStatusUnknown"
APP, INIT, SIDECAR = "app", "init", "sidecar"
NOT_ASKED, ASKED, ANSWERED = "not asked", "asked", "answered"
NOTHING = RunNote()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run began with. Nobody changes these messages: what changes is put in their place."""

    pod: o.Pod
    container: o.Container
    image: Image | None
    objects: Mapping[Reference, o.ConfigMap | o.Secret | None]


@dataclass(slots=True)
class Run:
    """One attempt. It only goes forward: starting, running, ended."""

    attempt: int
    state: str = STARTING
    started_at: float = 0.0
    finished_at: float = 0.0
    exit: Exit | None = None
    reason: str = ""  # why it ended, in Kubernetes' word
    message: str = ""  # why it could not be started
    code: int = 0
    note: RunNote = NOTHING  # what outlives the agent
    unready: str = ""  # what its readiness probe said last
    probed: bool = False  # the prober knows it
    post_start: str = NOT_ASKED
    pre_stop: str = NOT_ASKED
    tail: str = NOT_ASKED  # of its log
    told_at: float = 0.0  # when it was sent its stop signal
    kill_at: float = 0.0  # when KILL follows
    kill_due: bool = False
    term_sent: bool = False
    kill_sent: bool = False
    seen: Seen | None = None  # None: it was started by an agent before this one
    weighed: bool = False  # after its end: whether it was a death, and what it proves
    death: o.Death | None = None  # until it is buried

    @property
    def stale(self) -> bool:
        return self.note.stale

    @property
    def misconfigured(self) -> bool:
        """Nothing was started: the container waits until its configuration is right."""
        return self.reason in CONFIG_REASONS

    def begin(self, at: float) -> None:
        self.started_at = self.started_at or at
        if self.state == STARTING:
            self.state = RUNNING

    def end(self, exit: Exit) -> None:
        if self.state == ENDED:
            return
        self.state, self.exit, self.code, self.finished_at = ENDED, exit, exit.code, exit.at
        self.reason = exit.reason or ("OOMKilled" if exit.oom else "Completed" if exit.code == 0 else "Error")

    def fail(self, reason: str, message: str, code: int, at: float) -> None:
        if self.state == ENDED:
            return
        self.state, self.code, self.finished_at = ENDED, code, at
        self.reason, self.message = reason, message

    def doom(self, reason: str, message: str, grace: float, now: float) -> None:
        """The agent ends it from here on, once."""
        if not self.note.end_since and self.state != ENDED:
            self.note = replace(self.note, end_since=max(now, 1.0), grace=grace, reason=reason, message=message)

    @property
    def ran_for(self) -> float:
        return max(self.finished_at - self.started_at, 0.0) if self.started_at else 0.0

    @property
    def end_reason(self) -> str:
        """Why it ended: what the agent ended it for, else what the runtime says."""
        return self.note.reason or self.reason

    @property
    def end_message(self) -> str:
        """That in a sentence, then what the container itself said at its end."""
        said = (self.exit.message if self.exit else "") or self.note.said
        return "\n".join(part for part in (self.message or self.note.message, said) if part)


@dataclass(slots=True)
class ContainerFacts:
    spec: o.Container
    kind: str = APP
    image: Image | None = None
    looked: bool = False  # for its image on the node
    pulled: bool = False  # for the next run
    pull_note: str = ""  # what was wrong with its credentials
    pull_failures: int = 0
    pull_next: float = 0.0  # when the next try is
    pull_resting: bool = False
    run: Run | None = None
    previous: Run | None = None
    older: set[int] = field(default_factory=set)  # attempts before `previous` that still take up the disk
    backoff: CrashBackoff = field(default_factory=CrashBackoff)
    resting: bool = False  # the backoff has not passed yet
    next_start: float = 0.0  # when it will have
    unusable: bool = False  # its image is not here, or no image can have that name
    problem: tuple[str, str] | None = None  # reason and message of what holds it back until something changes
    notes: Mapping[str, RunNote] = field(default_factory=dict)  # as the last agent left them

    @property
    def restarts(self) -> int:
        """The highest attempt that is known to be on the disk, without those that never started anything."""
        if self.run is None:
            return 0
        begun = self.run.state != STARTING and not self.run.misconfigured
        return self.run.attempt if begun else max(self.run.attempt - 1, 0)

    @property
    def live(self) -> bool:
        return self.run is not None and self.run.state == RUNNING

    @property
    def up(self) -> bool:
        """It runs, and its postStart hook has gone well."""
        return self.run is not None and self.live and (self.run.note.hooked or not self.has_hook("postStart"))

    @property
    def started(self) -> bool:
        return self.up and self.run is not None and (self.run.note.started or not self.spec.HasField("startupProbe"))

    @property
    def ready(self) -> bool:
        if self.kind == INIT:
            return self.finished
        probed = self.spec.HasField("readinessProbe")
        return self.started and self.run is not None and (self.run.note.ready or not probed)

    @property
    def finished(self) -> bool:
        """Of an init container: it has done its work in this sandbox."""
        run = self.run
        return run is not None and run.state == ENDED and run.code == 0 and not run.misconfigured and not run.stale

    def has_hook(self, which: str) -> bool:
        return self.spec.HasField("lifecycle") and self.spec.lifecycle.HasField(which)  # type: ignore[arg-type]

    def restartable(self, policy: str) -> bool:
        """Whether the policy asks for another run after the one that has ended."""
        run = self.run
        if run is None or run.misconfigured or self.kind == SIDECAR:
            return True
        if self.kind == INIT:
            return (policy != "Never" and run.code != 0) or (run.stale and run.code == 0)
        return policy == "Always" or (policy == "OnFailure" and run.code != 0)

    def over(self, policy: str) -> bool:
        """It has ended, for good."""
        return self.run is not None and self.run.state == ENDED and not self.restartable(policy)

    def next_attempt(self) -> int:
        return 0 if self.run is None else self.run.attempt + (self.run.state == ENDED)

    def open_run(self, attempt: int) -> Run:
        """The run of this attempt, made the current one; the one before it is kept as `previous`."""
        if self.run is not None and self.run.attempt == attempt:
            return self.run
        if self.previous is not None:
            self.older.add(self.previous.attempt)
        self.previous, self.run = self.run, self._new(attempt, RunNote(ends=self.backoff.ends))
        return self.run

    def _new(self, attempt: int, note: RunNote) -> Run:
        return Run(attempt, note=self.notes.get(self.note_key(attempt), note))

    def note_key(self, attempt: int) -> str:
        return f"{self.spec.name}/{attempt}"

    def set_aside(self) -> None:
        """The current run, which never started anything, is gone from the node: its attempt is free again."""
        run = self.run
        if run is not None:
            self.problem = (run.reason, run.message)
            self.run, self.previous = self.previous, None

    def learn(self, state: ContainerState, now: float) -> bool:
        """Takes in what the runtime says of one run; True when the current run has just ended."""
        attempt = state.id.attempt
        if self.run is not None and attempt < self.run.attempt:
            self._learn_earlier(state, now)
            return False
        run = self.open_run(attempt)
        was = run.state
        if state.started_at:
            self.problem = None
        _take(run, state, now)
        return was != ENDED and run.state == ENDED

    def _learn_earlier(self, state: ContainerState, now: float) -> None:
        """A run before the current one. An agent that starts again may hear of the newest first: the one before it is
        still to be known, for its logs and for the count of restarts."""
        attempt, known = state.id.attempt, self.previous
        if known is not None and attempt < known.attempt:
            self.older.add(attempt)
        elif known is None or attempt > known.attempt:
            if known is not None:
                self.older.add(known.attempt)
            self.older.discard(attempt)
            self.previous = self._new(attempt, NOTHING)
            _take(self.previous, state, now)


def _take(run: Run, state: ContainerState, now: float) -> None:
    if state.started_at:
        run.begin(state.started_at)
    if state.exit is not None:
        run.end(state.exit)
    elif state.start_error is not None:
        fault = state.start_error
        run.fail(fault.reason, fault.message, fault.exit_code, state.started_at or now)


def containers_of(pod: o.Pod) -> dict[str, ContainerFacts]:
    """By name, in the order in which they start: init containers and sidecars, then the app's."""
    kinds = {c.name: SIDECAR if c.restartPolicy == "Always" else INIT for c in pod.spec.initContainers}
    every = (*pod.spec.initContainers, *pod.spec.containers)
    return {c.name: ContainerFacts(c, kinds.get(c.name, APP)) for c in every}
