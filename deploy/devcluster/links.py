"""The development cluster's cables: one bridge on the host, a veth pair to each node. Set-up only, so `ip` will do."""

from __future__ import annotations

import json
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

from shoal.deploy.devcluster.plan import ClusterPlan, NodePlan

NODE_LINK = "uplink0"
PREFIX = 24


def ip(*arguments: str) -> str:
    """Runs ip(8); its words become an OSError."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def routes() -> list[IPv4Network]:
    """Every IPv4 network that is routed here, without the default route."""
    found = []
    for route in json.loads(ip("-j", "-4", "route", "show", "table", "all")):
        destination = route.get("dst", "default")
        if destination != "default":
            found.append(IPv4Network(destination, strict=False))
    return found


def _exists(link: str) -> bool:
    return Path("/sys/class/net", link).exists()


def lay_bridge(plan: ClusterPlan) -> None:
    """The cluster's segment, with the host on it as the gateway. Idempotent."""
    if not _exists(plan.bridge):
        # A bridge without an address of its own takes the lowest of its ports', and changes it when that port goes:
        # every neighbour would talk to a machine that is off.
        ip("link", "add", plan.bridge, "address", plan.bridge_mac, "type", "bridge")
    ip("addr", "replace", f"{plan.gateway}/{PREFIX}", "dev", plan.bridge)
    ip("link", "set", plan.bridge, "up")


def plug_in(plan: ClusterPlan, node: NodePlan, holder: int) -> None:
    """A cable from the bridge into the namespaces of the holder, with the node's address on it."""
    unplug(node)
    lay_bridge(plan)
    ip("link", "add", node.link, "type", "veth", "peer", "name", NODE_LINK, "netns", str(holder))
    ip("link", "set", node.link, "master", plan.bridge, "up")
    inside = ("nsenter", "--target", str(holder), "--net", "ip")
    for arguments in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{node.address}/{PREFIX}", "dev", NODE_LINK),
        ("link", "set", NODE_LINK, "up"),
        ("route", "add", "default", "via", plan.gateway),
    ):
        done = subprocess.run([*inside, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{node.name}: ip {' '.join(arguments)}: {done.stderr.strip()}")


def unplug(node: NodePlan) -> None:
    if _exists(node.link):
        ip("link", "del", node.link)


def remove_all(plan: ClusterPlan) -> None:
    """Takes the cables and the bridge away, there or not."""
    for node in plan.nodes:
        unplug(node)
    if _exists(plan.bridge):
        ip("link", "del", plan.bridge)
