"""The rules for containers, those that run to the end before the others (init) and those that run beside them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from dataclasses import field as attribute
from ipaddress import ip_address

from shoal.proto import names
from shoal.proto.errors import shorten
from shoal.proto.rules.base import MAX_PORT, Report, at_most, chosen, in_range, not_absolute, say
from shoal.proto.rules.environment import environment
from shoal.proto.rules.handlers import PROBES, command, hooks, probes
from shoal.proto.rules.resources import resources
from shoal.proto.rules.security import container_context
from shoal.proto.rules.volumes import mounts
from shoal.proto.v1 import objects_pb2 as o

MAX_CONTAINERS = 100  # of each sort
MAX_PORTS = 1000
ANY_ADDRESS = frozenset({"", "0.0.0.0"})  # noqa: S104 -- compared with, never bound to
PROTOCOLS = ("TCP", "UDP", "SCTP")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
MESSAGE_POLICIES = ("File", "FallbackToLogsOnError")


@dataclass(frozen=True, slots=True)
class Pod:
    """What a container's rules need to know of its pod."""

    names: Collection[str]  # of all containers
    volumes: Collection[str]  # their names
    grace: int  # seconds
    host_network: bool = False
    host_ports: set[tuple[str, str, int]] = attribute(default_factory=set)  # seen so far: hostIP, protocol, port


def containers(spec: o.PodSpec, path: str, report: Report) -> None:
    """All containers of a pod."""
    if not spec.containers:
        report(f"{path}.containers", "is missing: a pod has at least one container")
    every = [*spec.initContainers, *spec.containers]
    volumes = [volume.name for volume in spec.volumes if volume.name]
    pod = Pod([one.name for one in every], volumes, spec.terminationGracePeriodSeconds, spec.hostNetwork)
    seen: set[str] = set()
    for field in ("initContainers", "containers"):
        given = getattr(spec, field)
        at_most(given, MAX_CONTAINERS, f"{path}.{field}", report)
        for index, container in enumerate(given):
            where = f"{path}.{field}[{index}]"
            _name(container.name, seen, f"{where}.name", report)
            _role(container, field == "initContainers", where, report)
            _container(container, pod, where, report)


def _name(name: str, seen: set[str], path: str, report: Report) -> None:
    if not name:
        report(path, "is missing: name the container")
        return
    say(report, path, names.not_dns_label(name))
    if name in seen:
        report(path, f'"{name}" is another container\'s name too: names are unique in a pod')
    seen.add(name)


def _role(container: o.Container, init: bool, path: str, report: Report) -> None:
    """An init container with restartPolicy Always is a sidecar: it goes on beside the others, and may be probed."""
    sidecar = init and container.restartPolicy == "Always"
    if container.HasField("restartPolicy") and not sidecar:
        advice = 'must be "Always", which makes a sidecar' if init else "is for init containers: use the pod's own"
        report(f"{path}.restartPolicy", f"{advice}; or remove it")
    if not init or sidecar:
        return
    for index, port in enumerate(container.ports):
        if port.hostPort:
            report(f"{path}.ports[{index}].hostPort", "is for containers that go on running: remove it")
    for field in chosen(container, ("lifecycle", *PROBES)):
        report(f"{path}.{field}", 'is for containers that go on running: remove it, or set restartPolicy: "Always"')


def _container(container: o.Container, pod: Pod, path: str, report: Report) -> None:
    say(report, f"{path}.image", names.not_image(container.image))
    if container.HasField("imagePullPolicy"):
        say(report, f"{path}.imagePullPolicy", names.not_one_of(container.imagePullPolicy, PULL_POLICIES))
    if container.workingDir:
        say(report, f"{path}.workingDir", _not_folder(container.workingDir))
    command(container.command, f"{path}.command", report)
    command(container.args, f"{path}.args", report)
    _ports(container.ports, path, report)
    for index, port in enumerate(container.ports):
        _host_port(port, pod, f"{path}.ports[{index}]", report)
    environment(container, pod.names, path, report)
    resources(container.resources, f"{path}.resources", report)
    if container.HasField("securityContext"):
        container_context(container.securityContext, f"{path}.securityContext", report)
    mounts(container, pod.volumes, path, report)
    probes(container, path, report)
    if container.HasField("lifecycle"):
        hooks(container, pod.grace, path, report)
    _end_and_input(container, path, report)


def _not_folder(text: str) -> str | None:
    """A path in the image, where '..' does no harm: the kernel resolves it inside the container."""
    if not text.startswith("/"):
        return f"{shorten(text)} must begin with '/'"
    return "holds a NUL character, which no path can: remove it" if "\0" in text else None


def _ports(ports: Collection[o.ContainerPort], path: str, report: Report) -> None:
    at_most(ports, MAX_PORTS, f"{path}.ports", report)
    by_name: set[str] = set()
    by_number: set[tuple[int, str]] = set()
    for index, port in enumerate(ports):
        where = f"{path}.ports[{index}]"
        if not 1 <= port.containerPort <= MAX_PORT:
            given = f"but it is {port.containerPort}" if port.containerPort else "and it is missing or 0"
            report(f"{where}.containerPort", f"must be from 1 to {MAX_PORT}, {given}")
        say(report, f"{where}.protocol", names.not_one_of(port.protocol, PROTOCOLS))
        if port.name:
            say(report, f"{where}.name", names.not_port_name(port.name))
            if port.name in by_name:
                report(f"{where}.name", f'"{port.name}" is another port\'s name too: names are unique in a container')
        number = (port.containerPort, port.protocol)
        if number in by_number:
            report(where, f"{port.containerPort}/{port.protocol} is given twice: keep one")
        by_name.add(port.name)
        by_number.add(number)


def _host_port(port: o.ContainerPort, pod: Pod, path: str, report: Report) -> None:
    """A port of the node that leads to the container's; a pod on the node's network has the node's ports anyway."""
    if port.hostIP:
        say(report, f"{path}.hostIP", _not_node_address(port.hostIP))
        if not port.hostPort:
            report(f"{path}.hostIP", "does nothing without hostPort: give one, or remove it")
    if not port.hostPort:
        return
    in_range(port.hostPort, 1, MAX_PORT, f"{path}.hostPort", report)
    if pod.host_network and port.hostPort != port.containerPort:
        advice = f"must be {port.containerPort}, the containerPort, as the pod uses the node's network; or remove it"
        report(f"{path}.hostPort", advice)
    taken = next((one for one in pod.host_ports if _clash(one, (port.hostIP, port.protocol, port.hostPort))), None)
    if taken is not None:
        report(f"{path}.hostPort", f"{port.hostPort}/{port.protocol} is another port's hostPort too: choose another")
    pod.host_ports.add((port.hostIP, port.protocol, port.hostPort))


def _clash(one: tuple[str, str, int], other: tuple[str, str, int]) -> bool:
    """Whether two host ports are the same; an unset hostIP, or 0.0.0.0, is every address."""
    return one[1:] == other[1:] and (one[0] == other[0] or not {one[0], other[0]}.isdisjoint(ANY_ADDRESS))


def _not_node_address(text: str) -> str | None:
    try:
        version = ip_address(text).version
    except ValueError:
        return f"{shorten(text)} is not an address of a node, such as 10.1.2.3"
    return None if version == 4 else f"{shorten(text)} is an IPv6 address: pods have IPv4 addresses only"


def _end_and_input(container: o.Container, path: str, report: Report) -> None:
    if container.HasField("terminationMessagePath"):
        say(report, f"{path}.terminationMessagePath", not_absolute(container.terminationMessagePath))
    if container.HasField("terminationMessagePolicy"):
        wrong = names.not_one_of(container.terminationMessagePolicy, MESSAGE_POLICIES)
        say(report, f"{path}.terminationMessagePolicy", wrong)
    if container.stdinOnce and not container.stdin:
        report(f"{path}.stdinOnce", "does nothing without stdin: set stdin: true too, or remove it")
