"""A pod's status from its facts, as the kubelet writes it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.agent.pods.facts import ENDED, RUNNING, STARTING, ContainerFacts, Run
from shoal.agent.pods.spec import NodeFacts
from shoal.proto.qos import qos_class
from shoal.proto.v1 import objects_pb2 as o

PENDING, RUNNING_PHASE, SUCCEEDED, FAILED = "Pending", "Running", "Succeeded", "Failed"
TERMINAL = frozenset({SUCCEEDED, FAILED})
CREATING = ("ContainerCreating", "")


def phase_of(containers: Sequence[ContainerFacts], policy: str, *, floor: str) -> str:
    """The kubelet's getPhase; `floor` is the last phase: it never goes back."""
    ended = [c.run for c in containers if c.run and c.run.state == ENDED and not c.run.misconfigured]
    if len(ended) == len(containers):
        again = any(c.restartable(policy) for c in containers)
        return RUNNING_PHASE if again else final_phase(containers)
    ever = all(_has_run(c) for c in containers)
    return RUNNING_PHASE if ever or floor == RUNNING_PHASE else PENDING


def final_phase(containers: Sequence[ContainerFacts]) -> str:
    """How a pod ends that was stopped: well only when every container ended well."""
    ended = [c.run for c in containers if c.run and c.run.state == ENDED]
    well = len(ended) == len(containers) and all(run.code == 0 for run in ended)
    return SUCCEEDED if well else FAILED


def _has_run(container: ContainerFacts) -> bool:
    runs = (container.run, container.previous)
    return any(run and run.state != STARTING and not run.misconfigured for run in runs)


def pod_status(
    pod: o.Pod,
    containers: Sequence[ContainerFacts],
    phase: str,
    address: str,
    node: NodeFacts,
    start_time: float,
    *,
    over: bool,
) -> o.PodStatus:
    """`over`: no container will be started again."""
    status = o.PodStatus(
        phase=phase,
        hostIP=node.address,
        podIP=address,
        podIPs=[o.PodIP(ip=address)] if address else [],
        startTime=time_of(start_time),
        qosClass=qos_class(pod.spec),
        observedGeneration=pod.metadata.generation,
        containerStatuses=[container_status(pod, c, over=over) for c in containers],
    )
    status.conditions.extend(_conditions(pod, containers, phase, start_time))
    return status


def time_of(seconds: float) -> o.Time:
    """Whole seconds, as Kubernetes writes instants: an agent that starts again computes the same."""
    return o.Time(seconds=int(seconds))


# ---- containers ----
def container_status(pod: o.Pod, facts: ContainerFacts, *, over: bool) -> o.ContainerStatus:
    run, previous = facts.run, facts.previous
    status = o.ContainerStatus(
        name=facts.spec.name,
        image=facts.spec.image,
        imageID=facts.image.id if facts.image else "",
        restartCount=facts.restarts,
        ready=facts.live,
        started=facts.live,
    )
    again = facts.restartable(pod.spec.restartPolicy or "Always")
    last = run if run and run.state != STARTING and not run.misconfigured else previous
    if last is not None:
        status.containerID = container_id(pod, facts, last)
    if run is not None and run.state == RUNNING:
        status.state.running.startedAt.CopyFrom(time_of(run.started_at))
    elif run is not None and run.state == ENDED and not run.misconfigured and (over or not again):
        status.state.terminated.CopyFrom(_terminated(pod, facts, run))
    else:
        reason, message = waiting_reason(pod, facts)
        status.state.waiting.reason, status.state.waiting.message = reason, message
        previous = last
    if previous is not None and not previous.misconfigured:
        status.lastState.terminated.CopyFrom(_terminated(pod, facts, previous))
    return status


def container_id(pod: o.Pod, facts: ContainerFacts, run: Run) -> str:
    return f"shoal://{pod.metadata.uid}/{facts.spec.name}/{run.attempt}"


def waiting_reason(pod: o.Pod, facts: ContainerFacts) -> tuple[str, str]:
    """Why a container that does not run does not run."""
    if facts.problem is not None:
        return facts.problem
    run = facts.run
    if run is None or run.state != ENDED:
        return CREATING
    if run.misconfigured:
        return run.reason, run.message
    if not facts.resting:
        return ("RunContainerError", run.message) if run.message else CREATING
    where = f"container={facts.spec.name} pod={pod.metadata.name}_{pod.metadata.namespace}({pod.metadata.uid})"
    text = (
        f"back-off {facts.backoff.delay:.0f}s restarting failed {where}, next start at {clock_time(facts.next_start)}"
    )
    return "CrashLoopBackOff", f"{text}: {run.message}" if run.message else text


def clock_time(seconds: float) -> str:
    """UTC time of day, computed rather than asked of a time zone."""
    rest = int(seconds) % 86400
    return f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}Z"


def _terminated(pod: o.Pod, facts: ContainerFacts, run: Run) -> o.ContainerStateTerminated:
    return o.ContainerStateTerminated(
        exitCode=run.code,
        signal=run.exit.signal if run.exit else 0,
        reason=run.reason,
        message=run.message,
        startedAt=time_of(run.started_at),
        finishedAt=time_of(run.finished_at),
        containerID=container_id(pod, facts, run),
    )


# ---- conditions ----
def _conditions(
    pod: o.Pod, containers: Sequence[ContainerFacts], phase: str, start_time: float
) -> Sequence[o.Condition]:
    """PodScheduled is the scheduler's and is carried on; the others follow from the containers."""
    scheduled = [c for c in pod.status.conditions if c.type == "PodScheduled"] or [
        o.Condition(type="PodScheduled", status="True", lastTransitionTime=time_of(start_time))
    ]
    initialized = o.Condition(type="Initialized", status="True", lastTransitionTime=time_of(start_time))
    unready = [c.spec.name for c in containers if not c.live]
    since = time_of(_ready_since(containers, start_time))
    conditions = [*scheduled, initialized]
    for kind in ("ContainersReady", "Ready"):
        condition = o.Condition(type=kind, status="False" if unready else "True", lastTransitionTime=since)
        if phase in TERMINAL:
            condition.reason = "PodCompleted" if phase == SUCCEEDED else "PodFailed"
        elif unready:
            condition.reason = "ContainersNotReady"
            condition.message = f"containers with unready status: [{' '.join(unready)}]"
        conditions.append(condition)
    return conditions


def _ready_since(containers: Sequence[ContainerFacts], start_time: float) -> float:
    """When readiness last changed, from the runs themselves: the same before and after an agent's restart."""
    if all(c.live for c in containers):
        return max((c.run.started_at for c in containers if c.run), default=start_time)
    ends = [run.finished_at for c in containers for run in (c.run, c.previous) if run and run.state == ENDED]
    return max(ends, default=start_time)
