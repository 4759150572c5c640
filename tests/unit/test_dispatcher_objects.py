"""Which nodes hear of which objects, and when: on streams in memory, against plain scans of the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shoal.master.dispatcher import assignments
from shoal.master.dispatcher.dispatcher import Config, Dispatcher
from shoal.master.model import KINDS, Change, Create, Delete, Event, Key, Modify, Object
from shoal.proto.references import homes, references
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.masterkit import Leader, MemoryStore, MemoryStream, until

SPACE = "default"


class Replica:
    """What one agent holds, by the protocol's rules; a pod must never come before what it refers to."""

    def __init__(self, node: str, stream: MemoryStream) -> None:
        self.node, self.stream = node, stream
        self.pods: dict[str, o.Pod] = {}
        self.objects: dict[Key, Object] = {}
        self.ever: set[Key] = set()  # every object that it was ever sent
        self.completes = 0
        self.acknowledged = 0
        self._fresh = (dict[str, o.Pod](), dict[Key, Object]())

    async def listen(self, lasting: set[Key]) -> None:
        """Takes all messages; the `lasting` objects exist as long as any pod."""
        while (message := (await self.stream._down.get())) is not None:
            if message.WhichOneof("message") == "assignments":
                self._take(message.assignments, lasting)
            if message.WhichOneof("message") == "status_ack":
                self.acknowledged = message.status_ack.sequence.counter

    def _take(self, message: s.Assignments, lasting: set[Key]) -> None:
        complete = message.kind == s.Assignments.COMPLETE
        if complete and message.part == 0:
            self._fresh = ({}, {})
        pods, objects = self._fresh if complete else (self.pods, self.objects)
        assert message.ByteSize() < 16 << 20
        if complete:
            assert message.ByteSize() < assignments.PART_BYTES + 1000 or len(message.upsert_objects) == 1
        for found in message.upsert_objects:
            key = Key(found.kind, found.namespace, found.name)
            objects[key] = KINDS[key.kind].FromString(found.body)
            self.ever.add(key)
        for pod in message.upsert_pods:
            pods[pod.uid] = o.Pod.FromString(pod.pod)
            wants = {Key(*ref) for ref in references(pods[pod.uid])} & lasting
            if pods[pod.uid].status.phase not in ("Succeeded", "Failed"):
                assert wants <= objects.keys(), f"{pod.uid} came before {wants - objects.keys()}"
        for uid in message.remove_pods:
            pods.pop(uid, None)
        for name in message.remove_objects:
            objects.pop(Key(name.kind, name.namespace, name.name), None)
        if complete and message.last:
            self.pods, self.objects = pods, objects
            self.completes += 1


class Bench:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.dispatcher = Dispatcher(
            self.store, Leader(), Config(incarnation="inc", heartbeat_period=60.0), lambda: 0.0, random.Random(1)
        )
        self.replicas: dict[str, Replica] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.lasting: set[Key] = set()

    async def join(self, *names: str) -> None:
        for name in names:
            stream = MemoryStream()
            hello = s.Hello(protocol_min=1, protocol_max=1, node=name, instance_id="i", boot_id="b")
            stream.say(s.Up(hello=hello))
            self.tasks.append(asyncio.ensure_future(self.dispatcher.serve(stream, name)))
            replica = self.replicas[name] = Replica(name, stream)
            self.tasks.append(asyncio.ensure_future(replica.listen(self.lasting)))
        await until(lambda: all(self.replicas[name].completes for name in names))

    async def put(self, *objects: Object) -> None:
        await self.write(*(Create(obj) for obj in objects))

    async def write(self, *changes: Change) -> None:
        await self.store.write(changes)

    def expected(self, node: str) -> dict[Key, Object]:
        """By plain scans: what its living pods name, the volumes of their claims, and the volumes that live there."""
        records = self.store.view.records
        wanted: set[Key] = set()
        for record in records.values():
            pod = record.message
            if isinstance(pod, o.PersistentVolume) and node in homes(pod):
                wanted.add(record.key)
            if not isinstance(pod, o.Pod) or pod.spec.nodeName != node or pod.status.phase in ("Succeeded", "Failed"):
                continue
            for ref in references(pod):
                wanted.add(Key(*ref))
                claim = self.store.view.get(*ref)
                if isinstance(claim, o.PersistentVolumeClaim):
                    wanted.add(Key("PersistentVolume", "", claim.spec.volumeName))
        return {key: records[key].message for key in wanted if key in records}

    async def settled(self) -> None:
        def right() -> bool:
            return all(replica.objects == self.expected(name) for name, replica in self.replicas.items())

        try:
            await until(right)
        except TimeoutError:
            for name, replica in self.replicas.items():
                assert sorted(replica.objects) == sorted(self.expected(name)), name
                assert replica.objects == self.expected(name), name
            raise


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.ensure_future(bench.dispatcher.run())
    await asyncio.sleep(0)
    try:
        yield bench
    finally:
        for one in (task, *bench.tasks):
            one.cancel()
        results = await asyncio.gather(task, *bench.tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result


def meta(name: str, kind: str, namespace: str = SPACE) -> o.ObjectMeta:
    return o.ObjectMeta(name=name, namespace=namespace, uid=f"{kind}-{name}-{random.getrandbits(40)}")


def secret(name: str, data: bytes = b"s") -> o.Secret:
    return o.Secret(kind="Secret", metadata=meta(name, "secret"), data={"k": data})


def config(name: str, size: int = 1) -> o.ConfigMap:
    return o.ConfigMap(kind="ConfigMap", metadata=meta(name, "config"), data={"k": "x" * size})


def claim(name: str, volume: str = "") -> o.PersistentVolumeClaim:
    made = o.PersistentVolumeClaim(kind="PersistentVolumeClaim", metadata=meta(name, "claim"))
    made.spec.volumeName = volume
    return made


def volume(name: str, node: str = "") -> o.PersistentVolume:
    made = o.PersistentVolume(kind="PersistentVolume", metadata=meta(name, "volume", ""))
    if node:
        rule = made.spec.nodeAffinity.required.nodeSelectorTerms.add().matchExpressions.add()
        rule.key, rule.operator = "kubernetes.io/hostname", "In"
        rule.values.append(node)
    return made


def pod(name: str, node: str, *, secrets: str = "", configs: str = "", claims: str = "") -> o.Pod:
    """Names are written with spaces between them."""
    made = o.Pod(kind="Pod", metadata=meta(name, "pod"))
    made.spec.nodeName = node
    made.spec.containers.add(name="c", image="i")
    for one in secrets.split():
        made.spec.volumes.add(name=one).secret.secretName = one
    for one in configs.split():
        made.spec.containers[0].envFrom.add().configMapRef.name = one
    for one in claims.split():
        made.spec.volumes.add(name=one).persistentVolumeClaim.claimName = one
    return made


def key(kind: str, name: str) -> Key:
    return Key(kind, "" if kind == "PersistentVolume" else SPACE, name)


async def test_an_object_comes_with_the_first_pod_and_leaves_with_the_last() -> None:
    async with running() as bench:
        await bench.put(secret("db"), config("web"), secret("other"))
        await bench.join("a", "b")
        bench.lasting |= {key("Secret", "db"), key("ConfigMap", "web")}
        await bench.put(pod("one", "a", secrets="db", configs="web"))
        await bench.put(pod("two", "a", secrets="db"))
        await bench.settled()
        await bench.write(Delete(key("Pod", "one")))
        await bench.settled()
        assert bench.replicas["a"].objects.keys() == {key("Secret", "db")}
        await bench.write(Modify(key("Pod", "two"), end_pod))
        await bench.settled()
        assert not bench.replicas["a"].objects
        assert not bench.replicas["b"].ever, "a node without a pod that refers to it never sees a secret"


def end_pod(obj: Object) -> bool:
    assert isinstance(obj, o.Pod)
    obj.status.phase = "Succeeded"
    return True


async def test_changes_and_late_objects_reach_only_the_nodes_that_refer_to_them() -> None:
    async with running() as bench:
        await bench.join("a", "b", "c")
        await bench.put(pod("one", "a", secrets="db"), pod("two", "b", secrets="db"), pod("three", "c", secrets="no"))
        await bench.put(secret("db"))
        await bench.settled()
        assert bench.replicas["a"].objects.keys() == {key("Secret", "db")}

        def change(obj: Object) -> bool:
            assert isinstance(obj, o.Secret)
            obj.data["k"] = b"new"
            return True

        await bench.write(Modify(key("Secret", "db"), change))
        await bench.settled()
        await bench.write(Delete(key("Secret", "db")))
        await bench.settled()
        assert not bench.replicas["b"].objects
        assert not bench.replicas["c"].ever


async def test_volumes_come_with_their_claim_or_live_on_the_node() -> None:
    async with running() as bench:
        await bench.put(volume("home", "b"), volume("anywhere"), claim("data"))
        await bench.join("a", "b")
        await bench.settled()
        await bench.put(pod("one", "a", claims="data"))

        def bind(obj: Object) -> bool:
            assert isinstance(obj, o.PersistentVolumeClaim)
            obj.spec.volumeName = "anywhere"
            return True

        await bench.write(Modify(key("PersistentVolumeClaim", "data"), bind))
        await bench.settled()
        assert key("PersistentVolume", "anywhere") in bench.replicas["a"].objects
        await bench.write(Delete(key("Pod", "one")), Delete(key("PersistentVolumeClaim", "data")))
        await bench.settled()
        assert not bench.replicas["a"].objects
        assert bench.replicas["b"].ever == {key("PersistentVolume", "home")}


async def test_what_one_revision_cannot_carry_comes_as_a_complete() -> None:
    async with running() as bench:
        large = [config(f"c{number}", 1_000_000) for number in range(20)]
        await bench.put(*large)
        await bench.join("a")
        bench.lasting |= {key("ConfigMap", one.metadata.name) for one in large}
        await bench.put(pod("one", "a", configs=" ".join(one.metadata.name for one in large)))
        await bench.settled()
        assert bench.replicas["a"].completes == 2
        assert len(bench.replicas["a"].objects) == 20


def test_an_object_that_changed_again_still_comes_before_its_pod() -> None:
    store = MemoryStore()
    events: list[Event] = []
    for obj in (secret("db"), config("big", 1_100_000), pod("one", "n", secrets="db", configs="big")):
        store._put(Key(obj.kind, SPACE, obj.metadata.name), obj, None, events)
    dirty = assignments.Dirty()
    dirty.add_pod(next(e.new.message.metadata.uid for e in events if e.new and e.key.kind == "Pod"), 5)
    for name in ("Secret/db", "ConfigMap/big"):
        dirty.add_object(key(*name.split("/")), 5)
    dirty.add_object(key("Secret", "db"), 9)
    first = assignments.increment(store.view, "n", dirty, 9, s.Position(epoch=1, revision=4))
    assert first is not None
    assert {entry.name for entry in first.upsert_objects} == {"db", "big"}
    assert len(first.upsert_pods) == 1


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_each_node_holds_exactly_what_it_needs(seed: int) -> None:
    rng = random.Random(seed)
    names = ["a", "b", "c"]
    async with running() as bench:
        await bench.put(secret("lasting"), *(volume(f"v{n}", rng.choice(["", *names])) for n in range(4)))
        bench.lasting.add(key("Secret", "lasting"))
        await bench.join("a", "b")
        for step in range(120):
            await bench.write(*(random_change(bench, rng, step * 4 + n) for n in range(rng.randrange(4))))
            if step == 60:
                await bench.join("c")
            if rng.random() < 0.3:
                bench.replicas[rng.choice(["a", "b"])].stream.say(s.Up(resync=s.Resync(why="test")))
            if rng.random() < 0.2:
                await bench.settled()
            await asyncio.sleep(0)
        await bench.settled()


def random_change(bench: Bench, rng: random.Random, number: int) -> Change:
    records = bench.store.view.records
    pick = rng.randrange(10)
    found = [k for k in records if k.kind not in ("Node",) and k.name != "lasting"]
    if pick < 3:
        some = [" ".join(f"{letter}{rng.randrange(4)}" for _ in range(rng.randrange(2))) for letter in "sqd"]
        node = rng.choice(["a", "b", "c", ""])
        return Create(pod(f"p{number}", node, secrets=f"lasting {some[0]}", configs=some[1], claims=some[2]))
    if pick < 6:
        makers = (
            lambda n: secret(f"s{n}"),
            lambda n: config(f"q{n}"),
            lambda n: claim(f"d{n}", f"v{rng.randrange(4)}"),
        )
        return Create(rng.choice((*makers, lambda n: volume(f"v{n}", rng.choice(["", "a", "b"]))))(rng.randrange(4)))
    if pick < 8 and found:
        return Delete(rng.choice(found))
    pods = [k for k in found if k.kind == "Pod"]

    def edit(obj: Object) -> bool:
        obj.metadata.labels["n"] = str(number)
        if isinstance(obj, o.Pod) and pick == 8:
            obj.spec.nodeName = obj.spec.nodeName or rng.choice(["a", "b", "c"])
        elif isinstance(obj, o.Pod):
            obj.status.phase = "Failed"
        return True

    chosen = rng.choice(pods) if pods and rng.random() < 0.7 else key("Secret", "lasting")
    return Modify(chosen, edit)


# ---- what agents say of volumes and deaths ----
def leaving(name: str, node: str) -> o.PersistentVolume:
    made = volume(name, node)
    made.metadata.finalizers.append("shoal.dev/local-volume")
    made.metadata.deletionTimestamp.seconds = 1
    return made


async def test_only_a_volumes_own_node_can_say_that_its_folder_is_gone() -> None:
    async with running() as bench:
        staying = volume("stays", "a")
        staying.metadata.finalizers.append("shoal.dev/local-volume")
        await bench.put(leaving("mine", "a"), leaving("other", "b"), staying)
        await bench.join("a")
        names = ["mine", "other", "stays", "unknown"]
        bench.replicas["a"].stream.say(s.Up(volumes_removed=s.VolumesRemoved(names=names)))

        def held(name: str) -> bool:
            found = bench.store.view.get("PersistentVolume", "", name)
            return found is not None and bool(found.metadata.finalizers)

        await until(lambda: not held("mine"))
        assert held("other")
        assert held("stays")
        assert bench.dispatcher.counters.refused_reports == 2


async def test_a_certificate_is_written_before_its_report_is_acknowledged() -> None:
    async with running() as bench:
        one = pod("one", "a")
        await bench.put(one)
        await bench.join("a")
        death = o.Death(container="c", reason="Error", exitCode=1)
        death.metadata.name, death.pod.uid = "one.c.0.pod", one.metadata.uid
        report = s.StatusReport(sequence=s.Sequence(agent_start=1, counter=1), deaths=[death])
        bench.store.gate = asyncio.Event()
        bench.replicas["a"].stream.say(s.Up(status=report))
        await asyncio.sleep(0.01)
        assert not bench.replicas["a"].acknowledged
        bench.store.gate.set()
        await until(lambda: bench.replicas["a"].acknowledged == 1)
        assert bench.store.view.get("Death", SPACE, death.metadata.name) is not None
