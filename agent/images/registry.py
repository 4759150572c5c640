"""A registry's protocol (distribution-spec v1.1) over http, asynchronously.

Registries   one per node: finds repositories and their credentials
Repository   one repository at one endpoint, for one caller: manifests, blobs, uploads
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from shoal.agent.images import auth, oci
from shoal.agent.images.caller import LOST, NONSENSE, Caller, Retry
from shoal.agent.images.names import Reference
from shoal.agent.images.oci import Descriptor
from shoal.agent.images.port import Credential, ImageFault
from shoal.agent.images.sessions import Sessions
from shoal.agent.images.settings import Endpoint, Settings, endpoints, own_endpoint
from shoal.agent.images.streams import KIB, MIB, digest_of

ACCEPT = ", ".join((*oci.MANIFEST_TYPES, *oci.INDEX_TYPES))
MAX_MANIFEST, MAX_CONFIG, MAX_TAGS = 4 * MIB, 8 * MIB, 256 * KIB
MAX_TAG = 128  # characters
SLOWEST_BYTES, WINDOW_S = 64 * KIB, 60.0  # fewer bytes in so many seconds is a stall


@dataclass(slots=True)
class Shown:
    """A manifest as a registry gave it."""

    data: bytes
    media_type: str
    digest: str


class Registries:
    """What all pulls and pushes of a node share; `close` it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.patience = settings, settings.patience
        self._node = auth.NodeCredentials(settings.credentials)
        self._sessions = Sessions(settings.patience)

    async def close(self) -> None:
        await self._sessions.close()

    def repositories(self, name: Reference, credentials: Sequence[Credential], action: str) -> list[Repository]:
        """The name's repository at each of its mirrors, then at its registry. Raises ImageFault."""
        found = endpoints(self.settings.registries, name.domain)
        return [self.repository(endpoint, name.path, credentials, action) for endpoint in found]

    def origin(self, name: Reference, credentials: Sequence[Credential], action: str) -> Repository:
        endpoint = own_endpoint(self.settings.registries, name.domain)
        return self.repository(endpoint, name.path, credentials, action)

    def repository(self, endpoint: Endpoint, path: str, credentials: Sequence[Credential], action: str) -> Repository:
        fitting = auth.matching(credentials, endpoint.registry, path)
        fitting += [one for one in auth.matching(self._node.read(), endpoint.registry, path) if one not in fitting]
        scope = f"repository:{path}:{action}" if path else ""
        return Repository(Caller(self._sessions, endpoint, scope, fitting), path)

    async def login(self, credential: Credential) -> None:
        """Raises ImageFault(Unauthorized, RegistryUnavailable)."""
        domain = auth.registry_of(credential.registry).partition("/")[0]
        endpoint = own_endpoint(self.settings.registries, domain)
        caller = Caller(self._sessions, endpoint, "", [credential])
        async with caller.answer("GET", "", what="the credential"):
            pass
        if not caller.asked:
            async with caller.answer("GET", "", what="the credential", authorization=auth.basic(credential)):
                pass


class Repository:
    """One repository at one endpoint, for one caller."""

    def __init__(self, caller: Caller, path: str) -> None:
        self._caller, self.endpoint, self.path = caller, caller.endpoint, path
        self._patience = caller.patience

    # ---- reading ----
    async def manifest(self, reference: str, what: str) -> Shown:
        """By tag or digest, verified. Raises ImageFault."""
        headers = {"Accept": ACCEPT}
        answer, data = await self._document(f"{self.path}/manifests/{reference}", what, MAX_MANIFEST, headers)
        wanted = reference if ":" in reference else answer.get("Docker-Content-Digest", "")
        algorithm = "sha512" if wanted.startswith("sha512:") else "sha256"
        digest = digest_of(data, algorithm)
        if wanted and wanted != digest:
            raise ImageFault("BadDigest", f"{self.endpoint} sent {what} with the digest {digest}, not {wanted[:200]}")
        kind = answer.get("Content-Type", "").partition(";")[0].strip()
        return Shown(data, kind if kind in (*oci.MANIFEST_TYPES, *oci.INDEX_TYPES) else "", digest)

    async def document(self, descriptor: Descriptor, what: str) -> bytes:
        """A small blob, verified. Raises ImageFault."""
        _, data = await self._document(f"{self.path}/blobs/{descriptor.digest}", what, MAX_CONFIG, {})
        digest = digest_of(data, descriptor.digest.partition(":")[0])
        if digest != descriptor.digest:
            raise ImageFault("BadDigest", f"{self.endpoint} sent {what} with the digest {digest}: it is damaged")
        return data

    async def blob(self, digest: str, size: int, limit: int, what: str) -> AsyncGenerator[bytes, None]:
        """Its bytes as they arrive; goes on where a broken connection left it. `size` -1: not declared, then at most
        `limit`. Raises ImageFault."""
        done, failures = 0, 0
        while True:
            before = done
            try:
                async with contextlib.aclosing(self._blob_from(digest, done, what)) as chunks:
                    async for chunk in chunks:
                        done += len(chunk)
                        if done > (size if size >= 0 else limit):
                            raise ImageFault(
                                "BadDigest", f"{self.endpoint} sends more than the {size} bytes that {what} has"
                            )
                        yield chunk
                if size < 0 or done == size:
                    return
                raise ConnectionError(f"it ends after {done} of {size} bytes")
            except LOST as error:
                failures = 1 if done > before else failures + 1
                if failures >= self._patience.attempts:
                    raise self._caller.unreachable(error, f"{what} broke off after {done} of {size} bytes") from error
                await asyncio.sleep(self._caller.delay(failures))

    async def _blob_from(self, digest: str, start: int, what: str) -> AsyncGenerator[bytes, None]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with self._caller.answer("GET", f"{self.path}/blobs/{digest}", what=what, headers=headers) as response:
            skip = start
            if response.status == 206:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise ConnectionError("it sent another range than the one asked for")
                skip = 0
            window, counted = time.monotonic(), 0
            async for data in response.content.iter_any():
                counted += len(data)
                if time.monotonic() - window > WINDOW_S:
                    if counted < SLOWEST_BYTES:
                        raise TimeoutError(f"only {counted} bytes in {WINDOW_S:g} s")
                    window, counted = time.monotonic(), 0
                if skip:
                    data, skip = data[skip:], max(0, skip - len(data))
                if data:
                    yield data

    async def tags(self, most: int) -> list[str]:
        """Some of the repository's tags, for a hint: none when they cannot be had."""
        try:
            _, data = await self._document(f"{self.path}/tags/list?n={most}", "the tags", MAX_TAGS, {})
            listed = json.loads(data).get("tags") or []
            return [tag for tag in listed if isinstance(tag, str) and len(tag) <= MAX_TAG]
        except (ImageFault, *NONSENSE):
            return []

    async def _document(
        self, path: str, what: str, limit: int, headers: Mapping[str, str]
    ) -> tuple[Mapping[str, str], bytes]:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._patience.answer_s):
                    async with self._caller.answer("GET", path, what=what, headers=headers) as response:
                        return response.headers, await self._caller.bounded(response, limit, what)
            except LOST as error:
                failures += 1
                if failures >= self._patience.attempts:
                    raise self._caller.unreachable(error, what) from error
                await asyncio.sleep(self._caller.delay(failures))

    # ---- writing ----
    async def has_blob(self, digest: str, what: str) -> bool:
        async with self._caller.answer("HEAD", f"{self.path}/blobs/{digest}", what=what, accept=(404,)) as response:
            return response.status == 200

    async def begin_upload(self, what: str, mount: str = "", origin: str = "") -> str:
        """Where to send a blob; "" when it was mounted from the repository `origin` instead."""
        query = "?" + urlencode({"mount": mount, "from": origin}) if origin else ""
        path = f"{self.path}/blobs/uploads/{query}"
        async with self._caller.answer("POST", path, what=what, headers={"Content-Length": "0"}) as response:
            if response.status == 201:
                return ""
            where = response.headers.get("Location", "")
            if response.status != 202 or not where:
                raise self._caller.odd(response.status, what)
            return self._caller.same_trust(str(response.url), where)

    async def upload(
        self, where: str, digest: str, size: int, body: Callable[[], AsyncIterator[bytes]], what: str
    ) -> None:
        """The whole blob in one request. Raises Retry when it broke off."""
        url = f"{where}{'&' if urlsplit(where).query else '?'}{urlencode({'digest': digest})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            async with self._caller.once("PUT", url, headers, body()) as response:
                if response.status not in (200, 201):
                    await self._caller.refuse(response, what)
        except LOST as error:
            raise Retry(self._caller.unreachable(error, what)) from error

    async def put_manifest(self, reference: str, data: bytes, media_type: str, what: str) -> None:
        headers = {"Content-Type": media_type}
        async with self._caller.answer(
            "PUT", f"{self.path}/manifests/{reference}", what=what, headers=headers, data=data
        ) as response:
            if response.status not in (200, 201, 202):
                raise self._caller.odd(response.status, what)
