"""The rules for a pod's spec, in a Pod and in the templates of workloads."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from shoal.proto import names
from shoal.proto.errors import shorten
from shoal.proto.rules.affinity import affinity, topology_spread
from shoal.proto.rules.base import Report, at_most, in_range, say
from shoal.proto.rules.containers import containers
from shoal.proto.rules.environment import object_name
from shoal.proto.rules.placement import node_labels, toleration
from shoal.proto.rules.resources import devices, overhead
from shoal.proto.rules.scheduling import priority_of_pod
from shoal.proto.rules.security import pod_context
from shoal.proto.rules.volumes import volumes
from shoal.proto.v1 import objects_pb2 as o

MAX_GRACE_SECONDS = 10 * 365 * 24 * 3600
MAX_DEADLINE_SECONDS = 2**31 - 1
MAX_ALIASES = 500
MAX_HOSTNAMES = 100  # of one alias
MAX_TOLERATIONS = 500
MAX_SECRETS = 100
RESTART_POLICIES = ("Always", "OnFailure", "Never")


def pod_spec(spec: o.PodSpec, path: str, report: Report) -> None:
    """Reports all that is wrong with a pod's spec."""
    say(report, f"{path}.restartPolicy", names.not_one_of(spec.restartPolicy, RESTART_POLICIES))
    where = f"{path}.terminationGracePeriodSeconds"
    in_range(spec.terminationGracePeriodSeconds, 0, MAX_GRACE_SECONDS, where, report)
    if spec.HasField("activeDeadlineSeconds"):
        where = f"{path}.activeDeadlineSeconds"
        in_range(spec.activeDeadlineSeconds, 1, MAX_DEADLINE_SECONDS, where, report)
    if spec.nodeName:
        say(report, f"{path}.nodeName", names.not_dns_subdomain(spec.nodeName))
    _placement(spec, path, report)
    at_most(spec.imagePullSecrets, MAX_SECRETS, f"{path}.imagePullSecrets", report)
    for index, secret in enumerate(spec.imagePullSecrets):
        object_name(secret.name, f"{path}.imagePullSecrets[{index}].name", report)
    if spec.shareProcessNamespace and spec.hostPID:
        report(f"{path}.shareProcessNamespace", "excludes hostPID: keep one of them")
    _names_of_hosts(spec, path, report)
    pod_context(spec, f"{path}.securityContext", report)
    siblings = [one.name for one in (*spec.initContainers, *spec.containers) if one.name]
    volumes(spec.volumes, siblings, f"{path}.volumes", report)
    containers(spec, path, report)
    devices(spec, path, report)


def _placement(spec: o.PodSpec, path: str, report: Report) -> None:
    node_labels(spec.nodeSelector, f"{path}.nodeSelector", report)
    at_most(spec.tolerations, MAX_TOLERATIONS, f"{path}.tolerations", report)
    for index, item in enumerate(spec.tolerations):
        toleration(item, f"{path}.tolerations[{index}]", report)
    affinity(spec.affinity, f"{path}.affinity", report)
    topology_spread(spec.topologySpreadConstraints, f"{path}.topologySpreadConstraints", report)
    priority_of_pod(spec, path, report)
    overhead(spec.overhead, f"{path}.overhead", report)


def _names_of_hosts(spec: o.PodSpec, path: str, report: Report) -> None:
    for field in ("hostname", "subdomain"):
        if getattr(spec, field):
            say(report, f"{path}.{field}", names.not_dns_label(getattr(spec, field)))
    at_most(spec.hostAliases, MAX_ALIASES, f"{path}.hostAliases", report)
    for index, alias in enumerate(spec.hostAliases):
        where = f"{path}.hostAliases[{index}]"
        try:
            ip_address(alias.ip)
        except ValueError:
            given = f"{shorten(alias.ip)} is not" if alias.ip else "is missing: give"
            report(f"{where}.ip", f"{given} an address such as 10.1.2.3")
        if not alias.hostnames:
            report(f"{where}.hostnames", "are missing: give the names of that address")
        at_most(alias.hostnames, MAX_HOSTNAMES, f"{where}.hostnames", report)
        for number, name in enumerate(alias.hostnames):
            say(report, f"{where}.hostnames[{number}]", names.not_dns_subdomain(name))


# ---- changes ----
_OWN_RULES = frozenset({"tolerations", "nodeName", "activeDeadlineSeconds", "schedulingGates"})


def pod_spec_update(old: Any, new: Any, report: Report) -> None:
    """A pod is one-shot: tolerations may be added, its deadline brought nearer, its scheduling gates removed; while
    gates hold it back, nodeSelector may be added to, and affinity given to a pod that has none."""
    if not all(item in new.tolerations for item in old.tolerations):
        report(
            "spec.tolerations", "of a pod can be added to, not changed or removed: delete the pod and create it anew"
        )
    _deadline_update(old, new, report)
    gates = [gate for gate in new.schedulingGates if gate not in old.schedulingGates]
    if gates:
        report("spec.schedulingGates", f'can only be removed, but "{gates[0].name}" is new: give it at creation')
    if old.nodeName not in ("", new.nodeName):
        report("spec.nodeName", f'cannot be changed: the pod is bound to "{old.nodeName}"')
    for field in o.PodSpec.DESCRIPTOR.fields:
        name = field.name
        if name in _OWN_RULES or (old.schedulingGates and _tightened(old, new, name)):
            continue
        before, after = getattr(old, name), getattr(new, name)
        present = not field.has_presence or old.HasField(name) == new.HasField(name)
        if before != after or not present:
            advice = (
                "cannot be changed: delete the pod and create it anew, or use a Deployment, which replaces its pods"
            )
            report(f"spec.{name}", advice)


def _tightened(old: o.PodSpec, new: o.PodSpec, name: str) -> bool:
    """Whether the change only narrows down where a gated pod may go."""
    if name == "affinity":
        return not old.HasField("affinity")
    return name == "nodeSelector" and old.nodeSelector.items() <= new.nodeSelector.items()


def _deadline_update(old: o.PodSpec, new: o.PodSpec, report: Report) -> None:
    if not old.HasField("activeDeadlineSeconds"):
        return
    if not new.HasField("activeDeadlineSeconds") or new.activeDeadlineSeconds > old.activeDeadlineSeconds:
        report("spec.activeDeadlineSeconds", f"can only be lowered: it is {old.activeDeadlineSeconds}")
