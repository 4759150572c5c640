"""Requests to one endpoint for one caller: tries, schemes, redirects, credentials, and refusals in words.

Redirects are followed by hand: credentials stay with the host that they were meant for, https never becomes http.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import aiohttp

from shoal.agent.images import auth
from shoal.agent.images.port import Credential, ImageFault
from shoal.agent.images.sessions import Key, Sessions
from shoal.agent.images.settings import Endpoint, Patience, is_loopback
from shoal.agent.images.streams import KIB

T = TypeVar("T")
MAX_REDIRECTS = 5
MAX_ERROR = 64 * KIB  # bytes of an error's body that are read
MAX_SHOWN = 300  # characters of a registry's own words
MAX_TOKEN = 64 * KIB
TOKEN_LIFE_S = 60.0  # the protocol's default
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


class Caller:
    """What asks one endpoint, with the credentials that fit it, best first."""

    def __init__(self, sessions: Sessions, endpoint: Endpoint, scope: str, credentials: Sequence[Credential]) -> None:
        self._sessions, self.endpoint, self._scope = sessions, endpoint, scope
        self._credentials: Sequence[Credential | None] = credentials or [None]
        self._chosen = 0
        self._basic = False
        self._authorizing = asyncio.Lock()
        self.asked = False  # whether the registry wanted to know who we are
        self._reached = False

    @property
    def patience(self) -> Patience:
        return self._sessions.patience

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
                patience = self.patience
                # Who never answered at all may not be there: the caller tries again, later and later.
                if failures >= patience.attempts or retry.after > patience.longest_wait_s or not self._reached:
                    raise retry.fault from retry
                await asyncio.sleep(max(retry.after, self.delay(failures)))
        try:
            yield opened
        finally:
            opened.close()

    async def _in_time(self, asking: Coroutine[Any, Any, T], what: str) -> T:
        """Until an answer begins, its token included: one that comes byte by byte is none. Raises Retry."""
        try:
            async with asyncio.timeout(self.patience.answer_s):
                return await asking
        except TimeoutError as error:
            raise Retry(self.unreachable(error, what)) from error

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
                await self.refuse(response, what)
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
        known = self._sessions.schemes.get(endpoint.host)
        schemes = (known,) if known is not None and known in endpoint.schemes else endpoint.schemes
        for scheme in schemes:
            try:
                url = f"{scheme}://{endpoint.host}{endpoint.prefix}/v2/{path}"
                response = await self._send(method, url, headers, data)
                self._reached = True
                self._sessions.schemes[endpoint.host] = scheme
                return response
            except LOST as error:
                lost = lost if isinstance(lost, aiohttp.ClientConnectorCertificateError) else error
        assert lost is not None
        self._sessions.schemes.pop(endpoint.host, None)
        raise Retry(self.unreachable(lost, what)) from lost

    @contextlib.asynccontextmanager
    async def once(
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
            context = self._sessions.context(self.endpoint if self._is_ours(url) else Endpoint(urlsplit(url).netloc))
            response = await self._sessions.session.request(
                method, url, headers=sent, data=data, ssl=context, allow_redirects=False
            )
            if response.status not in REDIRECTS or method not in ("GET", "HEAD"):
                return response
            where = response.headers.get("Location", "")
            response.close()
            if not where:
                raise self.odd(response.status, urlsplit(url).netloc)
            following = self.same_trust(url, where)
            if urlsplit(following).netloc != urlsplit(url).netloc:
                sent.pop("Authorization", None)
            url = following
        raise ImageFault("RegistryUnavailable", f"{self.endpoint} redirects more than {MAX_REDIRECTS} times: given up")

    def same_trust(self, url: str, where: str) -> str:
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

    async def bounded(self, response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
        """The whole body, of `limit` bytes at most. Raises ImageFault(TooLarge), and LOST."""
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > limit:
                raise ImageFault("TooLarge", f"{self.endpoint} sends more than {limit // KIB} KiB for {what}: refused")
        return bytes(data)

    # ---- who we are ----
    @property
    def _credential(self) -> Credential | None:
        return self._credentials[self._chosen]

    def _key(self) -> Key:
        return self.endpoint.host, self._scope, self._credential

    def _authorization(self) -> str:
        credential = self._credential
        if self._basic and credential is not None:
            return auth.basic(credential)
        return self._sessions.token(self._key())

    async def _authorize(self, response: aiohttp.ClientResponse, used: str, what: str) -> bool:
        """Answers a challenge; whether there is something new to try. Raises Retry, ImageFault."""
        self.asked = True
        offered = {one.scheme: one for one in auth.challenges(response.headers.getall("WWW-Authenticate", []))}
        async with self._authorizing:
            if self._authorization() not in ("", used):
                return True  # another request of ours was faster
            if "bearer" in offered:
                self._sessions.drop_token(self._key())
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
                    await self.refuse(response, what)
                data = await self.bounded(response, MAX_TOKEN, "the token")
            finally:
                response.close()
        except LOST as error:
            raise Retry(self.unreachable(error, f"the token service {parts.netloc}")) from error
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
        self._sessions.keep_token(self._key(), f"Bearer {token}", life_s)

    # ---- what went wrong ----
    async def refuse(self, response: aiohttp.ClientResponse, what: str) -> None:
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

    def odd(self, status: int, what: str) -> ImageFault:
        """For an answer that the protocol does not know."""
        return ImageFault("RegistryUnavailable", f"{self.endpoint} gave an answer to {what} that is none ({status})")

    def unreachable(self, error: BaseException, what: str) -> ImageFault:
        """For one of LOST, in words."""
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

    def delay(self, failures: int) -> float:
        """Seconds before the next try, after so many that failed."""
        base: float = self.patience.backoff_s * 2 ** (failures - 1)
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
