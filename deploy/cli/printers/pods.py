"""The part of `describe` that is about a pod."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.deploy.cli.printers import status
from shoal.deploy.cli.printers.containers import container_lines, volume_text
from shoal.deploy.cli.printers.lines import Lines, line, rows
from shoal.deploy.cli.printers.placement import placement_lines
from shoal.deploy.cli.printers.reasons import why_not_ready
from shoal.deploy.cli.printers.text import NONE, age
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.walker import format_time


def pod_lines(pod: o.Pod, now: float) -> Lines:
    s = pod.status
    yield line("Node", pod.spec.nodeName + (f"/{s.hostIP}" if s.hostIP else "") if pod.spec.nodeName else NONE)
    if s.nominatedNodeName:
        yield line("Nominated Node", s.nominatedNodeName)
    if s.HasField("startTime"):
        yield line("Start Time", format_time(s.startTime.seconds))
    yield line("Status", status.pod_status(pod))
    if s.reason:
        yield line("Reason", s.reason)
    if s.message:
        yield line("Message", s.message)
    yield line("IP", s.podIP or NONE)
    if not status.ready_state(pod)[0]:
        yield line("Not Ready", why_not_ready(pod))
    yield from spec_lines(pod.spec, s, now)
    yield from conditions(s.conditions, now)
    yield line("QoS Class", s.qosClass or NONE)
    yield line("Restart Policy", pod.spec.restartPolicy)
    yield line("Grace Period", f"{pod.spec.terminationGracePeriodSeconds}s")
    yield from placement_lines(pod.spec)


def spec_lines(spec: o.PodSpec, status: o.PodStatus | None, now: float, indent: int = 0) -> Lines:
    """Containers and volumes, of a pod or of a template."""
    found = (*status.initContainerStatuses, *status.containerStatuses) if status is not None else ()
    known = {one.name: one for one in found}
    for title, every in (("Init Containers", spec.initContainers), ("Containers", spec.containers)):
        if every:
            yield f"{' ' * indent}{title}:"
        for one in every:
            yield from container_lines(one, known.get(one.name), now, indent + 2)
    if spec.volumes:
        yield f"{' ' * indent}Volumes:"
    for volume in spec.volumes:
        yield line(volume.name, volume_text(volume), indent + 2)


def last_death(pod: o.Pod, deaths: Sequence[o.Death], now: float) -> Lines:
    if deaths:
        last = max(deaths, key=lambda death: (death.finishedAt.seconds, death.attempt))
        yield line("Deaths", f"{len(deaths)} kept, see: shoal why pod/{pod.metadata.name}")
        yield line("Last Death", f"container {last.container}, {age(now - last.finishedAt.seconds)} ago: {last.cause}")


def conditions(conditions: Sequence[o.Condition], now: float) -> Lines:
    if not conditions:
        return
    found = [["Type", "Status", "Since", "Reason", "Message"]]
    for c in conditions:
        since = age(now - c.lastTransitionTime.seconds) if c.lastTransitionTime.seconds else NONE
        found.append([c.type, c.status, since, c.reason, c.message])
    yield from rows("Conditions", found)
