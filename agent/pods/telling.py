"""What of a pod's life is told as events, in Kubernetes' words: what its status alone does not show for long. Pure.

Starts and ends are not told: whoever reads events derives them from the pod's status.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shoal.agent.pods import instructions as i
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.probing import READINESS, Verdict
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

NORMAL, WARNING = "Normal", "Warning"
MESSAGE_CHARS = 1000
QUIET = frozenset({"", "ContainerCreating", "PodInitializing"})
# What holds back one container, by the event's reason; all other reasons hold back the pod, and are told as they are.
OF_CONTAINER = {
    "CrashLoopBackOff": "BackOff",
    "ImagePullBackOff": "BackOff",
    "ErrImagePull": "Failed",
    "ErrImageNeverPull": "Failed",
    "InvalidImageName": "Failed",
    "CreateContainerConfigError": "Failed",
    "CreateContainerError": "Failed",
    "RunContainerError": "Failed",
}


class Teller:
    """What one pod's machine was told and what it answered, as happenings."""

    def __init__(self, uid: str) -> None:
        self._uid = uid
        self._pulls: dict[str, float] = {}  # when they began
        self._held: set[tuple[str, str, str]] = set()  # container, reason, message: already told
        self._failed = ""

    def tell(
        self, machine: PodMachine, event: i.Event, answer: Iterable[i.Instruction], now: float
    ) -> list[s.Happening]:
        """What is new. An agent that finds a pod at its start tells nothing of what it finds."""
        found = list(self._event(machine, event, now))
        for instruction in answer:
            if isinstance(instruction, i.PullImage):
                self._pulls[instruction.container] = now
                found.append(self._say(NORMAL, "Pulling", f'Pulling image "{instruction.name}"', instruction.container))
            elif isinstance(instruction, i.Publish):
                found += self._status(instruction.status)
        return [] if isinstance(event, i.Begin) and event.netns else found

    def _say(self, kind: str, reason: str, message: str, container: str = "") -> s.Happening:
        return s.Happening(
            uid=self._uid, type=kind, reason=reason, message=message[:MESSAGE_CHARS], container=container, count=1
        )

    # ---- what came ----
    def _event(self, machine: PodMachine, event: i.Event, now: float) -> Iterator[s.Happening]:
        match event:
            case i.Done(i.PullImage(container, name)):
                took = max(now - self._pulls.pop(container, now), 0.0)
                yield self._say(NORMAL, "Pulled", f'Successfully pulled image "{name}" in {took:.3g}s', container)
            case i.Done(i.RunHook(id, which), str(fault)) | i.Failed(i.RunHook(id, which), message=fault) if fault:
                hook = which[0].upper() + which[1:]
                yield self._say(WARNING, f"Failed{hook}Hook", f"{hook} hook failed: {fault}", id.name)
                if which == "postStart":
                    text = f"Container {id.name} is ended: its postStart hook failed"
                    yield self._say(NORMAL, "Killing", text, id.name)
            case i.Told(verdict) if not verdict.passed and _is_current(machine, verdict):
                yield from self._unhealthy(verdict)
            case _:
                pass

    def _unhealthy(self, verdict: Verdict) -> Iterator[s.Happening]:
        name = verdict.id.name
        yield self._say(WARNING, "Unhealthy", f"{verdict.kind.capitalize()} probe failed: {verdict.message}", name)
        if verdict.kind != READINESS:
            yield self._say(NORMAL, "Killing", f"Container {name} is ended: its {verdict.kind} probe failed", name)

    # ---- what the pod's status has come to ----
    def _status(self, status: o.PodStatus) -> Iterator[s.Happening]:
        held = set(_held(status))
        for name, reason, message in sorted(held - self._held):
            yield self._say(WARNING, OF_CONTAINER.get(reason, reason), message or reason, name)
        self._held = held
        if status.reason and status.reason != self._failed:
            yield self._say(WARNING, status.reason, status.message)
        self._failed = status.reason


def _held(status: o.PodStatus) -> Iterator[tuple[str, str, str]]:
    for one in (*status.initContainerStatuses, *status.containerStatuses):
        waiting = one.state.waiting
        if waiting.reason not in QUIET:
            yield (one.name if waiting.reason in OF_CONTAINER else "", waiting.reason, waiting.message)


def _is_current(machine: PodMachine, verdict: Verdict) -> bool:
    container = machine.container(verdict.id.name)
    return container is not None and container.run is not None and container.run.attempt == verdict.id.attempt
