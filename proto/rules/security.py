"""The rules for security contexts: users, capabilities, seccomp profiles and kernel settings."""

from __future__ import annotations

import re

from shoal.proto import names
from shoal.proto.errors import nearest, shorten
from shoal.proto.rules.base import MAX_ID, Report, at_most, in_range, not_descending, say
from shoal.proto.v1 import objects_pb2 as o

MAX_GROUPS = 1000
MAX_SYSCTLS = 100
MAX_SYSCTL_VALUE = 1024  # characters
SECCOMP_TYPES = ("RuntimeDefault", "Unconfined", "Localhost")
# Those that cannot touch anything outside the pod (Kubernetes' safe set).
SAFE_SYSCTLS = (
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
)
_IPC = re.compile(r"kernel\.(shm[a-z_]*|msg[a-z_]*|sem)|fs\.mqueue\.[a-z_]+")
_SYSCTL = re.compile(r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)+", re.ASCII)
MAX_SYSCTL_NAME = 253


def pod_context(spec: o.PodSpec, path: str, report: Report) -> None:
    """The pod's own security context."""
    context = spec.securityContext
    _ids(context, path, report)
    at_most(context.supplementalGroups, MAX_GROUPS, f"{path}.supplementalGroups", report)
    for index, group in enumerate(context.supplementalGroups):
        in_range(group, 0, MAX_ID, f"{path}.supplementalGroups[{index}]", report)
    in_range(context.fsGroup, 0, MAX_ID, f"{path}.fsGroup", report)
    if context.HasField("fsGroupChangePolicy"):
        valid = ("Always", "OnRootMismatch")
        say(report, f"{path}.fsGroupChangePolicy", names.not_one_of(context.fsGroupChangePolicy, valid))
    if context.HasField("seccompProfile"):
        _seccomp(context.seccompProfile, f"{path}.seccompProfile", report)
    _sysctls(spec, f"{path}.sysctls", report)


def container_context(context: o.SecurityContext, path: str, report: Report) -> None:
    """A container's security context."""
    _ids(context, path, report)
    for which in ("add", "drop"):
        given = getattr(context.capabilities, which)
        at_most(given, len(names.CAPABILITIES) + 1, f"{path}.capabilities.{which}", report)
        for index, capability in enumerate(given):
            say(report, f"{path}.capabilities.{which}[{index}]", names.not_capability(capability))
    if context.HasField("seccompProfile"):
        _seccomp(context.seccompProfile, f"{path}.seccompProfile", report)
    if context.HasField("allowPrivilegeEscalation") and not context.allowPrivilegeEscalation:
        where = f"{path}.allowPrivilegeEscalation"
        if context.privileged:
            report(where, "cannot be false for a privileged container: remove one of the two")
        elif {"SYS_ADMIN", "ALL"} & set(context.capabilities.add):
            report(where, "cannot be false for a container with the capability SYS_ADMIN: remove one of the two")


def _ids(context: o.SecurityContext | o.PodSecurityContext, path: str, report: Report) -> None:
    in_range(context.runAsUser, 0, MAX_ID, f"{path}.runAsUser", report)
    in_range(context.runAsGroup, 0, MAX_ID, f"{path}.runAsGroup", report)


def _seccomp(profile: o.SeccompProfile, path: str, report: Report) -> None:
    say(report, f"{path}.type", names.not_one_of(profile.type, SECCOMP_TYPES))
    if profile.type == "Localhost":
        say(report, f"{path}.localhostProfile", not_descending(profile.localhostProfile))
    elif profile.localhostProfile:
        report(f"{path}.localhostProfile", f'is used with type "Localhost" only: remove it, or change {path}.type')


# ---- kernel settings ----
def sysctl_name(text: str) -> str:
    """The name with dots: net/ipv4/ip_forward is net.ipv4.ip_forward. A slash first makes dots stand for themselves."""
    slash, dot = text.find("/"), text.find(".")
    if slash < 0 or 0 <= dot < slash:
        return text
    return text.translate(str.maketrans("./", "/."))


def _sysctls(spec: o.PodSpec, path: str, report: Report) -> None:
    given = spec.securityContext.sysctls
    at_most(given, MAX_SYSCTLS, path, report)
    seen: set[str] = set()
    for index, sysctl in enumerate(given):
        where, name = f"{path}[{index}]", sysctl_name(sysctl.name)
        wrong = _not_sysctl(sysctl.name, spec)
        say(report, f"{where}.name", wrong)
        if wrong is None and name in seen:
            report(f"{where}.name", f'"{name}" is set twice: keep one')
        seen.add(name)
        if not sysctl.value.strip() or not sysctl.value.isprintable() or len(sysctl.value) > MAX_SYSCTL_VALUE:
            report(f"{where}.value", f"must be one line of 1 to {MAX_SYSCTL_VALUE} characters")


def _not_sysctl(text: str, spec: o.PodSpec) -> str | None:
    name = sysctl_name(text)
    if not text:
        return "is missing: name the kernel setting, such as net.ipv4.ip_local_port_range"
    if len(text) > MAX_SYSCTL_NAME or not _SYSCTL.fullmatch(text):
        return f"{shorten(text)} is not the name of a kernel setting, such as net.ipv4.ip_local_port_range"
    if name.startswith("net."):
        return f"{shorten(name)} is the node's own with hostNetwork: set it on the node" if spec.hostNetwork else None
    if _IPC.fullmatch(name):
        return f"{shorten(name)} is the node's own with hostIPC: set it on the node" if spec.hostIPC else None
    meant = nearest(name, SAFE_SYSCTLS)
    advice = (
        f'did you mean "{meant}"?' if meant else "only net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* are"
    )
    return f"{shorten(text)} does not belong to a pod, but to the whole machine: {advice}"
