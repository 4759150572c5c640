"""Renews the leader's lease from a thread with its own channel: a busy event loop must not cost leadership."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import grpc

from shoal.master.store.etcd import CHANNEL_OPTIONS, KEEPALIVE, Tls
from shoal.master.store.port import Lease
from shoal.proto.v1 import etcd_pb2 as e

log = logging.getLogger("shoal.election")

RENEW_PERIOD_S = 1.0
RENEW_TIMEOUT_S = 1.0


class Term(Protocol):
    """What is renewed (`election.Leadership`)."""

    lease: Lease

    def renewed(self, sent: float, ttl: float) -> None: ...
    def lose(self, why: str) -> None: ...


class ThreadRenewer:
    """An `election.Renewer`. `clock` must be the leadership's own (seconds, running on while the machine sleeps)."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None, clock: Callable[[], float]) -> None:
        self._endpoints, self._tls, self._clock = list(endpoints), tls, clock
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def start(self, leadership: Term) -> None:
        self._stop = threading.Event()
        arguments = (leadership, asyncio.get_running_loop(), self._stop)
        self._thread = threading.Thread(target=self._run, args=arguments, name="renew-lease", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None

    def _run(self, leadership: Term, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        turn = 0
        said = Said()
        channel = self._channel(turn)
        try:
            while not stop.is_set():
                sent = self._clock()
                try:
                    ttl = renew(channel, leadership.lease.id)
                except grpc.RpcError as error:
                    said.failed(error)
                    turn += 1
                    channel.close()
                    channel = self._channel(turn)
                else:
                    if ttl <= 0:
                        tell(loop, leadership.lose, "its lease has run out in etcd")
                        return
                    leadership.renewed(sent, ttl)
                    said.renewed()
                stop.wait(max(0.05, sent + RENEW_PERIOD_S - self._clock()))
        except Exception as error:
            log.exception("the thread that renews the leader's lease failed")
            tell(loop, leadership.lose, f"the renewing thread failed: {error!r}")
        finally:
            channel.close()

    def _channel(self, turn: int) -> grpc.Channel:
        address = self._endpoints[turn % len(self._endpoints)]
        if self._tls is None:
            return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(address, self._tls.credentials(), options=CHANNEL_OPTIONS)


class Said:
    """Tells of a lease that is not renewed once, not every second, and of its return."""

    def __init__(self) -> None:
        self._failures = 0

    def failed(self, error: grpc.RpcError) -> None:
        self._failures += 1
        if self._failures == 1:
            details = getattr(error, "details", None)  # a call's error has it, the base class does not
            log.warning("the leader's lease was not renewed, trying on: %s", details() if callable(details) else error)

    def renewed(self) -> None:
        if self._failures:
            log.info("the leader's lease is renewed again, after %d failures", self._failures)
        self._failures = 0


def renew(channel: grpc.Channel, lease: int) -> float:
    """One renewal; the seconds that the lease now has, 0 when it is gone. Raises grpc.RpcError."""
    done = threading.Event()

    def requests() -> Iterator[e.LeaseKeepAliveRequest]:
        yield e.LeaseKeepAliveRequest(ID=lease)
        done.wait(RENEW_TIMEOUT_S)  # a half-closed stream may be ended before it is answered

    call = channel.stream_stream(
        KEEPALIVE,
        request_serializer=e.LeaseKeepAliveRequest.SerializeToString,
        response_deserializer=e.LeaseKeepAliveResponse.FromString,
    )(requests(), timeout=RENEW_TIMEOUT_S)
    try:
        for answer in call:
            return float(answer.TTL)
        raise grpc.RpcError("etcd ended the lease's stream without an answer")
    finally:
        done.set()
        call.cancel()


def tell(loop: asyncio.AbstractEventLoop, callback: Callable[[str], None], why: str) -> None:
    try:
        loop.call_soon_threadsafe(callback, why)
    except RuntimeError:
        log.info("the event loop has ended before the news came: %s", why)
