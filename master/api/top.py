"""Top: what pods and nodes use, asked of all their agents at once; who does not answer in time is named."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from google.protobuf.message import DecodeError

from shoal.master.api.faults import Invalid
from shoal.master.api.streams import Nodes, frames_of
from shoal.master.model import Fault, Unavailable, View
from shoal.proto import quantity
from shoal.proto.selector import LabelSelector, SelectorError, parse_selector
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.api")

PATIENCE_SECONDS = 5.0
AT_ONCE = 100  # nodes
MAX_REPORT_BYTES = 4 << 20


class Top:
    """The verb `top`."""

    def __init__(self, view: View, nodes: Nodes) -> None:
        self._view = view
        self._nodes = nodes

    async def top(self, request: c.TopRequest) -> c.TopResponse:
        """Raises Invalid."""
        try:
            selector = parse_selector(request.label_selector)
        except SelectorError as error:
            raise Invalid(str(error)) from None
        pods = {} if request.nodes else self._pods(request.namespace, selector)
        names = self._node_names(selector) if request.nodes else {pod.spec.nodeName for pod in pods.values()}
        reports = await self._ask(sorted(names))
        response = c.TopResponse(missing=sorted(names - reports.keys()))
        if request.nodes:
            response.nodes.extend(self._node_usage(name, report) for name, report in sorted(reports.items()))
        else:
            response.pods.extend(_pod_usages(pods, reports))
        return response

    def _pods(self, namespace: str, selector: LabelSelector) -> dict[str, o.Pod]:
        """Those that may run, by uid."""
        return {
            pod.metadata.uid: pod
            for pod in self._view.all("Pod", namespace or None)
            if isinstance(pod, o.Pod)
            and pod.spec.nodeName
            and pod.status.phase not in ("Succeeded", "Failed")
            and selector.matches(pod.metadata.labels)
        }

    def _node_names(self, selector: LabelSelector) -> set[str]:
        return {node.metadata.name for node in self._view.all("Node") if selector.matches(node.metadata.labels)}

    async def _ask(self, names: Sequence[str]) -> dict[str, s.UsageReport]:
        """The reports of those that answer in time."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask(node: str) -> s.UsageReport | None:
            async with gate:
                try:
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        return await self._report(node)
                except (Fault, TimeoutError, DecodeError) as fault:
                    log.info("node %s does not say what it uses: %s", node, fault or "it is too slow")
                    return None

        answers = await asyncio.gather(*(ask(name) for name in names))
        return {name: report for name, report in zip(names, answers, strict=True) if report is not None}

    async def _report(self, node: str) -> s.UsageReport:
        data = b""
        tunnel = await self._nodes.open(node, s.Open(usage=s.UsageOpen()))
        try:
            async for frame in frames_of(tunnel, node):
                data += frame.data
                if len(data) > MAX_REPORT_BYTES or frame.end.error:
                    raise Unavailable(frame.end.error or f"its report is larger than {MAX_REPORT_BYTES} bytes")
        finally:
            tunnel.close()
        return s.UsageReport.FromString(data)

    def _node_usage(self, name: str, report: s.UsageReport) -> c.NodeUsage:
        node = self._view.get("Node", "", name)
        allocatable = dict(node.status.allocatable) if isinstance(node, o.Node) else {}
        return c.NodeUsage(
            name=name,
            cpu_cores=report.node_cpu_cores,
            memory_bytes=report.node_memory_bytes,
            cpu_allocatable=_amount(allocatable.get("cpu"), quantity.milli) / 1000,
            memory_allocatable=_amount(allocatable.get("memory"), quantity.whole),
        )


def _amount(said: o.Quantity | None, read: Callable[[str], int]) -> int:
    try:
        return read(said.text) if said is not None else 0
    except quantity.QuantityError:
        return 0


def _pod_usages(pods: Mapping[str, o.Pod], reports: Mapping[str, s.UsageReport]) -> Iterator[c.PodUsage]:
    """A node speaks for its own pods only."""
    found: dict[str, list[s.ContainerUsage]] = {}
    for node, report in reports.items():
        for usage in report.containers:
            if usage.pod_uid in pods and pods[usage.pod_uid].spec.nodeName == node:
                found.setdefault(usage.pod_uid, []).append(usage)
    for uid, containers in found.items():
        meta = pods[uid].metadata
        yield c.PodUsage(namespace=meta.namespace, name=meta.name, containers=containers)
