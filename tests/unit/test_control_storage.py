"""Claims and volumes: who gets what, when, and what is protected."""

from __future__ import annotations

import pytest

from shoal.master import volumes as rules
from shoal.master.api.admission import Stamp, prepare_create
from shoal.master.controllers import gc, storage
from shoal.master.controllers.base import instant
from shoal.master.model import Create, Delete, Event, Key, Modify, Object, key_of
from shoal.proto.references import LOCAL_FINALIZER, VOLUME_PROTECTION, homes
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World, claim, made_class, namespace, node, pod, volume

NOW = 1000.0


def user(name: str = "p", node_: str = "", claims: str = "data") -> o.Pod:
    made = pod(name, node=node_, phase="Running" if node_ else "Pending")
    for one in claims.split():
        made.spec.volumes.add(name=one).persistentVolumeClaim.claimName = one
    return made


def settle(world: World) -> list[str]:
    """Runs the controller, by its own watches alone, until nothing is left to do; the reasons that it gave."""
    said: list[str] = []
    watches = storage.controller().watches
    for _ in range(30):
        events, world.events = world.events, []
        keys = {key for e in events if e.key.kind in watches for key in watches[e.key.kind](world, e)}
        outcomes = [storage.reconcile(world, key, NOW) for key in sorted(keys)]  # all on one view, as in a cycle
        for outcome in outcomes:
            said += [one.reason for one in outcome.said]
            world.apply(outcome.changes)
        for event in events:
            for key in gc.family_keys(world, event):
                world.apply(gc.reconcile(world, key, NOW).changes)
        if not world.events:
            return said
    raise AssertionError("the controller does not come to rest")


def get_claim(world: World, name: str = "data") -> o.PersistentVolumeClaim:
    found = world.get("PersistentVolumeClaim", "default", name)
    assert isinstance(found, o.PersistentVolumeClaim)
    return found


def get_volume(world: World, name: str) -> o.PersistentVolume:
    found = world.get("PersistentVolume", "", name)
    assert isinstance(found, o.PersistentVolume)
    return found


def delete(obj: Object) -> Modify:
    def edit(found: Object) -> bool:
        found.metadata.deletionTimestamp.CopyFrom(instant(NOW))
        return True

    return Modify(key_of(obj), edit)


def run_on(name: str, node_: str) -> Modify:
    def edit(found: Object) -> bool:
        assert isinstance(found, o.Pod)
        found.spec.nodeName = node_
        return True

    return Modify(Key("Pod", "default", name), edit)


MADE = "pvc-uid-PersistentVolumeClaim-data"


def bound_world() -> World:
    world = World([made_class(), node("n1"), node("n2"), claim(), user(node_="n2")])
    settle(world)
    assert get_claim(world).status.phase == "Bound"
    return world


def test_a_volume_is_made_where_the_first_pod_is_placed() -> None:
    world = World([made_class(), node("n1"), node("n2"), claim(), user()])
    assert "WaitForFirstConsumer" in settle(world)
    assert get_claim(world).status.phase == "Pending"
    assert not world.all("PersistentVolume")
    world.apply([run_on("p", "n2")])
    assert "ProvisioningSucceeded" in settle(world)
    found, made = get_claim(world), get_volume(world, MADE)
    assert (found.status.phase, found.spec.volumeName) == ("Bound", MADE)
    assert found.status.capacity["storage"].text == "1Gi"
    assert homes(made) == {"n2"}
    assert (made.status.phase, made.spec.claimRef.uid) == ("Bound", found.metadata.uid)
    assert made.spec.persistentVolumeReclaimPolicy == "Delete"
    assert set(made.metadata.finalizers) == {VOLUME_PROTECTION, LOCAL_FINALIZER}
    assert not settle(world)


def test_the_node_that_was_chosen_holds_even_when_the_pod_has_ended() -> None:
    world = World([made_class(), node("n1"), node("n2"), claim()])
    settle(world)

    def select(found: Object) -> bool:
        found.metadata.annotations[rules.SELECTED_NODE] = "n1"
        return True

    world.apply([Modify(Key("PersistentVolumeClaim", "default", "data"), select)])
    settle(world)
    assert homes(get_volume(world, MADE)) == {"n1"}


def test_a_chosen_node_that_goes_before_the_volume_is_made_is_forgotten() -> None:
    one = claim()
    one.metadata.annotations[rules.SELECTED_NODE] = "gone"
    world = World([made_class(), one])
    settle(world)
    assert rules.SELECTED_NODE not in get_claim(world).metadata.annotations
    assert not world.all("PersistentVolume")


def test_immediate_claims_take_the_smallest_hand_made_volume_that_fits() -> None:
    volumes = [volume("large", "10Gi"), volume("fits", "2Gi"), volume("small", "1Mi"), volume("other", "1Gi", "x")]
    world = World([*volumes, claim(cls="")])
    settle(world)
    assert get_claim(world).spec.volumeName == "fits"
    assert get_volume(world, "fits").status.phase == "Bound"
    assert get_volume(world, "large").status.phase == "Available"


def test_two_claims_never_share_a_volume() -> None:
    world = World([volume("one"), claim("a", cls=""), claim("b", cls="")])
    settle(world)
    phases = sorted(get_claim(world, name).status.phase for name in "ab")
    assert phases == ["Bound", "Pending"]
    world.apply([Create(volume("two"))])
    settle(world)
    names = {get_claim(world, name).spec.volumeName for name in "ab"}
    assert names == {"one", "two"}


def test_labels_modes_and_names_are_honoured() -> None:
    picky = claim("picky", cls="")
    picky.spec.selector.matchLabels["disk"] = "fast"
    shared = claim("shared", cls="", mode="ReadWriteMany")
    named = claim("named", cls="")
    named.spec.volumeName = "mine"
    fast, mine, kept = volume("fast", "9Gi"), volume("mine", "8Gi"), volume("kept")
    fast.metadata.labels["disk"] = "fast"
    kept.spec.claimRef.namespace, kept.spec.claimRef.name = "default", "reserved"
    world = World([fast, mine, kept, picky, shared, named])
    settle(world)
    assert get_claim(world, "picky").spec.volumeName == "fast"
    assert get_claim(world, "named").status.phase == "Bound"
    assert get_claim(world, "shared").status.phase == "Pending"
    world.apply([Create(claim("reserved", cls=""))])
    settle(world)
    assert get_claim(world, "reserved").spec.volumeName == "kept"


def test_hand_made_volumes_of_a_waiting_class_are_chosen_on_the_pods_node() -> None:
    waiting = made_class("disks", "kubernetes.io/no-provisioner")
    volumes = [volume("on-1", cls="disks", home="n1"), volume("on-2", "5Gi", "disks", "n2")]
    world = World([waiting, node("n1"), node("n2"), *volumes, claim(cls="disks"), user()])
    settle(world)
    assert get_claim(world).status.phase == "Pending"
    world.apply([run_on("p", "n2")])
    settle(world)
    assert get_claim(world).spec.volumeName == "on-2"


def test_a_claim_in_use_is_deleted_only_when_its_pod_has_ended() -> None:
    world = bound_world()
    world.apply([delete(get_claim(world))])
    settle(world)
    assert get_claim(world).metadata.finalizers

    def finish(found: Object) -> bool:
        assert isinstance(found, o.Pod)
        found.status.phase = "Succeeded"
        return True

    world.apply([Modify(Key("Pod", "default", "p"), finish)])
    settle(world)
    assert world.get("PersistentVolumeClaim", "default", "data") is None


def test_a_claim_that_no_placed_pod_uses_goes_at_once() -> None:
    world = World([made_class(), claim(), user()])
    settle(world)
    world.apply([delete(get_claim(world))])
    settle(world)
    assert not world.all("PersistentVolumeClaim")


def test_delete_removes_the_volume_once_its_node_has_removed_the_folder() -> None:
    world = bound_world()
    world.apply([Delete(Key("Pod", "default", "p")), delete(get_claim(world))])
    settle(world)
    made = get_volume(world, MADE)
    assert made.metadata.HasField("deletionTimestamp")
    assert list(made.metadata.finalizers) == [LOCAL_FINALIZER]
    world.apply([storage._without(made, LOCAL_FINALIZER)])
    settle(world)
    assert not world.all("PersistentVolume")


def test_the_volumes_of_a_node_that_is_gone_do_not_wait_for_it() -> None:
    world = bound_world()
    world.apply([Delete(Key("Pod", "default", "p")), delete(get_claim(world))])
    settle(world)
    world.apply([Delete(Key("Node", "", "n2"))])
    settle(world)
    assert not world.all("PersistentVolume")


def test_retain_keeps_the_volume_for_people() -> None:
    world = World([volume("kept"), claim(cls="")])
    settle(world)
    world.apply([delete(get_claim(world))])
    settle(world)
    assert get_volume(world, "kept").status.phase == "Released"
    world.apply([Create(claim("other", cls=""))])
    settle(world)
    assert get_claim(world, "other").status.phase == "Pending", "what is on it belonged to another"


def test_a_hand_made_volume_is_not_deleted_with_its_data() -> None:
    world = World([volume("kept", policy="Delete"), claim(cls="")])
    settle(world)
    world.apply([delete(get_claim(world))])
    settle(world)
    assert get_volume(world, "kept").status.phase == "Failed"
    assert "delete it" in get_volume(world, "kept").status.message


def test_a_bound_volume_outlives_its_deletion_until_its_claim_is_gone() -> None:
    world = bound_world()
    world.apply([delete(get_volume(world, MADE))])
    settle(world)
    assert VOLUME_PROTECTION in get_volume(world, MADE).metadata.finalizers
    assert get_claim(world).status.phase == "Bound"


def test_a_claim_whose_volume_is_gone_is_lost() -> None:
    world = bound_world()
    world.apply([Delete(Key("PersistentVolume", "", MADE))])
    assert "ClaimLost" in settle(world)
    assert get_claim(world).status.phase == "Lost"


def test_admission_gives_the_default_class_and_protection() -> None:
    default = made_class()
    default.metadata.annotations[rules.DEFAULT_CLASS] = "true"
    world = World([default, namespace()])
    silent, none = claim("silent", cls=None), claim("none", cls="")
    for one in (silent, none):
        del one.metadata.finalizers[:]
        prepare_create(world, one, Stamp("r", 0, NOW))
    assert silent.spec.storageClassName == "local"
    assert none.spec.storageClassName == ""
    assert list(silent.metadata.finalizers) == [rules.CLAIM_PROTECTION]


def test_a_claim_that_was_made_before_the_default_class_gets_it() -> None:
    world = World([claim(cls=None)])
    settle(world)
    default = made_class()
    default.metadata.annotations[rules.DEFAULT_CLASS] = "true"
    world.apply([Create(default)])
    settle(world)
    assert get_claim(world).spec.storageClassName == "local"


@pytest.mark.parametrize("again", range(3))
def test_making_a_volume_twice_is_making_it_once(again: int) -> None:
    world = World([made_class(), node("n1"), claim(), user(node_="n1")])
    first = storage.reconcile_claim(world, get_claim(world), NOW)
    second = storage.reconcile_claim(world, get_claim(world), NOW + again)
    results = world.apply([*first.changes, *second.changes])
    assert len(world.all("PersistentVolume")) == 1
    assert not [result for result in results if isinstance(result, Exception)]


def test_events_of_other_pods_concern_no_claim() -> None:
    world = World([user(node_="n1")])
    event = world.events[-1]
    assert list(storage.pod_keys(world, event)) == [Key("PersistentVolumeClaim", "default", "data")]
    assert not list(storage.pod_keys(world, Event(event.key, 9, event.new, event.new)))


def test_the_first_reservation_holds() -> None:
    world = World([volume("one"), claim("a", cls=""), claim("b", cls="")])
    one, a, b = get_volume(world, "one"), get_claim(world, "a"), get_claim(world, "b")
    world.apply([storage._reserve(one, a), storage._reserve(one, b)])
    assert get_volume(world, "one").spec.claimRef.name == "a"
