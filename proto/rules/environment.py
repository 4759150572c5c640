"""The rules for a container's environment, and for the fields and resources that it may be told of itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from shoal.proto import names, quantity
from shoal.proto.errors import nearest, shorten
from shoal.proto.rules.base import Report, at_most, exactly_one, say
from shoal.proto.v1 import objects_pb2 as o

MAX_VARIABLES = 1000
MAX_SOURCES = 100
MAX_STRING = 131071  # bytes of one argument, or of NAME=value: execve(2)'s MAX_ARG_STRLEN
SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef")
_BOTH_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid")
ENV_FIELDS = (*_BOTH_FIELDS, "spec.nodeName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs")
VOLUME_FIELDS = (*_BOTH_FIELDS, "metadata.labels", "metadata.annotations")
MAPS = ("metadata.labels", "metadata.annotations")
RESOURCE_FIELDS = tuple(
    f"{which}.{name}" for which in ("limits", "requests") for name in ("cpu", "memory", "ephemeral-storage")
)
_BYTE_DIVISORS = ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
_SUBSCRIPT = re.compile(r"([a-z.]+)\['(.*)'\]")


def environment(container: o.Container, siblings: Iterable[str], path: str, report: Report) -> None:
    """env and envFrom; `siblings` are the names of all containers of the pod."""
    at_most(container.env, MAX_VARIABLES, f"{path}.env", report)
    at_most(container.envFrom, MAX_SOURCES, f"{path}.envFrom", report)
    seen: set[str] = set()
    for index, variable in enumerate(container.env):
        where = f"{path}.env[{index}]"
        say(report, f"{where}.name", names.not_env_name(variable.name))
        if variable.name and variable.name in seen:
            report(f"{where}.name", f'"{variable.name}" is given twice: keep one')
        seen.add(variable.name)
        say(report, f"{where}.value", not_argument(variable.value, len(variable.name) + 1))
        if variable.HasField("valueFrom"):
            _value_from(variable, siblings, where, report)
    for index, source in enumerate(container.envFrom):
        _env_from(source, f"{path}.envFrom[{index}]", report)


def not_argument(text: str, before: int = 0) -> str | None:
    """What execve(2) takes: C strings of bounded length; `before` bytes stand in front of it."""
    if "\0" in text:
        return "holds a NUL character, which no argument or variable can: remove it"
    if len(text) * 4 + before > MAX_STRING and (size := len(text.encode()) + before) > MAX_STRING:
        return (
            f"has {size} bytes: programs take at most {MAX_STRING} in one argument or variable; use a ConfigMap volume"
        )
    return None


def _value_from(variable: o.EnvVar, siblings: Iterable[str], path: str, report: Report) -> None:
    if variable.value:
        report(f"{path}.valueFrom", "is given beside value: keep one of them")
    source, where = variable.valueFrom, f"{path}.valueFrom"
    kind = exactly_one(source, SOURCES, where, report)
    if kind == "fieldRef":
        field_ref(source.fieldRef, ENV_FIELDS, f"{where}.fieldRef", report)
    elif kind == "resourceFieldRef":
        resource_ref(source.resourceFieldRef, siblings, f"{where}.resourceFieldRef", report)
    elif kind is not None:
        _key(getattr(source, kind), f"{where}.{kind}", report)


def _key(selector: o.KeySelector, path: str, report: Report) -> None:
    object_name(selector.name, f"{path}.name", report)
    if not selector.key:
        report(f"{path}.key", "is missing: name the key whose value is meant")
    else:
        say(report, f"{path}.key", names.not_data_key(selector.key))


def object_name(name: str, path: str, report: Report) -> None:
    """The name of another object of the namespace."""
    say(report, path, names.not_dns_subdomain(name) if name else "is missing: name the object that is meant")


def _env_from(source: o.EnvFromSource, path: str, report: Report) -> None:
    if source.prefix:
        say(report, f"{path}.prefix", names.not_env_name(source.prefix))
    kind = exactly_one(source, ("configMapRef", "secretRef"), path, report)
    if kind is not None:
        object_name(getattr(source, kind).name, f"{path}.{kind}.name", report)


# ---- what a pod is told of itself (the downward API) ----
def field_ref(ref: o.ObjectFieldSelector, valid: Collection[str], path: str, report: Report) -> None:
    """A field of the pod; `valid` are the paths besides metadata.labels['key'] and metadata.annotations['key']."""
    if ref.apiVersion != "v1":
        report(f"{path}.apiVersion", f"{shorten(ref.apiVersion)} is not the version of Pod: write v1, or leave it out")
    say(report, f"{path}.fieldPath", _not_field(ref.fieldPath, valid))


def _not_field(text: str, valid: Collection[str]) -> str | None:
    choices = f"{', '.join(valid)}, metadata.labels['key'] and metadata.annotations['key']"
    if not text:
        return f"is missing: there are {choices}"
    if text in valid:
        return None
    subscript = _SUBSCRIPT.fullmatch(text)
    if subscript is not None and subscript[1] in MAPS:
        return names.not_label_key(subscript[2] if subscript[1] == "metadata.labels" else subscript[2].lower())
    if text == "spec.serviceAccountName":
        return "is not supported: pods carry no identity towards the API; remove it"
    if text in MAPS:
        return f"{shorten(text)} has many values: write {text}['key'] with the key of one, or use a downwardAPI volume"
    if text in ENV_FIELDS:
        return f"{shorten(text)} can be had in env only: files may show {choices}"
    if text.startswith(tuple(f"{name}[" for name in MAPS)):
        return f"{shorten(text)} is not readable: write {text.partition('[')[0]}['key'], with single quotes"
    meant = nearest(text, valid)
    advice = f'did you mean "{meant}"? ' if meant else ""
    return f"{shorten(text)} is no field of a pod that can be had: {advice}there are {choices}"


def resource_ref(
    ref: o.ResourceFieldSelector, siblings: Iterable[str], path: str, report: Report, *, named: bool = False
) -> None:
    """An amount of a container; `named`: the container's name may not be left out."""
    siblings = [name for name in siblings if name]
    if ref.containerName and ref.containerName not in siblings:
        report(f"{path}.containerName", no_such(ref.containerName, "container", siblings))
    elif named and not ref.containerName:
        report(f"{path}.containerName", f"is missing: name one of {', '.join(siblings)}")
    wrong = names.not_one_of(ref.resource, RESOURCE_FIELDS)
    say(report, f"{path}.resource", wrong)
    if wrong is None:
        _divisor(ref, path, report)


def _divisor(ref: o.ResourceFieldSelector, path: str, report: Report) -> None:
    given = ref.divisor.text
    valid = ("1", "1m") if ref.resource.endswith(".cpu") else _BYTE_DIVISORS
    try:
        nanos = quantity.parse(given or "0").nanos
    except quantity.QuantityError as error:
        report(f"{path}.divisor", str(error))
        return
    if nanos and nanos not in {quantity.parse(text).nanos for text in valid}:
        report(f"{path}.divisor", f"{shorten(given)} does not divide {ref.resource}: use one of {', '.join(valid)}")


def no_such(name: str, what: str, there: Collection[str]) -> str:
    """A reference to something that the pod has not."""
    meant = nearest(name, there)
    if meant is not None:
        advice = f'did you mean "{meant}"?'
    else:
        advice = f"there are {', '.join(sorted(there)[:20])}" if there else "it has none"
    return f"the pod has no {what} {shorten(name)}: {advice}"
