"""Images on the nodes: what is asked goes to every chosen node at once, an archive as a stream from the client.

The slowest node sets the pace, as each holds a few frames only; one that takes nothing for a minute is given up, and
so is one that fails: the others go on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from shoal.master.api.faults import Invalid
from shoal.master.api.streams import FRAME_BYTES, Nodes, Pipe, frames_of
from shoal.master.model import Fault, NotFound, Unavailable, View
from shoal.master.ports import StreamClosed
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

FRAMES_AHEAD = 16  # per node: 1 MiB
STALL_SECONDS = 60.0
POD_UID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b(?:/[a-z0-9-]+)?")  # and its container
LINES_AHEAD = 1000  # of progress, that the client has not taken yet
MAX_JSON_BYTES = 4 << 20  # what one node may answer
MAX_FIELD = 4096  # characters of names and credentials
MAX_NAMES = 100  # that one archive is made of
PROBE_SECONDS = 5.0  # for a node to say whether it has an image
PROBES_AT_ONCE = 100
NOT_FOUND = "NotFound:"  # begins what an agent says of an image that it has not
ON_ONE = ("push", "inspect", "login")  # what one node answers for all


class Carrier:
    """One node's part of the work: opens a tunnel, passes frames down and lines up."""

    def __init__(self, node: str, say: Callable[[c.LoadImageResponse], None]) -> None:
        self.node = node
        self.done = asyncio.Event()
        self._say = say
        self._frames: asyncio.Queue[s.TunnelFrame | None] = asyncio.Queue(FRAMES_AHEAD)
        self._json = b""

    async def put(self, frame: s.TunnelFrame | None) -> None:
        """Waits for room; None: no more will come. A node that is done takes anything."""
        if self.done.is_set():
            return
        if not self._frames.full():
            self._frames.put_nowait(frame)
            return
        putting = asyncio.ensure_future(self._frames.put(frame))
        ended = asyncio.ensure_future(self.done.wait())
        finished, _ = await asyncio.wait((putting, ended), timeout=STALL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        putting.cancel()
        ended.cancel()
        if not finished:
            self.fail(f"took no data for {STALL_SECONDS:g} s: given up")

    def fail(self, why: str) -> None:
        self._finish(c.LoadImageResponse(node=self.node, done=True, error=why))

    def _finish(self, last: c.LoadImageResponse) -> None:
        if not self.done.is_set():
            self.done.set()
            self._say(last)

    async def run(self, nodes: Nodes, request: s.Open) -> None:
        """Until the agent has answered, or something failed; says so in any case."""
        tunnel: Pipe | None = None
        sender: asyncio.Task[None] | None = None
        try:
            tunnel = await nodes.open(self.node, request)
            sender = asyncio.ensure_future(self._send(tunnel))
            async for frame in frames_of(tunnel, self.node):
                self._pass_on(frame)
        except Fault as fault:
            self.fail(str(fault))
        finally:
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            if tunnel is not None:
                tunnel.close()
            self.fail("was interrupted")  # says nothing when all is said

    def _pass_on(self, frame: s.TunnelFrame) -> None:
        which = frame.WhichOneof("frame")
        if which == "progress":
            self._say(c.LoadImageResponse(node=self.node, progress=frame.progress))
        elif which == "data":
            self._json += frame.data
            if len(self._json) > MAX_JSON_BYTES:
                raise Unavailable(f"node {self.node} answered with more than {MAX_JSON_BYTES} bytes")
        elif which == "end":
            error = frame.end.error or (f"failed with {frame.end.exit_code}" if frame.end.exit_code else "")
            said = self._json.decode(errors="replace")
            self._finish(
                c.LoadImageResponse(node=self.node, done=True, error=error, images=frame.end.images, json=said)
            )

    async def _send(self, tunnel: Pipe) -> None:
        try:
            while (frame := await self._frames.get()) is not None:
                await tunnel.send(frame)
            await tunnel.send(s.TunnelFrame(close_input=True))
        except StreamClosed:
            pass  # what the agent said last is still to be read


class Images:
    """The verbs that change which images the nodes hold."""

    def __init__(self, view: View, nodes: Nodes) -> None:
        self._view = view
        self._nodes = nodes

    async def load(self, requests: AsyncIterator[c.LoadImageRequest]) -> AsyncIterator[c.LoadImageResponse]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "start":
            raise Invalid("the first message of LoadImage must be its start")
        chosen = self._choose(first.start.nodes)
        request = s.Open(image_load=s.ImageLoadOpen(name=first.start.name))
        async for line in self._each(chosen, request, requests):
            yield line

    async def remove(self, request: c.RemoveImageRequest) -> AsyncIterator[c.LoadImageResponse]:
        if not request.name:
            raise Invalid("which image? Name it as `shoal image ls` shows it")
        chosen = self._choose(request.nodes)
        async for line in self._each(chosen, s.Open(image_remove=s.ImageRemoveOpen(name=request.name)), None):
            line.error = POD_UID.sub(self._named, line.error)
            yield line

    async def image(self, request: c.ImageRequest) -> AsyncIterator[c.LoadImageResponse]:
        """One operation on each of the nodes; those of ON_ONE on the first that can. Raises Fault."""
        which = request.WhichOneof("operation")
        if which is None:
            raise Invalid("the request says nothing that is to be done with images")
        operation = getattr(request, which)
        _check(operation)
        if which not in ON_ONE:
            chosen = self._choose(request.nodes)
        elif which == "login":
            chosen = self._choose(request.nodes)[:1]
        else:
            chosen = [await self._having([operation.name], request.nodes)]
        opened = s.Open(**{"login" if which == "login" else f"image_{which}": operation})
        async for line in self._each(chosen, opened, None):
            line.error = POD_UID.sub(self._named, line.error)
            yield line

    async def save(self, request: c.SaveImageRequest) -> AsyncIterator[s.TunnelFrame]:
        """An archive from one node that has all the images. Raises Fault."""
        if not 0 < len(request.names) <= MAX_NAMES:
            raise Invalid(f"one archive is made of 1 to {MAX_NAMES} images, not {len(request.names)}")
        opened = s.ImageSaveOpen(names=request.names)
        _check(opened)
        node = await self._having(request.names, [request.node] if request.node else [])
        tunnel = await self._nodes.open(node, s.Open(image_save=opened))
        try:
            async for frame in frames_of(tunnel, node):
                yield frame
        finally:
            tunnel.close()

    async def _having(self, names: Sequence[str], wanted: Sequence[str]) -> str:
        """The first of the nodes (of all ready ones) that has all the images. What a node last said of its images may
        be out of date, or cut short: they are asked. Raises NotFound, Invalid."""
        chosen = self._choose(wanted)
        if len(chosen) == 1:
            return chosen[0]  # it says itself what it has not
        gate, why = asyncio.Semaphore(PROBES_AT_ONCE), ""

        async def lacks(node: str) -> str:
            async with gate:
                answers = [await self._probe(node, name) for name in names]
            return next(filter(None, answers), "")

        asked = [asyncio.ensure_future(lacks(node)) for node in chosen]
        try:
            for node, answer in zip(chosen, asked, strict=True):
                said = await answer
                if not said:
                    return node
                if not why or why.startswith(NOT_FOUND):
                    why = said
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        both = "has" if len(names) == 1 else "has all of"
        why = "`shoal image ls` shows what is where" if why.startswith(NOT_FOUND) else why
        raise NotFound(f"no ready node {both} {', '.join(names)}: {why}")

    async def _probe(self, node: str, name: str) -> str:
        """Why the node cannot give the image; "" when it can."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                tunnel = await self._nodes.open(node, s.Open(image_inspect=s.ImageInspectOpen(name=name)))
                try:
                    async for frame in frames_of(tunnel, node):
                        if frame.WhichOneof("frame") == "end":
                            return frame.end.error
                finally:
                    tunnel.close()
        except (Fault, TimeoutError) as fault:
            return str(fault) or f"node {node} does not answer"
        return ""

    def _named(self, match: re.Match[str]) -> str:
        """A node knows its pods by uid; people know them by name."""
        found = self._view.by_uid(match[0].partition("/")[0])
        return f"pod {found.metadata.namespace}/{found.metadata.name}" if isinstance(found, o.Pod) else match[0]

    def _choose(self, wanted: Sequence[str]) -> list[str]:
        """The named nodes, or every ready one. Raises Invalid."""
        nodes = {n.metadata.name: n for n in self._view.all("Node") if isinstance(n, o.Node)}
        if unknown := sorted(set(wanted) - nodes.keys()):
            raise Invalid(f"no such node: {', '.join(unknown)}; there are {', '.join(sorted(nodes)) or 'none'}")
        chosen = sorted(set(wanted)) or sorted(name for name, node in nodes.items() if _ready(node))
        if not chosen:
            raise Invalid(f"none of the {len(nodes)} nodes is ready: wait for one, see `shoal get nodes`")
        return chosen

    async def _each(
        self, chosen: Sequence[str], request: s.Open, data: AsyncIterator[c.LoadImageRequest] | None
    ) -> AsyncIterator[c.LoadImageResponse]:
        lines: asyncio.Queue[c.LoadImageResponse] = asyncio.Queue()

        def say(line: c.LoadImageResponse) -> None:
            if line.done or lines.qsize() < LINES_AHEAD:  # a slow reader misses progress, never an end
                lines.put_nowait(line)

        carriers = [Carrier(node, say) for node in chosen]
        tasks = [asyncio.ensure_future(carrier.run(self._nodes, request)) for carrier in carriers]
        tasks.append(asyncio.ensure_future(_feed(carriers, data)))
        try:
            left = len(carriers)
            while left:
                line = await lines.get()
                yield line
                left -= line.done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(carriers: Sequence[Carrier], data: AsyncIterator[c.LoadImageRequest] | None) -> None:
    """Passes the client's bytes on to all, in frames of the tunnel's size. When the client breaks off, the tunnels are
    closed without the end of the input, and the agents throw away what they have."""
    try:
        if data is not None:
            async for request in data:
                for start in range(0, len(request.data), FRAME_BYTES):
                    frame = s.TunnelFrame(data=request.data[start : start + FRAME_BYTES])
                    await asyncio.gather(*(carrier.put(frame) for carrier in carriers))
    except Exception as error:
        for carrier in carriers:
            carrier.fail(f"the client broke off: {type(error).__name__}")
        return
    await asyncio.gather(*(carrier.put(None) for carrier in carriers))


def _check(operation: Any) -> None:
    """Names must be there and of a bearable length, credentials too. Raises Invalid, which repeats no password."""
    for field in operation.DESCRIPTOR.fields:
        value = getattr(operation, field.name)
        if isinstance(value, str):
            if not value and field.name != "password":
                raise Invalid(f"the {field.name} is missing")
            if len(value) > MAX_FIELD:
                raise Invalid(f"the {field.name} has {len(value)} characters: at most {MAX_FIELD} are taken")
        elif field.message_type is not None and field.message_type.name == "RegistryCredential":
            for one in [value] if operation.DESCRIPTOR.name == "LoginOpen" else value:
                _check(one)


def _ready(node: o.Node) -> bool:
    return any(c_.type == "Ready" and c_.status == "True" for c_ in node.status.conditions)
