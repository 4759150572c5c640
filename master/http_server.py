"""/metrics, /healthz, /readyz and /sd/nodes over plain HTTP, on the addresses that were given and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from shoal.master.model import View
from shoal.proto.v1 import objects_pb2 as o


class Collected(CollectorRegistry):
    """What was collected on the loop, as the view demands, to be spelled out elsewhere: for many pods that takes longer
    than the other loops may wait."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def application(registry: CollectorRegistry, ready: Callable[[], str], view: Callable[[], View]) -> web.Application:
    """`ready` says why not, or nothing."""

    scraping = asyncio.Lock()  # two scrapers at once would double the work and its memory

    async def metrics(_request: web.Request) -> web.Response:
        async with scraping:
            body = await asyncio.to_thread(generate_latest, Collected(registry.collect()))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        why = ready()
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    async def nodes(_request: web.Request) -> web.Response:
        found = (node for node in view().all("Node") if isinstance(node, o.Node))
        return web.json_response(targets(found))

    made = web.Application()
    made.add_routes(
        [
            web.get("/metrics", metrics),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/sd/nodes", nodes),
        ]
    )
    return made


def targets(nodes: Iterable[o.Node]) -> list[dict[str, object]]:
    """Prometheus' http_sd format: where each agent serves its metrics."""
    found: list[dict[str, object]] = []
    for node in sorted(nodes, key=lambda n: n.metadata.name):
        address = next((a.address for a in node.status.addresses if a.type == "InternalIP"), "")
        if address and node.status.metricsPort:
            target = f"{address}:{node.status.metricsPort}"
            found.append({"targets": [target], "labels": {"node": node.metadata.name}})
    return found


async def serve(application_: web.Application, addresses: Sequence[tuple[str, int]]) -> web.AppRunner:
    """Listens; `cleanup()` of what it gives ends it. Raises OSError."""
    runner = web.AppRunner(application_, access_log=None)
    await runner.setup()
    try:
        for host, port in addresses:
            await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
