"""The rules for what a pod may ask for: containers, resources, ports, security, placement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from shoal.proto import names, quantity
from shoal.proto.errors import keyed, nearest, shorten
from shoal.proto.v1 import objects_pb2 as o

Report: TypeAlias = Callable[[str, str], None]  # path, message

MAX_PORT = 65535
MAX_ID = 2**31 - 1
MAX_CONTAINERS = 100
MAX_GRACE_SECONDS = 10 * 365 * 24 * 3600
RESTART_POLICIES = ("Always", "OnFailure", "Never")
PROTOCOLS = ("TCP", "UDP", "SCTP")
RESOURCES = ("cpu", "memory", "ephemeral-storage")


def pod_spec(spec: o.PodSpec, path: str, report: Report) -> None:
    """Reports all that is wrong with a pod's spec."""
    _say(report, f"{path}.restartPolicy", names.not_one_of(spec.restartPolicy, RESTART_POLICIES))
    grace = spec.terminationGracePeriodSeconds
    if not 0 <= grace <= MAX_GRACE_SECONDS:
        report(f"{path}.terminationGracePeriodSeconds", f"must be from 0 to {MAX_GRACE_SECONDS}, but it is {grace}")
    if spec.nodeName:
        _say(report, f"{path}.nodeName", names.not_dns_subdomain(spec.nodeName))
    for key in sorted(spec.nodeSelector):
        wrong = names.not_label_key(key) or names.not_label_value(spec.nodeSelector[key])
        _say(report, keyed(f"{path}.nodeSelector", key), wrong)
    _ids(spec.securityContext, f"{path}.securityContext", report)
    for index, toleration in enumerate(spec.tolerations):
        _toleration(toleration, f"{path}.tolerations[{index}]", report)
    _containers(spec, path, report)


def pod_spec_update(old: Any, new: Any, report: Report) -> None:
    """A pod is one-shot: of its spec only tolerations may be added."""
    kept = all(toleration in new.tolerations for toleration in old.tolerations)
    if not kept:
        report(
            "spec.tolerations", "of a pod can be added to, not changed or removed: delete the pod and create it anew"
        )
    for field in o.PodSpec.DESCRIPTOR.fields:
        name = field.name
        if name in ("tolerations", "nodeName"):
            continue
        before, after = getattr(old, name), getattr(new, name)
        present = not field.has_presence or old.HasField(name) == new.HasField(name)
        if before != after or not present:
            advice = (
                "cannot be changed: delete the pod and create it anew, or use a Deployment, which replaces its pods"
            )
            report(f"spec.{name}", advice)
    if old.nodeName not in ("", new.nodeName):
        report("spec.nodeName", f'cannot be changed: the pod is bound to "{old.nodeName}"')


def _say(report: Report, path: str, wrong: str | None) -> None:
    if wrong is not None:
        report(path, wrong)


def _containers(spec: o.PodSpec, path: str, report: Report) -> None:
    if not spec.containers:
        report(f"{path}.containers", "is missing: a pod has at least one container")
    if len(spec.containers) > MAX_CONTAINERS:
        report(f"{path}.containers", f"has {len(spec.containers)} items: at most {MAX_CONTAINERS} are allowed")
    seen: set[str] = set()
    for index, container in enumerate(spec.containers):
        where = f"{path}.containers[{index}]"
        if not container.name:
            report(f"{where}.name", "is missing: name the container")
        else:
            _say(report, f"{where}.name", names.not_dns_label(container.name))
            if container.name in seen:
                report(
                    f"{where}.name", f'"{container.name}" is another container\'s name too: names are unique in a pod'
                )
            seen.add(container.name)
        _container(container, where, report)


def _container(container: o.Container, path: str, report: Report) -> None:
    _say(report, f"{path}.image", names.not_image(container.image))
    if container.workingDir and not container.workingDir.startswith("/"):
        report(f"{path}.workingDir", f"{shorten(container.workingDir)} must begin with '/'")
    _no_nul(container, path, report)
    _ports(container, path, report)
    _env(container, path, report)
    _resources(container.resources, f"{path}.resources", report)
    context = container.securityContext
    _ids(context, f"{path}.securityContext", report)
    for index, capability in enumerate(context.capabilities.drop):
        _say(report, f"{path}.securityContext.capabilities.drop[{index}]", names.not_capability(capability))


def _no_nul(container: o.Container, path: str, report: Report) -> None:
    """execve(2) takes C strings."""
    for field in ("command", "args"):
        for index, text in enumerate(getattr(container, field)):
            if "\0" in text:
                report(f"{path}.{field}[{index}]", "holds a NUL character, which no argument can: remove it")
    for index, variable in enumerate(container.env):
        if "\0" in variable.value:
            report(f"{path}.env[{index}].value", "holds a NUL character, which no variable can: remove it")
    if "\0" in container.workingDir:
        report(f"{path}.workingDir", "holds a NUL character, which no path can: remove it")


def _ports(container: o.Container, path: str, report: Report) -> None:
    by_name: set[str] = set()
    by_number: set[tuple[int, str]] = set()
    for index, port in enumerate(container.ports):
        where = f"{path}.ports[{index}]"
        if not 1 <= port.containerPort <= MAX_PORT:
            given = f"but it is {port.containerPort}" if port.containerPort else "and it is missing or 0"
            report(f"{where}.containerPort", f"must be from 1 to {MAX_PORT}, {given}")
        _say(report, f"{where}.protocol", names.not_one_of(port.protocol, PROTOCOLS))
        if port.name:
            _say(report, f"{where}.name", names.not_port_name(port.name))
            if port.name in by_name:
                report(f"{where}.name", f'"{port.name}" is another port\'s name too: names are unique in a container')
        number = (port.containerPort, port.protocol)
        if number in by_number:
            report(where, f"{port.containerPort}/{port.protocol} is given twice: keep one")
        by_name.add(port.name)
        by_number.add(number)


def _env(container: o.Container, path: str, report: Report) -> None:
    seen: set[str] = set()
    for index, variable in enumerate(container.env):
        where = f"{path}.env[{index}].name"
        _say(report, where, names.not_env_name(variable.name))
        if variable.name and variable.name in seen:
            report(where, f'"{variable.name}" is given twice: keep one')
        seen.add(variable.name)


def _ids(context: o.SecurityContext | o.PodSecurityContext, path: str, report: Report) -> None:
    for name in ("runAsUser", "runAsGroup"):
        value = getattr(context, name)
        if not 0 <= value <= MAX_ID:
            report(f"{path}.{name}", f"must be from 0 to {MAX_ID}, but it is {value}")


# ---- resources ----
def _resources(resources: o.ResourceRequirements, path: str, report: Report) -> None:
    limits = _amounts(resources.limits, f"{path}.limits", report)
    requests = _amounts(resources.requests, f"{path}.requests", report)
    for name, asked in requests.items():
        limit = limits.get(name)
        if limit is not None and asked.nanos > limit.nanos:
            texts = f"{resources.requests[name].text} is more than the limit of {resources.limits[name].text}"
            report(keyed(f"{path}.requests", name), f"{texts}: ask for less or raise the limit")
        if "/" in name and (limit is None or asked.nanos != limit.nanos):
            report(keyed(f"{path}.requests", name), "a device is asked for by its limit: set both to the same number")


def _amounts(values: Mapping[str, o.Quantity], path: str, report: Report) -> dict[str, quantity.Amount]:
    """The amounts that are fine; the others are reported."""
    amounts: dict[str, quantity.Amount] = {}
    for name in sorted(values):
        where = keyed(path, name)
        wrong = _not_resource(name)
        if wrong is not None:
            report(where, wrong)
            continue
        try:
            amount = quantity.parse(values[name].text)
        except quantity.QuantityError as error:
            report(where, str(error))
            continue
        if amount.nanos < 0:
            report(where, f"must not be negative, but it is {values[name].text}")
        elif "/" in name and amount.nanos % quantity.NANOS_PER_UNIT:
            report(where, f"must be a whole number, but it is {values[name].text}")
        else:
            amounts[name] = amount
    return amounts


def _not_resource(name: str) -> str | None:
    if name in RESOURCES:
        return None
    if name.startswith("hugepages-"):
        return "huge pages are not supported yet: remove it"
    if "/" in name:
        return names.not_label_key(name)
    meant = nearest(name, RESOURCES)
    choices = (
        f'did you mean "{meant}"?' if meant else f"use one of {', '.join(RESOURCES)}, or example.com/gpu for a device"
    )
    return f"{shorten(name)} is not a resource: {choices}"


# ---- placement ----
def _toleration(toleration: o.Toleration, path: str, report: Report) -> None:
    if toleration.key:
        _say(report, f"{path}.key", names.not_label_key(toleration.key))
    elif toleration.operator != "Exists":
        report(f"{path}.operator", 'must be "Exists" when key is empty: name a key, or tolerate every taint so')
    _say(report, f"{path}.operator", names.not_one_of(toleration.operator, ("Equal", "Exists")))
    if toleration.operator == "Exists" and toleration.value:
        report(f"{path}.value", 'must be empty when operator is "Exists": remove it, or use "Equal"')
    elif toleration.value:
        _say(report, f"{path}.value", names.not_label_value(toleration.value))
    if toleration.effect:
        _say(report, f"{path}.effect", names.not_one_of(toleration.effect, names.TAINT_EFFECTS))
    if toleration.HasField("tolerationSeconds") and toleration.effect != "NoExecute":
        report(
            f"{path}.effect", 'must be "NoExecute" when tolerationSeconds is set: only that effect ends running pods'
        )
