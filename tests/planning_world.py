"""A master in memory whose workloads run as a test says: the real controllers make the pods, the test binds them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from shoal.master.controllers import deployment, replicaset
from shoal.master.core import Master
from shoal.master.model import Change, Create, Fault, Key, Modify, Object, key_of
from shoal.master.planning.rehearsal import start
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o

RNG = random.Random(7)
NOW = 1000.0


async def write(master: Master, *changes: Change) -> None:
    for result in await master.store.write(changes):
        assert not isinstance(result, Fault), result


async def put(master: Master, *objects: Object) -> None:
    await write(master, *map(Create, objects))


def sent(*objects: Object) -> list[c.Object]:
    return [c.Object(kind=found.kind, body=found.SerializeToString()) for found in objects]


def wished(name: str = "web", replicas: int = 3, image: str = "web:1", cpu: str = "1") -> o.Deployment:
    """A deployment as a person writes it."""
    made = o.Deployment(apiVersion="apps/v1", kind="Deployment")
    made.metadata.name = name
    made.spec.replicas = replicas
    made.spec.selector.matchLabels["app"] = name
    made.spec.template.metadata.labels["app"] = name
    container = made.spec.template.spec.containers.add(name="c", image=image)
    container.resources.requests["cpu"].text = cpu
    container.resources.requests["memory"].text = "64Mi"
    return made


async def running(master: Master, wish: o.Deployment, nodes: Sequence[str]) -> list[o.Pod]:
    """Applies it and lets its pods run on these nodes, one on each."""
    answer = await master.service.apply(c.WriteRequest(request_id=f"run-{wish.metadata.name}", objects=sent(wish)))
    assert not answer.results[0].HasField("failure"), answer
    view, key = master.store.view, Key("Deployment", "default", wish.metadata.name)
    await write(master, *deployment.reconcile(view, key, NOW, RNG).changes)
    found = view.get(*key)
    assert found is not None
    (rs,) = view.owned(found.metadata.uid)
    await write(master, *replicaset.reconcile(view, key_of(rs), NOW, RNG).changes)
    pods = [pod for pod in view.owned(rs.metadata.uid) if isinstance(pod, o.Pod)]
    for pod, node in zip(pods, nodes, strict=True):
        await run_on(master, pod, node)
    await write(master, *replicaset.reconcile(view, key_of(rs), NOW, RNG).changes)
    await write(master, *deployment.reconcile(view, key, NOW, RNG).changes)
    return [pod for pod in view.owned(rs.metadata.uid) if isinstance(pod, o.Pod)]


async def run_on(master: Master, pod: Object, node: str) -> None:
    """Its agent has started it."""

    def bind(found: Object) -> bool:
        assert isinstance(found, o.Pod)
        found.spec.nodeName = node
        return start(NOW)(found)

    await write(master, Modify(key_of(pod), bind))


def fates(pods: Iterable[c.PlannedPod]) -> Counter[tuple[str, str]]:
    return Counter((pod.fate, pod.node) for pod in pods)


def budget(name: str, allowed: int, healthy: int = 2, desired: int = 2, **labels: str) -> o.PodDisruptionBudget:
    """A budget as its controller has counted it."""
    made = o.PodDisruptionBudget(apiVersion="policy/v1", kind="PodDisruptionBudget")
    made.metadata.name, made.metadata.namespace, made.metadata.uid = name, "default", f"uid-{name}"
    made.metadata.generation = 1
    made.spec.selector.matchLabels.update(labels)
    made.spec.maxUnavailable.number = 1
    made.status.observedGeneration = 1
    made.status.disruptionsAllowed, made.status.currentHealthy, made.status.desiredHealthy = allowed, healthy, desired
    return made
