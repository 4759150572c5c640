"""Whatever happens in whatever order: phases go forward, restart counts grow, a forgotten pod asks for nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent.pods import instructions as i
from shoal.agent.pods.machine import PodMachine
from shoal.agent.runtime.port import ContainerID, ContainerState, Exit, StartError
from shoal.proto.v1 import objects_pb2 as o
from tests.agents import IMAGE, NODE, NOW, UID, Driver, deleted, make_pod

RANK = {"Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}
ACTIONS = (
    "done",
    "fail",
    "start_error",
    "exit",
    "late_exit",
    "time",
    "images",
    "assign",
    "delete",
    "remove",
    "restart",
)


class Life(Driver):
    """A driver over which random events run, with the runtime's own record of what was started."""

    def __init__(self, pod: o.Pod) -> None:
        super().__init__(pod)
        self.runs: dict[ContainerID, ContainerState] = {}
        self.freed = False
        self.disk_failed = False
        self.restarts: list[int] = []  # how many statuses had been published at each restart of the agent

    def answer(self, step: i.Step) -> object:
        if isinstance(step, i.Start):
            return self.runs.setdefault(step.spec.id, ContainerState(step.spec.id, 7, self.now, 1, None))
        if isinstance(step, i.RemoveContainer):
            removed = self.runs.pop(step.id, None)
            assert removed is None or removed.exit or removed.start_error, "only what has ended is removed"
        if isinstance(step, i.RemoveSandbox):
            self.freed = True
            self.runs.clear()
        return super().answer(step)

    def act(self, action: str, number: int) -> None:
        step = self.open[number % len(self.open)] if self.open else None
        match action:
            case "done" if step is not None:
                self.open.remove(step)
                self.send(i.Done(step, self.answer(step)))
            case "fail" if step is not None:
                self.open.remove(step)
                self.disk_failed = self.disk_failed or isinstance(step, i.Save)
                self.send(i.Failed(step, "NetworkNotReady", "why"))
            case "start_error" if isinstance(step, i.Start):
                self.open.remove(step)
                reason = ("StartError", "CreateContainerConfigError")[number % 2]
                error = StartError(reason, "no such file", 127)
                self.runs[step.spec.id] = ContainerState(step.spec.id, 0, 0.0, 0, None, error)
                self.send(i.Failed(step, reason, "no such file", 127, retryable=False))
            case "exit" | "late_exit":
                self._exit(number)
            case "time":
                self.pass_time(number * 7 % 400)
            case "images":
                self.send(i.ImagesChanged())
            case "assign":
                self.send(i.Assigned(self.machine.pod))
            case "delete":
                self.send(i.Assigned(deleted(self.machine.pod, grace=number % 40)))
            case "remove":
                self.send(i.Removed())
            case "restart" if not self.machine.forgotten:
                self._restart()

    def _exit(self, number: int) -> None:
        live = [state for state in self.runs.values() if state.exit is None and state.start_error is None]
        if live:
            state = live[number % len(live)]
            exit = Exit(number % 3, 0, False, self.now)
            self.runs[state.id] = ContainerState(state.id, 7, state.started_at, 1, exit)
            self.send(i.ContainerExited(state.id, exit))

    def _restart(self) -> None:
        """The agent dies; what it had saved, and what the runtime has, is what the next one knows."""
        saved = self.machine._saved
        if saved is None or self.disk_failed:
            return  # a full disk and a crash at once: then only the next COMPLETE knows the pod's fate
        self.restarts.append(len(self.statuses))
        self.machine = PodMachine(saved, NODE, saved=True)
        self.open.clear()
        self.timers.clear()
        there = "" if self.freed else "/run/net"
        self.send(i.Begin(list(self.runs.values()), there, "10.244.0.2" if there else "", {"app": IMAGE}))


@settings(max_examples=300, deadline=None)
@given(
    policy=st.sampled_from(["Always", "OnFailure", "Never"]),
    names=st.sampled_from([("app",), ("app", "side")]),
    events=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1000)), max_size=60),
)
def test_any_order_of_events(policy: str, names: tuple[str, ...], events: list[tuple[str, int]]) -> None:
    life = Life(make_pod(policy=policy, containers=names))
    life.begin()
    for action, number in events:
        forgotten = life.machine.forgotten
        before = len(life.given)
        life.act(action, number)
        if forgotten:
            assert life.given[before:] == []
    check_statuses(life)
    check_starts(life)


def check_statuses(life: Life) -> None:
    phase, restarts, ended = "Pending", dict.fromkeys((c.spec.name for c in life.machine.containers()), 0), False
    for number, (status, is_ended) in enumerate(life.statuses):
        ended = ended and number not in life.restarts  # the next agent frees again before it says so again
        assert RANK[status.phase] >= RANK[phase], f"{status.phase} after {phase}"
        assert RANK[phase] < 2 or status.phase == phase, f"{status.phase} after the final {phase}"
        assert is_ended or not ended, "what has ended stays ended"
        assert not is_ended or RANK[status.phase] == 2
        phase, ended = status.phase, is_ended
        for container in status.containerStatuses:
            assert container.restartCount >= restarts[container.name]
            restarts[container.name] = container.restartCount
            assert len(container.state.ListFields()) == 1


def check_starts(life: Life) -> None:
    attempts: dict[str, int] = {}
    for instruction in life.given:
        if isinstance(instruction, i.Start):
            id = instruction.spec.id
            assert id.pod_uid == UID
            assert id.attempt >= attempts.get(id.name, 0), "an attempt is never used again"
            attempts[id.name] = id.attempt
        assert not isinstance(instruction, i.SetTimer) or instruction.delay >= 0


@settings(max_examples=100, deadline=None)
@given(
    events=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1000)), max_size=40),
    policy=st.sampled_from(["Always", "OnFailure", "Never"]),
)
def test_every_life_can_be_brought_to_its_end(events: list[tuple[str, int]], policy: str) -> None:
    life = Life(make_pod(policy=policy))
    life.begin()
    for action, number in events:
        life.act(action, number)
    life.send(i.Removed())
    for _ in range(40):
        life.settle()
        life._exit(0)
        life.pass_time(60)
    assert life.machine.forgotten, life.open
    assert life.statuses[-1][1] is True
    assert life.now >= NOW
