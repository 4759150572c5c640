"""A registry's protocol (distribution-spec v1.1, docker's token authentication) over http, asynchronously.

    Registries   one per node: sessions, tokens, the node's own credentials
    Repository   one repository at one endpoint, for one caller: manifests, blobs, uploads

Redirects are followed by hand: credentials stay with the host that they were meant for, https never becomes http.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import aiohttp

from shoal.agent.images import auth, oci
from shoal.agent.images.names import Reference
from shoal.agent.images.oci import Descriptor
from shoal.agent.images.port import Credential, ImageFault
from shoal.agent.images.settings import Endpoint, Settings, endpoints, is_loopback, own_endpoint
from shoal.agent.images.streams import KIB, MIB, digest_of

T = TypeVar("T")
ACCEPT = ", ".join((*oci.MANIFEST_TYPES, *oci.INDEX_TYPES))
MAX_REDIRECTS = 5
MAX_ERROR = 64 * KIB  # bytes of an error's body that are read
MAX_SHOWN = 300  # characters of a registry's own words
MAX_MANIFEST, MAX_CONFIG, MAX_TOKEN, MAX_TAGS = 4 * MIB, 8 * MIB, 64 * KIB, 256 * KIB
MAX_TOKENS_HELD = 1000
MAX_TAG = 128  # characters
TOKEN_LIFE_S, TOKEN_MARGIN_S = 60.0, 5.0  # the protocol's default; renewed a little before
READ_BUFFER = 512 * KIB
CONNECTIONS = 16
SLOWEST_BYTES, WINDOW_S = 64 * KIB, 60.0  # fewer bytes in so many seconds is a stall
RETRIED = (429, 500, 502, 503, 504)
REDIRECTS = (301, 302, 303, 307, 308)
# What reading a stranger's JSON can raise: also deep nesting, and numbers beyond any float.
NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
LOST = (aiohttp.ClientError, ConnectionError, TimeoutError, OSError)


class Retry(Exception):
    """Worth another try. `after`: what the registry asked for, in seconds."""

    def __init__(self, fault: ImageFault, after: float = 0.0) -> None:
        super().__init__(fault.message)
        self.fault, self.after = fault, after


@dataclass(slots=True)
class Token:
    header: str
    until: float


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
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._tokens: dict[tuple[str, str, Credential | None], Token] = {}
        self.schemes: dict[str, str] = {}  # what has worked, by host

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=self.patience.connect_s, sock_read=self.patience.stall_s
            )
            self._session = aiohttp.ClientSession(
                timeout=timeout,
                auto_decompress=False,  # a digest is of what was sent
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=READ_BUFFER,
                headers={"User-Agent": "shoal", "Accept-Encoding": "identity"},
            )
        return self._session

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
        return Repository(self, endpoint, path, scope, fitting)

    async def login(self, credential: Credential) -> None:
        """Raises ImageFault(Unauthorized, RegistryUnavailable)."""
        domain = auth.registry_of(credential.registry).partition("/")[0]
        endpoint = own_endpoint(self.settings.registries, domain)
        repository = Repository(self, endpoint, "", "", [credential])
        async with repository.answer("GET", "", what="the credential"):
            pass
        if not repository.asked:
            async with repository.answer("GET", "", what="the credential", authorization=auth.basic(credential)):
                pass

    def context(self, endpoint: Endpoint) -> ssl.SSLContext:
        """Raises ImageFault for an authority's file that does not read."""
        key = (str(endpoint.ca or ""), endpoint.verify)
        if key not in self._contexts:
            try:
                context = ssl.create_default_context()
                if endpoint.ca is not None:
                    context.load_verify_locations(cafile=str(endpoint.ca))
            except (OSError, ssl.SSLError) as error:
                raise ImageFault(
                    "RegistryUnavailable", f"the authority {endpoint.ca} of {endpoint} cannot be read: {error}"
                ) from error
            if not endpoint.verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._contexts[key] = context
        return self._contexts[key]

    def token(self, key: tuple[str, str, Credential | None]) -> str:
        token = self._tokens.get(key)
        return token.header if token is not None and token.until > time.monotonic() else ""

    def keep_token(self, key: tuple[str, str, Credential | None], header: str, life_s: float) -> None:
        now = time.monotonic()
        self._tokens = {k: token for k, token in self._tokens.items() if token.until > now}
        if len(self._tokens) < MAX_TOKENS_HELD:
            self._tokens[key] = Token(header, now + max(life_s - TOKEN_MARGIN_S, TOKEN_MARGIN_S))

    def drop_token(self, key: tuple[str, str, Credential | None]) -> None:
        self._tokens.pop(key, None)


class Repository:
    """One repository at one endpoint, with the credentials that fit it, best first."""

    def __init__(
        self, owner: Registries, endpoint: Endpoint, path: str, scope: str, credentials: Sequence[Credential]
    ) -> None:
        self._owner, self.endpoint, self.path, self._scope = owner, endpoint, path, scope
        self._credentials: Sequence[Credential | None] = credentials or [None]
        self._chosen = 0
        self._basic = False
        self._authorizing = asyncio.Lock()
        self.asked = False  # whether the registry wanted to know who we are
        self._reached = False

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
                if failures >= self._owner.patience.attempts:
                    raise self._unreachable(error, f"{what} broke off after {done} of {size} bytes") from error
                await asyncio.sleep(self._delay(failures))

    async def _blob_from(self, digest: str, start: int, what: str) -> AsyncGenerator[bytes, None]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with self.answer("GET", f"{self.path}/blobs/{digest}", what=what, headers=headers) as response:
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
                async with asyncio.timeout(self._owner.patience.answer_s):
                    async with self.answer("GET", path, what=what, headers=headers) as response:
                        return response.headers, await self._bounded(response, limit, what)
            except LOST as error:
                failures += 1
                if failures >= self._owner.patience.attempts:
                    raise self._unreachable(error, what) from error
                await asyncio.sleep(self._delay(failures))

    async def _bounded(self, response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > limit:
                raise ImageFault("TooLarge", f"{self.endpoint} sends more than {limit // KIB} KiB for {what}: refused")
        return bytes(data)

    # ---- writing ----
    async def has_blob(self, digest: str, what: str) -> bool:
        async with self.answer("HEAD", f"{self.path}/blobs/{digest}", what=what, accept=(404,)) as response:
            return response.status == 200

    async def begin_upload(self, what: str, mount: str = "", origin: str = "") -> str:
        """Where to send a blob; "" when it was mounted from the repository `origin` instead."""
        query = "?" + urlencode({"mount": mount, "from": origin}) if origin else ""
        path = f"{self.path}/blobs/uploads/{query}"
        async with self.answer("POST", path, what=what, headers={"Content-Length": "0"}) as response:
            if response.status == 201:
                return ""
            where = response.headers.get("Location", "")
            if response.status != 202 or not where:
                raise self._odd(response.status, what)
            return self._same_trust(str(response.url), where)

    async def upload(
        self, where: str, digest: str, size: int, body: Callable[[], AsyncIterator[bytes]], what: str
    ) -> None:
        """The whole blob in one request. Raises Retry when it broke off."""
        url = f"{where}{'&' if urlsplit(where).query else '?'}{urlencode({'digest': digest})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            async with self._once("PUT", url, headers, body()) as response:
                if response.status not in (200, 201):
                    await self._refuse(response, what)
        except LOST as error:
            raise Retry(self._unreachable(error, what)) from error

    async def put_manifest(self, reference: str, data: bytes, media_type: str, what: str) -> None:
        headers = {"Content-Type": media_type}
        async with self.answer(
            "PUT", f"{self.path}/manifests/{reference}", what=what, headers=headers, data=data
        ) as response:
            if response.status not in (200, 201, 202):
                raise self._odd(response.status, what)

    # ---- one request ----
    @contextlib.asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        accept: Sequence[int] = (),
        authorization: str = "",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of 2xx (or of `accept`), after as many tries as patience has. Raises ImageFault; what breaks
        while its body is read is the caller's."""
        failures = 0
        while True:
            try:
                given = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
                opened = await self._in_time(self._authorized(method, path, given, data, accept, what), what)
                break
            except Retry as retry:
                failures += 1
                patience = self._owner.patience
                # Who never answered at all may not be there: the caller tries again, later and later.
                if failures >= patience.attempts or retry.after > patience.longest_wait_s or not self._reached:
                    raise retry.fault from retry
                await asyncio.sleep(max(retry.after, self._delay(failures)))
        try:
            yield opened
        finally:
            opened.close()

    async def _in_time(self, asking: Coroutine[Any, Any, T], what: str) -> T:
        """Until an answer begins, its token included: one that comes byte by byte is none. Raises Retry."""
        try:
            async with asyncio.timeout(self._owner.patience.answer_s):
                return await asking
        except TimeoutError as error:
            raise Retry(self._unreachable(error, what)) from error

    async def _authorized(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        data: bytes | None,
        accept: Sequence[int],
        what: str,
    ) -> aiohttp.ClientResponse:
        """One try, with each credential in turn. Raises Retry, ImageFault."""
        renewed = False
        while True:
            chosen, header = self._chosen, headers.get("Authorization") or self._authorization()
            sent = {**headers, **({"Authorization": header} if header else {})}
            response = await self._reach(method, path, sent, data, what)
            if response.status < 300 or response.status in accept:
                return response
            try:
                if response.status == 401 and not renewed and "Authorization" not in headers:
                    renewed = await self._authorize(response, header, what)
                    if renewed:
                        continue
                await self._refuse(response, what)
            except ImageFault as fault:
                if fault.reason != "Unauthorized" or chosen + 1 >= len(self._credentials):
                    raise
                if self._chosen == chosen:  # else another request of ours has gone on already
                    self._chosen, self._basic = chosen + 1, False
                renewed = False
            finally:
                response.close()

    async def _reach(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None, what: str
    ) -> aiohttp.ClientResponse:
        """Over the first scheme that answers. Raises Retry."""
        endpoint, lost = self.endpoint, None
        known = self._owner.schemes.get(endpoint.host)
        schemes = (known,) if known is not None and known in endpoint.schemes else endpoint.schemes
        for scheme in schemes:
            try:
                url = f"{scheme}://{endpoint.host}{endpoint.prefix}/v2/{path}"
                response = await self._send(method, url, headers, data)
                self._reached = True
                self._owner.schemes[endpoint.host] = scheme
                return response
            except LOST as error:
                lost = lost if isinstance(lost, aiohttp.ClientConnectorCertificateError) else error
        assert lost is not None
        self._owner.schemes.pop(endpoint.host, None)
        raise Retry(self._unreachable(lost, what)) from lost

    @contextlib.asynccontextmanager
    async def _once(
        self, method: str, url: str, headers: Mapping[str, str], body: AsyncIterator[bytes]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request whose body cannot be sent again."""
        header = self._authorization() if self._is_ours(url) else ""
        sent = {**headers, **({"Authorization": header} if header else {})}
        response = await self._send(method, url, sent, body)
        try:
            yield response
        finally:
            response.close()

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], data: Any = None
    ) -> aiohttp.ClientResponse:
        """Follows redirects of what only reads. Raises ImageFault for one that is not to be trusted, and LOST."""
        sent = dict(headers)
        for _ in range(MAX_REDIRECTS + 1):
            context = self._owner.context(self.endpoint if self._is_ours(url) else Endpoint(urlsplit(url).netloc))
            response = await self._owner.session.request(
                method, url, headers=sent, data=data, ssl=context, allow_redirects=False
            )
            if response.status not in REDIRECTS or method not in ("GET", "HEAD"):
                return response
            where = response.headers.get("Location", "")
            response.close()
            if not where:
                raise self._odd(response.status, urlsplit(url).netloc)
            following = self._same_trust(url, where)
            if urlsplit(following).netloc != urlsplit(url).netloc:
                sent.pop("Authorization", None)
            url = following
        raise ImageFault("RegistryUnavailable", f"{self.endpoint} redirects more than {MAX_REDIRECTS} times: given up")

    def _same_trust(self, url: str, where: str) -> str:
        """A Location made whole. Raises ImageFault where it leaves https."""
        try:
            following = urljoin(url, where)
            scheme = urlsplit(following).scheme
        except ValueError:  # such as half of an IPv6 address
            following = scheme = ""
        if scheme not in ("http", "https") or (urlsplit(url).scheme == "https" and scheme == "http"):
            raise ImageFault(
                "RegistryUnavailable",
                f"{self.endpoint} leads from {urlsplit(url).scheme} to {scheme or 'nowhere'}: refused",
            )
        return following

    def _is_ours(self, url: str) -> bool:
        return urlsplit(url).netloc == self.endpoint.host

    # ---- who we are ----
    @property
    def _credential(self) -> Credential | None:
        return self._credentials[self._chosen]

    def _key(self) -> tuple[str, str, Credential | None]:
        return self.endpoint.host, self._scope, self._credential

    def _authorization(self) -> str:
        credential = self._credential
        if self._basic and credential is not None:
            return auth.basic(credential)
        return self._owner.token(self._key())

    async def _authorize(self, response: aiohttp.ClientResponse, used: str, what: str) -> bool:
        """Answers a challenge; whether there is something new to try. Raises Retry, ImageFault."""
        self.asked = True
        offered = {one.scheme: one for one in auth.challenges(response.headers.getall("WWW-Authenticate", []))}
        async with self._authorizing:
            if self._authorization() not in ("", used):
                return True  # another request of ours was faster
            if "bearer" in offered:
                self._owner.drop_token(self._key())
                await self._fetch_token(offered["bearer"], str(response.url), what)
                return True
            if "basic" in offered and self._credential is not None and not self._basic:
                self._basic = True
                return True
        return False

    async def _fetch_token(self, challenge: auth.Challenge, registry_url: str, what: str) -> None:
        realm = challenge.parameters.get("realm", "")
        try:
            parts = urlsplit(realm)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ImageFault("RegistryUnavailable", f"{self.endpoint} names {realm[:200]!r} as its token service")
        if parts.scheme == "http" and urlsplit(registry_url).scheme == "https" and not is_loopback(parts.netloc):
            raise ImageFault(
                "RegistryUnavailable",
                f"{self.endpoint} wants the password sent to {realm[:200]!r} without TLS: refused",
            )
        query = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        scopes = self._scope or challenge.parameters.get("scope", "")
        query += [("scope", scopes)] if scopes else []
        credential = self._credential
        headers = {}
        if credential is not None:
            query.append(("account", credential.username))
            headers["Authorization"] = auth.basic(credential)
        url = realm + ("&" if parts.query else "?") + urlencode(query)
        try:
            response = await self._send("GET", url, headers)
            try:
                if response.status != 200:
                    await self._refuse(response, what)
                data = await self._bounded(response, MAX_TOKEN, "the token")
            finally:
                response.close()
        except LOST as error:
            raise Retry(self._unreachable(error, f"the token service {parts.netloc}")) from error
        self._keep(data)

    def _keep(self, data: bytes) -> None:
        try:
            document = json.loads(data)
            token = document.get("token") or document["access_token"]
            life_s = float(document.get("expires_in") or TOKEN_LIFE_S)
            if not isinstance(token, str) or not token.isprintable():
                raise ValueError
        except NONSENSE:
            raise ImageFault(
                "RegistryUnavailable", f"the token service of {self.endpoint} answered with something else than a token"
            ) from None
        self._owner.keep_token(self._key(), f"Bearer {token}", life_s)

    # ---- what went wrong ----
    async def _refuse(self, response: aiohttp.ClientResponse, what: str) -> None:
        """Raises Retry or ImageFault for an answer that is none."""
        status = response.status
        try:
            words = words_of(await response.content.read(MAX_ERROR))
        except LOST:
            words = ""
        said = f": {words}" if words else ""
        if status in (401, 403):
            raise ImageFault("Unauthorized", f"{self.endpoint} refuses {what} {self._as_whom()} ({status}){said}")
        if status == 404:
            raise ImageFault("NotFound", f"{self.endpoint} does not have {what}{said or ' (404)'}")
        after = retry_after(response.headers.get("Retry-After", ""))
        if status == 429:
            raise Retry(
                ImageFault("RegistryUnavailable", f"{self.endpoint} has had too many requests (429){said}", after),
                after,
            )
        fault = ImageFault("RegistryUnavailable", f"{self.endpoint} fails at {what} ({status}){said}", after)
        if status in RETRIED:
            raise Retry(fault, after)
        raise fault

    def _as_whom(self) -> str:
        credential = self._credential
        if credential is None:
            return "without a credential"
        return f"to the user {credential.username!r} (the credential of {credential.registry})"

    def _odd(self, status: int, what: str) -> ImageFault:
        return ImageFault("RegistryUnavailable", f"{self.endpoint} gave an answer to {what} that is none ({status})")

    def _unreachable(self, error: BaseException, what: str) -> ImageFault:
        host = self.endpoint.host
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = f"its certificate is not trusted ({error.certificate_error}): give the node the registry's `ca`"
        elif isinstance(error, aiohttp.ClientSSLError):
            why = f"it does not speak TLS as it should ({error.os_error}); is it an http registry, to be `insecure`?"
        elif isinstance(error, TimeoutError):
            why = f"it does not answer in time{f' ({error})' if str(error) else ''}"
        else:
            cause = getattr(error, "os_error", None) or error
            number = cause.errno if isinstance(cause, OSError) else None  # asyncio's own text repeats the address
            why = os.strerror(number) if number and number > 0 else getattr(cause, "strerror", None) or str(cause)
            why = why or type(error).__name__
        return ImageFault("RegistryUnavailable", f"{host} cannot be reached for {what}: {why}")

    def _delay(self, failures: int) -> float:
        base: float = self._owner.patience.backoff_s * 2 ** (failures - 1)
        return base * (0.5 + random.random() / 2)  # noqa: S311 - jitter


def words_of(body: bytes) -> str:
    """The registry's own words, from its JSON errors; "" when it has none."""
    try:
        errors = json.loads(body).get("errors") or []
        texts = [f"{one.get('message') or ''} ({one.get('code') or '?'})".strip() for one in errors]
    except NONSENSE:
        return ""
    text = "; ".join(texts)
    return "".join(char if char.isprintable() else " " for char in text)[:MAX_SHOWN]


def retry_after(text: str) -> float:
    """Seconds; a date is not read: clocks differ."""
    return float(min(int(text), 86_400)) if text.isdecimal() and len(text) < 10 else 0.0
