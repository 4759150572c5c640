"""Random changes against a plain dictionary, with lost answers, refusals and changes of leader in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.master.model import KINDS, Change, Create, Delete, Fault, Key, Modify, Object, Record, Unavailable
from shoal.master.store import keys
from shoal.master.store.apply import Cache
from shoal.master.store.codec import body_of, unpack
from shoal.master.store.indexes import entries_of
from shoal.master.store.memory import Faults, Memory, MemoryEtcd
from shoal.master.store.store import Store
from shoal.proto.v1 import objects_pb2 as o
from tests.unit.store_support import Clock, take_leadership
from tests.virtual_loop import virtual

NAMES = ["a", "b", "c", "d"]
STEP = st.tuples(st.sampled_from(["create", "modify", "delete"]), st.sampled_from(NAMES), st.integers(0, 5))
CALLS = st.lists(st.lists(STEP, min_size=1, max_size=6), min_size=1, max_size=25)


def make_pod(name: str, number: int, uid: str) -> o.Pod:
    pod = o.Pod(apiVersion="v1", kind="Pod")
    pod.metadata.name, pod.metadata.namespace, pod.metadata.uid = name, "default", uid
    pod.metadata.labels["n"] = str(number)
    pod.spec.nodeName = f"node{number % 2}"
    pod.metadata.ownerReferences.add(uid=f"owner{number % 3}", kind="ReplicaSet", name="r")
    pod.spec.volumes.add(name="v").secret.secretName = f"s{number % 2}"
    pod.spec.volumes.add(name="w").secret.secretName = "s0"
    pod.status.phase = "Failed" if number == 5 else "Running"
    return pod


def change_of(step: tuple[str, str, int], uid: str) -> Change:
    verb, name, number = step
    key = Key("Pod", "default", name)
    if verb == "create":
        return Create(make_pod(name, number, uid))
    if verb == "delete":
        return Delete(key)

    def edit(message: Object) -> bool:
        message.CopyFrom(make_pod(name, number, message.metadata.uid))  # type: ignore[arg-type]
        return True

    return Modify(key, edit)


def expect(model: dict[str, o.Pod], change: Change) -> None:
    """What the change does to the model, when it is let through."""
    if isinstance(change, Create):
        assert isinstance(change.object, o.Pod)
        model[change.object.metadata.name] = change.object
    elif isinstance(change, Delete):
        del model[change.key.name]
    else:
        message = o.Pod()
        message.CopyFrom(model[change.key.name])
        change.edit(message)
        model[change.key.name] = message


def check_cache(store: Store, server: MemoryEtcd) -> None:
    """The cache is what etcd holds, each message equals its stored bytes, and the indexes are complete."""
    stored: dict[Key, Record] = {}
    for item in server.range(keys.OBJECTS, keys.OBJECTS_END, 0, 0).items:
        key = keys.decode(item.key)
        assert key
        stored[key] = unpack(key, item.value, item.mod_revision, item.create_revision)
    cache = store.view
    assert isinstance(cache, Cache)
    cached = {record.key: record for kind in KINDS for record in cache.records(kind)}
    assert cached == stored
    for record in cached.values():
        assert body_of(record.message) == record.body
        assert cache.by_uid(record.message.metadata.uid) is record.message
    check_indexes(cache, cached)


def check_indexes(cache: Cache, records: Mapping[Key, Record]) -> None:
    wanted: dict[tuple[str, ...], set[str]] = {}
    for record in records.values():
        for entry in entries_of(record):
            wanted.setdefault(entry, set()).add(record.key.name)
    for number in range(6):
        found = {
            ("node", f"node{number % 2}"): cache.pods_on(f"node{number % 2}"),
            ("owner", f"owner{number % 3}"): cache.owned(f"owner{number % 3}"),
            ("refers", "Secret", "default", f"s{number % 2}", ""): cache.referring(
                "Secret", "default", f"s{number % 2}"
            ),
            ("refers", "Secret", "default", "s0", f"node{number % 2}"): cache.referring(
                "Secret", "default", "s0", f"node{number % 2}"
            ),
            ("label", "Pod", "default", "n", str(number)): cache.labelled("Pod", "default", "n", str(number)),
        }
        for entry, objects in found.items():
            assert sorted(message.metadata.name for message in objects) == sorted(wanted.get(entry, set()))
            assert all(message is records[Key("Pod", "default", message.metadata.name)].message for message in objects)


@settings(max_examples=60, deadline=None)
@given(calls=CALLS, seed=st.integers(0, 1 << 32))
def test_the_store_is_a_dictionary_whatever_is_lost_on_the_way(
    calls: list[list[tuple[str, str, int]]], seed: int
) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        server, model = MemoryEtcd(), dict[str, o.Pod]()
        faults = Faults(rng, refuse_rate=0.1, lose_rate=0.2, delay=(0.0, 0.1))
        leader = Store(Memory(server, faults), Clock())
        follower = Store(Memory(server, Faults(rng, delay=(0.0, 0.5))), Clock())
        await leader.open(await take_leadership(Memory(server)))
        await follower.follow()
        mirror: dict[str, bytes] = {}
        events = follower.subscribe(None)
        for number, call in enumerate(calls):
            if rng.random() < 0.2:
                await leader.close()
                leader = Store(Memory(server, faults), Clock())
                await leader.open(await take_leadership(Memory(server)))
            changes = [change_of(step, f"uid{number}-{index}") for index, step in enumerate(call)]
            # one after the other, so that the model knows the order; each goes through loss and repetition
            for change in changes:
                (result,) = await leader.write([change])
                if not isinstance(result, Fault):
                    expect(model, change)
            assert {p.metadata.name: p for p in leader.view.all("Pod")} == model
            check_cache(leader, server)
            await follower.wait_revision(leader.view.revision)
            check_cache(follower, server)
            for event in (events.take() or (0, []))[1]:
                if event.new:
                    mirror[event.key.name] = event.new.body
                elif mirror.get(event.key.name) == (event.old.body if event.old else None):
                    del mirror[event.key.name]
            assert mirror == {name: body_of(pod) for name, pod in model.items()}
        await leader.close()
        await follower.close()
        server.close()

    virtual(main())


@settings(max_examples=60, deadline=None)
@given(calls=CALLS, seed=st.integers(0, 1 << 32))
def test_concurrent_writers_get_results_that_some_order_explains(
    calls: list[list[tuple[str, str, int]]], seed: int
) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        server = MemoryEtcd()
        leader = Store(Memory(server, Faults(rng, lose_rate=0.2, delay=(0.0, 0.1))), Clock())
        await leader.open(await take_leadership(Memory(server)))
        writes = []
        for number, call in enumerate(calls):
            changes = [change_of(step, f"uid{number}-{index}") for index, step in enumerate(call)]
            writes.append(asyncio.create_task(leader.write(changes, low_priority=rng.random() < 0.3)))
            await asyncio.sleep(rng.choice([0.0, 0.0, 0.05]))
        last: dict[str, tuple[int, Record]] = {}
        for results in await asyncio.gather(*writes):
            for result in results:
                if isinstance(result, Record):
                    held = server.get(keys.encode(result.key), result.revision)
                    assert held is not None
                    assert held.value[1:] == result.body
                    assert held.create_revision == result.created
                    last[result.key.name] = max(last.get(result.key.name, (0, result)), (result.revision, result))[:2]
        check_cache(leader, server)
        await leader.close()
        server.close()

    virtual(main())


def test_an_outage_longer_than_the_lease_fails_calls_and_loses_nothing() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        port = Memory(server)
        leader = Store(port, Clock())
        term = await take_leadership(Memory(server))
        await leader.open(term)
        port.faults.lose_next = 1
        first = asyncio.create_task(leader.write([Create(make_pod("a", 1, "u1"))]))
        await asyncio.sleep(0.01)
        port.cut_off()
        term.valid_until = asyncio.get_running_loop().time() + 1
        try:
            await first
            raise AssertionError("its outcome cannot be known yet")
        except Unavailable as error:
            assert error.outcome == "unknown"
        await asyncio.sleep(60)
        port.heal()
        term.renewed(asyncio.get_running_loop().time(), 3600)
        second = asyncio.create_task(leader.write([Create(make_pod("b", 1, "u2"))]))
        await second
        assert sorted(p.metadata.name for p in leader.view.all("Pod")) == ["a", "b"]
        check_cache(leader, server)
        await leader.close()
        server.close()

    virtual(main())
