"""From a pod and what it refers to: the environment of its containers. Pure.

The order is the kubelet's (makeEnvironmentVariables): envFrom first, then env in the order written; later wins, and
`$(NAME)` in a value refers to what came before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.agent.objects import Objects
from shoal.agent.pods import downward
from shoal.agent.pods.spec import MAX_WORDS, NodeFacts, TooLong, expand
from shoal.agent.volumes.port import Missing
from shoal.proto.references import CONFIG_MAP, SECRET
from shoal.proto.rules.resources import GPU_DEVICES, GPUS
from shoal.proto.v1 import objects_pb2 as o

MAX_KEYS_SHOWN = 20  # of an object, when one is looked for in vain
VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
HELD_BACK = "CreateContainerConfigError"


class Unresolved(Exception):
    """The pod refers to something that is not there, or that cannot be used: it waits until it is."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(f"{missing.what} ({missing.field})")
        self.missing = missing

    @property
    def reason(self) -> str:
        return self.missing.reason

    @property
    def message(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class Found:
    """A ConfigMap's or Secret's content: its name for people, all its keys, and whether it was there at all."""

    title: str
    data: Mapping[str, bytes]
    text: frozenset[str] = frozenset()  # the keys that a variable can have: a ConfigMap's binaryData is for files

    def keys(self) -> str:
        shown = sorted(self.data)[:MAX_KEYS_SHOWN]
        more = len(self.data) - len(shown)
        return (", ".join(shown) or "no keys") + (f" and {more} more" if more else "")


def environment(pod: o.Pod, container: o.Container, objects: Objects, node: NodeFacts, pod_ip: str) -> dict[str, str]:
    """The container's own variables. Raises Unresolved."""
    where = container_path(pod, container)
    env: dict[str, str] = {}
    total = 0
    for number, source in enumerate(container.envFrom):
        field = f"{where}.envFrom[{number}]"
        total = _put(env, _env_from(pod, source, objects, field), total, field)
    for number, variable in enumerate(container.env):
        field = f"{where}.env[{number}]"
        value: str | None
        if variable.HasField("valueFrom"):
            value = _value_from(pod, container, variable.valueFrom, objects, node, pod_ip, f"{field}.valueFrom")
        else:
            value = _expanded(variable.value, env, f"{field}.value")
        if value is not None:
            total = _put(env, {variable.name: value}, total, field)
    return _gpus(pod, container) | env


def _gpus(pod: o.Pod, container: o.Container) -> dict[str, str]:
    """Which devices the scheduler chose, as the NVIDIA container toolkit wants to hear it; the pod's own word wins."""
    devices = pod.metadata.annotations.get(GPU_DEVICES, "")
    asked = any(name in container.resources.limits or name in container.resources.requests for name in GPUS)
    return {VISIBLE_DEVICES: devices} if devices and asked else {}


def _put(env: dict[str, str], more: Mapping[str, str], total: int, field: str) -> int:
    """Adds variables to `total` characters of others, and gives the new total. Raises Unresolved."""
    total += sum(len(name) + len(value) for name, value in more.items())
    if total > MAX_WORDS:
        raise Unresolved(Missing(f"the variables have over {MAX_WORDS} characters together: mount volumes", field))
    env.update(more)
    return total


def _expanded(text: str, env: Mapping[str, str], field: str) -> str:
    try:
        return expand(text, env)
    except TooLong as fault:
        raise Unresolved(Missing(str(fault), field)) from fault


def container_path(pod: o.Pod, container: o.Container) -> str:
    """Where the container stands in the manifest: `spec.initContainers[1]`."""
    for name, group in (("containers", pod.spec.containers), ("initContainers", pod.spec.initContainers)):
        for number, one in enumerate(group):
            if one.name == container.name:
                return f"spec.{name}[{number}]"
    return f"spec.containers[?{container.name}]"


def find(
    objects: Objects, kind: str, namespace: str, name: str, field: str, *, optional: bool, reason: str = HELD_BACK
) -> Found | None:
    """A ConfigMap or Secret; None when it is optional and not there, for sure. Raises Unresolved."""
    title = f"{kind} {namespace}/{name}"
    if kind == CONFIG_MAP:
        config = objects.config_map(namespace, name)
        if config is not None:
            texts = {key: value.encode() for key, value in config.data.items()}
            return Found(title, {**texts, **config.binaryData}, frozenset(texts))
    else:
        secret = objects.secret(namespace, name)
        if secret is not None:
            return Found(title, dict(secret.data), frozenset(secret.data))
    if optional and objects.settled:
        return None
    raise Unresolved(Missing(f"{title} {absent(objects)}", field, reason))


def absent(objects: Objects) -> str:
    """What is said of an object that is not here."""
    return "does not exist" if objects.settled else "is not known on this node yet: it waits for the master"


def no_key(found: Found, key: str, field: str, reason: str = HELD_BACK) -> Unresolved:
    return Unresolved(Missing(f'key "{key}" is not in {found.title} (it has: {found.keys()})', field, reason))


def _env_from(pod: o.Pod, source: o.EnvFromSource, objects: Objects, field: str) -> dict[str, str]:
    """Every key that can be a variable's name; others are skipped, as the kubelet does."""
    is_secret = source.HasField("secretRef")
    reference = source.secretRef if is_secret else source.configMapRef
    kind, path = (SECRET, f"{field}.secretRef") if is_secret else (CONFIG_MAP, f"{field}.configMapRef")
    found = find(objects, kind, pod.metadata.namespace, reference.name, path, optional=reference.optional)
    if found is None:
        return {}
    names = {f"{source.prefix}{key}": key for key in sorted(found.text)}
    return {name: _text(found, key, path) for name, key in names.items() if is_variable_name(name)}


def is_variable_name(name: str) -> bool:
    """Printable ASCII without "=" (Kubernetes' relaxed rule)."""
    return bool(name) and all(" " <= letter <= "~" and letter != "=" for letter in name)


def _text(found: Found, key: str, field: str) -> str:
    """Bytes that are no UTF-8 reach the process as they are."""
    value = found.data[key]
    if b"\0" in value:
        what = (
            f'the value of key "{key}" of {found.title} holds a NUL byte, which no variable can: mount it as a volume'
        )
        raise Unresolved(Missing(what, field))
    return value.decode("utf-8", "surrogateescape")


def _value_from(
    pod: o.Pod,
    container: o.Container,
    source: o.EnvVarSource,
    objects: Objects,
    node: NodeFacts,
    pod_ip: str,
    field: str,
) -> str | None:
    """None: an optional one that is not there leaves its variable unset."""
    which = next((name.name for name, _ in source.ListFields()), "")
    path = f"{field}.{which}"
    if which == "configMapKeyRef":
        return _key(pod, CONFIG_MAP, source.configMapKeyRef, objects, path)
    if which == "secretKeyRef":
        return _key(pod, SECRET, source.secretKeyRef, objects, path)
    try:
        if which == "fieldRef":
            return downward.field(pod, source.fieldRef.fieldPath, node, pod_ip)
        return downward.resource(pod, source.resourceFieldRef, node, container)
    except downward.NoSuchField as fault:
        raise Unresolved(Missing(str(fault), path)) from fault


def _key(pod: o.Pod, kind: str, selector: o.KeySelector, objects: Objects, field: str) -> str | None:
    found = find(objects, kind, pod.metadata.namespace, selector.name, field, optional=selector.optional)
    if found is not None and selector.key in found.text:
        return _text(found, selector.key, field)
    if found is None or selector.optional:
        return None
    raise no_key(found, selector.key, field)
