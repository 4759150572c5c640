"""The fake runtime keeps the runtime's contract, and its scripted faults do what they say."""

from __future__ import annotations

import asyncio

import pytest

from shoal.agent.runtime.fake import FakeRuntime
from shoal.agent.runtime.port import ContainerID, ContainerSpec, Exited, RuntimeGone, SandboxSpec, Started
from tests.node.runtime_contract import Contract, until_exit


class FakeNode:
    def __init__(self) -> None:
        self.time = 100.0
        self.runtime = FakeRuntime(lambda: self.time)

    def spec(self, id: ContainerID, *words: str) -> ContainerSpec:
        return ContainerSpec(id, ["/layer"], words, {}, "/", "")


class TestFake(Contract):
    @pytest.fixture
    async def node(self) -> FakeNode:
        return FakeNode()


ID = ContainerID("pod", "main", 0)


async def test_a_start_goes_on_when_its_agent_crashes() -> None:
    node = FakeNode()
    node.runtime = FakeRuntime(lambda: node.time, start_seconds=0.01)
    await node.runtime.ensure_sandbox(SandboxSpec("pod", "host"))
    events = node.runtime.events()
    agent = asyncio.create_task(node.runtime.start(node.spec(ID, "run")))
    await asyncio.sleep(0)
    agent.cancel()
    assert isinstance(await anext(events), Started)
    (state,) = await node.runtime.list()
    assert state.pid > 0


async def test_while_gone_containers_go_on_and_their_end_is_told_later() -> None:
    node = FakeNode()
    await node.runtime.ensure_sandbox(SandboxSpec("pod", "host"))
    events = node.runtime.events()
    await node.runtime.start(node.spec(ID, "run"))
    node.runtime.gone = True
    with pytest.raises(RuntimeGone):
        await node.runtime.list()
    assert isinstance(await anext(events), Started)
    with pytest.raises(RuntimeGone):
        await anext(events)
    node.runtime.crash(ID, 7)
    node.runtime.come_back()
    assert (await until_exit(events, ID)).code == 7


async def test_words_say_how_a_container_ends() -> None:
    node = FakeNode()
    await node.runtime.ensure_sandbox(SandboxSpec("pod", "host"))
    events = node.runtime.events()
    cases = {("oom", "0"): (137, 9, True), ("sleep", "0", "4"): (4, 0, False), ("graceful", "0"): (0, 0, False)}
    for attempt, (words, expected) in enumerate(cases.items()):
        id = ContainerID("pod", "main", attempt)
        await node.runtime.start(node.spec(id, *words))
        if words[0] == "graceful":
            await node.runtime.signal(id, 15)
        end = await until_exit(events, id)
        assert (end.code, end.signal, end.oom) == expected


async def test_a_reboot_loses_codes_and_sandboxes() -> None:
    node = FakeNode()
    await node.runtime.ensure_sandbox(SandboxSpec("pod", "host"))
    await node.runtime.start(node.spec(ID, "run"))
    events = node.runtime.events()
    node.runtime.reboot()
    event = await anext(events)
    assert isinstance(event, Exited)
    assert (event.exit.code, event.exit.reason) == (137, "ContainerStatusUnknown")
    assert list(await node.runtime.sandboxes()) == []
