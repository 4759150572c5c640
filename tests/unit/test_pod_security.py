"""The Pod Security Standards: each forbidden field alone, under each level; at admission, and where pods are made."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import yaml

from shoal.master.api.service import ClusterService
from shoal.master.controllers import deployment as deployments
from shoal.master.controllers import replicaset
from shoal.master.core import Master
from shoal.master.model import Event, Key, Modify
from shoal.proto import podsecurity
from shoal.proto.defaults import apply_defaults
from shoal.proto.kinds import Object
from shoal.proto.rules.security import SAFE_SYSCTLS
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.walker import from_tree
from tests.control_world import World
from tests.masterkit import memory_master
from tests.unit.test_manifest_pods import put

# What the strictest level allows: every other pod below is this one with one field put in.
STRICT = """
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  initContainers:
  - {name: i, image: i, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}
  containers:
  - name: c
    image: c
    ports: [{containerPort: 80}]
    readinessProbe: {httpGet: {port: 80}}
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
  volumes: [{name: a, emptyDir: {}}, {name: b, configMap: {name: x}}, {name: c, persistentVolumeClaim: {claimName: x}}]
"""
MAIN, INIT = "spec.containers[0]", "spec.initContainers[0]"
MINE, POD = f"{MAIN}.securityContext", "spec.securityContext"
HANDLER = {"port": 80, "host": "10.0.0.1"}
BASELINE: list[tuple[dict[str, Any], str]] = [
    ({"spec.hostNetwork": True}, "spec.hostNetwork"),
    ({"spec.hostPID": True}, "spec.hostPID"),
    ({"spec.hostIPC": True}, "spec.hostIPC"),
    ({"spec.volumes[0]": {"name": "h", "hostPath": {"path": "/"}}}, "spec.volumes[0].hostPath"),
    ({f"{MINE}.privileged": True, f"{MINE}.allowPrivilegeEscalation": None}, f"{MINE}.privileged"),
    ({f"{INIT}.securityContext": {"privileged": True}}, f"{INIT}.securityContext.privileged"),
    ({f"{MINE}.capabilities.add": ["NET_RAW"]}, f"{MINE}.capabilities.add[0]"),
    ({f"{MINE}.capabilities.add": ["CHOWN", "SYS_ADMIN"]}, f"{MINE}.capabilities.add[1]"),
    ({f"{MINE}.capabilities.add": ["ALL"]}, f"{MINE}.capabilities.add[0]"),
    ({f"{POD}.seccompProfile.type": "Unconfined"}, f"{POD}.seccompProfile.type"),
    ({f"{MINE}.seccompProfile": {"type": "Unconfined"}}, f"{MINE}.seccompProfile.type"),
    ({f"{POD}.sysctls": [{"name": "net.core.somaxconn", "value": "1"}]}, f"{POD}.sysctls[0].name"),
    ({f"{POD}.sysctls": [{"name": "kernel/shmmax", "value": "1"}]}, f"{POD}.sysctls[0].name"),
    ({f"{MAIN}.readinessProbe.httpGet.host": "10.0.0.1"}, f"{MAIN}.readinessProbe.httpGet.host"),
    ({f"{MAIN}.livenessProbe": {"tcpSocket": HANDLER}}, f"{MAIN}.livenessProbe.tcpSocket.host"),
    ({f"{MAIN}.lifecycle": {"postStart": {"httpGet": HANDLER}}}, f"{MAIN}.lifecycle.postStart.httpGet.host"),
    ({f"{MAIN}.lifecycle": {"preStop": {"tcpSocket": HANDLER}}}, f"{MAIN}.lifecycle.preStop.tcpSocket.host"),
]
RESTRICTED: list[tuple[dict[str, Any], str]] = [
    ({f"{MINE}.allowPrivilegeEscalation": None}, f"{MINE}.allowPrivilegeEscalation"),
    ({f"{MINE}.allowPrivilegeEscalation": True}, f"{MINE}.allowPrivilegeEscalation"),
    ({f"{INIT}.securityContext.allowPrivilegeEscalation": None}, f"{INIT}.securityContext.allowPrivilegeEscalation"),
    ({f"{MINE}.capabilities": None}, f"{MINE}.capabilities.drop"),
    ({f"{MINE}.capabilities.drop": ["NET_RAW"]}, f"{MINE}.capabilities.drop"),
    ({f"{MINE}.capabilities.add": ["CHOWN"]}, f"{MINE}.capabilities.add[0]"),
    ({f"{MINE}.runAsNonRoot": False}, f"{MINE}.runAsNonRoot"),
    ({f"{POD}.runAsNonRoot": None, f"{MINE}.runAsNonRoot": True}, f"{INIT}.securityContext.runAsNonRoot"),
    ({f"{POD}.runAsNonRoot": False}, f"{POD}.runAsNonRoot"),
    ({f"{POD}.runAsUser": 0}, f"{POD}.runAsUser"),
    ({f"{MINE}.runAsUser": 0}, f"{MINE}.runAsUser"),
    ({f"{POD}.seccompProfile": None}, f"{MINE}.seccompProfile.type"),
]
ALLOWED_BY_BASELINE: list[dict[str, Any]] = [
    {f"{MINE}.capabilities.add": sorted(podsecurity.BASELINE_CAPABILITIES)},
    {f"{POD}.sysctls": [{"name": name, "value": "1"} for name in SAFE_SYSCTLS]},
    {f"{POD}.sysctls": [{"name": "net/ipv4/tcp_syncookies", "value": "1"}]},
    {f"{MINE}.seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}, f"{POD}.seccompProfile": None},
    {"spec.shareProcessNamespace": True},
]


def pod(changes: dict[str, Any]) -> o.Pod:
    tree = yaml.safe_load(STRICT)
    for path, value in changes.items():
        put(tree, path, value)
    made, problems = from_tree(tree, o.Pod)
    assert problems == []
    apply_defaults(made)
    return made


def paths(made: o.Pod, level: str) -> list[str]:
    return [problem.path for problem in podsecurity.violations(made.spec, "spec", level)]


def test_the_strict_pod_is_allowed_everywhere() -> None:
    assert [paths(pod({}), level) for level in podsecurity.LEVELS] == [[], [], []]


@pytest.mark.parametrize(("changes", "path"), BASELINE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_baseline_forbids(changes: dict[str, Any], path: str) -> None:
    made = pod(changes)
    assert paths(made, "privileged") == []
    assert paths(made, "baseline") == [path]
    assert path in paths(made, "restricted")
    [problem] = podsecurity.violations(made.spec, "spec", "baseline")
    assert "pod-security.kubernetes.io/enforce=privileged on it would allow this" in problem.message


@pytest.mark.parametrize(("changes", "path"), RESTRICTED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_only_restricted_forbids(changes: dict[str, Any], path: str) -> None:
    made = pod(changes)
    assert paths(made, "privileged") == paths(made, "baseline") == []
    assert path in paths(made, "restricted")
    problems = podsecurity.violations(made.spec, "spec", "restricted")
    assert all("enforce=baseline on it would allow this" in problem.message for problem in problems)


@pytest.mark.parametrize("changes", ALLOWED_BY_BASELINE, ids=str)
def test_what_baseline_allows(changes: dict[str, Any]) -> None:
    assert paths(pod(changes), "baseline") == []


def test_a_bare_pod_is_baseline_and_not_restricted() -> None:
    bare = o.Pod()
    bare.spec.containers.add(name="c", image="c")
    apply_defaults(bare)
    assert paths(bare, "baseline") == []
    context = "spec.containers[0].securityContext"
    assert paths(bare, "restricted") == [
        f"{context}.allowPrivilegeEscalation",
        f"{context}.capabilities.drop",
        f"{context}.runAsNonRoot",
        f"{context}.seccompProfile.type",
    ]


def test_the_level_of_a_namespace() -> None:
    label = podsecurity.LABEL
    found = [podsecurity.level(labels) for labels in ({}, {label: "privileged"}, {label: "restricted"}, {label: "Lax"})]
    assert found == ["baseline", "privileged", "restricted", "restricted"]


# ---- at admission ----
@pytest_asyncio.fixture
async def master() -> AsyncIterator[Master]:
    async with memory_master(loops=False) as made:
        yield made


def namespace(name: str, level: str = "") -> o.Namespace:
    made = o.Namespace(apiVersion="v1", kind="Namespace")
    made.metadata.name = name
    if level:
        made.metadata.labels[podsecurity.LABEL] = level
    return made


def deployment(template: o.Pod, **labels: str) -> o.Deployment:
    made = o.Deployment(apiVersion="apps/v1", kind="Deployment")
    made.metadata.name, made.metadata.namespace = "d", template.metadata.namespace
    made.metadata.labels.update(labels)
    made.spec.selector.matchLabels["app"] = "d"
    made.spec.template.metadata.labels["app"] = "d"
    made.spec.template.spec.CopyFrom(template.spec)
    return made


async def apply(api: ClusterService, *objects: Object) -> list[list[str]]:
    """The paths of what is wrong with each, by an own request for each."""
    found = []
    for obj in objects:
        body = c.Object(kind=obj.kind, body=obj.SerializeToString())
        apply.count += 1  # type: ignore[attr-defined]
        request = c.WriteRequest(request_id=f"r{apply.count}", objects=[body])  # type: ignore[attr-defined]
        [result] = (await api.apply(request)).results
        assert result.failure.reason in ("", "Invalid"), result
        found.append([field.path for field in result.failure.fields])
    return found


apply.count = 0  # type: ignore[attr-defined]


async def test_pods_and_templates_are_refused_by_the_namespace_level(master: Master) -> None:
    api, host = master.service, pod({"spec.hostPID": True, "spec.hostNetwork": True})
    assert await apply(api, host) == [["spec.hostNetwork", "spec.hostPID"]]
    assert await apply(api, deployment(host)) == [["spec.template.spec.hostNetwork", "spec.template.spec.hostPID"]]
    assert await apply(api, namespace("free", "privileged"), namespace("strict", "restricted")) == [[], []]
    host.metadata.namespace = "free"
    assert await apply(api, host, deployment(host)) == [[], []]
    bare = o.Pod(apiVersion="v1", kind="Pod")
    bare.metadata.name, bare.metadata.namespace = "bare", "strict"
    bare.spec.containers.add(name="c", image="c")
    assert [len(found) for found in await apply(api, bare, deployment(bare))] == [4, 4]
    strict = pod({})
    strict.metadata.namespace = "strict"
    assert await apply(api, strict, deployment(strict)) == [[], []]


async def test_a_namespace_and_its_pods_may_come_together(master: Master) -> None:
    host = pod({"spec.hostPID": True})
    host.metadata.namespace = "n"

    async def together(level: str) -> list[str]:
        objects = [c.Object(kind=one.kind, body=one.SerializeToString()) for one in (host, namespace("n", level))]
        request = c.WriteRequest(request_id=level, objects=objects)
        return [result.failure.reason or result.action for result in (await master.service.apply(request)).results]

    assert await together("baseline") == ["Invalid", "created"]
    assert await together("privileged") == ["created", "configured"]


async def test_a_level_that_nobody_knows_is_refused(master: Master) -> None:
    assert await apply(master.service, namespace("n", "Baseline")) == [
        ['metadata.labels["pod-security.kubernetes.io/enforce"]']
    ]
    assert await apply(master.service, namespace("n", "")) == [[]]
    assert await apply(master.service, namespace("n", "none")) == [
        ['metadata.labels["pod-security.kubernetes.io/enforce"]']
    ]


async def test_a_stricter_level_stops_new_templates_not_other_changes(master: Master) -> None:
    api, host = master.service, pod({"spec.hostPID": True})
    host.metadata.namespace = "n"
    assert await apply(api, namespace("n", "privileged"), host, deployment(host)) == [[], [], []]
    assert await apply(api, namespace("n", "baseline")) == [[]]
    labelled = pod({"spec.hostPID": True})
    labelled.metadata.namespace = "n"
    labelled.metadata.labels["x"] = "y"
    assert await apply(api, labelled, deployment(host, x="y")) == [[], []]
    scale = c.ScaleRequest(request_id="s", key=c.Key(kind="Deployment", namespace="n", name="d"), replicas=7)
    assert (await api.scale(scale)).results[0].failure.reason == ""
    changed = pod({"spec.hostPID": True, "spec.containers[0].image": "other"})
    changed.metadata.namespace = "n"
    assert await apply(api, deployment(changed)) == [["spec.template.spec.hostPID"]]


# ---- where pods are made ----
def replica_set(template: o.Pod) -> o.ReplicaSet:
    made = o.ReplicaSet(apiVersion="apps/v1", kind="ReplicaSet")
    made.metadata.name, made.metadata.namespace, made.metadata.uid = "rs", "n", "u-rs"
    made.spec.replicas = 2
    made.spec.selector.matchLabels["app"] = "d"
    made.spec.template.metadata.labels["app"] = "d"
    made.spec.template.spec.CopyFrom(template.spec)
    return made


def freed(obj: Object) -> bool:
    obj.metadata.labels[podsecurity.LABEL] = "privileged"
    return True


def test_a_replicaset_makes_no_pod_that_its_namespace_forbids_any_more() -> None:
    world = World([namespace("n", "baseline"), replica_set(pod({"spec.hostPID": True}))])
    key, rng = Key("ReplicaSet", "n", "rs"), random.Random(1)
    outcome = replicaset.reconcile(world, key, 5.0, rng)
    world.apply(outcome.changes)
    assert world.pods("n") == []
    assert [(said.type, said.reason) for said in outcome.said] == [("Warning", "FailedCreate")]
    assert "spec.template.spec.hostPID: is not allowed" in outcome.said[0].message
    found = world.get("ReplicaSet", "n", "rs")
    assert isinstance(found, o.ReplicaSet)
    [condition] = found.status.conditions
    assert (condition.type, condition.status, condition.reason) == ("ReplicaFailure", "True", "FailedCreate")
    assert replicaset.reconcile(world, key, 6.0, rng).changes == []  # nothing new to say

    before = world.record(Key("Namespace", "", "n"))
    world.apply([Modify(Key("Namespace", "", "n"), freed)])
    after = world.record(Key("Namespace", "", "n"))
    event = Event(Key("Namespace", "", "n"), 9, before, after)
    assert list(replicaset.namespace_keys(world, event)) == [key]
    assert list(replicaset.namespace_keys(world, Event(event.key, 9, after, after))) == []
    world.apply(replicaset.reconcile(world, key, 7.0, rng).changes)
    assert len(world.pods("n")) == 2
    found = world.get("ReplicaSet", "n", "rs")
    assert isinstance(found, o.ReplicaSet)
    assert list(found.status.conditions) == []


def test_a_deployment_says_that_its_pods_cannot_be_made() -> None:
    rs = replica_set(pod({"spec.hostPID": True}))
    owner = deployment(pod({"spec.hostPID": True}))
    owner.metadata.namespace, owner.metadata.uid = "n", "u-d"
    rs.metadata.labels["app"] = "d"
    rs.metadata.ownerReferences.add(apiVersion="apps/v1", kind="Deployment", name="d", uid="u-d", controller=True)
    world, rng = World([namespace("n"), owner, rs]), random.Random(1)

    def failures() -> list[str]:
        world.apply(replicaset.reconcile(world, Key("ReplicaSet", "n", "rs"), 5.0, rng).changes)
        world.apply(deployments.reconcile(world, Key("Deployment", "n", "d"), 5.0, rng).changes)
        found = world.get("Deployment", "n", "d")
        assert isinstance(found, o.Deployment)
        return [one.message for one in found.status.conditions if one.type == "ReplicaFailure"]

    assert "spec.template.spec.hostPID: is not allowed" in failures()[0]
    world.apply([Modify(Key("Namespace", "", "n"), freed)])
    assert failures() == []
