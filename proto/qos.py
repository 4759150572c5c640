"""The quality-of-service class of a pod (Kubernetes' ComputePodQOS), as the API, the agent and eviction see it."""

from __future__ import annotations

from shoal.proto.quantity import QuantityError, parse
from shoal.proto.v1 import objects_pb2 as o

GUARANTEED, BURSTABLE, BEST_EFFORT = "Guaranteed", "Burstable", "BestEffort"
COUNTED = ("cpu", "memory")


def qos_class(spec: o.PodSpec) -> str:
    """Guaranteed when every container, init containers too, has cpu and memory limits that its requests equal;
    BestEffort when none asks for anything. A request that is missing is its limit."""
    containers = (*spec.initContainers, *spec.containers)
    pairs = [_pair(container.resources, name) for container in containers for name in COUNTED]
    if not any(request or limit for request, limit in pairs):
        return BEST_EFFORT
    return GUARANTEED if all(limit and request == limit for request, limit in pairs) else BURSTABLE


def _pair(resources: o.ResourceRequirements, name: str) -> tuple[int, int]:
    """(request, limit) in billionths; 0 where there is none, or one that cannot be read."""
    limit = _nanos(resources.limits[name].text) if name in resources.limits else 0
    return _nanos(resources.requests[name].text) if name in resources.requests else limit, limit


def _nanos(text: str) -> int:
    try:
        return parse(text).nanos
    except QuantityError:
        return 0
