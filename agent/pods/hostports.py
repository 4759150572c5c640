"""The ports of the node that a pod's spec asks for. Pure."""

from __future__ import annotations

from shoal.agent.network.port import HostPort
from shoal.proto.v1 import objects_pb2 as o

ANY = "0.0.0.0"  # noqa: S104 -- compared with, never bound to


def host_ports(spec: o.PodSpec) -> tuple[HostPort, ...]:
    """Those of the containers that go on running, each once; a pod on the node's network has them anyway."""
    if spec.hostNetwork:
        return ()
    sidecars = (one for one in spec.initContainers if one.restartPolicy == "Always")
    found = (
        HostPort((port.protocol or "TCP").lower(), port.hostIP if port.hostIP != ANY else "", port.hostPort, target)
        for container in (*sidecars, *spec.containers)
        for port in container.ports
        if (target := port.containerPort) and port.hostPort
    )
    return tuple(dict.fromkeys(found))
