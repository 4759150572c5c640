"""A pod's status from its facts, as the kubelet writes it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.agent.pods.facts import APP, ENDED, INIT, STARTING, ContainerFacts, Run
from shoal.agent.pods.order import initialized
from shoal.agent.pods.spec import NodeFacts
from shoal.proto.qos import qos_class
from shoal.proto.v1 import objects_pb2 as o

PENDING, RUNNING_PHASE, SUCCEEDED, FAILED = "Pending", "Running", "Succeeded", "Failed"
TERMINAL = frozenset({SUCCEEDED, FAILED})
CREATING, INITIALIZING = ("ContainerCreating", ""), ("PodInitializing", "")
MESSAGE_BYTES = 4096  # of one container's termination message
MESSAGES_BYTES = 12 * 1024  # of a pod's together


def phase_of(containers: Sequence[ContainerFacts], policy: str, *, floor: str) -> str:
    """The kubelet's getPhase; `floor` is the last phase: it never goes back."""
    apps = [c for c in containers if c.kind == APP]
    ended = [c.run for c in apps if c.run and c.run.state == ENDED and not c.run.misconfigured]
    if len(ended) == len(apps):
        again = any(c.restartable(policy) for c in apps)
        return RUNNING_PHASE if again else final_phase(containers)
    ever = initialized(containers) and all(_has_run(c) for c in apps)
    return RUNNING_PHASE if ever or floor == RUNNING_PHASE else PENDING


def final_phase(containers: Sequence[ContainerFacts]) -> str:
    """How a pod ends that was stopped: well only when every container of the app ended well."""
    apps = [c for c in containers if c.kind == APP]
    ended = [c.run for c in apps if c.run and c.run.state == ENDED]
    well = len(ended) == len(apps) and all(run.code == 0 for run in ended)
    return SUCCEEDED if well else FAILED


def _has_run(container: ContainerFacts) -> bool:
    if container.live:
        return container.up or container.previous is not None
    runs = (container.run, container.previous)
    return any(run and run.state != STARTING and not run.misconfigured for run in runs)


@dataclass(frozen=True, slots=True)
class PodView:
    """What the status is written from."""

    pod: o.Pod
    containers: Sequence[ContainerFacts]
    node: NodeFacts
    address: str
    start_time: float
    over: bool  # no container will be started again
    stopped_at: float = 0.0  # when its end began; 0: it has not
    held: tuple[str, str] | None = None  # reason and message of what holds all containers back
    reason: str = ""
    message: str = ""

    @property
    def policy(self) -> str:
        return self.pod.spec.restartPolicy or "Always"

    @property
    def message_bytes(self) -> int:
        return min(MESSAGE_BYTES, MESSAGES_BYTES // max(len(self.containers), 1))


def pod_status(view: PodView, phase: str) -> o.PodStatus:
    address = view.address
    status = o.PodStatus(
        phase=phase,
        reason=view.reason,
        message=view.message,
        hostIP=view.node.address,
        hostIPs=[o.PodIP(ip=view.node.address)] if view.node.address else [],
        podIP=address,
        podIPs=[o.PodIP(ip=address)] if address else [],
        startTime=time_of(view.start_time),
        qosClass=qos_class(view.pod.spec),
        observedGeneration=view.pod.metadata.generation,
        initContainerStatuses=[container_status(view, c) for c in view.containers if c.kind != APP],
        containerStatuses=[container_status(view, c) for c in view.containers if c.kind == APP],
    )
    status.conditions.extend(_conditions(view, phase))
    return status


def time_of(seconds: float) -> o.Time:
    """Whole seconds, as Kubernetes writes instants: an agent that starts again computes the same."""
    return o.Time(seconds=int(seconds))


# ---- containers ----
def container_status(view: PodView, facts: ContainerFacts) -> o.ContainerStatus:
    run, previous = facts.run, facts.previous
    status = o.ContainerStatus(
        name=facts.spec.name,
        image=facts.spec.image,
        imageID=facts.image.id if facts.image else "",
        restartCount=facts.restarts,
        ready=facts.ready and not (view.stopped_at and facts.kind != INIT),
        started=facts.started,
    )
    again = facts.restartable(view.policy)
    last = run if run and run.state != STARTING and not run.misconfigured else previous
    if last is not None:
        status.containerID = container_id(view.pod, facts, last)
    if run is not None and facts.up:
        status.state.running.startedAt.CopyFrom(time_of(run.started_at))
    elif run is not None and run.state == ENDED and not run.misconfigured and (view.over or not again):
        status.state.terminated.CopyFrom(_terminated(view, facts, run))
    else:
        reason, message = waiting_reason(view, facts)
        status.state.waiting.reason, status.state.waiting.message = reason, message
        previous = previous if facts.live else last
    if previous is not None and not previous.misconfigured:
        status.lastState.terminated.CopyFrom(_terminated(view, facts, previous))
    return status


def container_id(pod: o.Pod, facts: ContainerFacts, run: Run) -> str:
    return f"shoal://{pod.metadata.uid}/{facts.spec.name}/{run.attempt}"


def waiting_reason(view: PodView, facts: ContainerFacts) -> tuple[str, str]:
    """Why a container that does not run does not run."""
    if facts.problem is not None:
        return facts.problem
    run = facts.run
    if run is None or run.state != ENDED:
        return view.held or (INITIALIZING if view.pod.spec.initContainers else CREATING)
    if run.misconfigured:
        return run.reason, run.message
    if not facts.resting:
        return view.held or (("RunContainerError", run.message) if run.message else CREATING)
    meta = view.pod.metadata
    where = f"container={facts.spec.name} pod={meta.name}_{meta.namespace}({meta.uid})"
    text = (
        f"back-off {facts.backoff.delay:.0f}s restarting failed {where}, next start at {clock_time(facts.next_start)}"
    )
    why = run.message or run.note.message
    return "CrashLoopBackOff", f"{text}: {why}" if why else text


def clock_time(seconds: float) -> str:
    """UTC time of day, computed rather than asked of a time zone."""
    rest = int(seconds) % 86400
    return f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}Z"


def _terminated(view: PodView, facts: ContainerFacts, run: Run) -> o.ContainerStateTerminated:
    return o.ContainerStateTerminated(
        exitCode=run.code,
        signal=run.exit.signal if run.exit else 0,
        reason=run.end_reason,
        message=shortened(run.end_message, view.message_bytes),
        startedAt=time_of(run.started_at),
        finishedAt=time_of(run.finished_at),
        containerID=container_id(view.pod, facts, run),
    )


def shortened(text: str, most: int) -> str:
    """The first `most` bytes, in whole characters."""
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= most else raw[:most].decode("utf-8", "ignore")


# ---- conditions ----
def _conditions(view: PodView, phase: str) -> Sequence[o.Condition]:
    """PodScheduled is the scheduler's and is carried on; the others follow from the containers."""
    start = time_of(view.start_time)
    scheduled = [c for c in view.pod.status.conditions if c.type == "PodScheduled"] or [
        o.Condition(type="PodScheduled", status="True", lastTransitionTime=start)
    ]
    unready = [c for c in view.containers if c.kind != INIT and not c.ready]
    since = time_of(_ready_since(view))
    conditions = [*scheduled, _initialized(view)]
    for kind in ("ContainersReady", "Ready"):
        ready = not unready and not view.stopped_at
        condition = o.Condition(type=kind, status="True" if ready else "False", lastTransitionTime=since)
        if phase in TERMINAL:
            condition.reason = "PodCompleted" if phase == SUCCEEDED else "PodFailed"
        elif unready:
            condition.reason, condition.message = "ContainersNotReady", _unready_text(unready)
        elif not ready:
            condition.reason, condition.message = "PodTerminating", "the pod is being ended"
        conditions.append(condition)
    return conditions


def _initialized(view: PodView) -> o.Condition:
    """True since the last init container ended, or the last sidecar started."""
    inits = [c for c in view.containers if c.kind != APP]
    if initialized(view.containers):
        times = [c.run.finished_at if c.kind == INIT else c.run.started_at for c in inits if c.run]
        return o.Condition(
            type="Initialized", status="True", lastTransitionTime=time_of(max([view.start_time, *times]))
        )
    waiting = [c.spec.name for c in inits if not (c.finished if c.kind == INIT else c.started)]
    return o.Condition(
        type="Initialized",
        status="False",
        reason="ContainersNotInitialized",
        message=f"containers with incomplete status: [{' '.join(waiting)}]",
        lastTransitionTime=time_of(view.start_time),
    )


def _unready_text(unready: Sequence[ContainerFacts]) -> str:
    text = f"containers with unready status: [{' '.join(c.spec.name for c in unready)}]"
    said = [f"{c.spec.name}: {c.run.unready}" for c in unready if c.run is not None and c.live and c.run.unready]
    return "; ".join([text, *said])


def _ready_since(view: PodView) -> float:
    """When readiness last changed, from the runs themselves: the same before and after an agent's restart."""
    containers = [c for c in view.containers if c.kind != INIT]
    if all(c.ready for c in containers):
        since = max((_ready_at(c.run) for c in containers if c.run), default=view.start_time)
    else:
        runs = [run for c in containers for run in (c.run, c.previous) if run]
        changes = [run.finished_at if run.state == ENDED else run.note.changed for run in runs]
        since = max([view.start_time, *changes])
    return max(since, view.stopped_at)


def _ready_at(run: Run) -> float:
    return max(run.started_at, run.note.changed)
