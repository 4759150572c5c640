"""The snapshot's books: what events change, what copies share and what is counted; and runs of the queue."""

from __future__ import annotations

import pytest

from shoal.master.model import Event, Key, Object, Record, key_of
from shoal.master.scheduler.classes import compile_class
from shoal.master.scheduler.core import Scheduler, Waiting
from shoal.master.scheduler.counts import count_up
from shoal.master.scheduler.queue import runs
from shoal.master.scheduler.snapshot import DEVICES_LIMIT, Hold, Snapshot
from shoal.master.scheduler.terms import PodMatch, Rule, Selector
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import node, pod

WEB = PodMatch(("default",), None, Selector((Rule("app", "In", ("web",)),)))


def event(new: Object, old: Object | None = None, revision: int = 3) -> Event:
    before = None if old is None else Record(key_of(old), old, b"", revision - 1, 1)
    return Event(key_of(new), revision, before, Record(key_of(new), new, b"", revision, 1))


def snapshot_of(*objects: Object) -> Snapshot:
    snapshot = Snapshot()
    snapshot.apply([event(one) for one in objects])
    return snapshot


def web(name: str, at: str, **labels: str) -> o.Pod:
    made = pod(name, node=at, phase="Running", cpu="100m")
    made.metadata.labels.update({"app": "web", **labels})
    return made


def counted(snapshot: Snapshot) -> list[int]:
    found: list[int] = snapshot.counts.count((WEB,), snapshot.row).everyone.tolist()
    return found


def changed(one: o.Pod) -> o.Pod:
    return o.Pod.FromString(one.SerializeToString())


def test_a_bound_pod_whose_labels_change_is_counted_by_the_new_ones() -> None:
    one = web("p", "a")
    snapshot = snapshot_of(node("a"), node("b"), one)
    assert counted(snapshot) == [1, 0]
    other = changed(one)
    other.metadata.labels["app"] = "db"
    assert snapshot.apply([event(other, one)]).freed
    assert counted(snapshot) == [0, 0]


def test_a_pod_that_is_being_deleted_stays_counted_but_not_among_the_staying() -> None:
    one = web("p", "a")
    snapshot = snapshot_of(node("a"), one)
    going = changed(one)
    going.metadata.deletionTimestamp.seconds = 9
    snapshot.apply([event(going, one)])
    found = snapshot.counts.count((WEB,), snapshot.row)
    assert (found.everyone.tolist(), found.staying.tolist()) == ([1], [0])
    hold = snapshot.held(one.metadata.uid)
    assert hold is not None and hold.leaving


def test_an_event_that_says_nothing_new_changes_nothing() -> None:
    one = web("p", "a")
    snapshot = snapshot_of(node("a"), one)
    before, hold = snapshot.version, snapshot.held(one.metadata.uid)
    assert not snapshot.apply([event(changed(one), one)]).freed
    assert snapshot.version == before
    assert snapshot.held(one.metadata.uid) is hold


def test_the_revision_is_the_newest_that_was_applied() -> None:
    snapshot = Snapshot()
    snapshot.apply([event(node("a"), revision=8), event(node("b"), revision=5)])
    assert snapshot.revision == 8


def test_a_copy_is_changed_alone() -> None:
    snapshot = snapshot_of(node("a"), node("b"), web("p", "a"))
    copy = snapshot.clone()
    copy.apply([event(web("q", "b")), event(node("c"))])
    assert (snapshot.names, copy.names) == (["a", "b"], ["a", "b", "c"])
    assert (counted(snapshot), counted(copy)) == ([1, 0], [1, 1, 0])
    assert int(snapshot.free("cpu")[1]) - int(copy.free("cpu")[1]) == 100
    assert len(snapshot.pods_on("b")) == 0


def test_the_journal_tells_which_rows_changed_until_it_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.master.scheduler.snapshot.JOURNAL_LIMIT", 4)
    snapshot = snapshot_of(node("a"), node("b"))
    start, pods = snapshot.version, compile_class(pod("x"))
    snapshot.commit("u0", Hold("b", pods))
    assert snapshot.touched(start) == [1]
    for number in range(1, 9):
        snapshot.commit(f"u{number}", Hold("a", pods))
    assert snapshot.touched(start) is None
    assert snapshot.touched(snapshot.version - 1) == [0]


def test_namespaces_are_looked_at_anew_when_their_labels_change() -> None:
    space = o.Namespace(kind="Namespace", metadata=o.ObjectMeta(name="default"))
    snapshot = snapshot_of(node("a"), space, web("p", "a"))
    red = PodMatch((), Selector((Rule("team", "In", ("red",)),)), Selector())
    assert snapshot.counts.count((red,), snapshot.row).everyone.tolist() == [0]
    other = o.Namespace.FromString(space.SerializeToString())
    other.metadata.labels["team"] = "red"
    assert snapshot.apply([event(other, space)]).spaces_changed
    assert snapshot.counts.count((red,), snapshot.row).everyone.tolist() == [1]
    assert not snapshot.apply([event(other, space)]).spaces_changed


def test_idle_classes_are_forgotten_and_held_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.master.scheduler.counts.IDLE_LIMIT", 2)
    only = node("a", pods="500")
    only.metadata.labels["kubernetes.io/hostname"] = "a"
    snapshot = snapshot_of(only)
    apart = web("apart", "a")
    term = apart.spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution.add()
    term.topologyKey = "kubernetes.io/hostname"
    term.labelSelector.matchLabels["app"] = "web"
    snapshot.apply([event(apart)])
    for number in range(20):
        uid = f"u{number}"
        snapshot.commit(uid, Hold("a", compile_class(web(uid, "", run=uid))))
        snapshot.undo(uid)
        snapshot.counts.tidy()
    assert len(snapshot.counts) < 8
    queue = [Waiting("w", Key("Pod", "default", "w"), compile_class(web("w", "")))]
    assert "existing pods anti-affinity" in Scheduler().schedule(snapshot, queue).refusals[0].explanation.message


def test_a_pod_is_not_placed_twice() -> None:
    snapshot, pods = snapshot_of(node("a")), compile_class(pod("x"))
    snapshot.commit("u", Hold("a", pods))
    with pytest.raises(AssertionError, match="placed twice"):
        snapshot.commit("u", Hold("a", pods))
    with pytest.raises(AssertionError, match="placed twice"):
        snapshot.commit_batch(["v", "w", "x", "u"], [Hold("a", pods)] * 4, [0] * 4)


def test_counting_up_adds_to_what_is_there() -> None:
    on = {"a": 2}
    count_up(on, ["b", "b", "c"])
    count_up(on, ["a", "c"])
    assert on == {"a": 3, "b": 2, "c": 2}


def test_pods_that_stand_alone_part_a_run() -> None:
    pods = compile_class(pod("x"))
    queue = [Waiting(f"u{n}", Key("Pod", "default", f"u{n}"), pods) for n in range(5)]
    found = [[one.uid for one in run.waiting] for run in runs(queue, {"u2"})]
    assert found == [["u0", "u1"], ["u2"], ["u3", "u4"]]
    assert [len(run.waiting) for run in runs(queue, ())] == [5]


@pytest.mark.parametrize("size", [-(2**63), 2**63 - 1])
def test_a_node_that_claims_absurd_image_sizes_keeps_no_pod_waiting(size: int) -> None:
    nodes = [node(name) for name in ("a", "b")]
    for one in nodes:
        for image in ("docker.io/library/web:1", "docker.io/library/web:2"):
            one.status.images.add(sizeBytes=size, names=[image])
    snapshot, wants = snapshot_of(*nodes), pod("p")
    wants.spec.containers[0].image = "web:1"
    wants.spec.containers.add(name="d", image="web:2")
    queue = [Waiting("p", Key("Pod", "default", "p"), compile_class(wants))]
    assert [one.node for one in Scheduler().schedule(snapshot, queue).bindings] == ["a"]


def test_more_devices_than_are_given_out_are_there_but_not_used() -> None:
    nodes = [node("a"), node("b")]
    nodes[0].status.allocatable["shoal.dev/gpu"].text = "70"
    snapshot = snapshot_of(nodes[0])
    nodes[1].status.allocatable["shoal.dev/gpu"].text = "99999"
    snapshot.apply([event(nodes[1])])
    assert snapshot.gpu_left.shape == (2, DEVICES_LIMIT)
    wants = pod("p")
    wants.spec.containers[0].resources.requests["shoal.dev/gpu"].text = "65"
    queue = [Waiting("p", Key("Pod", "default", "p"), compile_class(wants))]
    plan = Scheduler().schedule(snapshot, queue)
    assert not plan.bindings
    assert plan.refusals[0].explanation.message == "0/2 nodes are available: 2 Insufficient shoal.dev/gpu."
