"""What a node knows of one container of a pod: its image, its runs, and why it waits. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.agent.images.port import Image
from shoal.agent.pods.backoff import CrashBackoff
from shoal.agent.pods.spec import CONFIG_REASONS
from shoal.agent.runtime.port import ContainerState, Exit
from shoal.proto.v1 import objects_pb2 as o

STARTING, RUNNING, ENDED = "starting", "running", "ended"
CODE_LOST = "ContainerStatusUnknown"


@dataclass(slots=True)
class Run:
    """One attempt. It only goes forward: starting, running, ended."""

    attempt: int
    state: str = STARTING
    started_at: float = 0.0
    finished_at: float = 0.0
    exit: Exit | None = None
    reason: str = ""  # why it ended, in Kubernetes' word
    message: str = ""
    code: int = 0
    term_sent: bool = False
    kill_sent: bool = False

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

    @property
    def ran_for(self) -> float:
        return max(self.finished_at - self.started_at, 0.0) if self.started_at else 0.0


@dataclass(slots=True)
class ContainerFacts:
    spec: o.Container
    image: Image | None = None
    run: Run | None = None
    previous: Run | None = None
    older: set[int] = field(default_factory=set)  # attempts before `previous` that still take up the disk
    backoff: CrashBackoff = field(default_factory=CrashBackoff)
    resting: bool = False  # the backoff has not passed yet
    next_start: float = 0.0  # when it will have
    unusable: bool = False  # its image is not here, or no image can have that name
    problem: tuple[str, str] | None = None  # reason and message of what holds it back until something changes

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

    def restartable(self, policy: str) -> bool:
        """Whether the policy asks for another run after the one that has ended."""
        run = self.run
        if run is None or run.misconfigured:
            return True
        return policy == "Always" or (policy == "OnFailure" and run.code != 0)

    def next_attempt(self) -> int:
        return 0 if self.run is None else self.run.attempt + (self.run.state == ENDED)

    def open_run(self, attempt: int) -> Run:
        """The run of this attempt, made the current one; the one before it is kept as `previous`."""
        if self.run is not None and self.run.attempt == attempt:
            return self.run
        if self.previous is not None:
            self.older.add(self.previous.attempt)
        self.previous, self.run = self.run, Run(attempt)
        return self.run

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
        _note(run, state, now)
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
            self.previous = Run(attempt)
            _note(self.previous, state, now)


def _note(run: Run, state: ContainerState, now: float) -> None:
    if state.started_at:
        run.begin(state.started_at)
    if state.exit is not None:
        run.end(state.exit)
    elif state.start_error is not None:
        fault = state.start_error
        run.fail(fault.reason, fault.message, fault.exit_code, state.started_at or now)
