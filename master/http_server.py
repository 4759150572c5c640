"""/metrics, /healthz, /readyz and /sd/nodes over plain HTTP, on the addresses that were given and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from shoal.master.model import View
from shoal.proto.v1 import objects_pb2 as o


def application(registry: CollectorRegistry, ready: Callable[[], str], view: Callable[[], View]) -> web.Application:
    """`ready` says why not, or nothing."""

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

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
