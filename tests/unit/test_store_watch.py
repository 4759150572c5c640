"""What is heard of commits: subscriptions, watches, bookmarks, paged lists, followers. In memory, on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from shoal.master.model import (
    Change,
    Create,
    Delete,
    Event,
    Expired,
    Invalid,
    Key,
    Modify,
    NotLeader,
    Object,
    Record,
    Unavailable,
)
from shoal.master.store import keys
from shoal.master.store.codec import body_of
from shoal.master.store.memory import Memory, MemoryEtcd
from shoal.master.store.port import Put
from shoal.master.store.port import WatchBatch as PortBatch
from shoal.master.store.store import Store
from shoal.master.store.watch import BOOKMARK_PERIOD_S, WatchBatch, Window
from shoal.proto.v1 import objects_pb2 as o
from tests.unit.store_support import Clock, label, leading, pod, pod_key, record_of, take_leadership
from tests.virtual_loop import virtual


def told(events: list[Event]) -> list[tuple[str, str, str]]:
    """(name, old label x, new label x); - when absent."""
    out = []
    for event in events:
        old = event.old.message.metadata.labels.get("x", "") if event.old else "-"
        new = event.new.message.metadata.labels.get("x", "") if event.new else "-"
        out.append((event.key.name, old, new))
    return out


def seen(batch: WatchBatch) -> list[tuple[str, str]]:
    return [(event.type, event.record.key.name) for event in batch.events]


def unlabel(message: Object) -> bool:
    message.metadata.labels.clear()
    return True


def test_a_subscription_coalesces_in_order_and_sees_before_the_writer_returns() -> None:
    async def main() -> None:
        async with leading(MemoryEtcd()) as (store, _, _):
            pods = store.subscribe({"Pod"})
            nodes = store.subscribe({"Node"})
            await store.write([Create(pod("a", x="1"))])
            assert told((pods.take() or (0, []))[1]) == [("a", "-", "1")]
            await store.write([Create(pod("b", x="1"))])
            await store.write([Modify(pod_key("a"), label("x", "2"))])
            await store.write([Modify(pod_key("a"), label("x", "3"))])
            await store.write([Create(pod("c"))])
            await store.write([Delete(pod_key("c"))])
            revision, events = await anext(pods)
            assert told(events) == [("b", "-", "1"), ("a", "1", "3")]
            assert revision == store.view.revision
            assert pods.take() is None
            assert nodes.take() is None
            waiting = asyncio.create_task(anext(pods))
            await asyncio.sleep(1)
            await store.write([Delete(pod_key("a"))])
            assert told((await waiting)[1]) == [("a", "3", "-")]
            pods.close()
            with pytest.raises(StopAsyncIteration):
                await anext(pods)

    virtual(main())


def test_a_name_used_anew_is_told_as_a_deletion_and_an_addition() -> None:
    async def main() -> None:
        async with leading(MemoryEtcd()) as (store, _, _):
            await store.write([Create(pod("a", x="old"))])
            events = store.subscribe(None)
            again = pod("a", x="new")
            again.metadata.uid = "another"
            await store.write([Delete(pod_key("a"))])
            await store.write([Create(again)])
            assert told((events.take() or (0, []))[1]) == [("a", "old", "-"), ("a", "-", "new")]

    virtual(main())


def test_a_watch_with_a_selector_sends_what_leaves_it_as_deleted_with_its_last_state() -> None:
    async def main() -> None:
        async with leading(MemoryEtcd()) as (store, _, _):
            start = record_of((await store.write([Create(pod("out"))]))[0]).revision
            watch = store.watch({"Pod"}, start, lambda message: "x" in message.metadata.labels)
            async with aclosing(watch) as batches:
                assert await anext(batches) == WatchBatch(start, [])
                await store.write([Create(pod("a", x="1"))])
                assert seen(await anext(batches)) == [("ADDED", "a")]
                await store.write([Modify(pod_key("a"), label("x", "2"))])
                await store.write([Modify(pod_key("out"), label("x", "9"))])
                await store.write([Modify(pod_key("a"), unlabel)])
                batch = await anext(batches)
                assert seen(batch) == [("MODIFIED", "a"), ("ADDED", "out"), ("DELETED", "a")]
                gone = batch.events[-1].record
                assert gone.message.metadata.labels["x"] == "2"
                assert gone.revision == batch.revision == store.view.revision
                await store.write([Delete(pod_key("out"))])
                batch = await anext(batches)
                assert seen(batch) == [("DELETED", "out")]
                assert batch.events[0].record.revision == store.view.revision

    virtual(main())


def test_bookmarks_come_when_nothing_else_does() -> None:
    async def main() -> None:
        async with leading(MemoryEtcd()) as (store, _, _):
            loop = asyncio.get_running_loop()
            async with aclosing(store.watch({"Node"})) as batches:
                await anext(batches)
                await store.write([Create(pod("a"))])
                before = loop.time()
                batch = await anext(batches)
                assert batch == WatchBatch(store.view.revision, [])
                assert loop.time() - before == pytest.approx(BOOKMARK_PERIOD_S)

    virtual(main())


def test_the_window_is_bounded_by_what_was_deleted_too() -> None:
    window = Window(limit=1000, limit_bytes=10_000)
    for revision in range(2, 102):
        old = Record(pod_key("p"), pod("p"), b"x" * 500, revision - 1, 1)
        window.append(revision, [Event(old.key, revision, old, None)])
    assert 70 <= window.floor <= 90


def test_a_watcher_of_a_quiet_kind_is_not_left_behind() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        port = Memory(server)
        store = Store(port, Clock(), window_events=50)
        await store.open(await take_leadership(port))
        async with aclosing(store.watch({"Node"})) as batches:
            await anext(batches)
            waiting = asyncio.create_task(anext(batches))
            await asyncio.sleep(0)
            for number in range(100):
                await store.write([Create(pod(f"p{number}"))])
            node = o.Node(apiVersion="v1", kind="Node")
            node.metadata.name = node.metadata.uid = "n"
            await store.write([Create(node)])
            assert seen(await waiting) == [("ADDED", "n")]
        await store.close()
        server.close()

    virtual(main())


def test_b99_batches_hold_whole_revisions_and_resume_where_they_end() -> None:
    async def main() -> None:
        async with leading(MemoryEtcd()) as (store, _, _):
            start = store.view.revision
            for group in range(20):
                changes: list[Change] = [Create(pod(f"p{group}-{i}")) for i in range(100)]
                await store.write(changes)
            names: list[str] = []
            position = start
            while len(names) < 2000:
                async with aclosing(store.watch({"Pod"}, position)) as batches:
                    batch = await anext(batches)
                assert len(batch.events) % 100 == 0
                assert batch.events[-1].record.revision == batch.revision
                names += [event.record.key.name for event in batch.events]
                position = batch.revision
            assert len(set(names)) == 2000

    virtual(main())


def test_an_old_revision_and_one_from_nowhere_are_expired() -> None:
    async def main() -> None:
        async with leading(MemoryEtcd()) as (store, _, _):
            await store.write([Create(pod("a"))])
            for revision in (store.view.revision + 1, -1):
                with pytest.raises(Expired):
                    await anext(store.watch(None, revision))
            with pytest.raises(Expired):
                await store.readable(store.view.revision + 1)

    virtual(main())


def test_a_watcher_that_is_too_slow_is_told_so() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        port = Memory(server)
        store = Store(port, Clock(), window_events=50)
        await store.open(await take_leadership(port))
        async with aclosing(store.watch(None)) as batches:
            await anext(batches)
            for number in range(100):
                await store.write([Create(pod(f"p{number}"))])
            with pytest.raises(Expired):
                await anext(batches)
        await store.close()
        server.close()

    virtual(main())


async def all_pages(store: Store, limit: int, between: list[Change]) -> tuple[list[str], set[int]]:
    """Names over all pages, with a change made between each two."""
    names: list[str] = []
    revisions: set[int] = set()
    token = ""
    while True:
        page = store.list_page("Pod", "default", None, limit, token)
        names += [record.key.name for record in page.records]
        revisions.add(page.revision)
        token = page.continue_token
        if not token:
            assert page.remaining == 0
            return names, revisions
        assert page.remaining > 0
        if between:
            await store.write([between.pop(0)])


def test_pages_stay_at_one_revision() -> None:
    async def main() -> None:
        async with leading(MemoryEtcd()) as (store, _, _):
            await store.write([Create(pod(f"p{i}")) for i in range(10)])
            await store.write([Create(pod("other", namespace="z")), Create(pod("early", namespace="a"))])
            again = pod("p7", x="new")
            again.metadata.uid = "another"
            changes: list[Change] = [
                Create(pod("p55")),
                Delete(pod_key("p7")),
                Create(again),
                Modify(pod_key("p9"), label("x", "1")),
            ]
            names, revisions = await all_pages(store, 2, changes)
            assert names == [f"p{i}" for i in range(10)]
            assert len(revisions) == 1
            names, _ = await all_pages(store, 3, [])
            assert names == ["p0", "p1", "p2", "p3", "p4", "p5", "p55", "p6", "p7", "p8", "p9"]
            everything = store.list_page("Pod")
            assert [r.key.namespace for r in everything.records] == ["a", *["default"] * 11, "z"]
            picked = store.list_page("Pod", None, lambda m: "x" in m.metadata.labels, 1)
            assert [r.key.name for r in picked.records] == ["p7"]

    virtual(main())


def test_a_page_shows_the_state_of_its_revision() -> None:
    async def main() -> None:
        async with leading(MemoryEtcd()) as (store, _, _):
            await store.write([Create(pod("a", x="1")), Create(pod("b", x="1"))])
            first = store.list_page("Pod", "default", None, 1)
            assert first.remaining == 1
            await store.write([Modify(pod_key("b"), label("x", "2"))])
            second = store.list_page("Pod", "default", None, 1, first.continue_token)
            assert [r.message.metadata.labels["x"] for r in second.records] == ["1"]
            assert second.revision == first.revision

    virtual(main())


def test_bad_and_expired_tokens() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        port = Memory(server)
        store = Store(port, Clock(), window_events=10)
        await store.open(await take_leadership(port))
        await store.write([Create(pod("a")), Create(pod("b"))])
        token = store.list_page("Pod", None, None, 1).continue_token
        for bad in ("x", "!!!!", "AAAA", token[:-2], token + "é"):
            with pytest.raises(Invalid):
                store.list_page("Pod", None, None, 1, bad)
        for kind, namespace in (("Node", None), ("Pod", "default")):
            with pytest.raises(Invalid):
                store.list_page(kind, namespace, None, 1, token)
        for number in range(20):
            await store.write([Create(pod(f"p{number}"))])
        with pytest.raises(Expired):
            store.list_page("Pod", None, None, 1, token)
        await store.close()
        server.close()

    virtual(main())


def test_a_follower_keeps_up_and_answers_only_for_a_revision() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        async with leading(server) as (leader, _, _):
            await leader.write([Create(pod("a"))])
            port = Memory(server)
            follower = Store(port, Clock())
            heard = follower.subscribe({"Pod"})
            await follower.follow()
            assert told((heard.take() or (0, []))[1]) == [("a", "-", "")]
            with pytest.raises(NotLeader):
                await follower.write([Create(pod("x"))])
            with pytest.raises(NotLeader):
                await follower.readable()
            revision = record_of((await leader.write([Create(pod("b"))]))[0]).revision
            await follower.readable(revision)
            assert follower.view.get("Pod", "default", "b") is not None
            port.cut_watches()
            revision = record_of((await leader.write([Create(pod("c"))]))[0]).revision
            await follower.readable(revision)
            assert follower.relists == 0
            await follower.close()

    virtual(main())


def test_a_follower_whose_history_is_gone_lists_again_and_tells_the_difference() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        async with leading(server) as (leader, _, _):
            await leader.write([Create(pod("a")), Create(pod("b"))])
            port = Memory(server)
            follower = Store(port, Clock())
            await follower.follow()
            heard = follower.subscribe({"Pod"})
            before = follower.view.revision
            port.cut_off()
            await leader.write([Delete(pod_key("a")), Create(pod("c"))])
            revision = record_of((await leader.write([Modify(pod_key("b"), label("x", "1"))]))[0]).revision
            server.compact(server.revision)
            port.heal()
            await follower.wait_revision(revision)
            assert follower.relists == 1
            assert sorted(told((heard.take() or (0, []))[1])) == [("a", "", "-"), ("b", "", "1"), ("c", "-", "")]
            with pytest.raises(Expired):
                await anext(follower.watch(None, before))
            await follower.close()

    virtual(main())


def test_a_new_leader_has_the_history_of_the_old_one() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        async with leading(server) as (old, _, _):
            start = record_of((await old.write([Create(pod("a"))]))[0]).revision
            for number in range(300):
                await old.write([Create(pod(f"p{number}"))])
            new = Store(Memory(server), Clock())
            await new.open(await take_leadership(Memory(server)))
            assert {p.metadata.name for p in new.view.all("Pod")} == {p.metadata.name for p in old.view.all("Pod")}
            names: list[str] = []
            async with aclosing(new.watch({"Pod"}, start + 50)) as batches:
                async for batch in batches:
                    names += [event.record.key.name for event in batch.events]
                    if batch.revision == new.view.revision:
                        break
            assert names == [f"p{number}" for number in range(50, 300)]
            await new.close()

    virtual(main())


def test_history_compacted_past_the_last_commit_costs_one_list_at_most() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        async with leading(server) as (leader, port, _):
            revision = record_of((await leader.write([Create(pod("a"))]))[0]).revision
            follower = Store(Memory(server), Clock())
            for number in range(3):
                await port.txn((), (Put(b"/shoal/something", b"%d" % number),))
            server.compact(server.revision)
            await follower.follow()
            await asyncio.sleep(60)
            assert follower.view.revision == leader.view.revision == revision
            assert follower.view.get("Pod", "default", "a")
            assert follower.relists <= 1
            batch = await anext(leader.watch(None, follower.view.revision))
            assert batch.revision == revision
            await leader.write([Create(pod("b"))])
            await follower.wait_revision(leader.view.revision)
            await follower.close()

    virtual(main())


def test_a_master_changes_roles_and_its_subscriptions_live_on() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        stores = [Store(Memory(server), Clock()) for _ in range(2)]
        heard = [store.subscribe({"Pod"}) for store in stores]
        for store in stores:
            await store.follow()
        for turn in range(6):
            leader, follower = stores[turn % 2], stores[1 - turn % 2]
            term = await take_leadership(Memory(server))
            await leader.open(term)
            revision = record_of((await leader.write([Create(pod(f"p{turn}"))]))[0]).revision
            await follower.wait_revision(revision)
            for subscription in heard:
                assert told((subscription.take() or (0, []))[1]) == [(f"p{turn}", "-", "")]
            term.lose("the test says so")
            with pytest.raises(NotLeader):
                await leader.write([Create(pod("never"))])
            await leader.follow()
        for store in stores:
            await store.close()
        server.close()

    virtual(main())


class CutOffMember(Memory):
    """A member of etcd that the others have left behind: it takes watches and tells nothing."""

    silent = False

    async def watch(self, start: bytes, end: bytes, from_revision: int) -> AsyncGenerator[PortBatch]:
        if self.silent:
            await asyncio.Event().wait()
        async with aclosing(super().watch(start, end, from_revision)) as batches:
            async for batch in batches:
                yield batch


def test_a_leader_whose_etcd_falls_silent_gives_up_instead_of_waiting_for_ever() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        port = CutOffMember(server)
        store = Store(port, Clock())
        await store.follow()
        async with leading(server) as (other, _, _):
            port.silent = True
            port.cut_watches()
            await other.write([Create(pod("news"))])
            leadership = await take_leadership(Memory(server))
            with pytest.raises(Unavailable):
                await store.open(leadership)
            port.silent = False
            await store.open(leadership)
            assert store.view.record(pod_key("news"))
            await store.close()

    virtual(main())


def test_a_leadership_that_is_gone_before_opening_is_refused() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        port = Memory(server)
        term = await take_leadership(port)
        await take_leadership(port)
        store = Store(port, Clock())
        with pytest.raises(NotLeader):
            await store.open(term)
        assert term.lost.is_set()
        await store.close()
        server.close()

    virtual(main())


def test_compaction_keeps_an_hour_and_times_map_to_revisions() -> None:
    async def main() -> None:
        server, clock = MemoryEtcd(), Clock()
        async with leading(server, now=clock) as (store, port, _):
            revisions: list[int] = []
            start = clock.now
            for minute in range(180):
                clock.now = start + minute * 60
                revisions.append(record_of((await store.write([Create(pod(f"p{minute}"))]))[0]).revision)
            assert await store.revision_at(start + 100 * 60 + 30) == revisions[100]
            assert await store.revision_at(start - 1) < revisions[0]
            assert await store.revision_at(clock.now) == revisions[-1]
            while not server.compacted:
                await asyncio.sleep(60)
            assert server.compacted == revisions[119]
            assert (await port.range(keys.encode(pod_key("p0")))).items
            assert await store.revision_at(start) <= server.compacted

    virtual(main())


def test_less_history_is_kept_when_etcd_fills_up() -> None:
    async def main() -> None:
        server, clock = MemoryEtcd(), Clock()
        port = Memory(server)
        store = Store(port, clock, quota_bytes=40_000)
        await store.open(await take_leadership(port, 1e9))
        start = clock.now
        for minute in range(60):
            clock.now = start + minute * 60
            big = pod(f"p{minute}")
            big.metadata.annotations["x"] = "x" * 1000
            await store.write([Create(big)])
            await store.write([Delete(pod_key(f"p{minute}"))])
        while server.in_use > 10_000:
            await asyncio.sleep(60)
        assert server.compacted
        await store.close()
        server.close()

    virtual(main())


@pytest.mark.parametrize("seed", range(5))
def test_what_a_window_keeps_as_bytes_comes_out_as_it_went_in(seed: int) -> None:
    rng = random.Random(seed)
    plain, packing = Window(60, parsed=10**6), Window(60, parsed=rng.randrange(5))
    now: dict[Key, Record] = {}
    for revision in range(1, 120):
        events = []
        for name in rng.sample("abcdef", rng.randrange(4)):
            key = Key("ConfigMap", "default", name)
            old = now.pop(key, None)
            new = None
            if old is None or rng.random() < 0.7:
                made = o.ConfigMap(kind="ConfigMap", data={"x": str(revision)})
                made.metadata.name = name
                new = now[key] = Record(key, made, body_of(made), revision, old.created if old else revision)
            events.append(Event(key, revision, old, new))
        for window in (plain, packing):
            window.append(revision, events)
        since = rng.randrange(plain.floor, revision + 1)
        assert list(packing.after(since)) == list(plain.after(since)) and packing.floor == plain.floor
    assert sum(isinstance(events, tuple) for events in packing._events) > 10
