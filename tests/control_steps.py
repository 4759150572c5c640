"""Controllers without a loop: one call at a time, in any order that a test chooses, on what the watches made dirty."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shoal.master.controllers.base import Controller, Outcome, ready, set_condition, terminating
from shoal.master.model import Delete, Event, Fault, Key, Modify, NotFound, Object, key_of
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World

ROUNDS = 3000  # calls until a fixed point must be reached


class Steps:
    """Feeds events to watches and dirty keys to controllers; time is a number that the test moves."""

    def __init__(self, world: World, controllers: Sequence[Controller]) -> None:
        self.world = world
        self.controllers = {c.name: c for c in controllers}
        self.dirty: dict[tuple[str, Key], None] = {}
        self.now = 1000.0
        self.sentences: list[str] = []

    def feed(self) -> None:
        events, self.world.events = self.world.events, []
        for event in events:
            self.feed_one(event)

    def feed_one(self, event: Event) -> None:
        for controller in self.controllers.values():
            watch = controller.watches.get(event.key.kind)
            for key in watch(self.world, event) if watch else ():
                self.dirty[controller.name, key] = None

    def call(self, name: str, key: Key) -> Outcome:
        outcome = self.controllers[name].reconcile(self.world, key, self.now)
        for result in self.world.apply(outcome.changes):
            assert not isinstance(result, Fault) or isinstance(result, NotFound), result
        if outcome.did:
            self.sentences.append(f"{name} {key.name}: {outcome.did}")
        assert self.world.unchanged()
        return outcome

    def step(self, choice: int) -> bool:
        """Calls one of the dirty ones; False when there is none."""
        self.feed()
        if not self.dirty:
            return False
        item = list(self.dirty)[choice % len(self.dirty)]
        del self.dirty[item]
        self.call(*item)
        return True

    def settle(self, *, agents: bool = True, rng: random.Random | None = None) -> None:
        """Until nobody wants anything; agents start and end pods at once."""
        for _ in range(ROUNDS):
            moved = self.step(rng.randrange(1000) if rng else 0)
            if not moved and not (agents and self.run_agents()):
                return
        raise AssertionError(f"no fixed point; last: {self.sentences[-5:]}, dirty: {list(self.dirty)[:5]}")

    # ---- what agents do ----
    def run_agents(self) -> bool:
        """Every pod that can be started or ended is; True when there was one."""
        moved = [self.run_pod(pod) for pod in self.world.pods()]
        return any(moved)

    def run_pod(self, pod: o.Pod) -> bool:
        """Binds and starts an active pod, ends a terminating one."""
        if terminating(pod):
            if pod.metadata.finalizers or not pod.spec.nodeName:
                return False
            return self.world.commit(Delete(key_of(pod), uid=pod.metadata.uid)) is None
        if pod.status.phase in ("Succeeded", "Failed") or ready(pod):
            return False
        now = self.now

        def edit(found: Object) -> bool:
            assert isinstance(found, o.Pod)
            found.spec.nodeName = found.spec.nodeName or "n0"
            found.status.phase = "Running"
            return set_condition(found.status.conditions, o.Condition(type="Ready", status="True"), now)

        assert not isinstance(self.world.commit(Modify(key_of(pod), edit)), Fault)
        return True
