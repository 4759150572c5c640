"""What pods refer to, from the assignments to their containers; and persistent volumes that are given up."""

from __future__ import annotations

import asyncio
import signal

import pytest

from shoal.agent.assignments import Assembler, Broken, Change
from shoal.agent.objects import MemoryObjects, Referred, with_claims
from shoal.agent.reclaim import given_up, in_use
from shoal.agent.runtime.port import ContainerID
from shoal.agent.state import Position
from shoal.agent.volumes.port import File, Files
from shoal.proto.references import CLAIM, CONFIG_MAP, SECRET, Reference
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import World, newest, scenario, until
from tests.agents import UID, deleted, make_pod

WEB = Reference(CONFIG_MAP, "default", "web")


def config(name: str = "web", **data: str) -> o.ConfigMap:
    return o.ConfigMap(kind="ConfigMap", metadata=o.ObjectMeta(name=name, namespace="default"), data=data)


def claim(name: str = "data", volume: str = "pv1") -> o.PersistentVolumeClaim:
    meta = o.ObjectMeta(name=name, namespace="default", uid="c1")
    spec = o.PersistentVolumeClaimSpec(volumeName=volume)
    return o.PersistentVolumeClaim(kind="PersistentVolumeClaim", metadata=meta, spec=spec)


def volume(name: str = "pv1", *, going: bool = False, policy: str = "Delete", path: str = "") -> o.PersistentVolume:
    made = o.PersistentVolume(kind="PersistentVolume", metadata=o.ObjectMeta(name=name))
    made.spec.local.path = path
    made.spec.persistentVolumeReclaimPolicy = policy
    made.spec.claimRef.namespace, made.spec.claimRef.name, made.spec.claimRef.uid = "default", "data", "c1"
    if going:
        made.metadata.deletionTimestamp.seconds = 1
    return made


def assigned(*objects: Referred) -> list[s.AssignedObject]:
    return [
        s.AssignedObject(
            kind=obj.kind, namespace=obj.metadata.namespace, name=obj.metadata.name, body=obj.SerializeToString()
        )
        for obj in objects
    ]


def with_objects(down: s.Down, *objects: Referred, remove: tuple[Reference, ...] = ()) -> s.Down:
    down.assignments.upsert_objects.extend(assigned(*objects))
    for one in remove:
        down.assignments.remove_objects.add(kind=one.kind, namespace=one.namespace, name=one.name)
    return down


def mounting_pod() -> o.Pod:
    """Takes the ConfigMap `web` as a volume and its key `colour` as a variable."""
    pod = make_pod()
    pod.spec.volumes.add(name="conf").configMap.name = "web"
    pod.spec.containers[0].volumeMounts.add(name="conf", mountPath="/conf")
    variable = pod.spec.containers[0].env.add(name="COLOUR")
    variable.valueFrom.configMapKeyRef.name, variable.valueFrom.configMapKeyRef.key = "web", "colour"
    return pod


def claiming_pod() -> o.Pod:
    pod = make_pod()
    pod.spec.volumes.add(name="data").persistentVolumeClaim.claimName = "data"
    pod.spec.containers[0].volumeMounts.add(name="data", mountPath="/data")
    return pod


# ---- the cache ----
def test_only_what_is_different_has_changed() -> None:
    objects = MemoryObjects()
    assert objects.apply([config(a="1"), claim()]) == {WEB, Reference(CLAIM, "default", "data")}
    assert objects.apply([config(a="1")]) == set()
    assert objects.apply([config(a="2")]) == {WEB}
    assert objects.apply([], [WEB, Reference(SECRET, "default", "never")]) == {WEB}
    assert objects.config_map("default", "web") is None


def test_a_complete_replaces_everything() -> None:
    objects = MemoryObjects()
    objects.apply([config(a="1"), claim()])
    assert objects.apply([config(a="1")], complete=True) == {Reference(CLAIM, "default", "data")}
    assert objects.apply([], complete=True) == {WEB}
    assert objects.table == {}


def test_a_volume_concerns_the_pods_of_its_claim() -> None:
    objects = MemoryObjects()
    objects.apply([claim(), claim("other", "pv2"), volume()])
    changed = [Reference("PersistentVolume", "", "pv1")]
    assert with_claims(changed, objects) == {*changed, Reference(CLAIM, "default", "data")}


# ---- the assignments ----
def take(*objects: s.AssignedObject) -> object:
    complete = s.Assignments(kind=s.Assignments.COMPLETE, last=True, upsert_objects=objects)
    complete.results_in.revision = 5
    return Assembler(Position()).take(complete)


def test_objects_come_with_the_assignments() -> None:
    unknown = s.AssignedObject(kind="Novelty", name="n", body=b"\xff")
    taken = take(*assigned(config(a="1"), volume()), unknown)
    assert isinstance(taken, Change)
    assert list(taken.objects) == [config(a="1"), volume()]


@pytest.mark.parametrize("body", [b"\xff\xff", claim("another").SerializeToString()])
def test_bytes_that_are_not_that_object_are_refused(body: bytes) -> None:
    taken = take(s.AssignedObject(kind=CLAIM, namespace="default", name="data", body=body))
    assert isinstance(taken, Broken)
    assert "PersistentVolumeClaim default/data" in taken.why


# ---- the agent ----
@scenario
async def test_a_pod_finds_its_objects_and_hears_of_their_changes(world: World) -> None:
    async with world.running():
        pipe = await world.master.session()
        pipe.put(world.master.welcome())
        pipe.put(with_objects(world.master.complete(mounting_pod()), config(colour="blue")))
        await until(lambda: bool(world.runtime.specs))
        spec = world.runtime.specs[ContainerID(UID, "app", 0)]
        assert spec.env["COLOUR"] == "blue"
        assert world.volumes.pods[UID]["conf"].source == Files({"colour": File(b"blue")})
        pipe.put(with_objects(world.master.change(), config(colour="red"), config("other", a="1")))
        await until(lambda: bool(world.volumes.updates))
        assert world.volumes.pods[UID]["conf"].source == Files({"colour": File(b"red")})
        assert len(world.volumes.updates) == 1


@scenario
async def test_a_pod_waits_for_an_object_and_starts_when_it_comes(world: World) -> None:
    async with world.running():
        pipe = await world.master.welcomed(-1, mounting_pod())

        def waits(report: s.PodReport) -> bool:
            waiting = [c.state.waiting for c in report.status.containerStatuses]
            return any("ConfigMap default/web does not exist" in one.message for one in waiting)

        await world.reports(pipe, UID, waits)
        pipe.put(with_objects(world.master.change(), config(colour="blue")))
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
        pipe.put(with_objects(world.master.change(remove=(UID,)), remove=(WEB,)))
        await until(lambda: not world.objects.table)


@scenario
async def test_a_volume_that_cannot_be_made_holds_its_pod_back_with_the_reason(world: World) -> None:
    pod = make_pod()
    pod.spec.volumes.add(name="data").emptyDir.medium = ""
    world.volumes.full = True

    def waits(report: s.PodReport) -> bool:
        return [c.state.waiting.reason for c in report.status.containerStatuses] == ["FailedMount"]

    async with world.running():
        pipe = await world.master.welcomed(-1, pod)
        report = await world.reports(pipe, UID, waits)
        assert "no space" in report.status.containerStatuses[0].state.waiting.message
        await asyncio.sleep(30)
        assert waits(newest(pipe, UID)[0])
        world.volumes.full = False
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")


@scenario
async def test_objects_outlive_the_agent(world: World) -> None:
    async with world.running():
        pipe = await world.master.session()
        pipe.put(world.master.welcome())
        pipe.put(with_objects(world.master.complete(mounting_pod()), config(colour="blue")))
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
    world.master.refusing.add("10.0.0.254:7000")
    async with world.running():
        await world.runtime.signal(ContainerID(UID, "app", 0), signal.SIGKILL)
        await until(lambda: ContainerID(UID, "app", 1) in world.runtime.specs)
        assert world.runtime.specs[ContainerID(UID, "app", 1)].env["COLOUR"] == "blue"


@scenario
async def test_after_a_reboot_objects_that_are_not_here_wait_for_the_master(world: World) -> None:
    """Also optional ones: the pod must not start without what it had before."""
    pod = mounting_pod()
    pod.spec.volumes[0].configMap.optional = True
    pod.spec.containers[0].env[0].valueFrom.configMapKeyRef.optional = True
    async with world.running():
        pipe = await world.master.session()
        pipe.put(world.master.welcome())
        pipe.put(with_objects(world.master.complete(pod), config(colour="blue")))
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
    world.runtime.reboot()
    world.machine.boot_id = "boot-2"
    world.objects.table.clear()
    world.objects.settled = False
    world.master.refusing.add("10.0.0.254:7000")
    async with world.running() as agent:
        await until(lambda: UID in agent.worker.machines)
        await asyncio.sleep(5)
        assert ContainerID(UID, "app", 1) not in world.runtime.specs
        said = agent.outbox.take()
        assert said is not None
        [container] = said.pods[0].status.containerStatuses
        told = "ConfigMap default/web is not known on this node yet: it waits for the master"
        assert told in container.state.waiting.message
        world.master.refusing.clear()
        pipe = await world.master.session()
        pipe.put(world.master.welcome())
        pipe.put(world.master.complete(pod))
        await until(lambda: ContainerID(UID, "app", 1) in world.runtime.specs)
        assert "COLOUR" not in world.runtime.specs[ContainerID(UID, "app", 1)].env


# ---- persistent volumes that are given up ----
def test_only_shoal_s_own_folders_are_given_up() -> None:
    kept = [volume(), volume(going=True, policy="Retain"), volume(going=True, path="/srv/data")]
    bound = volume("pv8", going=True)
    bound.metadata.finalizers.append("kubernetes.io/pv-protection")
    assert given_up([*kept, bound, volume("pv9", going=True)]) == [volume("pv9", going=True)]


def test_a_volume_is_in_use_by_the_pods_of_its_own_claim() -> None:
    objects = MemoryObjects()
    assert in_use(volume(), objects, [claiming_pod()]), "the claim may be gone before the pod"
    assert not in_use(volume(), objects, [make_pod()])
    objects.apply([claim(volume="pv2")])
    assert not in_use(volume(), objects, [claiming_pod()]), "a new claim of the same name has another volume"


@scenario
async def test_a_pod_that_has_ended_by_itself_holds_no_volume(world: World) -> None:
    async with world.running():
        pipe = await world.master.session()
        pipe.put(world.master.welcome())
        one = claiming_pod()
        one.spec.restartPolicy = "Never"
        pipe.put(with_objects(world.master.complete(one), claim(), volume()))
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
        world.runtime.crash(ContainerID(UID, "app", 0), signal=9)
        await world.reports(pipe, UID, lambda report: report.status.phase == "Failed")
        pipe.put(with_objects(world.master.change(), volume(going=True)))
        assert list((await pipe.wait("volumes_removed")).names) == ["pv1"]


@scenario
async def test_a_volume_goes_after_its_last_pod_and_the_master_is_told_each_time_it_asks(world: World) -> None:
    async with world.running():
        pipe = await world.master.session()
        pipe.put(world.master.welcome())
        pipe.put(with_objects(world.master.complete(claiming_pod()), claim(), volume()))
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
        pipe.put(with_objects(world.master.change(), volume(going=True)))
        await asyncio.sleep(10)
        assert world.volumes.removed == [], "its pod still runs"
        pipe.put(world.master.change(deleted(claiming_pod(), grace=30)))
        message = await pipe.wait("volumes_removed")
        assert list(message.names) == ["pv1"]
        assert world.volumes.removed == ["pv1"]
        pipe.cut()
        again = await world.master.session(1)
        again.put(world.master.welcome())
        again.put(with_objects(world.master.complete(), volume(going=True)))
        assert list((await again.wait("volumes_removed")).names) == ["pv1"]
