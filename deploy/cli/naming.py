"""What people call things: kubectl's plural and short names of the kinds, and `kind/name` arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.proto import known
from shoal.proto.errors import nearest

PLURALS: Mapping[str, str] = {
    "Pod": "pods",
    "Deployment": "deployments",
    "ReplicaSet": "replicasets",
    "Node": "nodes",
    "Namespace": "namespaces",
    "ConfigMap": "configmaps",
    "Secret": "secrets",
    "Event": "events",
    "PersistentVolume": "persistentvolumes",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "StorageClass": "storageclasses",
    "PriorityClass": "priorityclasses",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PodGroup": "podgroups",
    "Death": "deaths",
}
SHORT: Mapping[str, str] = {
    "po": "Pod",
    "deploy": "Deployment",
    "rs": "ReplicaSet",
    "no": "Node",
    "ns": "Namespace",
    "cm": "ConfigMap",
    "ev": "Event",
    "pv": "PersistentVolume",
    "pvc": "PersistentVolumeClaim",
    "sc": "StorageClass",
    "pc": "PriorityClass",
    "pdb": "PodDisruptionBudget",
    "pg": "PodGroup",
}
# The same for kinds that are not supported, so that they are refused by their name.
_OTHER_SHORT: Mapping[str, str] = {
    "svc": "Service",
    "ds": "DaemonSet",
    "sts": "StatefulSet",
    "cj": "CronJob",
    "ing": "Ingress",
    "sa": "ServiceAccount",
    "hpa": "HorizontalPodAutoscaler",
    "netpol": "NetworkPolicy",
}
ALL = ("Pod", "Deployment", "ReplicaSet")  # what `get all` means
GROUPS = ("apps", "v1")  # deployments.apps, deployments.v1.apps
_NAMES: dict[str, str] = (
    {kind.lower(): kind for kind in PLURALS} | {plural: kind for kind, plural in PLURALS.items()} | dict(SHORT)
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Objects of one kind: those named, or all when `names` is empty."""

    kind: str
    names: tuple[str, ...] = ()


def kind_of(word: str) -> str:
    """The kind that a word stands for, in any case. Raises CommandError (usage)."""
    base = word.lower().split(".")[0]
    if base in _NAMES:
        return _NAMES[base]
    others = {kind.lower(): kind for kind in known.OTHER_KINDS} | dict(_OTHER_SHORT)
    singular = base[:-1] if base.endswith("s") else base
    for candidate in (base, singular):
        if candidate in others:
            raise CommandError(f"{others[candidate]} is not supported: there are {', '.join(PLURALS.values())}", USAGE)
    meant = nearest(base, _NAMES)
    advice = f'did you mean "{meant}"?' if meant else f"there are {', '.join(PLURALS.values())}"
    raise CommandError(f'no kind is called "{word}": {advice}', USAGE)


def kinds_of(word: str) -> list[str]:
    """The kinds of a comma list (`pods,deploy`), `all` included."""
    kinds: list[str] = []
    for part in word.split(","):
        for kind in ALL if part.lower() == "all" else (kind_of(part),):
            if kind not in kinds:
                kinds.append(kind)
    return kinds


def wanted(arguments: Sequence[str]) -> list[Wanted]:
    """kubectl's forms: KIND[,KIND] | KIND NAME... | KIND/NAME... Raises CommandError (usage)."""
    if not arguments:
        raise CommandError(f"say what: one of {', '.join(PLURALS.values())}", USAGE)
    if "/" not in arguments[0] and any("/" in argument for argument in arguments[1:]):
        wrong = next(argument for argument in arguments[1:] if "/" in argument)
        raise CommandError(f'"{wrong}" is not a name: after a kind come names without "/"', USAGE)
    if any("/" in argument for argument in arguments):
        return [_slashed(argument) for argument in arguments]
    kinds, names = kinds_of(arguments[0]), tuple(dict.fromkeys(arguments[1:]))
    return [Wanted(kind, names) for kind in kinds]


def _slashed(argument: str) -> Wanted:
    kind, slash, name = argument.partition("/")
    if not slash or not name or "/" in name:
        raise CommandError(f'"{argument}": write each as KIND/NAME, or one kind and then names', USAGE)
    return Wanted(kind_of(kind), (name,))


def shown(kind: str, name: str) -> str:
    """How an object is called in the command's output: pod/web."""
    return f"{kind.lower()}/{name}"


def namespaced(kind: str) -> bool:
    return kind not in known.CLUSTER_SCOPED
