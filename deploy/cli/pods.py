"""Which pod and container a verb means: a pod's name, or one of a workload's pods."""

from __future__ import annotations

import sys

from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.deploy.cli.naming import kind_of
from shoal.deploy.cli.options import Session
from shoal.deploy.cli.printers.status import is_true
from shoal.proto.v1 import objects_pb2 as o


def find_pod(session: Session, text: str) -> o.Pod:
    """The pod called NAME or pod/NAME, or a good one of deployment/NAME or replicaset/NAME. Raises CommandError."""
    kind, slash, name = text.rpartition("/")
    wanted = kind_of(kind) if slash else "Pod"
    if wanted not in ("Pod", "Deployment", "ReplicaSet"):
        raise CommandError(f"a {wanted} has no containers: name a pod, a deployment or a replicaset", USAGE)
    found = session.client.get(wanted, session.namespace, name)
    if isinstance(found, o.Pod):
        return found
    assert isinstance(found, o.Deployment | o.ReplicaSet)
    return _one_of(session, found)


def _one_of(session: Session, workload: o.Deployment | o.ReplicaSet) -> o.Pod:
    from shoal.proto.selector import from_message

    selector = from_message(workload.spec.selector)
    labels = ",".join(f"{key}={value}" for key, value in sorted(workload.spec.selector.matchLabels.items()))
    listed = session.client.list_objects("Pod", session.namespace, labels).objects
    pods = [pod for pod in listed if isinstance(pod, o.Pod) and selector.matches(pod.metadata.labels)]
    if not pods:
        raise CommandError(f"{workload.kind.lower()}/{workload.metadata.name} has no pods")
    pods.sort(key=lambda pod: (not is_true(pod.status.conditions, "Ready"), not pod.spec.nodeName, pod.metadata.name))
    if len(pods) > 1:
        print(f"found {len(pods)} pods, using pod/{pods[0].metadata.name}", file=sys.stderr)
    return pods[0]


def container_of(pod: o.Pod, named: str | None) -> str:
    """The container meant: the one named, or the only one. Raises CommandError."""
    names = [container.name for container in pod.spec.containers]
    if named is None and len(names) == 1:
        return names[0]
    if named is None:
        raise CommandError(f"pod/{pod.metadata.name} has several containers, choose one with -c: {', '.join(names)}")
    if named not in names:
        raise CommandError(f'pod/{pod.metadata.name} has no container "{named}": it has {", ".join(names)}')
    return named
