"""One pod's life on its node: events in, instructions out. Pure: no I/O, no clock but `now`.

Each event changes the facts; then one plan says what is missing between them and what is wished, so that it does not
matter in which order, or how often, events come. Steps in flight are not given again; failed ones wait for their timer.
`starting.py` plans the way up, `images.py` within it, `ending.py` the way down, `order.py` says whose turn it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from shoal.agent.images.port import Image
from shoal.agent.objects import MemoryObjects, Objects
from shoal.agent.pods import instructions as i
from shoal.agent.pods.deaths import Burying
from shoal.agent.pods.ending import Ending, forget_probes, stop_signal
from shoal.agent.pods.facts import ContainerFacts, containers_of
from shoal.agent.pods.healthy import Baseline, Baselines, NoBaselines
from shoal.agent.pods.order import all_over
from shoal.agent.pods.pod import PodFacts
from shoal.agent.pods.spec import NodeFacts
from shoal.agent.pods.starting import Starting
from shoal.agent.pods.status import FAILED, PENDING, RUNNING_PHASE, TERMINAL, PodView, final_phase, phase_of, pod_status
from shoal.agent.pods.steps import RETRY, Steps
from shoal.agent.runtime.port import ContainerState, Sandbox
from shoal.agent.state import PodRecord
from shoal.proto.references import Reference, references
from shoal.proto.v1 import objects_pb2 as o

__all__ = ["PodMachine", "stop_signal"]
RESTART, DEADLINE = "restart ", "deadline"
DEADLINE_EXCEEDED = "DeadlineExceeded"
DEADLINE_TEXT = "Pod was active on the node longer than the specified deadline"


class PodMachine:
    """The machine of one pod uid. `record` is what the disk says of it; `saved` tells whether it is there yet."""

    def __init__(
        self,
        record: PodRecord,
        node: NodeFacts,
        *,
        saved: bool,
        objects: Objects | None = None,
        known: Baselines | None = None,
    ) -> None:
        self.uid = record.uid
        self.ended = False  # nothing of the pod is left on the node
        self.removed = False
        self.begun = False
        self.forgotten = False
        pod = o.Pod.FromString(record.pod)
        self._facts = PodFacts(pod, node, objects or MemoryObjects(), record, containers_of(pod), recorded=saved)
        self._steps = Steps()
        self._starting = Starting(self._facts, self._steps)
        self._ending = Ending(self._facts, self._steps)
        self._burying = Burying(self._facts, self._steps, known or NoBaselines())
        self._saved = record if saved else None
        self._detached = self._freed = self._volumes_freed = False
        self._stop_saved = record.stop_started > 0 and saved
        self._failure_saved = record.failed_at > 0 and saved
        self._phase = RUNNING_PHASE if pod.status.phase == RUNNING_PHASE else PENDING
        self._final: o.PodStatus | None = o.PodStatus.FromString(record.final) if record.final else None
        self._published: tuple[o.PodStatus, bool] | None = None
        for container in self._facts.containers.values():
            container.notes = record.notes

    # ---- what others may ask ----
    @property
    def pod(self) -> o.Pod:
        return self._facts.pod

    @property
    def record(self) -> PodRecord:
        return self._facts.record

    @property
    def phase(self) -> str:
        return self._final.phase if self._final else self._phase

    @property
    def stopping(self) -> bool:
        return self._facts.stopping

    @property
    def address(self) -> str:
        return self._facts.address

    def references(self) -> frozenset[Reference]:
        """What the pod refers to by name."""
        return references(self.pod)

    def containers(self) -> Iterable[ContainerFacts]:
        """All of them, init containers first."""
        return self._facts.containers.values()

    def container(self, name: str) -> ContainerFacts | None:
        return self._facts.containers.get(name)

    def healthy(self, workload: str, now: float) -> Baseline | None:
        """What a container of this workload runs well with now."""
        return self._burying.living(workload, now)

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
                self._stop(now)
            case i.Done(step, value):
                return self._done(step, value, now)
            case i.Failed():
                return self._failed(event, now)
            case i.Progress(step, text):
                if isinstance(step, i.PullImage):
                    self._starting.pulling.progress(self._facts.containers[step.container], text)
            case i.Told(verdict):
                self._starting.told(verdict, now)
            case i.GiveUp(reason, message, grace):
                self._give_up(reason, message, grace, now)
            case i.ContainerExited(id, exit):
                return self._learn([ContainerState(id, 0, 0.0, 0, exit)], now)
            case i.Observed(containers):
                return self._learn(containers, now)
            case i.Timer(name):
                self._timer(name, now)
            case i.ImagesChanged():
                for container in self._facts.containers.values():
                    self._starting.pulling.look_again(container)
            case i.ObjectsChanged():
                self._look_again(pulls=len(self.pod.spec.imagePullSecrets) > 0)
            case _:
                assert_never(event)
        return []

    def _begin(self, event: i.Begin, now: float) -> list[i.Instruction]:
        self.begun = True
        facts = self._facts
        facts.netns, own = event.netns, facts.pod.spec.hostNetwork
        facts.address = (facts.node.address if own else event.address) if event.netns else ""
        facts.attached = bool(facts.netns and facts.address)
        for name, image in event.images.items():
            if name in facts.containers:
                facts.containers[name].image = image
        out = self._learn(sorted(event.containers, key=lambda state: state.id.attempt), now, restored=True)
        if not facts.netns:
            self._begin_anew()
        if self.removed or self.pod.metadata.HasField("deletionTimestamp"):
            self._stop(now)
        return out + self._arm_deadline(now)

    def _begin_anew(self) -> None:
        """The sandbox is gone, and with it what init containers had prepared. The disk knows it before the next sandbox
        is there, or an agent that starts between the two would take what they did for done."""
        for container in self._facts.containers.values():
            if container.run is not None and not container.run.stale and self._final is None:
                container.run.note = replace(container.run.note, stale=True)
                self._facts.unsaved = True

    def _assigned(self, pod: o.Pod, now: float) -> list[i.Instruction]:
        self.removed = False
        facts = self._facts
        if _wish(pod) == _wish(facts.pod):
            return []  # only its status, which is ours
        pod.status.CopyFrom(facts.pod.status)
        deadline = facts.pod.spec.activeDeadlineSeconds
        facts.pod = pod
        facts.record = replace(facts.record, pod=pod.SerializeToString(deterministic=True))
        for container in (*pod.spec.initContainers, *pod.spec.containers):
            if container.name in facts.containers:
                self._respecify(facts.containers[container.name], container)
        self._look_again(pulls=True)
        if pod.metadata.HasField("deletionTimestamp"):
            self._stop(now)
        return self._arm_deadline(now) if deadline != pod.spec.activeDeadlineSeconds else []

    def _respecify(self, facts: ContainerFacts, spec: o.Container) -> None:
        """An image may change while the pod lives: the next run has the new one."""
        if facts.spec.image != spec.image and not facts.live:
            facts.image, facts.looked, facts.pulled = None, False, False
        facts.spec = spec

    def _stop(self, now: float) -> None:
        """The end begins now, once: its grace is counted from here, also over restarts of the agent."""
        if not self.stopping:
            self._facts.record = replace(self._facts.record, stop_started=max(now, 1.0))

    def _give_up(self, reason: str, message: str, grace: float, now: float) -> None:
        """The pod fails, once, unless it is at its end already."""
        facts = self._facts
        if not facts.failed and self._final is None and not facts.stopping:
            facts.record = replace(
                facts.record,
                failed_at=max(now, 1.0),
                failed_reason=reason,
                failed_message=message,
                failed_grace=grace,
            )

    def _arm_deadline(self, now: float) -> list[i.Instruction]:
        spec = self.pod.spec
        if not spec.HasField("activeDeadlineSeconds") or self._final is not None:
            return []
        most = float(spec.activeDeadlineSeconds)
        return [i.SetTimer(DEADLINE, min(max(self.record.start_time + most - now, 0.0), most))]

    def _timer(self, name: str, now: float) -> None:
        if name == DEADLINE:
            self._give_up(DEADLINE_EXCEEDED, DEADLINE_TEXT, self._facts.own_grace, now)
        elif name.startswith(RESTART):
            rested = self._facts.containers.get(name.removeprefix(RESTART))
            if rested is not None:
                rested.resting = False
        elif name.startswith(RETRY):
            self._steps.rested(name.removeprefix(RETRY))
        else:
            _ = self._ending.timer(name) or self._starting.pulling.timer(name)

    def _look_again(self, *, pulls: bool) -> None:
        """What the pod refers to, or the pod itself, may have changed; `pulls`: also what its images depend on."""
        self._facts.volumes_stale = True
        for container in self._facts.containers.values() if pulls else ():
            self._starting.pulling.try_again(container)

    # ---- what became of steps ----
    def _done(self, step: i.Step, value: object, now: float) -> list[i.Instruction]:
        self._steps.done(step)
        facts, starting = self._facts, self._starting
        self._relieve(step)
        match step:
            case i.EnsureSandbox():
                assert isinstance(value, Sandbox)
                facts.netns, facts.attached = value.netns, False
            case i.Attach():
                facts.attached, facts.address = True, str(value)
            case i.HoldImage(name):
                assert value is None or isinstance(value, Image)
                starting.pulling.held(facts.containers[name], value)
            case i.PullImage(name):
                assert isinstance(value, Image)
                starting.pulling.pulled(facts.containers[name], value)
            case i.PrepareVolumes():
                assert isinstance(value, Mapping)
                starting.volumes_prepared(step, dict(value))
            case i.UpdateVolumes():
                starting.volumes_updated(step)
            case i.Start():
                assert isinstance(value, ContainerState)
                return self._learn([value], now)
            case i.RunHook():
                self._hook_done(step, str(value or ""), now)
            case i.ReadLogTail(id):
                self._said(facts.containers[id.name], id.attempt, str(value or ""))
            case i.Bury(id):
                self._burying.buried(id)
            case i.Save(record):
                self._saved, facts.recorded, facts.unsaved = record, True, False
                self._stop_saved = self._stop_saved or record.stop_started > 0
                self._failure_saved = self._failure_saved or record.failed_at > 0
            case i.RemoveContainer(id):
                self._removed_run(facts.containers[id.name], id.attempt)
            case i.Detach():
                self._detached = True
            case i.RemoveSandbox():
                self._freed = True
            case i.FreeVolumes():
                self._volumes_freed, facts.prepared = True, None
            case i.Signal():
                pass
            case _:
                assert_never(step)
        self.ended = self.ended or (self._freed and self._volumes_done)
        return []

    def _hook_done(self, step: i.RunHook, fault: str, now: float) -> None:
        if step.which == "postStart":
            self._starting.hook_done(step, fault, now)
        else:
            self._ending.hook_done(step)

    def _said(self, container: ContainerFacts, attempt: int, text: str) -> None:
        for run in (container.run, container.previous):
            if run is not None and run.attempt == attempt:
                run.note = replace(run.note, said=text)

    def _removed_run(self, container: ContainerFacts, attempt: int) -> None:
        container.older.discard(attempt)
        if container.run is not None and container.run.attempt == attempt and container.run.misconfigured:
            container.set_aside()

    def _failed(self, event: i.Failed, now: float) -> list[i.Instruction]:
        step = event.step
        if isinstance(step, i.Start) and not event.retryable:
            self._steps.ended(step)
            container = self._facts.containers[step.spec.id.name]
            container.problem = None
            container.open_run(step.spec.id.attempt).fail(event.reason, event.message, event.exit_code, now)
            return self._rest(container, now)
        if isinstance(step, i.PullImage) or (isinstance(step, i.HoldImage) and not event.retryable):
            return self._starting.pulling.failed(event, self._facts.containers[step.container], now)
        if isinstance(step, i.RunHook):
            self._steps.ended(step)
            self._hook_done(step, event.message, now)
            return []
        if isinstance(step, i.ReadLogTail | i.Bury):
            self._steps.ended(step)
            if isinstance(step, i.Bury):
                self._burying.buried(step.id)
            return []  # then it has no message, or no certificate: nothing waits for that
        if isinstance(step, i.Signal):
            self._ending.unsignalled(step)
        if isinstance(step, i.UpdateVolumes):
            self._facts.volumes_stale = True
        if isinstance(step, i.Save):
            # a full disk does not keep a pod from ending
            self._stop_saved, self._failure_saved = self.stopping, self._facts.failed
        self._explain(step, event)
        return [self._steps.failed(step)]

    def _explain(self, step: i.Step, event: i.Failed) -> None:
        """A step that holds containers back is the reason why they wait."""
        if isinstance(step, i.EnsureSandbox | i.Attach | i.Save | i.PrepareVolumes):
            self._facts.held = (event.reason, event.message)
        elif isinstance(step, i.HoldImage):
            self._facts.containers[step.container].problem = (event.reason, event.message)
        elif isinstance(step, i.Start):
            self._facts.containers[step.spec.id.name].problem = (event.reason, event.message)

    def _relieve(self, step: i.Step) -> None:
        if isinstance(step, i.EnsureSandbox | i.Attach | i.Save | i.PrepareVolumes):
            self._facts.held = None

    # ---- runs ----
    def _learn(self, states: Iterable[ContainerState], now: float, *, restored: bool = False) -> list[i.Instruction]:
        out: list[i.Instruction] = []
        for state in states:
            container = self._facts.containers.get(state.id.name)
            if container is None:
                continue  # a container that the manifest does not know goes with the sandbox
            if restored:
                note = container.notes.get(container.note_key(state.id.attempt))
                container.backoff.ends = note.ends if note else state.id.attempt
            if container.learn(state, now):
                out += self._rest(container, now)
        return out

    def _rest(self, container: ContainerFacts, now: float) -> list[i.Instruction]:
        """After a run has ended: counts it, and waits its backoff out before the next."""
        run = container.run
        assert run is not None
        self._starting.pulling.ended(container)
        container.backoff.ended(run.ran_for)
        delay = container.backoff.delay
        container.next_start = run.finished_at + delay
        left = min(max(container.next_start - now, 0.0), delay)
        container.resting = left > 0 and container.restartable(self._facts.policy)
        out = forget_probes(container)
        return [*out, i.SetTimer(RESTART + container.spec.name, left)] if container.resting else out

    # ---- the plan ----
    def _plan(self, now: float) -> list[i.Instruction]:
        if self.ended:
            return []
        out = self._ending.tails() + self._burying.plan(now)
        if self._closing:
            out += self._plan_close(now)
        else:
            out += self._starting.plan(now) + self._ending.plan_doomed(now)
        saves = self._save()
        return saves + out + self._plan_free()

    @property
    def _closing(self) -> bool:
        """No container is started any more."""
        if self.stopping or self._facts.failed or self._final is not None:
            return True
        return all_over(self._facts.ordered, self._facts.policy)

    def _plan_close(self, now: float) -> list[i.Instruction]:
        if self._final is not None and not self.stopping:
            return []
        if (self.stopping and not self._stop_saved) or (self._facts.failed and not self._failure_saved):
            return []  # on disk goes first: the start of the grace period before a signal, a failure before it is told
        out, left = self._ending.plan_all(now)
        if not left and self._final is None and not self._steps.in_flight("tail"):
            self._conclude()
        return out

    def _conclude(self) -> None:
        """No container will run again: the status is final from here."""
        facts = self._facts
        phase = FAILED if facts.failed else final_phase(facts.ordered)
        self._final = self._status(phase)
        facts.record = replace(facts.record, final=self._final.SerializeToString(deterministic=True))

    def _save(self) -> list[i.Instruction]:
        facts = self._facts
        notes = facts.notes()
        if notes != facts.record.notes:
            facts.record = replace(facts.record, notes=notes)
        return self._steps.give(i.Save(facts.record)) if facts.record != self._saved else []

    def _plan_free(self) -> list[i.Instruction]:
        """Nothing runs any more and the final status is on disk: the pod's traces go, all but its logs when it has not
        been deleted yet."""
        give, facts = self._steps.give, self._facts
        if self._final is None or self._steps.in_flight("save") or self._steps.busy("save", "signal", "hook", "pull"):
            return []
        if not self.stopping and facts.record != self._saved:
            return []
        if self.stopping and not self._stop_saved:
            return []
        if not self._detached and not facts.pod.spec.hostNetwork:
            return give(i.Detach())
        if self.stopping and not self._freed:
            return give(i.RemoveSandbox(tuple(facts.holder(c) for c in facts.containers.values())))
        return [] if self._volumes_done else give(i.FreeVolumes())

    @property
    def _volumes_done(self) -> bool:
        return self._volumes_freed or not self.pod.spec.volumes

    @property
    def holds_volumes(self) -> bool:
        """Whether the pod's volumes may be mounted: also a pod that nobody has deleted is done with them at its end."""
        return not (self.ended or (self._final is not None and self._volumes_done))

    # ---- status ----
    def _status(self, phase: str) -> o.PodStatus:
        facts, record = self._facts, self._facts.record
        view = PodView(
            facts.pod,
            facts.ordered,
            facts.node,
            facts.address,
            record.start_time,
            over=self._closing or phase in TERMINAL,
            stopped_at=record.stop_started,
            held=facts.held,
            reason=record.failed_reason,
            message=record.failed_message,
        )
        return pod_status(view, phase)

    def _publish(self) -> list[i.Instruction]:
        if self._final is None:
            phase = phase_of(self._facts.ordered, self._facts.policy, floor=self._phase)
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


def _wish(pod: o.Pod) -> bytes:
    """All but the status, comparable."""
    wish = o.Pod()
    wish.CopyFrom(pod)
    wish.ClearField("status")
    return wish.SerializeToString(deterministic=True)
