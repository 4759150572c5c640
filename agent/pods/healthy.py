"""What a container ran with when it was last healthy, and what has changed since. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import DecodeError

from shoal.agent.images.port import Image
from shoal.agent.objects import Objects
from shoal.agent.pods.facts import ENDED, INIT, ContainerFacts, Run, Seen
from shoal.agent.pods.pod import PodFacts
from shoal.agent.pods.spec import NodeFacts
from shoal.proto.causes import shortened
from shoal.proto.differences import different
from shoal.proto.references import CONFIG_MAP, SECRET, Reference
from shoal.proto.v1 import objects_pb2 as o

PROVEN_S = 600.0  # ready for so long a run counts as healthy, whatever ended it (the crash back-off's reset)
UNPROBED_S = 10.0  # without probes, running for so long is being ready
TEMPLATE_HASH = "pod-template-hash"
ELSEWHERE = frozenset(  # of a pod's spec: told elsewhere, or of no concern to what runs in it
    {"containers", "initContainers", "nodeName", "nodeSelector", "affinity", "tolerations", "priority", "schedulerName"}
    & set(o.PodSpec.DESCRIPTOR.fields_by_name)
)
MOST_CHANGES, MOST_CHARS = 20, 200


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Everything that a run depends on and that the node knows. `config`: object -> key -> digest."""

    image: str
    image_id: str
    spec: bytes = field(repr=False)  # an o.PodSpec with this container alone
    config: Mapping[str, Mapping[str, str]] = field(repr=False)
    salt: str  # names the key of the Secrets' digests: with another one they cannot be compared
    agent: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """A container of a workload when it was healthy. `weak`: it was ready, but not for long, and then it died."""

    at: float
    weak: bool
    what: Circumstances
    since: float = 0.0

    @property
    def proven(self) -> bool:
        return self.at - self.since >= PROVEN_S


class Baselines(Protocol):
    """What this node knows by the workload's key."""

    def kept(self, key: str) -> Baseline | None:
        """Of runs that have ended."""
        ...

    def find(self, key: str) -> Baseline | None:
        """The best of those, and of what runs now."""
        ...


class NoBaselines:
    def kept(self, key: str) -> Baseline | None:
        return None

    def find(self, key: str) -> Baseline | None:
        return None


def workload_key(pod: o.Pod, container: str) -> str:
    """The same for all pods of a workload, also when a rollout has replaced its ReplicaSet."""
    owner = next((one for one in pod.metadata.ownerReferences if one.controller), None)
    kind, name = (owner.kind, owner.name) if owner is not None else ("Pod", pod.metadata.name)
    own_hash = pod.metadata.labels.get(TEMPLATE_HASH, "")
    if kind == "ReplicaSet" and own_hash and name.endswith(f"-{own_hash}"):
        kind, name = "Deployment", name.removesuffix(f"-{own_hash}")
    return f"{pod.metadata.namespace}/{kind}/{name}/{container}"


def better(old: Baseline | None, new: Baseline) -> Baseline:
    """What to remember. Short runs that died do not replace an earlier one: the container may be in a crash loop."""
    if old is None:
        return new
    if new.weak and (not old.weak or old.what != new.what):
        return old
    return old if old.at > new.at and not old.weak else new


def best(kept: Baseline | None, living: Iterable[Baseline]) -> Baseline | None:
    """What to compare a death with: what has run well for long, then what has ended well, then what runs at all."""
    running = sorted(living, key=lambda one: one.since)
    for one in running:
        if one.proven:
            return one
    if kept is not None and not kept.weak:
        return kept
    steady = [one for one in running if not one.weak]
    return next(iter([*steady, *([kept] if kept is not None else []), *running]), None)


# ---- when a run was healthy ----
def healthy_until(facts: PodFacts, container: ContainerFacts, run: Run, now: float) -> float:
    """When it was last ready; 0: never."""
    end = run.finished_at if run.state == ENDED else now
    if not run.started_at or run.misconfigured:
        return 0.0
    if run.state == ENDED and run.code == 0 and not run.note.reason:
        return end
    if container.kind == INIT:
        return 0.0
    if run.note.end_since:
        end = min(end, run.note.end_since)
    if container.spec.HasField("readinessProbe"):
        return end if run.note.ready else run.note.changed
    if container.spec.HasField("startupProbe"):
        return end if run.note.started else 0.0
    return end if end - run.started_at >= UNPROBED_S else 0.0


def baseline_of(facts: PodFacts, container: ContainerFacts, run: Run, now: float, dead: bool) -> Baseline | None:
    """What the run proves; `dead`: it ended in failure. None: it was never healthy."""
    until = healthy_until(facts, container, run, now)
    if not until:
        return None
    since = max(run.started_at, run.note.changed if run.note.ready else 0.0)
    shaky = run.state != ENDED and run.attempt > 0  # it may be in a crash loop
    weak = until - since < PROVEN_S and (dead or shaky)
    return Baseline(until, weak, began_with(facts, container, run), since)


# ---- what it ran with ----
def began_with(facts: PodFacts, container: ContainerFacts, run: Run) -> Circumstances:
    """At its start; after a restart of the agent as far as that is still known."""
    return circumstances(run.seen or seen(facts, container), container.spec.name, facts.node)


def seen(facts: PodFacts, container: ContainerFacts) -> Seen:
    """What a run that begins now begins with."""
    namespace = facts.pod.metadata.namespace
    used = {Reference(kind, namespace, name) for kind, name in configured(facts.pod, container.spec)}
    return Seen(facts.pod, container.spec, container.image, {ref: look_up(facts.objects, ref) for ref in used})


def look_up(objects: Objects, ref: Reference) -> o.ConfigMap | o.Secret | None:
    if ref.kind == CONFIG_MAP:
        return objects.config_map(ref.namespace, ref.name)
    return objects.secret(ref.namespace, ref.name)


def died_with(facts: PodFacts, container: ContainerFacts, run: Run) -> Circumstances:
    """At its end: files of volumes follow their objects while it runs, variables do not."""
    began = run.seen or seen(facts, container)
    namespace = facts.pod.metadata.namespace
    mounted = {Reference(kind, namespace, name) for kind, name in _mounted(facts.pod, container.spec)}
    objects = {**began.objects, **{ref: look_up(facts.objects, ref) for ref in mounted}}
    return circumstances(Seen(began.pod, began.container, began.image, objects), container.spec.name, facts.node)


def circumstances(seen: Seen, name: str, node: NodeFacts) -> Circumstances:
    spec = o.PodSpec()
    spec.CopyFrom(seen.pod.spec)
    for part in ELSEWHERE:
        spec.ClearField(part)  # type: ignore[arg-type]
    spec.containers.add().CopyFrom(seen.container)
    spec.containers[0].ClearField("image")
    image: Image | None = seen.image
    found = {f"{ref.kind} {ref.name}": _digests(obj, node.salt) for ref, obj in sorted(seen.objects.items()) if obj}
    return Circumstances(
        seen.container.image,
        image.id if image else "",
        spec.SerializeToString(deterministic=True),
        found,
        hashlib.sha256(node.salt).hexdigest()[:16],
        node.version,
        node.boot_id,
    )


def _digests(obj: o.ConfigMap | o.Secret, salt: bytes) -> dict[str, str]:
    """Of a Secret keyed with what only this agent's memory holds: on the disk they say nothing of the values."""
    if isinstance(obj, o.Secret):
        return {key: hmac.new(salt, value, "sha256").hexdigest()[:32] for key, value in obj.data.items()}
    data = {**{key: value.encode() for key, value in obj.data.items()}, **obj.binaryData}
    return {key: hashlib.sha256(value).hexdigest()[:32] for key, value in data.items()}


def configured(pod: o.Pod, container: o.Container) -> Iterator[tuple[str, str]]:
    """(kind, name) of the ConfigMaps and Secrets that this container uses."""
    for source in container.envFrom:
        yield from _named((CONFIG_MAP, source.configMapRef.name), (SECRET, source.secretRef.name))
    for variable in container.env:
        value = variable.valueFrom
        yield from _named((CONFIG_MAP, value.configMapKeyRef.name), (SECRET, value.secretKeyRef.name))
    yield from _mounted(pod, container)


def _mounted(pod: o.Pod, container: o.Container) -> Iterator[tuple[str, str]]:
    mounts = {mount.name for mount in container.volumeMounts}
    for volume in pod.spec.volumes:
        if volume.name not in mounts:
            continue
        yield from _named((CONFIG_MAP, volume.configMap.name), (SECRET, volume.secret.secretName))
        for part in volume.projected.sources:
            yield from _named((CONFIG_MAP, part.configMap.name), (SECRET, part.secret.name))


def _named(*pairs: tuple[str, str]) -> Iterable[tuple[str, str]]:
    return [pair for pair in pairs if pair[1]]


# ---- what has changed ----
def changes(before: Circumstances, after: Circumstances) -> list[str]:
    """One line each, without the values of variables or configuration; the likeliest culprits first."""
    found = [*_image(before, after), *_config(before, after), *_spec(before, after), *_node(before, after)]
    lines = [shortened(line, MOST_CHARS) for line in found[:MOST_CHANGES]]
    return lines + ([f"and {len(found) - MOST_CHANGES} more"] if len(found) > MOST_CHANGES else [])


def _image(before: Circumstances, after: Circumstances) -> Iterator[str]:
    if before.image != after.image:
        yield f"image: {before.image} -> {after.image}"
    elif before.image_id != after.image_id and before.image_id and after.image_id:
        yield f"image: {after.image} is another one: {_short(before.image_id)} -> {_short(after.image_id)}"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _config(before: Circumstances, after: Circumstances) -> Iterator[str]:
    for title in sorted({*before.config, *after.config}):
        old, new = before.config.get(title), after.config.get(title)
        if old is None or new is None:
            yield f"{title}: {'used now, not before' if old is None else 'not there, or not used, any more'}"
            continue
        comparable = before.salt == after.salt or not title.startswith(SECRET)
        for key in sorted({*old, *new}):
            if key not in old or key not in new:
                yield f"{title}: key {key} {'added' if key in new else 'removed'}"
            elif comparable and old[key] != new[key]:
                yield f"{title}: key {key} changed"


def _spec(before: Circumstances, after: Circumstances) -> Iterator[str]:
    if before.spec == after.spec:
        return
    old, new = o.PodSpec.FromString(before.spec), o.PodSpec.FromString(after.spec)
    for path in different(old.containers[0], new.containers[0]):
        yield f"manifest: {path}"
    del old.containers[:], new.containers[:]
    for path in different(old, new, "spec"):
        yield f"manifest: {path}"


def _node(before: Circumstances, after: Circumstances) -> Iterator[str]:
    if before.boot_id != after.boot_id and before.boot_id and after.boot_id:
        yield "node: it was booted again"
    if before.agent != after.agent:
        yield f"node: agent {before.agent} -> {after.agent}"


# ---- on the disk ----
def to_bytes(key: str, kept: Baseline) -> bytes:
    what = kept.what
    return json.dumps(
        {
            "key": key,
            "at": kept.at,
            "since": kept.since,
            "weak": kept.weak,
            "image": what.image,
            "image_id": what.image_id,
            "spec": base64.b64encode(what.spec).decode(),
            "config": {title: dict(keys) for title, keys in what.config.items()},
            "salt": what.salt,
            "agent": what.agent,
            "boot_id": what.boot_id,
        }
    ).encode()


def from_bytes(body: bytes) -> tuple[str, Baseline]:
    """Raises ValueError when the bytes are not a baseline."""
    try:
        raw = json.loads(body)
        spec = base64.b64decode(raw["spec"])
        words = (raw["image"], raw["image_id"], spec, raw["config"], raw["salt"], raw["agent"], raw["boot_id"])
        o.PodSpec.FromString(spec)
        return raw["key"], Baseline(raw["at"], raw["weak"], Circumstances(*words), raw["since"])
    except (TypeError, KeyError, ValueError, DecodeError) as fault:
        raise ValueError(f"not what a healthy run was: {fault}") from fault
