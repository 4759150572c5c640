"""The contract of the store's port, on both adapters: in memory, and on a real etcd, plain and over mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from shoal.master.model import Fault, Invalid, NoSpace, TooLarge, Unavailable
from shoal.master.store.memory import Memory, MemoryEtcd
from shoal.master.store.port import Compacted, Compare, DeleteKey, Port, Put, WatchBatch
from tests.etcd import Server, make_tls

QUOTA_BYTES = 16 << 20


@pytest.fixture(params=["memory", "etcd", "etcd-tls"])
async def port(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Port]:
    if request.param == "memory":
        memory = MemoryEtcd(QUOTA_BYTES)
        yield Memory(memory)
        memory.close()
        return
    folder = tmp_path / "etcd"
    server = Server(folder, QUOTA_BYTES, make_tls(folder) if request.param == "etcd-tls" else None)
    try:
        await server.start()
        client = server.client()
        yield client
        await client.close()
    finally:
        server.remove()


async def put(port: Port, key: bytes, value: bytes = b"v", lease: int = 0) -> int:
    result = await port.txn((), (Put(key, value, lease),))
    assert result.succeeded
    return result.revision


async def collect(port: Port, start: bytes, end: bytes, from_revision: int, until: int) -> list[WatchBatch]:
    """Batches with events up to this revision."""
    batches: list[WatchBatch] = []
    async with asyncio.timeout(90), aclosing(port.watch(start, end, from_revision)) as watch:
        async for batch in watch:
            if batch.events:
                batches.append(batch)
            if batch.revision >= until:
                break
    return batches


async def test_a_put_is_read_back_with_its_revisions(port: Port) -> None:
    assert (await port.range(b"/a")).items == []
    first = await put(port, b"/a", b"1")
    second = await put(port, b"/a", b"2")
    page = await port.range(b"/a")
    assert page.revision == second == first + 1
    assert [(kv.value, kv.create_revision, kv.mod_revision) for kv in page.items] == [(b"2", first, second)]
    assert (await port.range(b"/a", revision=first)).items[0].value == b"1"


async def test_a_future_revision_is_refused(port: Port) -> None:
    with pytest.raises(Fault):
        await port.range(b"/a", revision=1000)


async def test_pages_of_one_revision_ignore_what_comes_later(port: Port) -> None:
    await port.txn((), [Put(b"/k/%03d" % i, b"v") for i in range(10)])
    page = await port.range(b"/k/", b"/k0", limit=4)
    assert len(page.items) == 4
    await port.txn((), [Put(b"/k/0045", b"new"), DeleteKey(b"/k/007"), Put(b"/k/008", b"changed")])
    seen = [*page.items]
    revision = page.revision
    while page.more:
        page = await port.range(seen[-1].key + b"\0", b"/k0", limit=4, revision=revision)
        seen += page.items
    assert [(kv.key, kv.value) for kv in seen] == [(b"/k/%03d" % i, b"v") for i in range(10)]


async def test_a_transaction_is_all_or_nothing_and_reads_when_it_fails(port: Port) -> None:
    first = await put(port, b"/a", b"1")
    for compare in (
        Compare(b"/a", "create", first + 1),
        Compare(b"/a", "mod", 0),
        Compare(b"/a", "value", b"2"),
        Compare(b"/none", "value", b""),
        Compare(b"/none", "create", 1),
    ):
        result = await port.txn((compare,), (Put(b"/b", b"x"), DeleteKey(b"/a")), (b"/a", b"/none"))
        assert not result.succeeded
        assert result.found[0] is not None
        assert result.found[0].value == b"1"
        assert result.found[1] is None
    compares = (Compare(b"/a", "create", first), Compare(b"/a", "value", b"1"), Compare(b"/none", "mod", 0))
    result = await port.txn(compares, (Put(b"/b", b"x"), DeleteKey(b"/a")))
    assert result.succeeded
    assert result.revision == first + 1
    assert [kv.key for kv in (await port.range(b"/", b"0")).items] == [b"/b"]


async def test_a_deletion_of_nothing_makes_no_revision(port: Port) -> None:
    before = await put(port, b"/a")
    result = await port.txn((), (DeleteKey(b"/none"),))
    assert result.succeeded
    assert (await port.range(b"/a")).revision == before


async def test_the_limits_of_a_transaction(port: Port) -> None:
    result = await port.txn((Compare(b"/x", "mod", 0),), [Put(b"/k/%d" % i, b"v") for i in range(128)])
    assert result.succeeded
    with pytest.raises(Invalid):
        await port.txn((), [Put(b"/k/%d" % i, b"v") for i in range(129)])
    with pytest.raises(Invalid):
        await port.txn((), (Put(b"/twice", b"1"), Put(b"/twice", b"2")))
    with pytest.raises(TooLarge):
        await port.txn((), (Put(b"/big", b"x" * 2_200_000),))
    assert (await port.range(b"/twice")).items == []


async def test_a_watch_tells_whole_revisions_in_order(port: Port) -> None:
    start = await put(port, b"/w/0")
    await put(port, b"/other")
    await port.txn((), (Put(b"/w/a", b"1"), Put(b"/w/b", b"2"), DeleteKey(b"/w/0")))
    collecting = asyncio.create_task(collect(port, b"/w/", b"/w0", start, start + 4))
    await put(port, b"/other")
    await put(port, b"/w/a", b"3")
    batches = await collecting
    assert [(b.revision, [(e.key, e.value, e.create_revision) for e in b.events]) for b in batches] == [
        (start, [(b"/w/0", b"v", start)]),
        (start + 2, [(b"/w/a", b"1", start + 2), (b"/w/b", b"2", start + 2), (b"/w/0", None, 0)]),
        (start + 4, [(b"/w/a", b"3", start + 2)]),
    ]
    assert all(event.mod_revision == batch.revision for batch in batches for event in batch.events)


async def test_a_watch_may_begin_in_the_future(port: Port) -> None:
    now = await put(port, b"/w/a", b"1")
    collecting = asyncio.create_task(collect(port, b"/w/", b"/w0", now + 2, now + 2))
    await asyncio.sleep(0.05)
    await put(port, b"/w/a", b"2")
    await put(port, b"/w/a", b"3")
    assert [batch.revision for batch in await collecting] == [now + 2]


async def test_catch_up_above_4_mib_comes_whole_and_in_order(port: Port) -> None:
    start = (await port.range(b"/")).revision
    for number in range(9):
        await port.txn((), [Put(b"/big/%d" % key, bytes([65 + number]) * 10_000) for key in range(100)])
    batches = await collect(port, b"/big/", b"/big0", start + 1, start + 9)
    assert [batch.revision for batch in batches] == list(range(start + 1, start + 10))
    for number, batch in enumerate(batches):
        assert [event.key for event in batch.events] == [b"/big/%d" % key for key in range(100)]
        assert {event.value for event in batch.events} == {bytes([65 + number]) * 10_000}


async def test_one_large_revision_is_not_split(port: Port) -> None:
    start = (await port.range(b"/")).revision
    await port.txn((), [Put(b"/l/%03d" % key, b"x" * 11_000) for key in range(128)])
    await port.txn((), [Put(b"/l/%03d" % key, b"y" * 11_000) for key in range(128)])
    batches = await collect(port, b"/l/", b"/l0", start + 1, start + 2)
    assert [len(batch.events) for batch in batches] == [128, 128]


async def test_b99_compacted_history_is_refused_visibly(port: Port) -> None:
    first = await put(port, b"/a", b"1")
    for number in range(5):
        await put(port, b"/a", b"%d" % number)
    await port.compact(first + 3)
    await port.compact(first + 2)  # done already: fine
    with pytest.raises(Compacted):
        await port.range(b"/a", revision=first)
    with pytest.raises(Compacted):
        await collect(port, b"/a", b"/b", first, first + 5)
    assert (await port.range(b"/a", revision=first + 3)).items[0].value == b"2"
    batches = await collect(port, b"/a", b"/b", first + 4, first + 5)
    assert [batch.revision for batch in batches] == [first + 4, first + 5]


async def test_compaction_under_a_watch_that_keeps_up_does_not_harm_it(port: Port) -> None:
    first = await put(port, b"/a", b"1")
    async with asyncio.timeout(90), aclosing(port.watch(b"/a", b"/b", first)) as watch:
        assert (await anext(watch)).revision == first
        for _ in range(20):
            revision = await put(port, b"/a")
            assert (await anext(watch)).revision == revision
            await port.compact(revision)


async def test_a_deleted_key_stays_deleted_over_a_compaction(port: Port) -> None:
    await put(port, b"/a")
    result = await port.txn((), (DeleteKey(b"/a"),))
    await put(port, b"/b")
    await port.compact(result.revision)
    assert (await port.range(b"/a", revision=result.revision)).items == []
    again = await put(port, b"/a")
    assert (await port.range(b"/a")).items[0].create_revision == again


async def test_a_lease_takes_its_keys_along_when_it_runs_out(port: Port) -> None:
    lease = await port.grant(2)
    assert lease.ttl >= 2
    revision = await put(port, b"/leased", b"v", lease.id)
    await put(port, b"/free")
    assert (await port.range(b"/leased")).items[0].lease == lease.id
    batches = await collect(port, b"/leased", b"/leased\0", revision + 1, revision + 2)
    assert [event.value for event in batches[0].events] == [None]
    assert (await port.range(b"/leased")).items == []
    assert await port.keepalive(lease.id) == 0
    with pytest.raises(Fault):
        await port.txn((), (Put(b"/late", b"", lease.id),))


async def test_a_renewed_lease_lives_and_a_revoked_one_ends_at_once(port: Port) -> None:
    lease = await port.grant(4)
    await put(port, b"/leased", b"v", lease.id)
    loop = asyncio.get_running_loop()
    end = loop.time() + 5.5  # longer than the lease
    while loop.time() < end:
        assert await port.keepalive(lease.id) == lease.ttl
        await asyncio.sleep(0.5)
    assert (await port.range(b"/leased")).items
    await port.revoke(lease.id)
    assert (await port.range(b"/leased")).items == []
    await port.revoke(lease.id)  # gone already: fine


async def test_a_full_database_refuses_and_recovers(port: Port) -> None:
    await put(port, b"/small", b"1")
    with pytest.raises(NoSpace):
        for number in range(60):
            await put(port, b"/filler", bytes([number]) * 1_000_000)
    assert (await port.status()).no_space
    with pytest.raises(NoSpace):
        await put(port, b"/small", b"2")
    with pytest.raises(NoSpace):
        await port.grant(5)
    assert (await port.range(b"/small")).items[0].value == b"1"
    full = await port.status()
    await port.compact(full.revision)
    await port.defragment()
    await port.disarm()
    roomy = await port.status()
    assert not roomy.no_space
    assert roomy.db_size < full.db_size
    await put(port, b"/small", b"3")


async def test_watches_of_one_client_are_independent(port: Port) -> None:
    start = (await port.range(b"/")).revision
    watches = [asyncio.create_task(collect(port, b"/w/", b"/w0", start + 1, start + 3)) for _ in range(5)]
    watches[0].cancel()
    for number in range(3):
        await put(port, b"/w/a", b"%d" % number)
    for watch in watches[1:]:
        assert [batch.revision for batch in await watch] == [start + 1, start + 2, start + 3]


async def test_an_absent_server_is_unavailable_and_nothing_was_written(tmp_path: Path) -> None:
    server = Server(tmp_path / "etcd")
    client = server.client(timeout=1.0)
    with pytest.raises(Unavailable) as caught:
        await client.txn((), (Put(b"/a", b"v"),))
    assert caught.value.outcome == "none"
    assert server.address in str(caught.value)
    with pytest.raises(Unavailable):
        await collect(client, b"/a", b"/b", 1, 1)
    await client.close()
