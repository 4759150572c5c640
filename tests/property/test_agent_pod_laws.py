"""Whatever happens in whatever order: phases go forward, restart counts grow, a forgotten pod asks for nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent.pods import instructions as i
from shoal.agent.pods.facts import INIT, SIDECAR
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.probing import LIVENESS, READINESS, STARTUP, Verdict
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
    "verdict",
    "objects",
    "give_up",
    "observe",
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
            self._check_start(step.spec.id)
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
            case "verdict":
                self._tell(number)
            case "objects":
                self.send(i.ObjectsChanged())
            case "give_up" if number % 5 == 0:
                self.send(i.GiveUp("Evicted", "the node is low on memory", float(number % 9)))
            case "observe":
                self.send(i.Observed(list(self.runs.values())))
            case "restart" if not self.machine.forgotten:
                self._restart()

    def _check_start(self, id: ContainerID) -> None:
        """Never two runs of one container at once; init containers in their order; nothing once the end has begun."""
        for state in self.runs.values():
            again = state.id.name == id.name and state.id != id
            assert not again or state.exit or state.start_error, "a run starts while the one before it lives"
        kinds = {c.spec.name: c.kind for c in self.machine.containers()}
        order = list(kinds)
        for name in order[: order.index(id.name)] if kinds[id.name] != SIDECAR else ():
            ends = [state for state in self.runs.values() if state.id.name == name and state.exit is not None]
            assert kinds[name] != INIT or any(end.exit and end.exit.code == 0 for end in ends), "out of turn"

    def _tell(self, number: int) -> None:
        names = [c.spec.name for c in self.machine.containers()]
        name = names[number % len(names)]
        facts = self.machine.container(name)
        if facts is not None and facts.run is not None:
            kind = (STARTUP, READINESS, LIVENESS)[number // 2 % 3]
            passed = kind != LIVENESS and number // 6 % 3 > 0
            id = ContainerID(UID, name, max(facts.run.attempt - number // 18 % 2, 0))
            self.send(i.Told(Verdict(id, kind, passed, "why")))

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
        images = {c.spec.name: IMAGE for c in self.machine.containers()}
        self.send(i.Begin(list(self.runs.values()), there, "10.244.0.2" if there else "", images))


def furnished(policy: str, names: tuple[str, ...], inits: tuple[str, ...], extras: frozenset[str]) -> o.Pod:
    """A pod with these containers, and with what is asked for besides."""
    pod = make_pod(policy=policy, containers=names)
    for name in inits:
        pod.spec.initContainers.add(name=name, image="app:1", restartPolicy="Always" if name == "proxy" else "")
        if name != "proxy":
            pod.spec.initContainers[-1].ClearField("restartPolicy")
    main = pod.spec.containers[0]
    for probe in extras & {"startupProbe", "readinessProbe", "livenessProbe"}:
        getattr(main, probe).tcpSocket.port.number = 80
    for hook in extras & {"postStart", "preStop"}:
        getattr(main.lifecycle, hook).sleep.seconds = 1
    if "volume" in extras:
        pod.spec.volumes.add(name="v").emptyDir.SetInParent()
    if "deadline" in extras:
        pod.spec.activeDeadlineSeconds = 500
    if "pull" in extras:
        main.imagePullPolicy = "Always"
    return pod


EXTRAS = ("startupProbe", "readinessProbe", "livenessProbe", "postStart", "preStop", "volume", "deadline", "pull")
PODS = st.builds(
    furnished,
    st.sampled_from(["Always", "OnFailure", "Never"]),
    st.sampled_from([("app",), ("app", "side")]),
    st.sampled_from([(), ("one",), ("one", "two"), ("proxy",), ("one", "proxy", "two")]),
    st.frozensets(st.sampled_from(EXTRAS), max_size=4),
)


@settings(max_examples=400, deadline=None)
@given(
    pod=PODS,
    events=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1000)), max_size=60),
)
def test_any_order_of_events(pod: o.Pod, events: list[tuple[str, int]]) -> None:
    life = Life(pod)
    life.begin()
    for action, number in events:
        forgotten = life.machine.forgotten
        before = len(life.given)
        life.act(action, number)
        if forgotten:
            assert life.given[before:] == []
        if life.machine.stopping:
            assert not [one for one in life.given[before:] if isinstance(one, i.Start)], "started after its end began"
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
        for container in (*status.initContainerStatuses, *status.containerStatuses):
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
@given(pod=PODS, events=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1000)), max_size=25))
def test_what_comes_twice_changes_nothing(pod: o.Pod, events: list[tuple[str, int]]) -> None:
    life = Life(pod)
    life.begin()
    for action, number in events:
        life.act(action, number)
    status, given = life.statuses[-1], len(life.given)
    for event in (i.Observed(list(life.runs.values())), i.Assigned(life.machine.pod), i.ObjectsChanged()):
        life.send(event)
        life.send(event)
    assert life.statuses[-1] == status and len(life.given) == given


@settings(max_examples=100, deadline=None)
@given(
    events=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1000)), max_size=40),
    pod=PODS,
)
def test_every_life_can_be_brought_to_its_end(events: list[tuple[str, int]], pod: o.Pod) -> None:
    life = Life(pod)
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
