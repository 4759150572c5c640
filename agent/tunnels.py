"""Answers the master's Open: logs, exec and images, each over a Tunnel call of its own.

Data goes in frames of at most 64 KiB; a slow reader holds the sender back, since each send is awaited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from shoal.agent.images.port import ImageFault, Images
from shoal.agent.logs import LogFiles, LogOptions, read_logs
from shoal.agent.pods.facts import RUNNING, ContainerFacts
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.spec import log_path
from shoal.agent.pods.worker import Worker
from shoal.agent.runtime.port import ContainerID, ExecStream, Runtime, RuntimeFault, StartError
from shoal.agent.session import Connector, LinkLost, TunnelStream
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent.tunnels")
MAX_TUNNELS = 64
FRAME_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 10.0
END_TIMEOUT_S = 10.0


class Refusal(Exception):
    """The request cannot be answered; the message goes to the person who asked."""


class Tunnels:
    """Serves each Open in a task of its own, a bounded number at once."""

    def __init__(
        self,
        connector: Connector,
        worker: Worker,
        runtime: Runtime,
        images: Images,
        logs: LogFiles,
        log_root: str,
        images_changed: Callable[[], None],
    ) -> None:
        self._connector = connector
        self._worker = worker
        self._runtime = runtime
        self._images = images
        self._logs = logs
        self._log_root = log_root
        self._images_changed = images_changed
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, request: s.Open, address: str) -> None:
        """Takes a request; the answer goes to the master at `address`."""
        task = asyncio.get_running_loop().create_task(self._serve(request, address), name=f"tunnel {request.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def count(self) -> int:
        return len(self._tasks)

    async def _serve(self, request: s.Open, address: str) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                stream = await self._connector.tunnel(address)
        except (LinkLost, TimeoutError) as fault:
            log.warning("tunnel %s: the master cannot be reached: %s", request.id, fault or "no answer")
            return
        try:
            await stream.send(s.TunnelFrame(hello=s.TunnelHello(id=request.id)))
            end = await self._answer(request, stream)
            async with asyncio.timeout(END_TIMEOUT_S):
                await stream.send(s.TunnelFrame(end=end))
        except (LinkLost, TimeoutError) as fault:
            log.info("tunnel %s ended early: %s", request.id, fault or "the other side takes nothing")
        finally:
            await stream.close()

    async def _answer(self, request: s.Open, stream: TunnelStream) -> s.TunnelEnd:
        try:
            if self.count > MAX_TUNNELS:
                raise Refusal(f"this node serves {MAX_TUNNELS} streams already: end one of them, or try again later")
            match request.WhichOneof("request"):
                case "logs":
                    return await until_gone(stream, self._send_logs(request.logs, stream))
                case "exec":
                    return await self._exec(request.exec, stream)
                case "image_load":
                    return await self._load(request.image_load, stream)
                case "image_remove":
                    await self._images.remove(request.image_remove.name)
                    self._images_changed()
                    return s.TunnelEnd()
                case other:
                    raise Refusal(f"this agent does not know the request {other}: upgrade it")
        except Refusal as refusal:
            return s.TunnelEnd(exit_code=1, error=str(refusal))
        except StartError as fault:
            return s.TunnelEnd(exit_code=fault.exit_code, error=fault.message)
        except ImageFault as fault:
            return s.TunnelEnd(exit_code=1, error=f"{fault.reason}: {fault.message}")
        except (RuntimeFault, OSError) as fault:
            return s.TunnelEnd(exit_code=1, error=str(fault))
        except LinkLost:
            raise
        except Exception as fault:
            log.exception("tunnel %s failed unexpectedly", request.id)
            return s.TunnelEnd(exit_code=1, error=f"the agent failed: {type(fault).__name__}: {fault}")

    # ---- which container ----
    def _find(self, uid: str, name: str) -> tuple[PodMachine, ContainerFacts]:
        machine = self._worker.machines.get(uid)
        if machine is None:
            raise Refusal(f"pod {uid} is not on this node any more")
        containers = {facts.spec.name: facts for facts in machine.containers()}
        if not name and len(containers) == 1:
            name = next(iter(containers))
        if name not in containers:
            what = f"has no container {name!r}" if name else "has several containers"
            raise Refusal(f"pod {machine.pod.metadata.name} {what}: choose one of {', '.join(sorted(containers))}")
        return machine, containers[name]

    # ---- logs ----
    async def _send_logs(self, request: s.LogsOpen, stream: TunnelStream) -> s.TunnelEnd:
        machine, facts = self._find(request.pod_uid, request.container)
        attempt = self._attempt_of(machine, facts, previous=request.previous)
        path = log_path(self._log_root, machine.uid, facts.spec.name, attempt)
        options = LogOptions(
            follow=request.follow and not request.previous,
            tail_lines=request.tail_lines if request.HasField("tail_lines") else None,
            since_ns=request.since.seconds * 10**9 + request.since.nanos if request.HasField("since") else None,
            timestamps=request.timestamps,
        )

        def ended() -> bool:
            run = facts.run
            return run is None or run.attempt != attempt or run.state != RUNNING or machine.forgotten

        async for piece in read_logs(self._logs, path, options, ended):
            await stream.send(s.TunnelFrame(data=piece))
        return s.TunnelEnd()

    def _attempt_of(self, machine: PodMachine, facts: ContainerFacts, *, previous: bool) -> int:
        where = f"container {facts.spec.name} of pod {machine.pod.metadata.name}"
        started = [run for run in (facts.run, facts.previous) if run is not None and run.started_at]
        if not started:
            raise Refusal(f"{where} has not started yet: see its state with `shoal describe pod`")
        if not previous:
            return started[0].attempt
        before = [run for run in (facts.previous, facts.run) if run is not None and run.started_at]
        if before[0] is started[0]:
            raise Refusal(f"{where} has no previous run: it has not been restarted")
        return before[0].attempt

    # ---- exec ----
    async def _exec(self, request: s.ExecOpen, stream: TunnelStream) -> s.TunnelEnd:
        machine, facts = self._find(request.pod_uid, request.container)
        if not facts.live or facts.run is None:
            raise Refusal(f"container {facts.spec.name} of pod {machine.pod.metadata.name} does not run")
        id = ContainerID(machine.uid, facts.spec.name, facts.run.attempt)
        process = await self._runtime.exec(id, list(request.command), stdin=request.stdin, tty=request.tty)
        feeder = asyncio.create_task(_feed(stream, process))
        output = asyncio.create_task(_send_output(stream, process))
        try:
            done, _ = await asyncio.wait({feeder, output}, return_when=asyncio.FIRST_COMPLETED)
            if output not in done and feeder.result():
                raise LinkLost("the person who asked is gone")
            await output
            return s.TunnelEnd(exit_code=await process.wait())
        finally:
            for task in (feeder, output):
                task.cancel()
            await asyncio.gather(feeder, output, return_exceptions=True)
            await process.close()

    # ---- images ----
    async def _load(self, request: s.ImageLoadOpen, stream: TunnelStream) -> s.TunnelEnd:
        lines: asyncio.Queue[str] = asyncio.Queue()

        async def tell() -> None:
            while True:
                await stream.send(s.TunnelFrame(progress=await lines.get()))

        teller = asyncio.create_task(tell())
        try:
            images = await self._images.load(_archive(stream), request.name, lines.put_nowait)
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)
        while not lines.empty():
            await stream.send(s.TunnelFrame(progress=lines.get_nowait()))
        self._images_changed()
        return s.TunnelEnd(images=[name for image in images for name in (image.names or [image.id])])


async def until_gone(stream: TunnelStream, work: Coroutine[Any, Any, s.TunnelEnd]) -> s.TunnelEnd:
    """Does the work, unless the other side ends the tunnel first: then LinkLost."""
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_end(stream))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise LinkLost("the person who asked is gone")
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _wait_for_end(stream: TunnelStream) -> None:
    while True:
        try:
            frame = await stream.receive()
        except LinkLost:
            return
        if frame is None or frame.WhichOneof("frame") == "end":
            return


async def _feed(stream: TunnelStream, process: ExecStream) -> bool:
    """The person's input, to the process. True: they are gone; False: only their input has ended."""
    while True:
        frame = await stream.receive()
        if frame is None:
            return True
        match frame.WhichOneof("frame"):
            case "data":
                try:
                    await process.write(frame.data)
                except OSError:
                    pass  # the process has closed its input; its end comes by the output
            case "resize":
                await process.resize(frame.resize.rows, frame.resize.columns)
            case "close_input":
                await process.close_input()
            case "end":
                return True


async def _send_output(stream: TunnelStream, process: ExecStream) -> None:
    while True:
        kind, data = await process.read()
        if kind == "end":
            return
        for at in range(0, len(data), FRAME_BYTES):
            piece = data[at : at + FRAME_BYTES]
            frame = s.TunnelFrame(stderr=piece) if kind == "stderr" else s.TunnelFrame(data=piece)
            await stream.send(frame)


async def _archive(stream: TunnelStream) -> AsyncIterator[bytes]:
    """The archive's bytes; a stream that ends before it says so is an error, not an end."""
    while True:
        frame = await stream.receive()
        kind = frame.WhichOneof("frame") if frame is not None else None
        if frame is None or kind == "end":
            raise ImageFault("BadArchive", "the stream broke off before the archive was complete: load it again")
        if kind == "data":
            yield frame.data
        elif kind == "close_input":
            return
