"""Election over the in-memory etcd, on virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest
from prometheus_client import CollectorRegistry

from shoal.master.core import Master, Settings
from shoal.master.election import LEASE_TTL_S, Election, Leadership, TaskRenewer, ensure_incarnation
from shoal.master.metrics import Meters
from shoal.master.model import NoSpace
from shoal.master.store import keys
from shoal.master.store.memory import Memory, MemoryEtcd
from shoal.master.store.port import Put
from tests.virtual_loop import virtual


class Candidate:
    def __init__(self, server: MemoryEtcd, name: str) -> None:
        clock = asyncio.get_running_loop().time
        self.port = Memory(server)
        self.renewer = TaskRenewer(self.port, clock)
        self.election = Election(self.port, self.renewer, f"{name}:1", name, clock)


def test_one_leads_and_the_next_takes_over_when_it_resigns() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        a, b = Candidate(server, "a"), Candidate(server, "b")
        first = await a.election.campaign()
        second_term = asyncio.create_task(b.election.campaign())
        await asyncio.sleep(60)
        assert first.valid()
        assert not second_term.done()
        assert b.election.leader == await a.election.look()
        assert b.election.leader is not None
        assert b.election.leader.epoch == first.epoch
        await a.election.resign(first)
        before = asyncio.get_running_loop().time()
        second = await second_term
        assert asyncio.get_running_loop().time() - before < 0.1
        assert second.epoch > first.epoch
        assert not first.valid()
        await b.election.resign(second)
        assert server.get(keys.LEADER) is None

    virtual(main())


def test_a_leader_without_contact_stops_before_another_is_let_in() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        a, b = Candidate(server, "a"), Candidate(server, "b")
        clock = asyncio.get_running_loop().time
        first = await a.election.campaign()
        second_term = asyncio.create_task(b.election.campaign())
        await asyncio.sleep(10)
        a.port.cut_off()
        cut = clock()
        while first.valid():
            await asyncio.sleep(0.01)
            assert not second_term.done()
        assert clock() - cut <= LEASE_TTL_S
        assert not first.lost.is_set()  # it may still come back, as long as nobody else was elected
        second = await second_term
        assert not first.valid()
        a.port.heal()
        await first.lost.wait()
        await b.election.resign(second)
        await a.election.resign(first)
        assert first.why == "its lease has run out in etcd"

    virtual(main())


def test_a_short_interruption_costs_nothing() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        a = Candidate(server, "a")
        term = await a.election.campaign()
        for _ in range(5):
            a.port.cut_off()
            await asyncio.sleep(2)
            assert term.valid()
            a.port.heal()
            await asyncio.sleep(2)
        assert term.valid()
        assert (await a.election.look()) is not None
        await a.election.resign(term)

    virtual(main())


def test_a_campaign_survives_a_lost_answer_and_an_absent_etcd() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        a = Candidate(server, "a")
        a.port.cut_off()
        campaign = asyncio.create_task(a.election.campaign())
        await asyncio.sleep(30)
        a.port.heal()
        a.port.faults.lose_next = 2
        term = await campaign
        held = server.get(keys.LEADER)
        assert held is not None
        assert held.create_revision == term.epoch
        assert held.lease == term.lease.id
        await a.election.resign(term)

    virtual(main())


def test_of_many_exactly_one_is_elected_each_time() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        candidates = [Candidate(server, str(number)) for number in range(7)]
        epochs: list[int] = []

        async def serve(candidate: Candidate) -> None:
            while len(epochs) < 20:
                term = await candidate.election.campaign()
                held = server.get(keys.LEADER)
                assert held is not None
                assert held.create_revision == term.epoch
                epochs.append(term.epoch)
                await asyncio.sleep(3)
                await candidate.election.resign(term)

        tasks = [asyncio.create_task(serve(candidate)) for candidate in candidates]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [r for r in results if isinstance(r, Exception)]
        assert epochs == sorted(set(epochs))
        server.close()

    virtual(main())


def test_validity_counts_from_when_the_renewal_was_sent() -> None:
    async def main() -> None:
        now = [100.0]
        port = Memory(MemoryEtcd())
        lease = await port.grant(4)
        term = Leadership(7, lease, 100.0, lambda: now[0])
        now[0] = 103.9
        assert term.valid()
        now[0] = 103.93
        assert not term.valid()
        term.renewed(102.0, 4.0)
        assert term.valid()
        now[0] = 105.93
        assert not term.valid()
        port.server.close()

    virtual(main())


def test_the_incarnation_is_made_once() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        ports = [Memory(server) for _ in range(5)]
        ports[0].faults.lose_next = 1
        names = iter("abcdefgh")
        made = await asyncio.gather(*(ensure_incarnation(port, lambda: next(names)) for port in ports))
        assert len(set(made)) == 1
        assert await ensure_incarnation(ports[1], lambda: "later") == made[0]

    virtual(main())


def test_a_full_etcd_is_given_room_when_nobody_leads() -> None:
    """Without a lease there is no leader, and without a leader nobody compacts."""

    async def main() -> None:
        server = MemoryEtcd(quota_bytes=4_000)
        port = Memory(server)
        with pytest.raises(NoSpace):
            for _ in range(100):
                await port.txn((), (Put(b"/shoal/x", b"x" * 500),))
        meters = Meters(CollectorRegistry())
        clock = asyncio.get_running_loop().time
        settings = Settings("m", "m:1", loops=False)
        master = Master(settings, port, TaskRenewer(port, clock), clock, clock, random.Random(1), meters)
        master._incarnation = "there already"
        running = asyncio.create_task(master.run())
        async with asyncio.timeout(120):
            while master.leading() is None:
                await asyncio.sleep(1)
        assert not (await port.status()).no_space
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await master.close()
        server.close()

    virtual(main())
