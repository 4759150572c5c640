"""What an object's state is called, in one word or sentence (kubectl's words)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoal.proto.v1 import objects_pb2 as o


def condition(conditions: Iterable[o.Condition], kind: str) -> o.Condition | None:
    """The condition of that type, or None."""
    return next((c for c in conditions if c.type == kind), None)


def is_true(conditions: Iterable[o.Condition], kind: str) -> bool:
    found = condition(conditions, kind)
    return found is not None and found.status == "True"


GATED = "SchedulingGated"  # the reason of a pod whose scheduling gates hold it back


def pod_status(pod: o.Pod) -> str:
    """kubectl's STATUS column."""
    status = pod.status
    word = _initializing(pod) or _running_word(status)
    if pod.metadata.HasField("deletionTimestamp") and status.phase not in ("Succeeded", "Failed"):
        return "Terminating"
    return status.reason if status.reason == "Lost" else word


def _running_word(status: o.PodStatus) -> str:
    """What the app's containers are at."""
    gated = any(c.type == "PodScheduled" and c.reason == GATED for c in status.conditions)
    word = status.reason or (GATED if gated else status.phase) or "Unknown"
    running = False
    for container in reversed(status.containerStatuses):
        state = container.state
        if state.waiting.reason:
            word = state.waiting.reason
        elif state.HasField("terminated"):
            word = state.terminated.reason or _end(state.terminated)
        elif container.ready and state.HasField("running"):
            running = True
    if word == "Completed" and running:
        word = "Running" if is_true(status.conditions, "Ready") else "NotReady"
    return word


def _initializing(pod: o.Pod) -> str:
    """Which init container the pod is at ("Init:1/3"), or what is wrong with it; "" when all have done their work."""
    sidecars = {one.name for one in pod.spec.initContainers if one.restartPolicy == "Always"}
    for number, container in enumerate(pod.status.initContainerStatuses):
        state = container.state
        if state.HasField("terminated") and state.terminated.exitCode == 0:
            continue
        if container.name in sidecars and container.started:
            continue
        if is_true(pod.status.conditions, "Initialized"):
            return ""  # a sidecar that is started again holds nobody back
        if state.HasField("terminated"):
            return f"Init:{state.terminated.reason or _end(state.terminated)}"
        if state.waiting.reason not in ("", "PodInitializing"):
            return f"Init:{state.waiting.reason}"
        return f"Init:{number}/{len(pod.spec.initContainers)}"
    return ""


def _end(ended: o.ContainerStateTerminated) -> str:
    return f"Signal:{ended.signal}" if ended.signal else f"ExitCode:{ended.exitCode}"


def restarts(pod: o.Pod) -> tuple[int, int]:
    """(how often its containers were restarted, when the last one ended in seconds since 1970 or 0)."""
    sidecars = {one.name for one in pod.spec.initContainers if one.restartPolicy == "Always"}
    counted = [c for c in pod.status.initContainerStatuses if c.name in sidecars or _initializing(pod)]
    counted += pod.status.containerStatuses
    last = max((c.lastState.terminated.finishedAt.seconds for c in counted), default=0)
    return sum(c.restartCount for c in counted), last


def node_status(node: o.Node) -> str:
    """kubectl's STATUS column."""
    ready = condition(node.status.conditions, "Ready")
    word = "Unknown" if ready is None else "Ready" if ready.status == "True" else "NotReady"
    return f"{word},SchedulingDisabled" if node.spec.unschedulable else word


def roles(node: o.Node) -> str:
    """From labels node-role.kubernetes.io/ROLE."""
    prefix = "node-role.kubernetes.io/"
    return ",".join(sorted(k.removeprefix(prefix) for k in node.metadata.labels if k.startswith(prefix))) or "<none>"


def ready_state(obj: Any) -> tuple[bool, str]:
    """(whether what the object asks for is there, how far it is in words)."""
    if isinstance(obj, o.Pod):
        ended = obj.status.phase == "Succeeded"
        return ended or is_true(obj.status.conditions, "Ready"), pod_status(obj)
    if isinstance(obj, o.Deployment | o.ReplicaSet):
        return _workload_ready(obj)
    if isinstance(obj, o.Node):
        word = node_status(obj)
        return word.partition(",")[0] == "Ready", word
    return True, "there"


def _workload_ready(obj: o.Deployment | o.ReplicaSet) -> tuple[bool, str]:
    status, asked = obj.status, obj.spec.replicas
    if status.observedGeneration < obj.metadata.generation:
        return False, "waiting for the controller"
    if isinstance(obj, o.ReplicaSet):
        return status.readyReplicas == asked == status.replicas, f"{status.readyReplicas} of {asked} ready"
    new = obj.status.updatedReplicas
    done = new == asked and obj.status.replicas == asked and status.availableReplicas == asked
    text = f"{status.readyReplicas} of {asked} ready"
    if new < asked:
        text += f", {new} of {asked} updated"
    elif status.replicas > asked:
        text += f", {status.replicas - asked} old to go"
    return done, text
