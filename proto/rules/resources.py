"""The rules for amounts: what containers request and are limited to, and the sizes of volumes."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.proto import names, quantity
from shoal.proto.errors import keyed, nearest, shorten
from shoal.proto.rules.base import Report
from shoal.proto.v1 import objects_pb2 as o

RESOURCES = ("cpu", "memory", "ephemeral-storage")


def resources(asked: o.ResourceRequirements, path: str, report: Report) -> None:
    """Requests and limits of a container."""
    limits = _amounts(asked.limits, f"{path}.limits", report)
    for name, amount in _amounts(asked.requests, f"{path}.requests", report).items():
        limit = limits.get(name)
        if limit is not None and amount.nanos > limit.nanos:
            texts = f"{asked.requests[name].text} is more than the limit of {asked.limits[name].text}"
            report(keyed(f"{path}.requests", name), f"{texts}: ask for less or raise the limit")
        if "/" in name and (limit is None or amount.nanos != limit.nanos):
            report(keyed(f"{path}.requests", name), "a device is asked for by its limit: set both to the same number")


def size(given: o.Quantity, path: str, report: Report, *, least: int = 1) -> None:
    """A number of bytes that has to be at least `least`."""
    try:
        amount = quantity.parse(given.text)
    except quantity.QuantityError as error:
        report(path, str(error))
        return
    if amount.nanos < least * quantity.NANOS_PER_UNIT:
        report(path, f"must be {'more than 0' if least else '0 or more'}, but it is {given.text}")


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
