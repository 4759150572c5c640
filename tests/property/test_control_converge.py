"""Whatever happens in whatever order: counts come right, a rollout keeps enough pods ready, nothing is doubled."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.master.controllers import deployment as deployments
from shoal.master.controllers import eviction, gc, podgc, replicaset
from shoal.master.controllers import node as nodes
from shoal.master.controllers.base import active, controller_of, mark_terminating, ready
from shoal.master.controllers.node import Beats
from shoal.master.model import Delete, Fault, Key, Modify, NotFound, Object, key_of
from shoal.proto.v1 import objects_pb2 as o
from tests.control_steps import Steps
from tests.control_world import World, deployment, namespace, node
from tests.control_world import replicaset as rs_of

DEPLOYMENT = Key("Deployment", "default", "web")
REPLICASET = Key("ReplicaSet", "default", "set")


def steps(*objects: Object) -> Steps:
    rng = random.Random(5)
    beats = Beats(0.0, {"n0": 0.0})
    controllers = [
        nodes.controller(lambda: beats),
        eviction.controller(lambda: beats),
        deployments.controller(rng),
        replicaset.controller(rng),
        podgc.controller(),
        gc.controller(),
        gc.namespace_controller(),
    ]
    return Steps(World([namespace(), node("n0"), *objects]), controllers)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["call", "call", "call", "agent", "agent", "scale", "image", "delete", "relabel", "fail", "drop"]
        ),
        st.integers(0, 60),
    ),
    max_size=80,
)


def pick(s: Steps, choice: int) -> o.Pod | None:
    pods = s.world.pods()
    return pods[choice % len(pods)] if pods else None


def act(s: Steps, action: str, choice: int) -> None:
    """One thing that people, agents or controllers do."""
    one = pick(s, choice)
    match action:
        case "call":
            s.step(choice)
        case "agent" if one:
            s.run_pod(one)
        case "scale":
            modify(s, DEPLOYMENT, lambda d: scale(d, choice % 6))
            modify(s, REPLICASET, lambda rs: scale(rs, choice % 5))
        case "image":
            modify(s, DEPLOYMENT, lambda d: set_image(d, f"web:{choice % 3}"))
        case "delete" if one:
            modify(s, key_of(one), lambda p: mark_terminating(p, s.now))
        case "relabel" if one:
            modify(s, key_of(one), lambda p: relabel(p, choice))
        case "fail" if one:
            modify(s, key_of(one), fail)
        case "drop" if one:
            s.world.commit(Delete(key_of(one)))


def modify(s: Steps, key: Key, edit: object) -> None:
    assert callable(edit)

    def carefully(found: Object) -> bool:
        before = found.SerializeToString(deterministic=True)
        edit(found)
        return found.SerializeToString(deterministic=True) != before

    result = s.world.commit(Modify(key, carefully))
    assert not isinstance(result, Fault) or isinstance(result, NotFound)


def scale(obj: Object, to: int) -> None:
    assert isinstance(obj, o.Deployment | o.ReplicaSet)
    obj.spec.replicas = to


def set_image(obj: Object, image: str) -> None:
    assert isinstance(obj, o.Deployment)
    obj.spec.template.spec.containers[0].image = image
    obj.metadata.generation += 1


def relabel(obj: Object, choice: int) -> None:
    obj.metadata.labels["app"] = ("web", "set", "nobody")[choice % 3]


def fail(obj: Object) -> None:
    assert isinstance(obj, o.Pod)
    obj.status.phase = "Failed"


def mine(s: Steps, uid: str) -> list[o.Pod]:
    return [p for p in s.world.pods() if active(p) and (ref := controller_of(p)) is not None and ref.uid == uid]


@settings(max_examples=150, deadline=None)
@given(ACTIONS, st.integers(0, 2**32))
def test_everything_converges(actions: list[tuple[str, int]], seed: int) -> None:
    s = steps(deployment(), rs_of("set", 2, app="set"))
    for action, choice in actions:
        act(s, action, choice)
    for _ in range(3):  # time passes: failed pods hold their replacements back
        s.settle(rng=random.Random(seed))
        s.now += replicaset.FAILURE_HOLD_MAX_SECONDS + 1
        s.dirty["replicaset", REPLICASET] = None
        s.dirty |= {("replicaset", key_of(rs)): None for rs in s.world.all("ReplicaSet")}
    s.settle(rng=random.Random(seed))
    plain = s.world.get(*REPLICASET)
    top = s.world.get(*DEPLOYMENT)
    assert isinstance(plain, o.ReplicaSet) and isinstance(top, o.Deployment)
    assert len(mine(s, plain.metadata.uid)) == plain.spec.replicas == plain.status.readyReplicas
    sets = [rs for rs in s.world.owned(top.metadata.uid) if isinstance(rs, o.ReplicaSet)]
    assert sum(rs.spec.replicas for rs in sets) == top.spec.replicas == top.status.readyReplicas
    image = top.spec.template.spec.containers[0].image
    for rs in sets:
        pods = mine(s, rs.metadata.uid)
        assert len(pods) == rs.spec.replicas
        current = rs.spec.template.spec.containers[0].image == image
        assert rs.spec.replicas == (top.spec.replicas if current else 0)
    conditions = {c.type: c.status for c in top.status.conditions}
    assert conditions == {"Available": "True", "Progressing": "True"}


ROLLOUT = st.lists(st.tuples(st.sampled_from(["call", "call", "agent", "image"]), st.integers(0, 60)), max_size=120)


@settings(max_examples=150, deadline=None)
@given(ROLLOUT, st.integers(1, 5), st.integers(0, 2**32))
def test_a_rollout_never_has_fewer_ready_pods_than_asked_for(
    actions: list[tuple[str, int]], replicas: int, seed: int
) -> None:
    s = steps(deployment(replicas=replicas))
    s.settle()
    rng = random.Random(seed)
    for action, choice in [*actions, *(("call", rng.randrange(60)) for _ in range(50))]:
        act(s, action, choice)
        count = sum(ready(p) and active(p) for p in s.world.pods())
        assert count >= replicas, s.sentences[-5:]
        alive = sum(map(active, s.world.pods()))
        assert alive <= replicas + deployments.MAX_SURGE + 1, s.sentences[-5:]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9), st.lists(st.integers(0, 60), max_size=40))
def test_pods_are_never_created_twice(replicas: int, order: list[int]) -> None:
    s = steps(rs_of("set", replicas, app="set"))
    most = 0
    for choice in order:
        s.step(choice)
        most = max(most, len(s.world.pods()))
        s.dirty["replicaset", REPLICASET] = None  # the same event again
    assert most <= replicas
