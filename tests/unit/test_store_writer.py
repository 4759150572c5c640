"""The store's writer over the in-memory etcd: results, groups, unknown outcomes, fences."""

from __future__ import annotations

import asyncio

import pytest

from shoal.master.model import (
    AlreadyExists,
    Change,
    Conflict,
    Create,
    Delete,
    Fault,
    Invalid,
    Key,
    Modify,
    NoSpace,
    NotFound,
    NotLeader,
    Object,
    TooLarge,
    Unavailable,
)
from shoal.master.store import keys
from shoal.master.store.memory import Faults, Memory, MemoryEtcd
from shoal.master.store.store import Store
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import store_pb2 as s
from tests.unit.store_support import label, leading, pod, pod_key, record_of, take_leadership


async def test_create_modify_delete_are_seen_at_once() -> None:
    async with leading(MemoryEtcd()) as (store, _, _):
        created = record_of((await store.write([Create(pod("a"))]))[0])
        assert store.view.record(pod_key("a")) is created
        changed = record_of((await store.write([Modify(pod_key("a"), label("x", "1"))]))[0])
        assert changed.revision > created.revision
        assert changed.created == created.revision
        assert dict(changed.message.metadata.labels) == {"x": "1"}
        assert not created.message.metadata.labels
        assert await store.write([Delete(pod_key("a"), uid=changed.message.metadata.uid)]) == [None]
        assert store.view.get("Pod", "default", "a") is None


async def test_refusals_are_results_in_order_and_the_rest_is_done() -> None:
    async with leading(MemoryEtcd()) as (store, _, _):
        first = record_of((await store.write([Create(pod("a"))]))[0])
        other = pod("a")
        other.metadata.uid = "other"
        nameless, without_uid, big = pod(""), pod("c"), pod("d")
        without_uid.metadata.uid = ""
        big.metadata.annotations["x"] = "x" * 2_000_000
        changes: list[Change] = [
            Create(other),
            Create(pod("a")),
            Modify(pod_key("none"), label("x", "1")),
            Modify(pod_key("a"), label("x", "1"), uid="other"),
            Modify(pod_key("a"), label("x", "1"), revision=first.revision + 1),
            Delete(pod_key("none")),
            Delete(pod_key("none"), uid="gone"),
            Create(nameless),
            Create(without_uid),
            Create(big),
            Create(pod("../x")),
            Create(pod("b")),
        ]
        results = await store.write(changes)
        expected: list[type[Fault] | None] = [AlreadyExists, None, NotFound, Conflict, Conflict, NotFound, None]
        expected += [Invalid, Invalid, TooLarge, Invalid, None]
        for result, fault in zip(results, expected, strict=True):
            assert isinstance(result, Fault) == (fault is not None), result
            assert fault is None or isinstance(result, fault)
        assert results[1] is first
        assert record_of(results[-1]).key.name == "b"
        assert store.stats.refusals == 9


async def test_an_edit_that_changes_nothing_writes_nothing() -> None:
    async with leading(MemoryEtcd()) as (store, port, _):
        first = record_of((await store.write([Create(pod("a", x="1"))]))[0])
        revision = port.server.revision
        results = await store.write([Modify(pod_key("a"), lambda _: False), Modify(pod_key("a"), label("x", "1"))])
        assert results == [first, first]
        assert port.server.revision == revision


async def test_an_edit_may_not_move_the_object_or_fail_unseen() -> None:
    def rename(message: Object) -> bool:
        message.metadata.name = "b"
        return True

    def fail(message: Object) -> bool:
        raise ValueError("odd")

    async with leading(MemoryEtcd()) as (store, _, _):
        await store.write([Create(pod("a"))])
        renamed, failed = await store.write([Modify(pod_key("a"), rename), Modify(pod_key("a"), fail)])
        assert isinstance(renamed, Invalid)
        assert isinstance(failed, Fault)
        assert "odd" in str(failed)
        assert store.leading


async def test_resource_version_is_never_stored() -> None:
    async with leading(MemoryEtcd()) as (store, port, _):
        given = pod("a")
        given.metadata.resourceVersion = "7"
        record = record_of((await store.write([Create(given)]))[0])
        assert record.message.metadata.resourceVersion == ""
        assert given.metadata.resourceVersion == "7"
        stored = (await port.range(keys.encode(record.key))).items[0].value
        assert stored == b"\x01" + record.body


async def test_what_waits_goes_in_groups_of_127() -> None:
    async with leading(MemoryEtcd()) as (store, port, _):
        before = port.server.revision
        await asyncio.gather(*(store.write([Create(pod(f"p{i}"))]) for i in range(127 * 2 + 1)))
        assert port.server.revision - before == 3
        assert store.stats.groups == 3


async def test_a_group_stays_below_its_bytes_and_a_large_object_goes_alone() -> None:
    async with leading(MemoryEtcd()) as (store, port, _):
        before = port.server.revision
        changes: list[Change] = []
        for name, size in (("a", 600_000), ("b", 600_000), ("c", 1_400_000), ("d", 10)):
            message = pod(name)
            message.metadata.annotations["x"] = "x" * size
            changes.append(Create(message))
        assert [record_of(result).key.name for result in await store.write(changes)] == ["a", "b", "c", "d"]
        assert port.server.revision - before == 4


async def test_changes_of_one_key_are_made_in_order_each_in_its_own_group() -> None:
    async with leading(MemoryEtcd()) as (store, port, _):
        seen: list[int] = []

        def count(message: Object) -> bool:
            number = int(message.metadata.labels["n"])
            seen.append(number)
            message.metadata.labels["n"] = str(number + 1)
            return True

        before = port.server.revision
        changes: list[Change] = [Create(pod("a", n="0")), *(Modify(pod_key("a"), count) for _ in range(5))]
        results = await store.write(changes)
        assert seen == [0, 1, 2, 3, 4]
        assert [record_of(r).message.metadata.labels["n"] for r in results] == ["0", "1", "2", "3", "4", "5"]
        assert port.server.revision - before == 6


async def test_the_low_lane_yields_but_does_not_starve() -> None:
    async with leading(MemoryEtcd()) as (store, _, _):
        low = asyncio.gather(*(store.write([Create(pod(f"low{i}"))], low_priority=True) for i in range(200)))
        high = asyncio.gather(*(store.write([Create(pod(f"high{i}"))]) for i in range(200)))
        high_revisions = [record_of(result[0]).revision for result in await high]
        low_revisions = [record_of(result[0]).revision for result in await low]
        assert max(high_revisions) < max(low_revisions)
        assert min(low_revisions) <= min(high_revisions)


@pytest.mark.parametrize("lost", [1, 2, 5])
async def test_a_lost_answer_is_asked_for_again_and_nothing_is_done_twice(lost: int) -> None:
    faults = Faults()
    async with leading(MemoryEtcd(), faults) as (store, port, _):
        await store.write([Create(pod("a", n="0"))])
        runs: list[str] = []

        def count(message: Object) -> bool:
            runs.append(message.metadata.labels["n"])
            message.metadata.labels["n"] += "+"
            return True

        before = port.server.revision
        faults.lose_next = lost
        result = record_of((await store.write([Modify(pod_key("a"), count)]))[0])
        assert runs == ["0"]
        assert result.revision == port.server.revision == before + 1
        assert result.message.metadata.labels["n"] == "0+"
        after = record_of((await store.write([Modify(pod_key("a"), count)]))[0])
        assert after.created == result.created


async def test_a_refused_sending_is_repeated() -> None:
    faults = Faults()
    async with leading(MemoryEtcd(), faults) as (store, _, _):
        faults.refuse_next = 3
        assert record_of((await store.write([Create(pod("a"))]))[0])
        assert store.stats.resends == 3


async def test_a_fenced_leader_writes_nothing_more() -> None:
    server = MemoryEtcd()
    async with leading(server) as (old, _, old_term):
        await old.write([Create(pod("a"))])
        new = Store(Memory(server), lambda: 0.0)
        await new.open(await take_leadership(Memory(server)))
        with pytest.raises(NotLeader):
            await old.write([Create(pod("b"))])
        assert old_term.lost.is_set()
        assert not old.leading
        with pytest.raises(NotLeader):
            await old.write([Create(pod("c"))])
        record_of((await new.write([Create(pod("d"))]))[0])
        assert sorted(p.metadata.name for p in new.view.all("Pod")) == ["a", "d"]
        await new.close()


async def test_a_lost_answer_and_a_lost_leadership_leave_the_outcome_unknown_or_known() -> None:
    server, faults = MemoryEtcd(), Faults()
    async with leading(server, faults) as (old, _, _):
        faults.lose_next = 1
        write = asyncio.create_task(old.write([Create(pod("a"))]))
        while not server.get(keys.encode(pod_key("a"))):
            await asyncio.sleep(0)
        await take_leadership(Memory(server))
        assert record_of((await write)[0])  # the commit record is still its own: it was committed

        faults.refuse_next = 1
        write = asyncio.create_task(old.write([Create(pod("b"))]))
        with pytest.raises(NotLeader):
            await write
        assert server.get(keys.encode(pod_key("b"))) is None


async def test_the_outcome_is_unknown_when_another_leader_has_written_since() -> None:
    server, faults = MemoryEtcd(), Faults()
    async with leading(server, faults) as (old, _, _):
        faults.lose_next = 1
        write = asyncio.create_task(old.write([Create(pod("a"))]))
        while not server.get(keys.encode(pod_key("a"))):
            await asyncio.sleep(0)
        new = Store(Memory(server), lambda: 0.0)
        await new.open(await take_leadership(Memory(server)))
        await new.write([Create(pod("b"))])
        with pytest.raises(Unavailable) as caught:
            await write
        assert caught.value.outcome == "unknown"
        await new.close()


async def test_without_a_valid_lease_nothing_is_written_and_callers_are_told() -> None:
    server, faults = MemoryEtcd(), Faults()
    async with leading(server, faults) as (store, _, term):
        faults.cut = True
        waiting = asyncio.create_task(store.write([Create(pod("a"))]))
        await asyncio.sleep(0.1)
        term.valid_until = 0.0
        with pytest.raises(Unavailable) as caught:
            await waiting
        assert caught.value.outcome == "none"
        with pytest.raises(Unavailable):
            await store.write([Create(pod("b"))])
        with pytest.raises(Unavailable):
            await store.readable()
        faults.cut = False
        term.renewed(asyncio.get_running_loop().time(), 3600)
        assert record_of((await store.write([Create(pod("c"))]))[0])
        assert [p.metadata.name for p in store.view.all("Pod")] == ["c"]


async def test_a_lease_that_runs_out_while_a_change_waits_stops_it() -> None:
    async with leading(MemoryEtcd()) as (store, port, term):
        before = port.server.revision
        waiting = asyncio.create_task(store.write([Create(pod("a"))]))
        asyncio.get_running_loop().call_soon(setattr, term, "valid_until", 0.0)
        with pytest.raises(Unavailable) as caught:
            await waiting
        assert caught.value.outcome == "none"
        assert port.server.revision == before


async def test_a_cancelled_call_that_was_not_sent_is_not_done() -> None:
    async with leading(MemoryEtcd(), Faults(delay=(0.01, 0.01))) as (store, _, _):
        first = asyncio.create_task(store.write([Create(pod("a"))]))
        await asyncio.sleep(0.001)
        second = asyncio.create_task(store.write([Create(pod("b"))]))
        await asyncio.sleep(0.001)
        second.cancel()
        await first
        await store.write([Create(pod("c"))])
        assert sorted(p.metadata.name for p in store.view.all("Pod")) == ["a", "c"]
        assert store.stats.waiting == 0


async def test_closing_fails_those_who_wait() -> None:
    faults = Faults(delay=(10.0, 10.0))
    server = MemoryEtcd()
    port = Memory(server)
    store = Store(port, lambda: 0.0)
    await store.open(await take_leadership(Memory(server)))
    port.faults = faults
    first = asyncio.create_task(store.write([Create(pod("a"))]))
    await asyncio.sleep(0)
    second = asyncio.create_task(store.write([Create(pod("b"))]))
    await asyncio.sleep(0.01)
    await store.close()
    with pytest.raises(Unavailable) as caught:
        await first
    assert caught.value.outcome == "unknown"
    with pytest.raises((NotLeader, Unavailable)):
        await second
    server.close()


async def test_no_space_is_a_refusal_and_making_room_ends_it() -> None:
    server = MemoryEtcd(quota_bytes=200_000)
    async with leading(server) as (store, _, _):
        await store.write([Create(pod("a", n="0"))])

        def grow(number: int) -> Modify:
            def edit(message: Object) -> bool:
                message.metadata.annotations["x"] = str(number) * 30_000
                return True

            return Modify(pod_key("a"), edit)

        results = [(await store.write([grow(number)]))[0] for number in range(1, 10)]
        assert any(isinstance(result, NoSpace) for result in results)
        while server.no_space:
            await asyncio.sleep(0.001)
        assert record_of((await store.write([grow(9)]))[0])


async def test_the_commit_record_counts_and_its_time_never_goes_back() -> None:
    times = iter([100.0, 50.0, 200.0])
    server = MemoryEtcd()
    async with leading(server, now=lambda: next(times)) as (store, port, term):
        seen: list[tuple[int, int, int, int]] = []
        for name in "abc":
            await store.write([Create(pod(name)), Create(pod(name + "2"))])
            record = s.CommitRecord.FromString((await port.range(keys.COMMIT)).items[0].value)
            seen.append((record.sequence, record.epoch - term.epoch, record.time_ms, record.changes))
        assert seen == [(1, 0, 100_000, 2), (2, 0, 100_000, 4), (3, 0, 200_000, 6)]


async def test_every_kind_is_stored_under_its_own_key() -> None:
    async with leading(MemoryEtcd()) as (store, port, _):
        node = o.Node(apiVersion="v1", kind="Node")
        node.metadata.name, node.metadata.uid = "n1", "u1"
        secret = o.Secret(apiVersion="v1", kind="Secret", data={"k": b"\0\xff"})
        secret.metadata.name, secret.metadata.namespace, secret.metadata.uid = "s1", "default", "u2"
        await store.write([Create(node), Create(secret)])
        page = await port.range(keys.OBJECTS, keys.OBJECTS_END)
        assert [item.key for item in page.items] == [b"/shoal/objects/Node//n1", b"/shoal/objects/Secret/default/s1"]
        assert [keys.decode(item.key) for item in page.items] == [Key("Node", "", "n1"), Key("Secret", "default", "s1")]
