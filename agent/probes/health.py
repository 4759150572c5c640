"""gRPC health checks: grpc.health.v1.Health/Check, whose two messages have one field each.

An adapter. It imports grpc, which starts threads: only after the spawner has been started.
"""

from __future__ import annotations

import asyncio

import grpc

from shoal import __version__
from shoal.agent.probes.state import Outcome

METHOD = "/grpc.health.v1.Health/Check"
SERVICE_TAG, STATUS_TAG = 0x0A, 0x08  # HealthCheckRequest.service = 1, HealthCheckResponse.status = 1
STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
SERVING = 1
MAX_ANSWER = 4096  # bytes
OPTIONS = (
    ("grpc.primary_user_agent", f"shoal-probe/{__version__}"),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # each try connects anew: that it can is what is asked
    ("grpc.max_receive_message_length", MAX_ANSWER),
)


def encode_request(service: str) -> bytes:
    """HealthCheckRequest{service}."""
    name = service.encode()
    return bytes([SERVICE_TAG]) + varint(len(name)) + name if name else b""


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def decode_status(data: bytes) -> int:
    """HealthCheckResponse.status, an enumeration below 128; 0 when it is not there."""
    return data[1] if len(data) >= 2 and data[0] == STATUS_TAG else 0


async def check(host: str, port: int, service: str, timeout_s: float) -> Outcome:
    """Asks once. SERVING passes."""
    target = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        try:
            answer = await asyncio.wait_for(call(encode_request(service), timeout=timeout_s), timeout_s)
        except grpc.aio.AioRpcError as fault:
            return Outcome(False, in_words(fault, f"{host}:{port}", service, timeout_s))
    status = decode_status(answer)
    return Outcome(status == SERVING, f"the service {service!r} is {STATUSES.get(status, status)}")


def in_words(fault: grpc.aio.AioRpcError, address: str, service: str, timeout_s: float) -> str:
    code = fault.code()
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return f"{address} does not serve grpc.health.v1.Health: add it to the server, or use another probe"
    if code == grpc.StatusCode.NOT_FOUND:
        return f"{address} knows no service {service!r}: see grpc.service of the probe"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{address} did not answer within {timeout_s:g} s"
    return f"{address}: {code.name}: {fault.details()}"
