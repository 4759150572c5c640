"""What all kinds of tunnels share: the size of frames, and work that ends when the person who asked has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from shoal.agent.session import LinkLost, TunnelStream
from shoal.proto.v1 import session_pb2 as s

FRAME_BYTES = 64 * 1024


async def send_data(stream: TunnelStream, data: bytes) -> None:
    """In frames. Raises LinkLost."""
    for at in range(0, len(data), FRAME_BYTES):
        await stream.send(s.TunnelFrame(data=data[at : at + FRAME_BYTES]))


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
