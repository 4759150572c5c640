"""What every runtime must do (port.Runtime): one suite, inherited by the tests of each adapter."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

import pytest

from shoal.agent.runtime.port import (
    ContainerID,
    ContainerSpec,
    Exit,
    Exited,
    Runtime,
    RuntimeEvent,
    RuntimeFault,
    RuntimeGone,
    SandboxSpec,
    Started,
    StartError,
)

PATIENCE = 90.0  # seconds


class Node(Protocol):
    """What the suite needs of a node: its runtime, and programs in the words of fake.py."""

    runtime: Runtime

    def spec(self, id: ContainerID, *words: str) -> ContainerSpec: ...


async def until_exit(events: AsyncIterator[RuntimeEvent], id: ContainerID) -> Exit:
    """The next exit of `id` among the events, over lost contacts."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                event = await anext(events)
            except RuntimeGone:
                continue
            if isinstance(event, Exited) and event.id == id:
                return event.exit


class Contract:
    """Subclasses give a `node` fixture."""

    pod = "3f0d5b1e-0000-4000-8000-000000000001"

    @property
    def id(self) -> ContainerID:
        return ContainerID(self.pod, "main", 0)

    async def test_exit_codes_arrive_as_events_and_stay_listed(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        events = node.runtime.events()
        state = await node.runtime.start(node.spec(self.id, "exit", "3"))
        assert state.pid > 0
        assert state.start_ticks > 0
        started = await anext(events)
        assert isinstance(started, Started)
        assert (started.id, started.pid) == (self.id, state.pid)
        end = await until_exit(events, self.id)
        assert (end.code, end.signal, end.oom, end.reason) == (3, 0, False, "")
        (listed,) = await node.runtime.list()
        assert (listed.id, listed.exit, listed.start_error) == (self.id, end, None)

    async def test_start_is_done_once(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        spec = node.spec(self.id, "run")
        first, second = await asyncio.gather(node.runtime.start(spec), node.runtime.start(spec))
        assert first == second
        assert await node.runtime.start(spec) == first
        assert len(await node.runtime.list()) == 1

    async def test_a_failed_start_fails_again_the_same_way(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        spec = node.spec(self.id, "fail", "ContainerCannotRun", "no such command")
        errors = []
        for _ in range(2):
            with pytest.raises(StartError) as caught:
                await node.runtime.start(spec)
            errors.append((caught.value.reason, caught.value.message, caught.value.exit_code))
        assert errors[0] == errors[1]
        assert errors[0][0] == "ContainerCannotRun"
        (listed,) = await node.runtime.list()
        assert listed.start_error is not None
        assert listed.exit is None
        await node.runtime.remove_container(self.id)
        assert list(await node.runtime.list()) == []

    async def test_an_exit_tells_its_message_and_what_was_used(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        events = node.runtime.events()
        spec = replace(node.spec(self.id, "say", "3", "no database"), termination_path="/dev/termination-log")
        await node.runtime.start(spec)
        end = await until_exit(events, self.id)
        assert (end.code, end.message.strip()) == (3, "no database")
        assert end.resources is not None
        assert end.resources.peak_memory_bytes > 0
        (listed,) = await node.runtime.list()
        assert listed.exit == end

    async def test_term_then_kill(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        events = node.runtime.events()
        await node.runtime.start(node.spec(self.id, "stubborn"))
        await node.runtime.signal(self.id, signal.SIGTERM)
        await asyncio.sleep(0)
        (listed,) = await node.runtime.list()
        assert listed.exit is None
        await node.runtime.signal(self.id, signal.SIGKILL)
        end = await until_exit(events, self.id)
        assert (end.code, end.signal) == (137, 9)
        await node.runtime.signal(self.id, signal.SIGTERM)  # ended: no error

    async def test_removal_needs_the_end_and_can_be_repeated(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        events = node.runtime.events()
        await node.runtime.start(node.spec(self.id, "run"))
        with pytest.raises(RuntimeFault, match="still runs"):
            await node.runtime.remove_container(self.id)
        await node.runtime.signal(self.id, signal.SIGKILL)
        await until_exit(events, self.id)
        for _ in range(2):
            await node.runtime.remove_container(self.id)
        assert list(await node.runtime.list()) == []

    async def test_remove_sandbox_ends_everything(self, node: Node) -> None:
        sandbox = await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        assert await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester")) == sandbox
        assert list(await node.runtime.sandboxes()) == [sandbox]
        await node.runtime.start(node.spec(self.id, "stubborn"))
        assert list(await node.runtime.usage()) == [self.id]
        for _ in range(2):
            await node.runtime.remove_sandbox(self.pod)
        assert list(await node.runtime.sandboxes()) == []
        assert list(await node.runtime.list()) == []
        assert dict(await node.runtime.usage()) == {}

    async def test_start_without_a_sandbox_is_refused(self, node: Node) -> None:
        with pytest.raises(RuntimeFault, match="ensure_sandbox"):
            await node.runtime.start(node.spec(self.id, "run"))

    async def test_exec_gives_output_and_code(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        await node.runtime.start(node.spec(self.id, "run"))
        stream = await node.runtime.exec(self.id, ["echo", "hello", "there"])
        output = b""
        async with asyncio.timeout(PATIENCE):
            while (piece := await stream.read())[0] != "end":
                assert piece[0] == "stdout"
                output += piece[1]
        assert output == b"hello there\n"
        assert await stream.wait() == 0
        await stream.close()

    async def test_a_probe_gives_output_and_code(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        await node.runtime.start(node.spec(self.id, "run"))
        run = await node.runtime.run_probe(self.id, ["echo", "hello"], PATIENCE)
        assert (run.code, run.output) == (0, b"hello\n")

    async def test_a_probe_is_over_after_its_time(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        await node.runtime.start(node.spec(self.id, "run"))
        async with asyncio.timeout(PATIENCE):
            assert (await node.runtime.run_probe(self.id, ["sleep", "1000"], 0.1)).code is None

    async def test_a_probe_that_cannot_run_says_why(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        events = node.runtime.events()
        await node.runtime.start(node.spec(self.id, "run"))
        with pytest.raises(StartError) as caught:
            await node.runtime.run_probe(self.id, ["no-such-command"], PATIENCE)
        assert caught.value.exit_code == 127
        await node.runtime.signal(self.id, signal.SIGKILL)
        await until_exit(events, self.id)
        with pytest.raises(RuntimeFault, match="does not run"):
            await node.runtime.run_probe(self.id, ["echo"], PATIENCE)

    async def test_exec_reads_its_input(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        await node.runtime.start(node.spec(self.id, "run"))
        stream = await node.runtime.exec(self.id, ["cat"], stdin=True)
        await stream.write(b"some words")
        async with asyncio.timeout(PATIENCE):
            assert await stream.read() == ("stdout", b"some words")
            await stream.close_input()
            assert await stream.read() == ("end", b"")
            assert await stream.wait() == 0
        await stream.close()

    async def test_exec_of_a_missing_command_and_in_an_ended_container(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        events = node.runtime.events()
        await node.runtime.start(node.spec(self.id, "run"))
        with pytest.raises(StartError) as caught:
            await node.runtime.exec(self.id, ["no-such-command"])
        assert caught.value.exit_code == 127
        await node.runtime.signal(self.id, signal.SIGKILL)
        await until_exit(events, self.id)
        with pytest.raises(RuntimeFault, match="does not run"):
            await node.runtime.exec(self.id, ["echo"])

    async def test_those_who_attach_see_what_comes_from_now_on(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        await node.runtime.start(replace(node.spec(self.id, "cat"), stdin=True))
        first = await node.runtime.attach(self.id, stdin=True)
        second = await node.runtime.attach(self.id)
        await first.write(b"some words\n")
        async with asyncio.timeout(PATIENCE):
            assert await first.read() == await second.read() == ("stdout", b"some words\n")
            await first.close()
            third = await node.runtime.attach(self.id, stdin=True)
            await third.write(b"more\n")
            assert await second.read() == await third.read() == ("stdout", b"more\n")
            await node.runtime.signal(self.id, signal.SIGKILL)
            assert await second.read() == await third.read() == ("end", b"")
            assert await second.wait() == await third.wait() == 137
        await second.close()
        await third.close()
        with pytest.raises(RuntimeFault, match="does not run"):
            await node.runtime.attach(self.id)

    async def test_input_that_is_closed_once_ends_for_all(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        await node.runtime.start(replace(node.spec(self.id, "cat"), stdin=True, stdin_once=True))
        first = await node.runtime.attach(self.id, stdin=True)
        with pytest.raises(RuntimeFault, match="stdinOnce"):
            await node.runtime.attach(self.id, stdin=True)
        await first.write(b"all\n")
        await first.close_input()
        async with asyncio.timeout(PATIENCE):
            assert await first.read() == ("stdout", b"all\n")
            assert await first.wait() == 0
        await first.close()

    async def test_without_stdin_there_is_nothing_to_write_to(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        await node.runtime.start(node.spec(self.id, "run"))
        with pytest.raises(RuntimeFault, match="stdin"):
            await node.runtime.attach(self.id, stdin=True)
        stream = await node.runtime.attach(self.id)
        await stream.close()
        (listed,) = await node.runtime.list()
        assert listed.exit is None

    async def test_closing_an_exec_kills_it(self, node: Node) -> None:
        await node.runtime.ensure_sandbox(SandboxSpec(self.pod, "tester"))
        await node.runtime.start(node.spec(self.id, "run"))
        stream = await node.runtime.exec(self.id, ["sleep", "1000"])
        waiter = asyncio.create_task(stream.wait())
        await asyncio.sleep(0)
        await stream.close()
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        (listed,) = await node.runtime.list()
        assert listed.exit is None
