"""What controllers, scheduler and agents would do about changes, on a copy, until nobody has anything left to do.

The controllers and the scheduler are the real ones. Agents are not: a pod becomes ready, and a pod that is deleted
ends, one step after its node has heard of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence

from shoal.master.controllers import deployment, disruption, replicaset
from shoal.master.controllers.base import Controller, Rng, mark_terminating, ready, set_condition, terminating
from shoal.master.controllers.replicaset import FAILURE_HOLD_MAX_SECONDS
from shoal.master.model import FINAL_PHASES, Change, Delete, Event, Fault, Invalid, Key, Modify, Object, Record
from shoal.master.planning.overlay import Overlay
from shoal.master.scheduler.classes import Classes
from shoal.master.scheduler.core import Binding, Plan, Preemption, Scheduler, Waiting, order
from shoal.master.scheduler.queue import arrival_of
from shoal.master.scheduler.snapshot import Snapshot
from shoal.proto.v1 import objects_pb2 as o

MOST_NEW_PODS = 10_000  # of one rehearsal
WINDOW = 250  # pods that are scheduled between two breaths
CALLS_PER_BREATH = 32  # reconciles between two breaths
MOST_RETRIES = 3  # of a call whose changes were refused
TICK_SECONDS = 1.0
GATED = "its scheduling gates are closed"
REPLICASETS = 1  # the place of their controller


class Rehearsal:
    """`first` holds, for each pod that was touched, what it was before (None: it was not there); `causes` says of
    pods that go why, `preempted` for whom; `refusals` why pods wait."""

    def __init__(self, overlay: Overlay, snapshot: Snapshot, scheduler: Scheduler, now: float, rng: Rng) -> None:
        self.overlay, self.snapshot = overlay, snapshot
        self.first: dict[str, Record | None] = {}
        self.causes: dict[str, str] = {}
        self.preempted: dict[str, str] = {}  # uid -> uid of the pod that it makes room for
        self.refusals: dict[str, str] = {}
        self.holds: dict[Key, float] = {}  # ReplicaSets that wait because their pods fail, and for how long
        self.held_up: dict[Key, float] = {}  # those that have waited
        self.now = now
        self._scheduler, self._classes = scheduler, Classes()
        self._controllers: list[Controller] = [
            deployment.controller(rng),
            replicaset.controller(rng),
            disruption.controller(),
        ]
        self._dirty: dict[tuple[int, Key], None] = {}
        self._retries: Counter[tuple[int, Key]] = Counter()
        self._pending: dict[str, Waiting] = {}
        self._look_again = False
        self._starting: dict[str, Key] = {}
        self._ending: dict[str, Key] = {}
        self._made = 0
        for found in overlay.all("Pod"):
            assert isinstance(found, o.Pod)
            self._place_of(found)

    def write(self, changes: Sequence[Change]) -> list[Record | Fault | None]:
        """Writes, and tells everybody."""
        results = self.overlay.commit(changes)
        self.settle_events()
        return results

    def settle_events(self) -> None:
        """Tells everybody what the overlay's writers have done."""
        for event in (events := self.overlay.take_events()):
            for index, controller in enumerate(self._controllers):
                watch = controller.watches.get(event.key.kind)
                for key in watch(self.overlay, event) if watch else ():
                    self._dirty[index, key] = None
            if event.key.kind == "Pod":
                self._take_pod(event)
        applied = self.snapshot.apply(events)
        self._look_again |= applied.nodes_changed or applied.freed or applied.volumes_changed

    def run(self) -> Iterator[None]:
        """To the fixed point, in steps. Raises Invalid when it would take more pods than can be planned at once."""
        while True:
            yield from self._control()
            yield
            if (yield from self._schedule()):
                continue
            if not self._agents() and not self._wait():
                return

    # ---- pods as they come and go ----
    def _take_pod(self, event: Event) -> None:
        old, new = event.old, event.new
        record = new or old
        assert record is not None
        uid = record.message.metadata.uid
        if uid not in self.first:
            self.first[uid] = old
            if old is None:
                self._made += 1
                if self._made > MOST_NEW_PODS:
                    raise Invalid(f"this would make more than {MOST_NEW_PODS} pods: plan it in parts")
        if new is None:
            for group in (self._pending, self._starting, self._ending):
                group.pop(uid, None)
        elif isinstance(new.message, o.Pod):
            self._place_of(new.message)

    def _place_of(self, pod: o.Pod) -> None:
        """What is next for the pod."""
        uid, key = pod.metadata.uid, Key("Pod", pod.metadata.namespace, pod.metadata.name)
        self._pending.pop(uid, None)
        if terminating(pod):
            self._starting.pop(uid, None)
            self._ending[uid] = key
        elif pod.status.phase in FINAL_PHASES:
            self._starting.pop(uid, None)
        elif not pod.spec.nodeName:
            if not pod.spec.schedulingGates:
                self._wants_node(pod, key)
            elif uid in self.first:
                self.refusals[uid] = GATED
        elif not ready(pod) and (uid in self.first or on_its_way(pod)):
            self._starting[uid] = key

    def _wants_node(self, pod: o.Pod, key: Key) -> None:
        record = self.overlay.record(key)
        uid = pod.metadata.uid
        arrival = arrival_of(record.created if record else 0, key.name, uid)
        self._pending[uid] = Waiting(uid, key, self._classes.of(pod), arrival)
        self._look_again = True

    # ---- controllers ----
    def _control(self) -> Iterator[None]:
        """Cycle by cycle as the master's loop does it: all that are dirty are asked, then all is written."""
        while self._dirty:
            items, self._dirty = list(self._dirty), {}
            changes: list[Change] = []
            askers: list[tuple[int, Key]] = []
            for number, (index, key) in enumerate(items, start=1):
                outcome = self._controllers[index].reconcile(self.overlay, key, self.now)
                changes += outcome.changes
                askers += [(index, key)] * len(outcome.changes)
                if outcome.again is not None and index == REPLICASETS:
                    self.holds[key] = outcome.again
                if number % CALLS_PER_BREATH == 0:
                    yield
            for asker, result in zip(askers, self.write(changes), strict=True):
                if isinstance(result, Fault) and self._retries[asker] < MOST_RETRIES:
                    self._retries[asker] += 1
                    self._dirty[asker] = None
            yield

    def _wait(self) -> bool:
        """Time goes on to where a ReplicaSet whose pods fail may make others; each waits once."""
        due, self.holds = self.holds, {}
        due = {key: wait for key, wait in due.items() if key not in self.held_up}
        if not due:
            return False
        self.held_up |= due
        self.now += min(FAILURE_HOLD_MAX_SECONDS, max(due.values()))
        for key in due:
            self._dirty[REPLICASETS, key] = None
        return True

    # ---- the scheduler ----
    def _schedule(self) -> Generator[None, None, bool]:
        """One look at all that wait; True when something was decided."""
        if not self._look_again:
            return False
        self._look_again = False
        queue = order(self._pending.values())
        moved = False
        for start in range(0, len(queue), WINDOW):
            plan = self._scheduler.schedule(self.snapshot, queue[start : start + WINDOW])
            self._remember(plan)
            self.write([*map(bind, plan.bindings), *self._victims(plan.preemptions)])
            moved = moved or bool(plan.bindings or any(one.victims for one in plan.preemptions))
            yield
        return moved

    def _remember(self, plan: Plan) -> None:
        for binding in plan.bindings:
            self.refusals.pop(binding.waiting.uid, None)
        for waiting, story in plan.refusals:
            self.refusals[waiting.uid] = story.message

    def _victims(self, preemptions: Sequence[Preemption]) -> list[Change]:
        changes: list[Change] = []
        for one in preemptions:
            for victim in one.victims:
                self.preempted[victim.uid] = one.waiting.uid
                changes.append(end(victim.key, victim.uid, self.now))
        return changes

    # ---- agents ----
    def _agents(self) -> bool:
        """One step of every agent; True when there was something to do."""
        changes: list[Change] = [Modify(key, start(self.now), uid=uid) for uid, key in self._starting.items()]
        for uid, key in self._ending.items():
            record = self.overlay.record(key)
            if record is not None and not record.message.metadata.finalizers:
                changes.append(Delete(key, uid=uid))
        self._starting = {}
        before = self.overlay.revision
        self.now += TICK_SECONDS
        self.write(changes)
        return self.overlay.revision != before


def on_its_way(pod: o.Pod) -> bool:
    """Whether a bound pod that is not ready is only starting."""
    return pod.status.phase in ("", "Pending") and not any(
        status.restartCount or status.state.waiting.reason.endswith(("BackOff", "Error"))
        for status in (*pod.status.initContainerStatuses, *pod.status.containerStatuses)
    )


# ---- changes ----
def bind(binding: Binding) -> Change:
    node = binding.node

    def edit(found: Object) -> bool:
        if not isinstance(found, o.Pod) or found.spec.nodeName:
            return False
        found.spec.nodeName = node
        return True

    return Modify(binding.waiting.key, edit, uid=binding.waiting.uid)


def start(now: float) -> Callable[[Object], bool]:
    """The pod runs and is ready."""

    def edit(found: Object) -> bool:
        if not isinstance(found, o.Pod):
            return False
        found.status.phase = "Running"
        return set_condition(found.status.conditions, o.Condition(type="Ready", status="True"), now)

    return edit


def end(key: Key, uid: str, now: float) -> Change:
    """The pod is on its way out."""
    return Modify(key, lambda found: mark_terminating(found, now), uid=uid)
