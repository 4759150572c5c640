"""The whole store on a real etcd that is killed, frozen, compacted, filled up and cut off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shoal.master.election import Election, Leadership, TaskRenewer
from shoal.master.model import Create, Delete, Fault, Key, Modify, NoSpace, NotLeader, Object, Record, Unavailable
from shoal.master.store import keys
from shoal.master.store.apply import Cache
from shoal.master.store.codec import body_of
from shoal.master.store.etcd import Etcd, Tls
from shoal.master.store.etcd_lease import ThreadRenewer
from shoal.master.store.port import Port
from shoal.master.store.store import Store
from tests.etcd import Proxy, Server, make_tls
from tests.unit.store_support import pod, pod_key, record_of

DEADLINE_S = 120.0
LONG_TTL_S = 30.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[Server]:
    server = Server(tmp_path / "etcd", quota_bytes=24 << 20)
    try:
        await server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
async def stack() -> AsyncGenerator[AsyncExitStack]:
    """Ends what the masters of a test leave behind, in reverse."""
    async with AsyncExitStack() as stack:
        yield stack


class Master:
    """A candidate with a store of its own, all through one address."""

    def __init__(self, address: str, name: str, ttl: float, quota_bytes: int = 24 << 20) -> None:
        clock = time.monotonic
        self.port = Etcd([address], timeout=1.0)
        self.renewer = ThreadRenewer([address], None, clock)
        self.election = Election(self.port, self.renewer, f"{name}:1", name, clock, ttl=ttl)
        self.store = Store(self.port, time.time, quota_bytes=quota_bytes)

    async def lead(self) -> Leadership:
        term = await self.election.campaign()
        await self.store.open(term)
        return term

    async def close(self) -> None:
        await self.store.close()
        await self.renewer.stop()
        await self.port.close()


async def master(stack: AsyncExitStack, address: str, name: str = "a", ttl: float = LONG_TTL_S) -> Master:
    made = Master(address, name, ttl)
    stack.push_async_callback(made.close)
    return made


async def proxy_to(stack: AsyncExitStack, server: Server) -> Proxy:
    proxy = Proxy(server)
    await proxy.start()
    stack.push_async_callback(proxy.close)
    return proxy


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def insist(call: Callable[[], Awaitable[object]]) -> None:
    """Repeats until it is carried out."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await call()
                return
            except Fault:
                await asyncio.sleep(0.1)


def count(message: Object) -> bool:
    message.metadata.labels["n"] = str(int(message.metadata.labels["n"]) + 1)
    return True


async def check(store: Store, port: Port) -> None:
    """The cache is what etcd holds, byte for byte."""
    page = await port.range(keys.OBJECTS, keys.OBJECTS_END)
    stored = {keys.decode(item.key): (item.value[1:], item.mod_revision, item.create_revision) for item in page.items}
    assert isinstance(store.view, Cache)
    cached = {r.key: (r.body, r.revision, r.created) for r in store.view.records("Pod")}
    assert cached == stored
    assert all(body_of(record.message) == record.body for record in store.view.records("Pod"))


class Load:
    """Writers that count up a label of their own pod; `acknowledged` is what they were told."""

    def __init__(self, store: Store, writers: int = 16) -> None:
        self.store = store
        self.acknowledged = [0] * writers
        self.unknown = [0] * writers
        self.stopping = False
        self.tasks = [asyncio.create_task(self._write(number)) for number in range(writers)]

    async def _write(self, number: int) -> None:
        key = pod_key(f"w{number}")
        record_of((await self.store.write([Create(pod(key.name, n="0"))]))[0])
        while not self.stopping:
            try:
                (result,) = await self.store.write([Modify(key, count)])
                assert isinstance(result, Record), result
                self.acknowledged[number] += 1
            except Unavailable as error:
                self.unknown[number] += error.outcome == "unknown"
                await asyncio.sleep(0.05)

    async def progress(self) -> None:
        """Returns when every writer has been acknowledged again."""
        before = list(self.acknowledged)
        await until(lambda: all(now > then for now, then in zip(self.acknowledged, before, strict=True)))

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)

    def check(self) -> None:
        """Each acknowledged count was made once; those of unknown outcome at most once each."""
        for number, sure in enumerate(self.acknowledged):
            message = self.store.view.get("Pod", "default", f"w{number}")
            assert message
            made = int(message.metadata.labels["n"])
            assert sure <= made <= sure + self.unknown[number]


async def test_etcd_killed_and_restarted_under_load_loses_nothing(server: Server, stack: AsyncExitStack) -> None:
    leader, follower = await master(stack, server.address), await master(stack, server.address, "b")
    await leader.lead()
    await follower.store.follow()
    load = Load(leader.store)
    await load.progress()
    for _ in range(2):
        server.kill()
        await asyncio.sleep(0.3)
        await server.start()
        await load.progress()
    await load.stop()
    load.check()
    assert leader.store.stats.resends > 0
    await check(leader.store, leader.port)
    await follower.store.wait_revision(leader.store.view.revision)
    await check(follower.store, leader.port)


async def test_a_frozen_etcd_blocks_writes_until_it_thaws(server: Server, stack: AsyncExitStack) -> None:
    leader = await master(stack, server.address)
    await leader.lead()
    load = Load(leader.store)
    await load.progress()
    server.freeze()
    before = leader.store.stats.resends
    await until(lambda: leader.store.stats.resends > before + 1)
    server.thaw()
    await load.progress()
    await load.stop()
    load.check()
    assert not any(load.unknown)
    await check(leader.store, leader.port)


async def test_a_leader_frozen_out_stops_and_another_takes_over(server: Server, stack: AsyncExitStack) -> None:
    """Its way to etcd is cut while a write is under way; it is fenced when it comes back."""
    proxy = await proxy_to(stack, server)
    old, new = await master(stack, proxy.address, "old", 2), await master(stack, server.address, "new", LONG_TTL_S)
    term = await old.lead()
    record_of((await old.store.write([Create(pod("a", n="0"))]))[0])
    proxy.swallow_answers = True
    lost = asyncio.create_task(old.store.write([Modify(pod_key("a"), count)]))
    await until(lambda: proxy.swallowed > 0)
    second = await new.lead()
    assert not term.valid()
    assert second.epoch > term.epoch
    with pytest.raises(Unavailable) as caught:
        await lost
    assert caught.value.outcome == "unknown"
    await new.store.write([Modify(pod_key("a"), count), Create(pod("b"))])
    proxy.swallow_answers = False
    proxy.cut()
    async with asyncio.timeout(DEADLINE_S):
        await term.lost.wait()
    with pytest.raises(NotLeader):
        await old.store.write([Create(pod("never"))])
    await old.store.follow()
    await old.store.wait_revision(new.store.view.revision)
    await check(old.store, new.port)
    await check(new.store, new.port)
    message = new.store.view.get("Pod", "default", "a")
    assert message
    assert message.metadata.labels["n"] == "2"


async def test_lost_answers_are_resolved_and_each_change_is_made_once(server: Server, stack: AsyncExitStack) -> None:
    proxy = await proxy_to(stack, server)
    leader = await master(stack, proxy.address)
    await leader.lead()
    load = Load(leader.store)
    await load.progress()
    for _ in range(3):
        proxy.swallowed, proxy.swallow_answers = 0, True
        await until(lambda: proxy.swallowed > 0)
        proxy.cut()
        proxy.swallow_answers = False
        await load.progress()
    await load.stop()
    assert not any(load.unknown)
    load.check()
    await check(leader.store, leader.port)


async def test_lost_connections_harm_neither_leader_nor_follower(server: Server, stack: AsyncExitStack) -> None:
    proxy = await proxy_to(stack, server)
    leader, follower = await master(stack, proxy.address), await master(stack, proxy.address, "b")
    await leader.lead()
    await follower.store.follow()
    load = Load(leader.store)
    for _ in range(5):
        await load.progress()
        proxy.cut()
    await load.progress()
    await load.stop()
    load.check()
    await follower.store.wait_revision(leader.store.view.revision)
    await check(follower.store, leader.port)
    assert follower.store.relists == 0


async def test_history_compacted_under_a_follower_makes_it_list_again(server: Server, stack: AsyncExitStack) -> None:
    proxy = await proxy_to(stack, server)
    leader, follower = await master(stack, server.address), await master(stack, proxy.address, "b")
    await leader.lead()
    await leader.store.write([Create(pod("a", n="0")), Create(pod("b", n="0"))])
    await follower.store.follow()
    heard = follower.store.subscribe({"Pod"})
    proxy.swallow_answers = True
    for _ in range(20):
        await leader.store.write([Modify(pod_key("a"), count)])
    await leader.store.write([Delete(pod_key("b"))])
    await leader.port.compact(leader.store.view.revision)
    proxy.cut()
    proxy.swallow_answers = False
    await follower.store.wait_revision(leader.store.view.revision)
    assert follower.store.relists == 1
    await check(follower.store, leader.port)
    _, events = heard.take() or (0, [])
    assert {(event.key.name, event.new is None) for event in events} == {("a", False), ("b", True)}


async def test_a_full_database_refuses_and_goes_on_after_room_was_made(server: Server, stack: AsyncExitStack) -> None:
    leader = await master(stack, server.address)
    await leader.lead()
    key = pod_key("a")
    await leader.store.write([Create(pod("a", n="0"))])

    def grow(message: Object) -> bool:
        message.metadata.annotations["x"] = message.metadata.labels["n"] * 800_000
        message.metadata.labels["n"] = str((int(message.metadata.labels["n"]) + 1) % 10)
        return True

    refused: list[NoSpace] = []
    async with asyncio.timeout(DEADLINE_S):
        while not refused:
            (result,) = await leader.store.write([Modify(key, grow)])
            if isinstance(result, NoSpace):
                refused.append(result)
    assert "quota" in str(refused[0])
    await insist(lambda: written(leader.store, key, grow))
    await check(leader.store, leader.port)
    assert not (await leader.port.status()).no_space


async def written(store: Store, key: Key, edit: Callable[[Object], bool]) -> None:
    (result,) = await store.write([Modify(key, edit)])
    if isinstance(result, Fault):
        raise result


async def test_a_full_database_without_a_leader_gets_one(server: Server, stack: AsyncExitStack) -> None:
    from shoal.master.store.port import Put

    candidate = await master(stack, server.address)
    with pytest.raises(NoSpace):
        while True:
            await candidate.port.txn((), (Put(b"/shoal/filler", b"x" * 1_000_000),))
    async with asyncio.timeout(DEADLINE_S):
        await candidate.lead()
    record_of((await candidate.store.write([Create(pod("a"))]))[0])


async def test_a_busy_loop_does_not_cost_the_leadership(server: Server, stack: AsyncExitStack) -> None:
    leader = await master(stack, server.address, ttl=6)
    term = await leader.lead()
    end = time.monotonic() + 8
    while time.monotonic() < end:
        sum(range(1000))  # the loop does not turn, other threads do
    assert term.valid()
    record_of((await leader.store.write([Create(pod("a"))]))[0])
    await leader.election.resign(term)
    assert not (await leader.port.range(keys.LEADER)).items


async def test_an_operator_who_deletes_the_lease_ends_the_term(server: Server, stack: AsyncExitStack) -> None:
    leader = await master(stack, server.address)
    term = await leader.lead()
    await leader.port.revoke(term.lease.id)
    with pytest.raises(NotLeader):
        await leader.store.write([Create(pod("a"))])
    assert term.lost.is_set()


async def test_a_second_endpoint_takes_over(server: Server, stack: AsyncExitStack) -> None:
    dead = Server(server.folder / "dead")
    port = Etcd([dead.address, server.address], timeout=1.0)
    stack.push_async_callback(port.close)
    clock = time.monotonic
    election = Election(port, TaskRenewer(port, clock), "a:1", "a", clock)
    term = await election.campaign()
    store = Store(port, time.time)
    await store.open(term)
    record_of((await store.write([Create(pod("a"))]))[0])
    await store.close()
    await election.resign(term)


async def test_a_client_without_a_certificate_is_told_why(tmp_path: Path) -> None:
    folder = tmp_path / "etcd"
    tls = make_tls(folder)
    server = Server(folder, tls=tls)
    try:
        await server.start()
        for wrong in (Tls(tls.ca), Tls(make_tls(tmp_path / "other").ca, tls.certificate, tls.key), None):
            port = Etcd([server.address], wrong, timeout=2.0)
            with pytest.raises(Unavailable) as caught:
                await port.range(b"/")
            assert "certificate" in str(caught.value) or wrong is None
            await port.close()
    finally:
        server.remove()
