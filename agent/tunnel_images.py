"""Answers the image requests of the master: load, pull, push, save, tag, inspect, prune, remove, and trying a login.

What has a result for programs sends it as one JSON document in `data` frames before the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar, cast

from shoal.agent.answers import Refusal
from shoal.agent.images.port import Credential, Image, ImageFault, Images
from shoal.agent.session import TunnelStream
from shoal.agent.tunnel_streams import send_data, until_gone
from shoal.proto.v1 import session_pb2 as s

T = TypeVar("T")
MAX_CREDENTIALS = 64  # of one request
MAX_FIELD = 4096  # characters of a credential's field
MAX_NAMES = 100  # that one archive is made of
MAX_LOGIN_S = 60.0


class ImageTunnels:
    """The image store, over tunnels. Raises Refusal, ImageFault, LinkLost."""

    def __init__(self, images: Images, changed: Callable[[], None]) -> None:
        self._images = images
        self._changed = changed  # tells that the node's list of images is not what was reported

    async def answer(self, request: s.Open, stream: TunnelStream) -> s.TunnelEnd | None:
        """None: it is no image request."""
        match request.WhichOneof("request"):
            case "image_load":
                return await self._load(request.image_load, stream)
            case "image_remove":
                await self._images.remove(request.image_remove.name)
                self._changed()
                return s.TunnelEnd()
            case "image_pull":
                return await until_gone(stream, self._pull(request.image_pull, stream))
            case "image_push":
                return await until_gone(stream, self._push(request.image_push, stream))
            case "image_save":
                return await until_gone(stream, self._save(request.image_save, stream))
            case "image_tag":
                return await self._tag(request.image_tag)
            case "image_inspect":
                await _send_json(stream, await self._images.inspect(request.image_inspect.name))
                return s.TunnelEnd()
            case "image_prune":
                return await self._prune(request.image_prune, stream)
            case "login":
                return await until_gone(stream, self._login(request.login))
        return None

    async def _load(self, request: s.ImageLoadOpen, stream: TunnelStream) -> s.TunnelEnd:
        async def load(say: Callable[[str], None]) -> Sequence[Image]:
            return await self._images.load(_archive(stream), request.name, say)

        images = await _told(stream, load)
        self._changed()
        return s.TunnelEnd(images=[name for image in images for name in (image.names or [image.id])])

    async def _pull(self, request: s.ImagePullOpen, stream: TunnelStream) -> s.TunnelEnd:
        given = credentials_of(request.credentials)

        async def pull(say: Callable[[str], None]) -> Image:
            return await self._images.pull(request.name, given, say)

        image = await _told(stream, pull)
        self._changed()
        await _send_json(stream, {"digest": image.digest, "size": image.size})
        return s.TunnelEnd(images=image.names)

    async def _push(self, request: s.ImagePushOpen, stream: TunnelStream) -> s.TunnelEnd:
        given = credentials_of(request.credentials)

        async def push(say: Callable[[str], None]) -> str:
            return await self._images.push(request.name, given, say)

        await _send_json(stream, {"digest": await _told(stream, push)})
        return s.TunnelEnd(images=[request.name])

    async def _save(self, request: s.ImageSaveOpen, stream: TunnelStream) -> s.TunnelEnd:
        if not 0 < len(request.names) <= MAX_NAMES:
            raise Refusal(f"one archive is made of 1 to {MAX_NAMES} images, not {len(request.names)}")
        chunks = cast("AsyncGenerator[bytes, None]", self._images.save(list(request.names)))
        async with contextlib.aclosing(chunks):  # what it holds is let go of at once when the person goes
            async for chunk in chunks:
                await send_data(stream, chunk)
        return s.TunnelEnd()

    async def _tag(self, request: s.ImageTagOpen) -> s.TunnelEnd:
        await self._images.tag(request.source, request.target)
        self._changed()
        return s.TunnelEnd(images=[request.target])

    async def _prune(self, request: s.ImagePruneOpen, stream: TunnelStream) -> s.TunnelEnd:
        pruned = await self._images.prune(all=request.all, dry_run=request.dry_run)
        if not request.dry_run:
            self._changed()
        await _send_json(stream, {"images": list(pruned.names), "freed": pruned.freed})
        return s.TunnelEnd(images=pruned.names)

    async def _login(self, request: s.LoginOpen) -> s.TunnelEnd:
        [credential] = credentials_of([request.credential])
        try:
            async with asyncio.timeout(MAX_LOGIN_S):
                await self._images.login(credential)
        except TimeoutError:
            raise ImageFault(
                "RegistryUnavailable", f"{credential.registry} did not answer within {MAX_LOGIN_S:g} s"
            ) from None
        return s.TunnelEnd()


def credentials_of(given: Iterable[s.RegistryCredential]) -> list[Credential]:
    """As the store wants them. Raises Refusal, which never repeats a password."""
    found = [Credential(one.registry, one.username, one.password) for one in given]
    if len(found) > MAX_CREDENTIALS:
        raise Refusal(f"{len(found)} credentials came with the request: at most {MAX_CREDENTIALS} are taken")
    for one in found:
        if not one.registry or max(map(len, (one.registry, one.username, one.password))) > MAX_FIELD:
            raise Refusal(f"a credential needs a registry, and no part of it may have over {MAX_FIELD} characters")
    return found


async def _send_json(stream: TunnelStream, document: object) -> None:
    await send_data(stream, json.dumps(document).encode())


async def _told(stream: TunnelStream, work: Callable[[Callable[[str], None]], Coroutine[Any, Any, T]]) -> T:
    """Does the work, whose lines of progress go to the person meanwhile."""
    lines: asyncio.Queue[str] = asyncio.Queue()

    async def tell() -> None:
        while True:
            await stream.send(s.TunnelFrame(progress=await lines.get()))

    teller = asyncio.create_task(tell())
    try:
        result = await work(lines.put_nowait)
    finally:
        teller.cancel()
        await asyncio.gather(teller, return_exceptions=True)
    while not lines.empty():
        await stream.send(s.TunnelFrame(progress=lines.get_nowait()))
    return result


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
