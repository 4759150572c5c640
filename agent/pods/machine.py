"""One pod's life on its node: events in, instructions out. Pure: no I/O, no clock but `now`.

Each event changes the facts; then one plan says what is missing between them and what is wished, so that it does not
matter in which order, or how often, events come. Steps in flight are not given again; failed ones wait for their timer.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from shoal.agent.images.port import Image
from shoal.agent.pods import instructions as i
from shoal.agent.pods.backoff import retry_delay
from shoal.agent.pods.facts import ENDED, RUNNING, ContainerFacts
from shoal.agent.pods.spec import NodeFacts, container_spec, sandbox_spec
from shoal.agent.pods.status import PENDING, RUNNING_PHASE, TERMINAL, final_phase, phase_of, pod_status
from shoal.agent.runtime.port import ContainerID, ContainerState, Sandbox, StartError
from shoal.agent.state import PodRecord
from shoal.proto.v1 import objects_pb2 as o

DEFAULT_GRACE_S = 30
KILL_AGAIN_S = 5.0  # a process that KILL has not ended yet (it waits for a disk, say) is killed again
RETRY = "retry "
RESTART = "restart "
GRACE, KILL = "grace", "kill"
STOP_SIGNAL = re.compile(r"(?P<number>[0-9]{1,2})|(?:SIG)?(?P<name>[A-Z0-9]+)(?:\+(?P<more>[0-9]{1,2}))?")
MISSING_IMAGE = "ErrImageNotPresent"


class PodMachine:
    """The machine of one pod uid. `record` is what the disk says of it; `saved` tells whether it is there yet."""

    def __init__(self, record: PodRecord, node: NodeFacts, *, saved: bool) -> None:
        self.uid = record.uid
        self.pod = o.Pod.FromString(record.pod)
        self.ended = False  # nothing of the pod is left on the node
        self.removed = False
        self.begun = False
        self.forgotten = False
        self._node = node
        self._record = record
        self._saved = record if saved else None
        self._containers = {c.name: ContainerFacts(c) for c in self.pod.spec.containers}
        self._busy: set[str] = set()
        self._blocked: set[str] = set()
        self._failures: dict[str, int] = {}
        self._netns = ""
        self._attached = False
        self._detached = False
        self._freed = False
        self._address = ""
        self._grace_over = False
        self._stop_saved = record.stop_started > 0 and saved
        self._phase = RUNNING_PHASE if self.pod.status.phase == RUNNING_PHASE else PENDING
        self._final: o.PodStatus | None = o.PodStatus.FromString(record.final) if record.final else None
        self._published: tuple[o.PodStatus, bool] | None = None

    # ---- what others may ask ----
    @property
    def record(self) -> PodRecord:
        return self._record

    @property
    def phase(self) -> str:
        return self._final.phase if self._final else self._phase

    @property
    def stopping(self) -> bool:
        return self._record.stop_started > 0

    @property
    def address(self) -> str:
        return self._address

    def containers(self) -> Iterable[ContainerFacts]:
        return self._containers.values()

    def container(self, name: str) -> ContainerFacts | None:
        return self._containers.get(name)

    # ---- events ----
    def handle(self, event: i.Event, now: float) -> list[i.Instruction]:
        """Takes in one event; the instructions that follow from it, in order."""
        if self.forgotten:
            return []
        out = self._take(event, now)
        if not self.begun:
            return []
        return out + self._plan(now) + self._publish()

    def _take(self, event: i.Event, now: float) -> list[i.Instruction]:
        match event:
            case i.Begin():
                return self._begin(event, now)
            case i.Assigned(pod):
                return self._assigned(pod, now)
            case i.Removed():
                self.removed = True
                return self._stop(now)
            case i.Done(step, value):
                return self._done(step, value, now)
            case i.Failed():
                return self._failed(event, now)
            case i.ContainerExited(id, exit):
                return self._learn([ContainerState(id, 0, 0.0, 0, exit)], now)
            case i.Observed(containers):
                return self._learn(containers, now)
            case i.Timer(name):
                return self._timer(name)
            case i.ImagesChanged():
                self._look_again()
                return []
            case _:
                assert_never(event)

    def _begin(self, event: i.Begin, now: float) -> list[i.Instruction]:
        self.begun = True
        self._netns = event.netns
        self._attached, self._address = bool(event.netns and event.address), event.address
        for name, image in event.images.items():
            if name in self._containers:
                self._containers[name].image = image
        out = self._learn(sorted(event.containers, key=lambda state: state.id.attempt), now, restored=True)
        if self.removed or self.stopping or self.pod.metadata.HasField("deletionTimestamp"):
            out += self._stop(now)
        return out

    def _assigned(self, pod: o.Pod, now: float) -> list[i.Instruction]:
        self.removed = False
        if _wish(pod) == _wish(self.pod):
            return []  # only its status, which is ours
        pod.status.CopyFrom(self.pod.status)
        self.pod = pod
        self._record = replace(self._record, pod=pod.SerializeToString(deterministic=True))
        for container in pod.spec.containers:
            if container.name in self._containers:
                self._containers[container.name].spec = container
        self._look_again()
        if pod.metadata.HasField("deletionTimestamp"):
            return self._stop(now)
        return []

    def _stop(self, now: float) -> list[i.Instruction]:
        """The end begins now, once: its grace is counted from here, also over restarts of the agent."""
        if not self.stopping:
            self._record = replace(self._record, stop_started=max(now, 1.0))
        return self._arm_grace(now)

    def _arm_grace(self, now: float) -> list[i.Instruction]:
        meta = self.pod.metadata
        grace = float(
            meta.deletionGracePeriodSeconds
            if meta.HasField("deletionGracePeriodSeconds")
            else self.pod.spec.terminationGracePeriodSeconds
            if self.pod.spec.HasField("terminationGracePeriodSeconds")
            else DEFAULT_GRACE_S
        )
        left = min(max(self._record.stop_started + grace - now, 0.0), grace)
        if left <= 0:
            self._grace_over = True
            return []
        return [] if self._grace_over else [i.SetTimer(GRACE, left)]

    def _timer(self, name: str) -> list[i.Instruction]:
        if name == GRACE:
            self._grace_over = True
        elif name == KILL:
            for container in self._containers.values():
                if container.run is not None:
                    container.run.kill_sent = False
        elif name.startswith(RESTART):
            rested = self._containers.get(name.removeprefix(RESTART))
            if rested is not None:
                rested.resting = False
        else:
            self._blocked.discard(name.removeprefix(RETRY))
        return []

    def _look_again(self) -> None:
        """Something that held containers back may have changed."""
        for container in self._containers.values():
            if container.problem is not None:
                container.problem, container.unusable = None, False
                if not container.live:
                    container.image = None

    # ---- what became of steps ----
    def _done(self, step: i.Step, value: object, now: float) -> list[i.Instruction]:
        self._busy.discard(step.key)
        self._failures.pop(step.key, None)
        match step:
            case i.EnsureSandbox():
                assert isinstance(value, Sandbox)
                self._netns, self._attached = value.netns, False
            case i.Attach():
                self._attached, self._address = True, str(value)
            case i.HoldImage(name):
                self._held(self._containers[name], value)
            case i.Start():
                assert isinstance(value, ContainerState)
                return self._learn([value], now)
            case i.Save(record):
                self._saved = record
                self._stop_saved = self._stop_saved or record.stop_started > 0
                self._clear_problem("NodeStateNotSaved")
            case i.RemoveContainer(id):
                self._removed_run(self._containers[id.name], id.attempt)
            case i.Detach():
                self._detached = True
            case i.RemoveSandbox():
                self._freed = self.ended = True
            case i.Signal():
                pass
            case _:
                assert_never(step)
        return []

    def _removed_run(self, container: ContainerFacts, attempt: int) -> None:
        container.older.discard(attempt)
        if container.run is not None and container.run.attempt == attempt and container.run.misconfigured:
            container.set_aside()

    def _held(self, container: ContainerFacts, image: object) -> None:
        if isinstance(image, Image):
            container.image, container.problem = image, None
            return
        name = container.spec.image
        message = f"image {name} is not on node {self._node.name}; load it with: shoal image load"
        container.problem, container.unusable = (MISSING_IMAGE, message), True

    def _failed(self, event: i.Failed, now: float) -> list[i.Instruction]:
        step, key = event.step, event.step.key
        self._busy.discard(key)
        if isinstance(step, i.Start) and not event.retryable:
            container = self._containers[step.spec.id.name]
            container.problem = None
            container.open_run(step.spec.id.attempt).fail(event.reason, event.message, event.exit_code, now)
            return self._rest(container, now)
        if isinstance(step, i.HoldImage) and not event.retryable:
            container = self._containers[step.container]
            container.problem, container.unusable = (event.reason, event.message), True
            return []
        if isinstance(step, i.Signal):
            self._unsignalled(step)
        self._explain(step, event)
        if isinstance(step, i.Save):
            self._stop_saved = self.stopping  # a full disk does not keep a pod from ending
        self._failures[key] = self._failures.get(key, 0) + 1
        self._blocked.add(key)
        return [i.SetTimer(RETRY + key, retry_delay(self._failures[key]))]

    def _unsignalled(self, step: i.Signal) -> None:
        run = self._containers[step.id.name].run
        if run is not None and run.attempt == step.id.attempt:
            run.term_sent = run.kill_sent = False

    def _explain(self, step: i.Step, event: i.Failed) -> None:
        """A step that holds the containers back is the reason why they wait."""
        if isinstance(step, i.EnsureSandbox | i.Attach | i.Save | i.HoldImage | i.Start):
            for container in self._containers.values():
                if not container.live and (container.problem is None or container.problem[0] == event.reason):
                    container.problem = (event.reason, event.message)

    def _clear_problem(self, reason: str) -> None:
        for container in self._containers.values():
            if container.problem is not None and container.problem[0] == reason:
                container.problem = None

    def _learn(self, states: Iterable[ContainerState], now: float, *, restored: bool = False) -> list[i.Instruction]:
        out: list[i.Instruction] = []
        for state in states:
            container = self._containers.get(state.id.name)
            if container is None:
                continue  # a container that the manifest does not know goes with the sandbox
            just_ended = container.learn(state, now)
            if restored:
                container.backoff.ends = state.id.attempt
            if just_ended:
                out += self._rest(container, now)
        return out

    def _rest(self, container: ContainerFacts, now: float) -> list[i.Instruction]:
        """After a run has ended: counts it, and waits its backoff out before the next."""
        run = container.run
        assert run is not None
        container.backoff.ended(run.ran_for)
        delay = container.backoff.delay
        container.next_start = run.finished_at + delay
        left = min(max(container.next_start - now, 0.0), delay)
        container.resting = left > 0
        return [i.SetTimer(RESTART + container.spec.name, left)] if container.resting else []

    # ---- the plan ----
    def _give(self, step: i.Step) -> list[i.Instruction]:
        if step.key in self._busy or step.key in self._blocked:
            return []
        self._busy.add(step.key)
        return [step]

    def _plan(self, now: float) -> list[i.Instruction]:
        if self.ended:
            return []
        if self.stopping:
            return self._plan_stop(now)
        if self._final is None and self._all_over():
            self._conclude()
        out = self._save()
        if self._final is not None:
            return out + ([] if self._detached or self._dirty else self._give(i.Detach()))
        return out + self._plan_run(now)

    @property
    def _dirty(self) -> bool:
        return self._record != self._saved

    def _save(self) -> list[i.Instruction]:
        return self._give(i.Save(self._record)) if self._dirty else []

    @property
    def _policy(self) -> str:
        return self.pod.spec.restartPolicy or "Always"

    def _all_over(self) -> bool:
        return all(
            c.run is not None and c.run.state == ENDED and not c.restartable(self._policy)
            for c in self._containers.values()
        )

    def _conclude(self) -> None:
        """No container will run again: the status is final from here."""
        phase = final_phase(list(self._containers.values()))
        self._final = self._status(phase)
        self._record = replace(self._record, final=self._final.SerializeToString(deterministic=True))

    def _plan_run(self, now: float) -> list[i.Instruction]:
        out: list[i.Instruction] = []
        if not self._netns:
            out += self._give(i.EnsureSandbox(sandbox_spec(self.pod, self._node)))
        elif not self._attached:
            out += self._give(i.Attach(self._netns))
        for container in self._containers.values():
            out += self._plan_container(container)
        return out

    def _plan_container(self, container: ContainerFacts) -> list[i.Instruction]:
        out: list[i.Instruction] = []
        run = container.run
        for attempt in sorted(container.older):
            out += self._give(i.RemoveContainer(self._id(container, attempt)))
        if run is not None and (
            run.state == RUNNING or (run.state == ENDED and not container.restartable(self._policy))
        ):
            return out
        if run is not None and run.misconfigured:
            return out if container.resting else out + self._give(i.RemoveContainer(self._id(container, run.attempt)))
        if container.image is None:
            wanted = i.HoldImage(container.spec.name, container.spec.image, self._holder(container))
            return out if container.unusable else out + self._give(wanted)
        ready = self._netns and self._attached and self._saved is not None and not container.resting
        return out + self._start(container) if ready else out

    def _start(self, container: ContainerFacts) -> list[i.Instruction]:
        attempt = container.next_attempt()
        assert container.image is not None
        try:
            spec = container_spec(self.pod, container.spec, container.image, attempt, self._address, self._node)
        except StartError as fault:
            container.problem = (fault.reason, fault.message)
            return []
        out = self._give(i.Start(spec))
        if out:
            container.open_run(attempt)
        return out

    def _holder(self, container: ContainerFacts) -> str:
        return f"{self.uid}/{container.spec.name}"

    def _id(self, container: ContainerFacts, attempt: int) -> ContainerID:
        return ContainerID(self.uid, container.spec.name, attempt)

    def _plan_stop(self, now: float) -> list[i.Instruction]:
        out = self._save()
        if not self._stop_saved:
            return out  # the start of the grace period is on disk before the first signal
        alive = [c for c in self._containers.values() if c.live]
        for container in alive:
            out += self._end_container(container)
        if alive or any(not key.startswith(("save", "signal")) for key in self._busy):
            return out
        return out + self._plan_free()

    def _end_container(self, container: ContainerFacts) -> list[i.Instruction]:
        run = container.run
        assert run is not None
        id = self._id(container, run.attempt)
        if self._grace_over:
            kill = [] if run.kill_sent else self._give(i.Signal(id, signal.SIGKILL))
            run.kill_sent = run.kill_sent or bool(kill)
            return [*kill, i.SetTimer(KILL, KILL_AGAIN_S)] if kill else []
        term = [] if run.term_sent else self._give(i.Signal(id, stop_signal(container.image)))
        run.term_sent = run.term_sent or bool(term)
        return term

    def _plan_free(self) -> list[i.Instruction]:
        """Nothing runs any more: the final status goes to disk, then the pod's traces go."""
        if self._final is None:
            self._conclude()
        out = self._save()
        if "save" in self._busy:
            return out
        if not self._detached:
            return out + self._give(i.Detach())
        holders = tuple(self._holder(c) for c in self._containers.values())
        return out + self._give(i.RemoveSandbox(holders))

    # ---- status ----
    def _status(self, phase: str) -> o.PodStatus:
        containers = list(self._containers.values())
        over = self.stopping or phase in TERMINAL
        return pod_status(self.pod, containers, phase, self._address, self._node, self._record.start_time, over=over)

    def _publish(self) -> list[i.Instruction]:
        if self._final is None:
            containers = list(self._containers.values())
            phase = phase_of(containers, self._policy, floor=self._phase)
            self._phase = self._phase if phase in TERMINAL else phase
            current = (self._status(self._phase), self.ended)
        else:
            current = (self._final, self.ended)
        out: list[i.Instruction] = []
        if current != self._published:
            self._published = current
            out.append(i.Publish(*current))
        if self.ended and self.removed:
            self.forgotten = True
            out.append(i.Forget())
        return out


def stop_signal(image: Image | None) -> int:
    """The image's STOPSIGNAL ("SIGQUIT", "3", "SIGRTMIN+3"), else TERM."""
    text = image.config.stop_signal.upper() if image else ""
    form = STOP_SIGNAL.fullmatch(text)
    if form is None:
        return int(signal.SIGTERM)
    known = getattr(signal, f"SIG{form['name']}", None) if form["name"] else None
    number = int(known) if isinstance(known, signal.Signals) else 0
    number += int(form["more"] or form["number"] or 0) if number or form["number"] else 0
    return number if 0 < number < signal.NSIG else int(signal.SIGTERM)


def _wish(pod: o.Pod) -> bytes:
    """All but the status, comparable."""
    wish = o.Pod()
    wish.CopyFrom(pod)
    wish.ClearField("status")
    return wish.SerializeToString(deterministic=True)
