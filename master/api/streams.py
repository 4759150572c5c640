"""Logs, Exec, Attach and Copy: a pod is found, its node's agent opens a tunnel, frames are passed on both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeAlias, TypeVar

from shoal.master.api import admission
from shoal.master.api.faults import Invalid
from shoal.master.model import Fault, NotFound, Unavailable, View
from shoal.master.ports import StreamClosed
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

FRAME_BYTES = 64 << 10
Framed: TypeAlias = c.ExecRequest | c.AttachRequest | c.CopyRequest
Aimed = TypeVar("Aimed", s.LogsOpen, s.ExecOpen, s.AttachOpen, s.CopyOpen)


class Pipe(Protocol):
    """An open tunnel (dispatcher.tunnels.Tunnel)."""

    async def send(self, frame: s.TunnelFrame) -> None: ...
    async def receive(self) -> s.TunnelFrame | None: ...
    def close(self) -> None: ...


class Nodes(Protocol):
    """Opens tunnels to agents; raises Unavailable."""

    async def open(self, node: str, request: s.Open) -> Pipe: ...


class Streams:
    """The verbs that reach into a pod."""

    def __init__(self, view: View, nodes: Nodes) -> None:
        self._view = view
        self._nodes = nodes

    async def logs(self, request: c.LogsRequest) -> AsyncIterator[s.TunnelFrame]:
        pod = self._pod(request.pod)
        options = aimed(request.options, pod)
        tunnel = await self._nodes.open(pod.spec.nodeName, s.Open(logs=options))
        try:
            async for frame in frames_of(tunnel, pod.spec.nodeName):
                yield frame
        finally:
            tunnel.close()

    async def exec(self, requests: AsyncIterator[c.ExecRequest]) -> AsyncIterator[s.TunnelFrame]:
        first = await _start(requests, "Exec")
        pod = self._pod(first.pod)
        options = aimed(first.options, pod)
        if not options.command:
            raise Invalid("which command? Give at least one word after --")
        async for frame in self._both_ways(pod.spec.nodeName, s.Open(exec=options), requests):
            yield frame

    async def attach(self, requests: AsyncIterator[c.AttachRequest]) -> AsyncIterator[s.TunnelFrame]:
        first = await _start(requests, "Attach")
        pod = self._pod(first.pod)
        options = aimed(first.options, pod)
        async for frame in self._both_ways(pod.spec.nodeName, s.Open(attach=options), requests):
            yield frame

    async def copy(self, requests: AsyncIterator[c.CopyRequest]) -> AsyncIterator[s.TunnelFrame]:
        first = await _start(requests, "Copy")
        pod = self._pod(first.pod)
        options = aimed(first.options, pod)
        if not options.path.startswith("/"):
            raise Invalid(f"the path in the container must be absolute, and {options.path!r} is not")
        async for frame in self._both_ways(pod.spec.nodeName, s.Open(copy=options), requests):
            yield frame

    async def _both_ways(
        self, node: str, request: s.Open, requests: AsyncIterator[Framed]
    ) -> AsyncIterator[s.TunnelFrame]:
        tunnel = await self._nodes.open(node, request)
        pump = asyncio.ensure_future(_pump(requests, tunnel))
        try:
            async for frame in frames_of(tunnel, node):
                yield frame
        finally:
            pump.cancel()
            tunnel.close()
            await asyncio.gather(pump, return_exceptions=True)

    def _pod(self, key: c.Key) -> o.Pod:
        wanted = admission.normal_key(c.Key(kind="Pod", namespace=key.namespace, name=key.name))
        pod = self._view.get(*wanted)
        if not isinstance(pod, o.Pod):
            raise NotFound(f"{wanted} not found")
        if not pod.spec.nodeName:
            raise Invalid(f"{wanted} is not on a node yet: `shoal describe pod {wanted.name}` says why")
        return pod


def aimed(given: Aimed, pod: o.Pod) -> Aimed:
    """What was asked for, of this pod and one of its containers. Raises Invalid."""
    options = type(given)()
    options.CopyFrom(given)
    options.pod_uid = pod.metadata.uid
    options.container = choose_container(pod, given.container)
    return options


def choose_container(pod: o.Pod, wanted: str) -> str:
    """The container that is meant. Raises Invalid."""
    names = [container.name for container in pod.spec.containers]
    every = [*(container.name for container in pod.spec.initContainers), *names]
    if wanted and wanted not in every:
        raise Invalid(f"pod {pod.metadata.name} has no container {wanted!r}: it has {', '.join(every)}")
    if not wanted and len(names) != 1:
        raise Invalid(f"pod {pod.metadata.name} has several containers, name one: {', '.join(names)}")
    return wanted or names[0]


async def frames_of(tunnel: Pipe, node: str) -> AsyncIterator[s.TunnelFrame]:
    """What the agent sends, up to and with its end. Raises Unavailable when it breaks off."""
    while (frame := await tunnel.receive()) is not None:
        yield frame
        if frame.WhichOneof("frame") == "end":
            return
    raise Unavailable(f"the connection to node {node} broke off: the stream is not complete")


async def _start(requests: AsyncIterator[Framed], verb: str) -> Any:
    """The start of a call whose client streams too. Raises Invalid."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "start":
        raise Invalid(f"the first message of {verb} must be its start")
    return first.start


async def _pump(requests: AsyncIterator[Framed], tunnel: Pipe) -> None:
    try:
        async for request in requests:
            if request.WhichOneof("message") == "frame":
                await tunnel.send(request.frame)
        await tunnel.send(s.TunnelFrame(close_input=True))
    except StreamClosed:
        pass  # the agent has ended; its last frame says how
    except Fault:
        tunnel.close()
