"""Answers the master's Open: logs, exec, attach, copies, usage and images, each over a Tunnel call of its own.

Data goes in frames of at most 64 KiB; a slow reader holds the sender back, since each send is awaited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from shoal.agent.answers import Refusal
from shoal.agent.copying import Copier
from shoal.agent.images.port import ImageFault, Images
from shoal.agent.logs import LogFiles
from shoal.agent.podlogs import POLL_S, PodLogs
from shoal.agent.pods.facts import APP, ContainerFacts
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.worker import Worker
from shoal.agent.runtime.port import ContainerID, ExecStream, Runtime, RuntimeFault, StartError
from shoal.agent.sampling import Sampler
from shoal.agent.session import Connector, LinkLost, TunnelStream
from shoal.agent.tunnel_images import ImageTunnels
from shoal.agent.tunnel_streams import FRAME_BYTES, send_data, until_gone
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent.tunnels")
MAX_TUNNELS = 64
CONNECT_TIMEOUT_S = 10.0
END_TIMEOUT_S = 10.0
ARRIVAL_POLLS = 30  # for a pod that the master has bound and that the node has not heard of yet
MAX_PATH = 4096


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
        sampler: Sampler,
        copier: Copier | None = None,
    ) -> None:
        self._connector = connector
        self._worker = worker
        self._runtime = runtime
        self._images = ImageTunnels(images, images_changed)
        self._logs = logs
        self._log_root = log_root
        self._sampler = sampler
        self._copier = copier
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
                case "attach":
                    return await self._attach(request.attach, stream)
                case "copy":
                    return await self._copy(request.copy, stream)
                case "usage":
                    return await until_gone(stream, self._usage(stream))
                case other:
                    if (end := await self._images.answer(request, stream)) is not None:
                        return end
                    raise Refusal(f"this agent does not know the request {other}: upgrade it")
        except Refusal as refusal:
            return s.TunnelEnd(exit_code=1, error=str(refusal))
        except StartError as fault:
            return s.TunnelEnd(exit_code=fault.exit_code, error=fault.message)
        except ImageFault as fault:
            return s.TunnelEnd(exit_code=1, error=f"{fault.reason}: {fault.message}")
        except OSError as fault:
            where = f"{fault.filename}: " if fault.filename else ""
            return s.TunnelEnd(exit_code=1, error=f"{where}{fault.strerror or fault}")
        except RuntimeFault as fault:
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
        apps = [facts.spec.name for facts in machine.containers() if facts.kind == APP]
        if not name and len(apps) == 1:
            name = apps[0]
        if name not in containers:
            what = f"has no container {name!r}" if name else "has several containers"
            raise Refusal(f"pod {machine.pod.metadata.name} {what}: choose one of {', '.join(sorted(containers))}")
        return machine, containers[name]

    # ---- logs ----
    async def _send_logs(self, request: s.LogsOpen, stream: TunnelStream) -> s.TunnelEnd:
        machine, facts = await self._arrived(request.pod_uid, request.container)
        return await PodLogs(self._logs, self._log_root, machine, facts, request).send(stream)

    async def _arrived(self, uid: str, name: str) -> tuple[PodMachine, ContainerFacts]:
        """As _find; a pod that has just been bound may still be on its way here."""
        for _ in range(ARRIVAL_POLLS):
            if uid in self._worker.machines:
                break
            await asyncio.sleep(POLL_S)
        return self._find(uid, name)

    # ---- exec ----
    async def _exec(self, request: s.ExecOpen, stream: TunnelStream) -> s.TunnelEnd:
        id, _ = self._running(request.pod_uid, request.container)
        process = await self._runtime.exec(id, list(request.command), stdin=request.stdin, tty=request.tty)
        return await _joined(stream, process)

    async def _attach(self, request: s.AttachOpen, stream: TunnelStream) -> s.TunnelEnd:
        id, container = self._running(request.pod_uid, request.container)
        if request.stdin and not container.stdin:
            raise Refusal(f"container {id.name} takes no input: it needs `stdin: true` in its manifest")
        process = await self._runtime.attach(id, stdin=request.stdin)
        return await _joined(stream, process)

    def _running(self, uid: str, name: str) -> tuple[ContainerID, o.Container]:
        machine, facts = self._find(uid, name)
        if not facts.live or facts.run is None:
            raise Refusal(f"container {facts.spec.name} of pod {machine.pod.metadata.name} does not run")
        return ContainerID(machine.uid, facts.spec.name, facts.run.attempt), facts.spec

    # ---- files ----
    async def _copy(self, request: s.CopyOpen, stream: TunnelStream) -> s.TunnelEnd:
        if self._copier is None:
            raise Refusal("this node cannot copy files")
        id, _ = self._running(request.pod_uid, request.container)
        state = next((state for state in await self._runtime.list() if state.id == id and state.exit is None), None)
        if state is None or not state.pid:
            raise Refusal(f"container {id.name} does not run any more: its files went with it")
        if not request.path.startswith("/") or len(request.path) > MAX_PATH:
            raise Refusal(f"the path in the container must be absolute and of at most {MAX_PATH} bytes")
        if not request.out:
            await self._copier.into(state, request.path, lambda: _next_data(stream))
            return s.TunnelEnd()
        copier = self._copier

        async def out() -> s.TunnelEnd:
            await copier.out(
                state,
                request.path,
                lambda data: stream.send(s.TunnelFrame(data=data)),
                lambda line: stream.send(s.TunnelFrame(progress=f"warning: {line}")),
            )
            return s.TunnelEnd()

        return await until_gone(stream, out())

    # ---- usage ----
    async def _usage(self, stream: TunnelStream) -> s.TunnelEnd:
        await send_data(stream, (await self._sampler.report()).SerializeToString())
        return s.TunnelEnd()


async def _joined(stream: TunnelStream, process: ExecStream) -> s.TunnelEnd:
    """The person's streams and the process's, until the process has ended. Raises LinkLost when the person goes."""
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


async def _next_data(stream: TunnelStream) -> bytes:
    """b"" at the end of the person's data. Raises LinkLost when they broke off."""
    while True:
        frame = await stream.receive()
        kind = frame.WhichOneof("frame") if frame is not None else "end"
        if kind == "end":
            raise LinkLost("the person who asked is gone")
        if frame is not None and frame.data:
            return frame.data
        if kind == "close_input":
            return b""
