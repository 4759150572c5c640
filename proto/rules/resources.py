"""The rules for amounts: what containers request and are limited to, pods' devices and overhead, sizes of volumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shoal.proto import names, quantity
from shoal.proto.errors import keyed, nearest, shorten
from shoal.proto.rules.base import Report
from shoal.proto.v1 import objects_pb2 as o

RESOURCES = ("cpu", "memory", "ephemeral-storage")
GPU, GPU_MILLI = "shoal.dev/gpu", "shoal.dev/gpu-milli"  # whole devices; thousandths of one, or of several whole ones
GPU_DEVICES = "shoal.dev/gpu-devices"  # annotation of a bound pod: its devices' indexes, "0,3"
GPUS = (GPU, GPU_MILLI)
ONE_GPU = 1000  # in GPU_MILLI
LARGEST = 2**50  # milli-CPU, bytes, devices: beyond it amounts are mistakes, and their sums would not stay exact


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


def overhead(values: Mapping[str, o.Quantity], path: str, report: Report) -> None:
    """What a pod takes on top of its containers."""
    for name in _amounts(values, path, report):
        if "/" in name:
            report(keyed(path, name), f"is a device, which only containers use: keep to {', '.join(RESOURCES)}")


def devices(spec: o.PodSpec, path: str, report: Report) -> None:
    """GPUs are asked for whole or by thousandths, and by one container's worth of a share: what a pod asks for in all
    is a share of one device, or whole ones."""
    shares = list(_asked(spec, path, GPU_MILLI))
    whole = list(_asked(spec, path, GPU))
    if shares and whole:
        report(shares[0][0], f"excludes {GPU}, which {whole[0][0]} has: write 1000 for each whole device, or keep one")
        return
    running = sum(amount for where, amount in shares if ".initContainers[" not in where)
    for where, amount in shares:
        if amount > ONE_GPU and amount % ONE_GPU:
            report(where, f"must be from 1 to {ONE_GPU}, or a multiple of it, but it is {amount}")
            return
    if running > ONE_GPU and running % ONE_GPU:
        text = f"the containers ask for {running} together"
        report(shares[-1][0], f"{text}: a pod has a share of one device (at most {ONE_GPU}) or whole ones")


def _asked(spec: o.PodSpec, path: str, name: str) -> Iterator[tuple[str, int]]:
    """Where, and how much of it, the containers ask for."""
    for field in ("initContainers", "containers"):
        for index, container in enumerate(getattr(spec, field)):
            for sort in ("limits", "requests"):
                text = getattr(container.resources, sort)[name].text if _has(container, sort, name) else ""
                try:
                    amount = quantity.parse(text).whole() if text else 0
                except quantity.QuantityError:
                    amount = 0
                if amount > 0:
                    yield keyed(f"{path}.{field}[{index}].resources.{sort}", name), amount
                    break


def _has(container: o.Container, sort: str, name: str) -> bool:
    return name in getattr(container.resources, sort)


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
        where, text = keyed(path, name), values[name].text
        wrong = _not_resource(name)
        if wrong is not None:
            report(where, wrong)
            continue
        try:
            amount = quantity.parse(text)
        except quantity.QuantityError as error:
            report(where, str(error))
            continue
        wrong = _not_amount(name, amount)
        if wrong is not None:
            report(where, f"{wrong}, but it is {text}")
        else:
            amounts[name] = amount
    return amounts


def _not_amount(name: str, amount: quantity.Amount) -> str | None:
    if amount.nanos < 0:
        return "must not be negative"
    if "/" in name and amount.nanos % quantity.NANOS_PER_UNIT:
        return "must be a whole number"
    if (amount.milli() if name == "cpu" else amount.whole()) > LARGEST:
        most = {"cpu": quantity.of_milli(LARGEST), "memory": "1Pi", "ephemeral-storage": "1Pi"}
        return f"must be at most {most.get(name, LARGEST)}"
    return None


def _not_resource(name: str) -> str | None:
    if name in RESOURCES:
        return None
    if name.startswith("hugepages-"):
        return "huge pages are not supported yet: remove it"
    if "/" in name:
        return not_extended(name)
    meant = nearest(name, RESOURCES)
    choices = (
        f'did you mean "{meant}"?' if meant else f"use one of {', '.join(RESOURCES)}, or example.com/gpu for a device"
    )
    return f"{shorten(name)} is not a resource: {choices}"


def not_extended(name: str) -> str | None:
    """The name of an extended resource: domain/name, of nobody's domain but its maker's."""
    domain, slash, _ = name.partition("/")
    if not slash:
        return f"{shorten(name)} needs a domain in front, such as example.com/{name}"
    if domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
        return f"{shorten(name)} is not a resource: {domain} has none of its own; use your own domain"
    if domain == "shoal.dev" and name not in GPUS:
        meant = nearest(name, GPUS)
        advice = f'did you mean "{meant}"?' if meant else f"use one of {', '.join(GPUS)}, or your own domain"
        return f"{shorten(name)} is not a resource: {advice}"
    return names.not_label_key(name)
