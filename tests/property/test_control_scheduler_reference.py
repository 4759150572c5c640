"""The fast scheduler decides exactly what the plain one decides, order and reasons included."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.master.model import Event, Key, Object, Record, key_of
from shoal.master.scheduler.classes import PodClass, claims_of_pod, compile_class, load_of, owner_of, requests_of
from shoal.master.scheduler.core import Plan, Waiting, schedule
from shoal.master.scheduler.snapshot import Snapshot, facts_of, holds
from shoal.master.volumes import SELECTED_NODE
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import claim, made_class, node, pod, replicaset, volume
from tests.reference_scheduler import PlainClaim, PlainNode, PlainStorage, PlainVolume, reference

CLAIMS = ("c0", "c1", "c2", "c3")
AMOUNTS = st.sampled_from(["", "0", "1m", "100m", "333m", "1", "2"])
MEMORY = st.sampled_from(["", "1", "100Mi", "1Gi", "3Gi"])
LABELS = st.dictionaries(st.sampled_from(["zone", "disk"]), st.sampled_from(["a", "b"]), max_size=2)
TAINTS = st.lists(
    st.tuples(
        st.sampled_from(["k", "l"]),
        st.sampled_from(["", "v"]),
        st.sampled_from(["NoSchedule", "NoExecute", "PreferNoSchedule"]),
    ),
    max_size=2,
    unique=True,
)
OWNERS = [replicaset(name) for name in ("r0", "r1")]


@st.composite
def clusters(draw: st.DrawFn) -> list[o.Node]:
    nodes = []
    for index in range(draw(st.integers(0, 8))):
        made = node(
            f"n{index}",
            is_ready=draw(st.integers(0, 9)) > 0,
            cpu=draw(st.sampled_from(["0", "1", "2", "3"])),
            memory=draw(st.sampled_from(["1Gi", "2Gi", "4Gi"])),
            pods=draw(st.sampled_from(["2", "5", "110"])),
            taints=draw(TAINTS),
            **draw(LABELS),
        )
        if draw(st.booleans()):
            made.status.allocatable["x/gpu"].text = draw(st.sampled_from(["1", "2"]))
        nodes.append(made)
    return nodes


@st.composite
def specs(draw: st.DrawFn, name: str) -> o.Pod:
    made = pod(
        name,
        owner=draw(st.sampled_from([None, *OWNERS])),
        cpu=draw(AMOUNTS),
        memory=draw(MEMORY),
    )
    if draw(st.integers(0, 3)) == 0:
        made.spec.nodeSelector.update(draw(LABELS))
    for claim_name in draw(st.lists(st.sampled_from(CLAIMS), max_size=2, unique=True)) if draw(st.booleans()) else ():
        made.spec.volumes.add(name=claim_name).persistentVolumeClaim.claimName = claim_name
    if draw(st.integers(0, 5)) == 0:
        made.spec.containers[0].resources.requests["x/gpu"].text = "1"
    for key, value, effect in draw(TAINTS):
        operator = draw(st.sampled_from(["Equal", "Exists"]))
        made.spec.tolerations.append(o.Toleration(key=key, value=value, operator=operator, effect=effect))
    return made


@st.composite
def storages(draw: st.DrawFn) -> PlainStorage:
    """Claims c0 to c3, some of which are not there, and volumes of two classes."""
    made = PlainStorage()
    node_names = st.sampled_from([f"n{index}" for index in range(8)])
    for number in range(draw(st.integers(0, 4))):
        homes = draw(st.one_of(st.just(set[str]()), st.sets(node_names, min_size=1, max_size=3)))
        made.volumes[f"v{number}"] = PlainVolume(
            draw(st.sampled_from(["disks", "now"])), homes, draw(st.integers(1, 3))
        )
    for name in draw(st.lists(st.sampled_from(CLAIMS), unique=True)):
        claim = PlainClaim(draw(st.sampled_from(["made", "disks", "disks", "now", "unknown"])))
        claim.mode = draw(st.sampled_from(["ReadWriteOnce", "ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]))
        claim.size, claim.leaving = draw(st.integers(1, 3)), draw(st.integers(0, 7)) == 0
        claim.volume = draw(st.sampled_from(["", "", "v0", "v1", "gone"]))
        claim.tied = draw(st.one_of(st.just(""), st.just(""), node_names)) if not claim.volume else ""
        made.claims[f"default/{name}"] = claim
        found = made.volumes.get(claim.volume)
        if found is not None and not found.claim and draw(st.integers(0, 5)) > 0:
            found.claim = f"default/{name}"
    return made


def storage_objects(storage: PlainStorage) -> list[Object]:
    """The same as real objects."""
    objects: list[Object] = [
        made_class("made"),
        made_class("disks", "kubernetes.io/no-provisioner"),
        made_class("now", "kubernetes.io/no-provisioner", wait=False),
    ]
    for name, plain in storage.claims.items():
        one = claim(name.split("/")[1], f"{plain.size}Gi", plain.storage_class, plain.mode)
        one.spec.volumeName = plain.volume
        if plain.tied:
            one.metadata.annotations[SELECTED_NODE] = plain.tied
        if plain.leaving:
            one.metadata.deletionTimestamp.seconds = 1
        objects.append(one)
    for name, plain_volume in storage.volumes.items():
        vol = volume(name, f"{plain_volume.size}Gi", plain_volume.storage_class)
        vol.spec.accessModes.extend(["ReadWriteOncePod", "ReadWriteMany"])
        if plain_volume.homes:
            rule = vol.spec.nodeAffinity.required.nodeSelectorTerms.add().matchExpressions.add()
            rule.key, rule.operator = "kubernetes.io/hostname", "In"
            rule.values.extend(sorted(plain_volume.homes))
        if plain_volume.claim:
            short = plain_volume.claim.split("/")[1]
            vol.spec.claimRef.namespace, vol.spec.claimRef.name = "default", short
            vol.spec.claimRef.uid = f"uid-PersistentVolumeClaim-{short}"
        objects.append(vol)
    return objects


@st.composite
def queues(draw: st.DrawFn) -> list[o.Pod]:
    """Runs of identical pods, some classes coming back later."""
    kinds = [draw(specs(f"s{index}")) for index in range(draw(st.integers(1, 4)))]
    queue: list[o.Pod] = []
    for _ in range(draw(st.integers(1, 6))):
        like = draw(st.sampled_from(kinds))
        for _ in range(draw(st.integers(1, 12))):
            one = o.Pod.FromString(like.SerializeToString())
            one.metadata.name = one.metadata.uid = f"p{len(queue)}"
            queue.append(one)
    return queue


def added(obj: Object) -> Event:
    key = key_of(obj)
    return Event(key, 1, None, Record(key, obj, b"", 1, 1))


def as_list(plan: Plan, queue: list[o.Pod]) -> list[str | Counter[str]]:
    found: dict[str, str | Counter[str]] = {b.waiting.uid: b.node for b in plan.bindings}
    found |= {r.waiting.uid: Counter(dict(r.explanation.counts)) for r in plan.refusals}
    return [found[one.metadata.uid] for one in queue]


def classes(queue: list[o.Pod]) -> list[PodClass]:
    return [compile_class(one) for one in queue]


@settings(max_examples=300, deadline=None)
@given(
    clusters(),
    queues(),
    st.lists(st.tuples(specs("bound"), st.integers(0, 7)), max_size=4),
    st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(0, 7)), max_size=8),
    storages(),
)
def test_both_decide_the_same(
    nodes: list[o.Node],
    queue: list[o.Pod],
    bound: list[tuple[o.Pod, int]],
    siblings: list[tuple[o.ReplicaSet, int]],
    storage: PlainStorage,
) -> None:
    bound = bound + [(pod("sibling", owner=owner), at) for owner, at in siblings]
    plain = {n.metadata.name: PlainNode(facts_of(n)) for n in nodes}
    held = []
    for index, (one, at) in enumerate(bound):
        one.metadata.name = one.metadata.uid = f"bound{index}"
        one.spec.nodeName = f"n{at}"
        assert holds(one)
        held.append(one)
        for name in claims_of_pod(one):
            storage.users.setdefault(name, set()).add(one.spec.nodeName)
        if f"n{at}" in plain:
            plain[f"n{at}"].used.update(dict(requests_of(one.spec)))
            cpu, memory = load_of(one.spec)
            plain[f"n{at}"].load.update(cpu=cpu, memory=memory)
            plain[f"n{at}"].owners[owner_of(one)] += 1
    snapshot = Snapshot()
    snapshot.apply([added(one) for one in held] + [added(one) for one in reversed(nodes)])
    snapshot.apply([added(one) for one in storage_objects(storage)])
    if not nodes:
        return
    waiting = [Waiting(q.metadata.uid, Key("Pod", "default", q.metadata.name), compile_class(q)) for q in queue]
    plan = schedule(snapshot, waiting)
    assert as_list(plan, queue) == reference(list(plain.values()), classes(queue), storage)
    for name, want in plain.items():
        index = snapshot.row[name]
        have = {r: int(snapshot.used[i, index]) for i, r in enumerate(snapshot.resources)}
        assert {k: v for k, v in have.items() if v} == {k: v for k, v in want.used.items() if v}
        assert snapshot.load[:, index].tolist() == [want.load["cpu"], want.load["memory"]]


@settings(max_examples=100, deadline=None)
@given(clusters(), queues())
def test_undo_leaves_nothing_behind(nodes: list[o.Node], queue: list[o.Pod]) -> None:
    snapshot = Snapshot()
    snapshot.apply([added(n) for n in nodes])
    before = snapshot.used.copy(), snapshot.load.copy()
    waiting = [Waiting(q.metadata.uid, Key("Pod", "default", q.metadata.name), compile_class(q)) for q in queue]
    first = schedule(snapshot, waiting)
    for binding in first.bindings:
        assert snapshot.undo(binding.waiting.uid)
    assert (snapshot.used == before[0]).all() and (snapshot.load == before[1]).all()
    second = schedule(snapshot, waiting)
    assert [b.node for b in second.bindings] == [b.node for b in first.bindings]
