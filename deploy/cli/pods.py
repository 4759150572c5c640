"""Which pod and container a verb means: a pod's name, or one of a workload's pods."""

from __future__ import annotations

import sys

from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.deploy.cli.naming import kind_of
from shoal.deploy.cli.options import Session
from shoal.deploy.cli.printers.status import is_true
from shoal.proto.v1 import objects_pb2 as o

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"  # an annotation of pods


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


def container_of(pod: o.Pod, named: str | None, *, quiet: bool = False) -> str:
    """The container meant: the one named, the only one, the one of the annotation, or the first, which is said unless
    `quiet`. Raises CommandError."""
    names, every = [container.name for container in pod.spec.containers], all_containers(pod)
    if named is not None:
        if named not in every:
            raise CommandError(f'pod/{pod.metadata.name} has no container "{named}": it has {", ".join(every)}')
        return named
    annotated = pod.metadata.annotations.get(DEFAULT_CONTAINER, "")
    if annotated in names:
        return annotated
    if len(every) > 1 and not quiet:
        init = [f"{container.name} (init)" for container in pod.spec.initContainers]
        print(f'Defaulted container "{names[0]}" out of: {", ".join([*names, *init])}', file=sys.stderr)
    return names[0]


def all_containers(pod: o.Pod) -> list[str]:
    """The names of all containers, the init ones first."""
    return [container.name for container in (*pod.spec.initContainers, *pod.spec.containers)]


def spec_of(pod: o.Pod, name: str) -> o.Container:
    return next(each for each in (*pod.spec.initContainers, *pod.spec.containers) if each.name == name)
