"""What all requests of a node to registries share: connections, authorities, tokens, and the schemes that work."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from typing import TypeAlias

import aiohttp

from shoal.agent.images.port import Credential, ImageFault
from shoal.agent.images.settings import Endpoint, Patience
from shoal.agent.images.streams import KIB

MAX_TOKENS_HELD = 1000
TOKEN_MARGIN_S = 5.0  # a token is renewed a little before its end
READ_BUFFER = 512 * KIB
CONNECTIONS = 16
Key: TypeAlias = tuple[str, str, Credential | None]  # a token is for a host, a scope and who asks


@dataclass(slots=True)
class Token:
    header: str
    until: float


class Sessions:
    """One per node; `close` it."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._tokens: dict[Key, Token] = {}
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

    def token(self, key: Key) -> str:
        token = self._tokens.get(key)
        return token.header if token is not None and token.until > time.monotonic() else ""

    def keep_token(self, key: Key, header: str, life_s: float) -> None:
        now = time.monotonic()
        self._tokens = {k: token for k, token in self._tokens.items() if token.until > now}
        if len(self._tokens) < MAX_TOKENS_HELD:
            self._tokens[key] = Token(header, now + max(life_s - TOKEN_MARGIN_S, TOKEN_MARGIN_S))

    def drop_token(self, key: Key) -> None:
        self._tokens.pop(key, None)
