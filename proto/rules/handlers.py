"""The rules for what is asked of a running container: probes, and the hooks after its start and before its end."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from shoal.proto import names
from shoal.proto.errors import nearest, shorten
from shoal.proto.rules.base import MAX_PATH, MAX_PORT, Report, at_most, chosen, exactly_one, in_range, say
from shoal.proto.rules.environment import not_argument
from shoal.proto.v1 import objects_pb2 as o

MAX_SECONDS = 2**31 - 1
MAX_HEADERS = 100
MAX_HEADER = 8192  # bytes of its value
MAX_WORDS = 1000
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
HOOKS = ("postStart", "preStop")
PROBE_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
HOOK_HANDLERS = ("exec", "httpGet", "tcpSocket", "sleep")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110, token


def probes(container: o.Container, path: str, report: Report) -> None:
    """The three probes of a container."""
    for name in chosen(container, PROBES):
        _probe(name, getattr(container, name), container.ports, f"{path}.{name}", report)


def _probe(name: str, probe: o.Probe, ports: Collection[o.ContainerPort], path: str, report: Report) -> None:
    kind = exactly_one(probe, PROBE_HANDLERS, path, report)
    if kind is not None:
        _handler(kind, getattr(probe, kind), ports, f"{path}.{kind}", report)
    in_range(probe.initialDelaySeconds, 0, MAX_SECONDS, f"{path}.initialDelaySeconds", report)
    for field in ("timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        in_range(getattr(probe, field), 1, MAX_SECONDS, f"{path}.{field}", report)
    if name != "readinessProbe" and probe.successThreshold > 1:
        report(f"{path}.successThreshold", f"must be 1 for a {name}, but it is {probe.successThreshold}")
    if probe.HasField("terminationGracePeriodSeconds"):
        where = f"{path}.terminationGracePeriodSeconds"
        if name == "readinessProbe":
            report(where, "is not used by a readinessProbe, which ends nothing: remove it")
        else:
            in_range(probe.terminationGracePeriodSeconds, 1, MAX_SECONDS, where, report)


def hooks(container: o.Container, grace: int, path: str, report: Report) -> None:
    """postStart and preStop; `grace` is the pod's, in seconds, into which preStop must fit."""
    for name in chosen(container.lifecycle, HOOKS):
        where, hook = f"{path}.lifecycle.{name}", getattr(container.lifecycle, name)
        kind = exactly_one(hook, HOOK_HANDLERS, where, report)
        if kind == "sleep":
            most = grace if name == "preStop" else MAX_SECONDS
            if not 0 <= hook.sleep.seconds <= most:
                limit = f"to {most}, the pod's terminationGracePeriodSeconds" if name == "preStop" else f"to {most}"
                report(f"{where}.sleep.seconds", f"must be from 0 {limit}, but it is {hook.sleep.seconds}")
        elif kind is not None:
            _handler(kind, getattr(hook, kind), container.ports, f"{where}.{kind}", report)


def _handler(kind: str, handler: Any, ports: Collection[o.ContainerPort], path: str, report: Report) -> None:
    if kind == "exec":
        command(handler.command, f"{path}.command", report)
        if not handler.command:
            report(f"{path}.command", 'is missing: give the command and its arguments, such as ["cat", "/ready"]')
    elif kind == "httpGet":
        _http_get(handler, ports, path, report)
    elif kind == "tcpSocket":
        _port(handler.port, ports, f"{path}.port", report)
        _host(handler.host, f"{path}.host", report)
    else:
        in_range(handler.port, 1, MAX_PORT, f"{path}.port", report)
        say(report, f"{path}.service", _not_line(handler.service, MAX_HEADER))


def command(words: Collection[str], path: str, report: Report) -> None:
    """What is executed: its arguments must fit into execve(2)."""
    at_most(words, MAX_WORDS, path, report)
    for index, word in enumerate(words):
        say(report, f"{path}[{index}]", not_argument(word))


def _http_get(action: o.HTTPGetAction, ports: Collection[o.ContainerPort], path: str, report: Report) -> None:
    _port(action.port, ports, f"{path}.port", report)
    _host(action.host, f"{path}.host", report)
    say(report, f"{path}.scheme", names.not_one_of(action.scheme, ("HTTP", "HTTPS")))
    say(report, f"{path}.path", _not_line(action.path, MAX_PATH))
    at_most(action.httpHeaders, MAX_HEADERS, f"{path}.httpHeaders", report)
    for index, header in enumerate(action.httpHeaders):
        where = f"{path}.httpHeaders[{index}]"
        if not _HEADER.fullmatch(header.name) or len(header.name) > MAX_HEADER:
            report(f"{where}.name", f"{shorten(header.name)} is not a header's name: use letters, digits and '-'")
        say(report, f"{where}.value", _not_line(header.value, MAX_HEADER))


def _port(port: o.IntOrString, ports: Collection[o.ContainerPort], path: str, report: Report) -> None:
    kind = port.WhichOneof("value")
    if kind is None:
        report(path, "is missing: give a number, or the name of one of the container's ports")
    elif kind == "number":
        in_range(port.number, 1, MAX_PORT, path, report)
    elif port.text.isdecimal():
        report(path, f"{shorten(port.text)} is a text, which names a port: remove the quotes")
    else:
        there = sorted(item.name for item in ports if item.name)
        if port.text not in there:
            meant = nearest(port.text, there)
            known = f"it has {', '.join(there[:20])}" if there else "none of its ports has a name; write the number"
            advice = f'did you mean "{meant}"?' if meant else known
            report(path, f"the container has no port {shorten(port.text)}: {advice}")


def _host(host: str, path: str, report: Report) -> None:
    if host:
        say(report, path, names.not_host(host))


def _not_line(text: str, limit: int) -> str | None:
    """Text that stands in one line of a request."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        return "holds a control character, which no request can: remove it"
    return f"has {len(text)} characters: at most {limit} are allowed" if len(text) > limit else None
