"""From a probe or a lifecycle handler to one thing that can be asked."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.agent.probes import http, streams
from shoal.agent.probes.state import Outcome
from shoal.agent.runtime.port import ContainerID, ProbeRun, RuntimeFault, RuntimeGone, StartError
from shoal.proto.v1 import objects_pb2 as o

OUTPUT_CHARS = 512  # of a command's output in a message
HealthCheck = Callable[[str, int, str, float], Awaitable[Outcome]]  # health.check


class Runner(Protocol):
    """What is needed of runtime.port.Runtime."""

    async def run_probe(self, id: ContainerID, argv: Sequence[str], timeout_s: float) -> ProbeRun: ...


@dataclass(frozen=True, slots=True)
class Where:
    """Whom to ask: the run, its address, its ports by name."""

    id: ContainerID
    host: str
    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Check:
    """`how` is exec, http, tcp, grpc or (it cannot be asked) none, `whom` is for people. `ask` gets the seconds that it
    may take, and is not trusted to keep to them unless `bounded`."""

    how: str
    whom: str
    ask: Callable[[float], Awaitable[Outcome]]
    bounded: bool = False


class Unusable(Exception):
    """The manifest names something that the pod lacks."""


def check_of(
    handler: o.Probe | o.LifecycleHandler, where: Where, runner: Runner, health: HealthCheck | None = None
) -> Check:
    """The one way that `handler` names; a handler that cannot be asked fails, and says why."""
    try:
        return _check_of(handler, where, runner, health)
    except Unusable as fault:
        outcome = Outcome(False, str(fault))

        async def fail(_: float) -> Outcome:
            return outcome

        return Check("none", "", fail)


def _check_of(handler: o.Probe | o.LifecycleHandler, where: Where, runner: Runner, health: HealthCheck | None) -> Check:
    if handler.HasField("exec"):
        argv = list(handler.exec.command)

        async def run(seconds: float) -> Outcome:
            return await run_command(runner, where.id, argv, seconds)

        return Check("exec", argv[0] if argv else "", run, bounded=True)
    if handler.HasField("httpGet"):
        request = request_of(handler.httpGet, where)

        async def get(_: float) -> Outcome:
            return await http.get(request)

        return Check("http", f"GET {request.url}", get)
    if handler.HasField("tcpSocket"):
        host, port = handler.tcpSocket.host or where.host, port_of(handler.tcpSocket.port, where.ports)

        async def connect(_: float) -> Outcome:
            (await streams.connected(host, port)).close()
            return Outcome(True, f"{host}:{port} accepts connections")

        return Check("tcp", f"{host}:{port}", connect)
    if isinstance(handler, o.Probe) and handler.HasField("grpc") and health is not None:
        number, service, ask = handler.grpc.port, handler.grpc.service, health

        async def check(seconds: float) -> Outcome:
            return await ask(where.host, number, service, seconds)

        return Check("grpc", f"{where.host}:{number}", check)
    raise Unusable("there is nothing to ask: set exec, httpGet, tcpSocket or grpc")


def request_of(action: o.HTTPGetAction, where: Where) -> http.Request:
    port = port_of(action.port, where.ports)
    headers = [(header.name, header.value) for header in action.httpHeaders]
    return http.make_request(action.scheme or "HTTP", action.host or where.host, port, action.path, headers)


def port_of(port: o.IntOrString, ports: Mapping[str, int]) -> int:
    """By number, or by the name of one of the container's ports. Raises Unusable."""
    text = port.text
    number = port.number if port.HasField("number") else int(text) if text.isdigit() else ports.get(text, 0)
    if not 0 < number < 65536:
        known = ", ".join(sorted(ports)) or "none"
        raise Unusable(f"the container has no port {text or number!r}: name one of its ports ({known}), or a number")
    return number


async def run_command(runner: Runner, id: ContainerID, argv: list[str], seconds: float) -> Outcome:
    """Exit code 0 passes. A command that cannot be run fails; a runtime that is away says nothing of the container."""
    try:
        run = await runner.run_probe(id, argv, seconds)
    except StartError as fault:
        return Outcome(False, f"{argv[0] if argv else 'the command'} cannot be run: {fault.message}")
    except RuntimeFault as fault:
        return Outcome(None, str(fault), gone=isinstance(fault, RuntimeGone))
    text = run.output.decode(errors="replace").strip()[:OUTPUT_CHARS]
    if run.code is None:
        return Outcome(
            False, f"the command did not end within {seconds:g} s and was killed{': ' if text else ''}{text}"
        )
    return Outcome(run.code == 0, text if run.code == 0 else f"exit code {run.code}{': ' if text else ''}{text}")


async def asked(check: Check, seconds: float) -> Outcome:
    """Asks once. It never takes longer than `seconds`, and never raises but for being cancelled."""
    try:
        if check.bounded:
            return await check.ask(seconds)
        async with asyncio.timeout(seconds):
            return await check.ask(seconds)
    except TimeoutError:
        return Outcome(False, f"{check.whom}: no answer within {seconds:g} s")
    except OSError as fault:
        return Outcome(False, f"{check.whom}: {in_words(fault)}")


def in_words(fault: OSError) -> str:
    if isinstance(fault, ssl.SSLError):
        return f"TLS: {fault.reason or fault}"
    if isinstance(fault, socket.gaierror) or not fault.errno:
        return str(fault) or type(fault).__name__
    return os.strerror(fault.errno).lower()
