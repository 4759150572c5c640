"""Why a pod is as it is, in plain words: from its status, its events and the death certificates. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from shoal.deploy.cli.printers.status import condition, is_true, node_status, pod_status
from shoal.deploy.cli.printers.tables import event_time
from shoal.proto.causes import AFTER_GRACE, cause, shortened
from shoal.proto.differences import different
from shoal.proto.v1 import objects_pb2 as o

REVISION = "deployment.kubernetes.io/revision"
LOOP = "CrashLoopBackOff"
UNSCHEDULABLE, GATED = "Unschedulable", "SchedulingGated"
MOST_DEATHS, MOST_EVENTS, MOST_CHANGES = 3, 5, 10
ENDS_WELL = (
    "it ends by itself with exit code 0, and restartPolicy Always starts it again each time: let its command go on in "
    "the foreground, or set restartPolicy to OnFailure or Never"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason. `about` is the pod, a container, an event, ...; `what` is its one word."""

    about: str
    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Story:
    """`wrong`: something is not as it should be."""

    subject: str
    namespace: str
    headline: str
    wrong: bool
    findings: Sequence[Finding] = ()
    deaths: Sequence[o.Death] = field(default=())  # newest first, those that explain something
    pod: str = ""  # whose place can be asked for


# ---- pods ----
def of_pod(pod: o.Pod, events: Sequence[o.Event], deaths: Sequence[o.Death], node: o.Node | None = None) -> Story:
    """Everything that can be told of a pod that is there; `node` is its own."""
    own = newest_first([death for death in deaths if death.pod.uid == pod.metadata.uid])
    findings = [*_silent(pod, node), *_placement(pod), *_whole(pod), *_containers(pod, own)]
    findings += [*_unready(pod)] if not findings else []
    shown = [death for death in own if death.reason != AFTER_GRACE][:MOST_DEATHS]
    wrong = bool(findings)
    told = " ".join(one.text for one in findings)
    findings += [one for one in _warnings(events, bool(pod.spec.nodeName)) if one.text not in told]
    name, ended = pod.metadata.name, pod.status.phase in ("Succeeded", "Failed")
    head = _headline(pod, wrong)
    return Story(f"pod/{name}", pod.metadata.namespace, head, wrong, findings, shown, "" if ended else name)


def as_decided(story: Story, message: str) -> Story:
    """With the scheduler's last word, where it says why the pod waits: its status keeps an older one as long as only
    numbers differ."""
    if not message:
        return story
    findings = [replace(one, text=message) if one.what == UNSCHEDULABLE else one for one in story.findings]
    return replace(story, findings=[one for one in findings if one.what != "FailedScheduling"])


def gated(story: Story) -> bool:
    return any(one.what == GATED for one in story.findings)


def of_gone(name: str, namespace: str, deaths: Sequence[o.Death]) -> Story:
    """A pod of which only certificates are left."""
    every = newest_first(deaths)
    loud = [death for death in every if death.reason != AFTER_GRACE]
    last = (loud or every)[0]
    findings = [Finding(_container(last), last.reason, last.cause or cause(last))]
    text = f"pod/{name} is gone; it ran on node {last.node}"
    if not loud:
        text += " and was deleted"
    return Story(f"pod/{name}", namespace, text, bool(loud), findings, loud[:MOST_DEATHS])


def newest_first(deaths: Sequence[o.Death]) -> list[o.Death]:
    return sorted(deaths, key=lambda death: (death.finishedAt.seconds, death.attempt), reverse=True)


def _headline(pod: o.Pod, wrong: bool) -> str:
    where = f" on node {pod.spec.nodeName}" if pod.spec.nodeName else ""
    text = f"pod/{pod.metadata.name} is {pod_status(pod)}{where}"
    if pod.metadata.HasField("deletionTimestamp"):
        return f"{text}: it is being deleted"
    if wrong:
        return text
    return f"{text}: it has done its work" if pod.status.phase == "Succeeded" else f"{text} and ready: nothing is wrong"


def _silent(pod: o.Pod, node: o.Node | None) -> Iterator[Finding]:
    """What is known of a pod is as old as its node's last word."""
    ready = condition(node.status.conditions, "Ready") if node is not None else None
    if ready is not None and ready.status == "Unknown" and pod.status.phase not in ("Succeeded", "Failed"):
        text = f"{ready.message or 'it is not heard of'}; what is known of the pod is from before"
        yield Finding(f"node {pod.spec.nodeName}", "NotReady", text)


def _placement(pod: o.Pod) -> Iterator[Finding]:
    if pod.spec.nodeName:
        return
    scheduled = condition(pod.status.conditions, "PodScheduled")
    text = (scheduled.message if scheduled is not None else "") or "it has not been placed on a node yet"
    yield Finding("pod", (scheduled.reason if scheduled is not None else "") or "Pending", text)


def _whole(pod: o.Pod) -> Iterator[Finding]:
    """What was decided about all of it."""
    status = pod.status
    if status.reason or (status.phase == "Failed" and status.message):
        yield Finding("pod", status.reason or "Failed", status.message or "its node gave it up")
    disrupted = condition(status.conditions, "DisruptionTarget")
    if disrupted is not None and disrupted.status == "True" and disrupted.message not in ("", status.message):
        yield Finding("pod", disrupted.reason, disrupted.message)


# ---- containers ----
def _containers(pod: o.Pod, deaths: Sequence[o.Death]) -> Iterator[Finding]:
    init = {one.name for one in pod.status.initContainerStatuses}
    for container in (*pod.status.initContainerStatuses, *pod.status.containerStatuses):
        about = f"{'init ' if container.name in init else ''}container {container.name}"
        for what, text in _container_reasons(pod, container, deaths):
            yield Finding(about, what, text.removeprefix(f"{what}: "))


def _container_reasons(
    pod: o.Pod, container: o.ContainerStatus, deaths: Sequence[o.Death]
) -> Iterator[tuple[str, str]]:
    state, last = container.state, container.lastState
    if state.HasField("terminated"):
        if state.terminated.exitCode or state.terminated.reason not in ("Completed", ""):
            yield state.terminated.reason, end_of(state.terminated, container.name, deaths)
        return
    if state.HasField("waiting"):
        yield from _waiting(pod, container, deaths)
    elif container.restartCount and last.HasField("terminated"):
        again = f"it has been started again {_times(container.restartCount)}, now it runs; its run before: "
        yield "Restarted", again + end_of(last.terminated, container.name, deaths)


def _waiting(pod: o.Pod, container: o.ContainerStatus, deaths: Sequence[o.Death]) -> Iterator[tuple[str, str]]:
    waiting, last = container.state.waiting, container.lastState
    if waiting.reason == "PodInitializing":
        return  # the init containers say why
    if waiting.reason != LOOP:
        yield waiting.reason, waiting.message or "it is being started"
    if not last.HasField("terminated"):
        return
    ended = end_of(last.terminated, container.name, deaths)
    if waiting.reason == LOOP:
        # The message begins with the back-off and goes on with what the end below says again.
        rest = waiting.message.partition(" restarting failed ")[0]
        when = waiting.message.partition("next start at ")[2][:9]
        yield LOOP, f"it has ended {_times(container.restartCount + 1)}; {rest}, it starts again at {when}: {ended}"
    else:
        yield "LastRun", f"its last run: {ended}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def end_of(ended: o.ContainerStateTerminated, container: str, deaths: Sequence[o.Death]) -> str:
    """Why a run ended: its certificate's words, or what the status itself tells."""
    attempt = ended.containerID.rpartition("/")[2]
    for death in deaths:
        if death.container == container and str(death.attempt) == attempt:
            return death.cause or cause(death)
    if ended.exitCode == 0 and not ended.signal:
        return ENDS_WELL if ended.reason in ("Completed", "") else f"{ended.reason}: {ended.message}"
    known = o.Death(
        exitCode=ended.exitCode,
        signal=ended.signal,
        reason=ended.reason,
        message=ended.message,
        startedAt=ended.startedAt,
        finishedAt=ended.finishedAt,
    )
    return cause(known)


def _unready(pod: o.Pod) -> Iterator[Finding]:
    if is_true(pod.status.conditions, "Ready") or pod.status.phase == "Succeeded":
        return
    ready = condition(pod.status.conditions, "Ready")
    text = (ready.message if ready is not None else "") or f"its node {pod.spec.nodeName} has not reported it as ready"
    if is_true(pod.status.conditions, "Initialized"):
        waits = [c.name for c in pod.status.containerStatuses if c.state.HasField("running") and not c.started]
        text += f"; the startup probe of {', '.join(waits)} has not passed yet" if waits else ""
    yield Finding("pod", (ready.reason if ready is not None else "") or "NotReady", text)


def _warnings(events: Sequence[o.Event], placed: bool) -> list[Finding]:
    """The stored warnings; those derived from the status say nothing new, nor why a pod waited that has a node."""
    old = {"BackOff", "FailedScheduling"} if placed else {"BackOff"}
    told = (event for event in events if event.type == "Warning" and event.reason not in old)
    found = sorted(told, key=event_time, reverse=True)
    return [
        Finding("event", event.reason, shortened(event.message) + (f" (x{event.count})" if event.count > 1 else ""))
        for event in found[:MOST_EVENTS]
    ]


# ---- one line ----
def why_not_ready(pod: o.Pod) -> str:
    """Why a pod is not ready, as far as its status says, on one line."""
    found = [*_placement(pod), *_whole(pod), *_containers(pod, ())] or [*_unready(pod)]
    texts = [one.text if one.about == "pod" else f"{one.about}: {one.what}: {one.text}" for one in found]
    return "; ".join(texts) or f"its node {pod.spec.nodeName} has not reported it as ready yet"


def _container(death: o.Death) -> str:
    return f"{'init ' if death.initContainer else ''}container {death.container}"


# ---- workloads ----
def worst(pods: Sequence[o.Pod]) -> o.Pod | None:
    """The pod that most needs an explanation; of several the newest."""
    return max(pods, key=lambda pod: (badness(pod), pod.metadata.creationTimestamp.seconds), default=None)


def badness(pod: o.Pod) -> int:
    if pod.metadata.HasField("deletionTimestamp"):
        return 0
    if pod.status.phase == "Failed":
        return 5
    if pod.status.phase == "Succeeded" or (
        is_true(pod.status.conditions, "Ready") and not any(c.restartCount for c in pod.status.containerStatuses)
    ):
        return 0
    if is_true(pod.status.conditions, "Ready"):
        return 1
    waiting = {c.state.waiting.reason for c in (*pod.status.initContainerStatuses, *pod.status.containerStatuses)}
    if waiting - {"", "ContainerCreating", "PodInitializing"}:
        return 4
    return 3 if not pod.spec.nodeName else 2


def rollout(sets: Sequence[o.ReplicaSet], pod: o.Pod) -> Finding | None:
    """What the newest revision has changed, when this pod is one of it."""
    ordered = sorted(sets, key=revision)
    if len(ordered) < 2 or ordered[-1].metadata.uid not in {owner.uid for owner in pod.metadata.ownerReferences}:
        return None
    old, new = ordered[-2], ordered[-1]
    lines = list(different(_plain(old), _plain(new), ""))
    if not lines:
        return None
    more = f", and {len(lines) - MOST_CHANGES} more" if len(lines) > MOST_CHANGES else ""
    text = f"revision {revision(new)} differs from revision {revision(old)}: {', '.join(lines[:MOST_CHANGES])}{more}"
    return Finding("rollout", "Changed", text)


def _plain(one: o.ReplicaSet) -> o.PodSpec:
    return one.spec.template.spec


def revision(one: o.ReplicaSet) -> int:
    text = one.metadata.annotations.get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


# ---- nodes ----
def of_node(node: o.Node, pods: Sequence[o.Pod]) -> Story:
    """Its conditions and taints, and the pods on it that are not well."""
    findings = [
        Finding("node", one.reason or one.type, one.message or f"{one.type} is {one.status}")
        for one in node.status.conditions
        if one.status != ("True" if one.type.endswith("Ready") else "False")
    ]
    for taint in node.spec.taints:
        value = f"={taint.value}" if taint.value else ""
        findings.append(Finding("node", "Tainted", f"{taint.key}{value}:{taint.effect}"))
    bad = sorted((pod for pod in pods if badness(pod) > 1), key=badness, reverse=True)
    findings += [Finding(f"pod/{p.metadata.name}", pod_status(p), why_not_ready(p)) for p in bad[:MOST_CHANGES]]
    how = f"{len(bad)} of its {len(pods)} pods are not well" if bad else f"its {len(pods)} pods are well"
    text = f"node/{node.metadata.name} is {node_status(node)}: {how}"
    return Story(f"node/{node.metadata.name}", "", text, bool(findings), findings)
