"""The Pod Security Standards: what the level of a namespace forbids its pods (kubernetes.io/docs/concepts/security).

`baseline`, the level of a namespace without the label, refuses what lets a pod out of its container; `restricted` also
what makes breaking out easier; `privileged` refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from shoal.proto.errors import FieldError
from shoal.proto.rules.base import chosen
from shoal.proto.rules.handlers import HOOKS, PROBES
from shoal.proto.rules.security import SAFE_SYSCTLS, sysctl_name
from shoal.proto.v1 import objects_pb2 as o

LABEL = "pod-security.kubernetes.io/enforce"
PRIVILEGED, BASELINE, RESTRICTED = "privileged", "baseline", "restricted"
LEVELS = (PRIVILEGED, BASELINE, RESTRICTED)
_CAPABILITIES = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
)
BASELINE_CAPABILITIES = frozenset(_CAPABILITIES.split())
RESTRICTED_CAPABILITIES = frozenset({"NET_BIND_SERVICE"})
RESTRICTED_VOLUMES = frozenset(
    {"name", "configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
)
Found: TypeAlias = Iterator[tuple[str, str]]  # path, what is to be done about it
Containers: TypeAlias = Iterable[tuple[str, o.Container]]  # path, container


def level(labels: Mapping[str, str]) -> str:
    """The level that a namespace with these labels enforces; one that nobody knows counts as the strictest."""
    found = labels.get(LABEL, BASELINE)
    return found if found in LEVELS else RESTRICTED


def violations(spec: o.PodSpec, path: str, enforced: str) -> list[FieldError]:
    """Everything in a pod's spec that the level forbids, with the label that would allow it."""
    found: list[FieldError] = []
    if enforced != PRIVILEGED:
        found += _told(_baseline(spec, path), enforced, PRIVILEGED)
    if enforced == RESTRICTED:
        found += _told(_restricted(spec, path), enforced, BASELINE)
    return found


def _told(found: Found, enforced: str, allowing: str) -> Iterator[FieldError]:
    why = f'the namespace\'s pod security level is "{enforced}"; the label {LABEL}={allowing} on it would allow this'
    return (FieldError(path, f"{what} ({why})") for path, what in found)


def _containers(spec: o.PodSpec, path: str) -> list[tuple[str, o.Container]]:
    return [
        (f"{path}.{field}[{index}]", container)
        for field, containers in (("initContainers", spec.initContainers), ("containers", spec.containers))
        for index, container in enumerate(containers)
    ]


# ---- baseline ----
def _baseline(spec: o.PodSpec, path: str) -> Found:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if getattr(spec, name):
            yield f"{path}.{name}", "is not allowed: remove it"
    for index, volume in enumerate(spec.volumes):
        if volume.HasField("hostPath"):
            yield f"{path}.volumes[{index}].hostPath", "is not allowed: use another type of volume"
    context = f"{path}.securityContext"
    if spec.securityContext.seccompProfile.type == "Unconfined":
        yield f"{context}.seccompProfile.type", 'must not be "Unconfined": use RuntimeDefault'
    for index, sysctl in enumerate(spec.securityContext.sysctls):
        if sysctl_name(sysctl.name) not in SAFE_SYSCTLS:
            yield f"{context}.sysctls[{index}].name", f"must be one of {', '.join(SAFE_SYSCTLS)}"
    for where, container in _containers(spec, path):
        yield from _baseline_container(container, where, spec.hostNetwork)


def _baseline_container(container: o.Container, path: str, host_network: bool) -> Found:
    context = container.securityContext
    if context.privileged:
        yield f"{path}.securityContext.privileged", "is not allowed: remove it"
    if context.seccompProfile.type == "Unconfined":
        yield f"{path}.securityContext.seccompProfile.type", 'must not be "Unconfined": use RuntimeDefault'
    for index, name in enumerate(context.capabilities.add):
        if name not in BASELINE_CAPABILITIES:
            yield f"{path}.securityContext.capabilities.add[{index}]", f"{name} is not allowed: remove it"
    for index, port in enumerate(container.ports):
        if port.hostPort and not host_network:  # which says it already
            yield f"{path}.ports[{index}].hostPort", "is not allowed: remove it, and reach the pod at its own address"
    for where, host in _asked_hosts(container, path):
        if host:
            yield f"{where}.host", "is not allowed, as the node asks it: remove it, and the pod itself is asked"


def _asked_hosts(container: o.Container, path: str) -> Found:
    """The hosts that probes and hooks name, with the paths of their handlers."""
    asking = [(f"{path}.{name}", getattr(container, name)) for name in chosen(container, PROBES)]
    if container.HasField("lifecycle"):
        hooks = container.lifecycle
        asking += [(f"{path}.lifecycle.{name}", getattr(hooks, name)) for name in chosen(hooks, HOOKS)]
    for where, handler in asking:
        yield f"{where}.httpGet", handler.httpGet.host
        yield f"{where}.tcpSocket", handler.tcpSocket.host


# ---- restricted ----
def _restricted(spec: o.PodSpec, path: str) -> Found:
    for index, volume in enumerate(spec.volumes):
        for field, _ in volume.ListFields():
            if field.name not in RESTRICTED_VOLUMES and field.name != "hostPath":  # which baseline has told of
                yield f"{path}.volumes[{index}].{field.name}", "is not allowed: use another type of volume"
    containers = _containers(spec, path)
    for where, container in containers:
        yield from _restricted_container(container, f"{where}.securityContext")
    yield from _non_root(spec, containers, path)
    pod = spec.securityContext
    if not pod.seccompProfile.type:
        for where, container in containers:
            if not container.securityContext.seccompProfile.type:
                advice = f"must be RuntimeDefault or Localhost: set it here or at {path}.securityContext"
                yield f"{where}.securityContext.seccompProfile.type", advice


def _restricted_container(container: o.Container, path: str) -> Found:
    context = container.securityContext
    if not context.HasField("allowPrivilegeEscalation") or context.allowPrivilegeEscalation:
        yield f"{path}.allowPrivilegeEscalation", "must be false"
    if "ALL" not in context.capabilities.drop:
        yield f"{path}.capabilities.drop", 'must include "ALL"'
    for index, name in enumerate(context.capabilities.add):
        if name in BASELINE_CAPABILITIES - RESTRICTED_CAPABILITIES:
            yield f"{path}.capabilities.add[{index}]", f"{name} is not allowed: remove it"
    if context.HasField("runAsUser") and context.runAsUser == 0:
        yield f"{path}.runAsUser", "must not be 0: choose another user"


def _non_root(spec: o.PodSpec, containers: Containers, path: str) -> Found:
    pod = spec.securityContext
    if pod.HasField("runAsUser") and pod.runAsUser == 0:
        yield f"{path}.securityContext.runAsUser", "must not be 0: choose another user"
    if pod.HasField("runAsNonRoot") and not pod.runAsNonRoot:
        yield f"{path}.securityContext.runAsNonRoot", "must not be false"
    for where, container in containers:
        own = container.securityContext
        if not (own.runAsNonRoot if own.HasField("runAsNonRoot") else pod.runAsNonRoot):
            advice = f"must be true: set it here or at {path}.securityContext"
            yield f"{where}.securityContext.runAsNonRoot", advice
