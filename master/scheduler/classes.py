"""Classes: pods with the same scheduling spec are one class, compiled once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from shoal.master.scheduler import affinity
from shoal.master.scheduler.profiles import DEFAULT_PROFILE
from shoal.master.scheduler.terms import NodeTerm, PodTerm, Spread
from shoal.proto.qos import BEST_EFFORT, qos_class
from shoal.proto.quantity import QuantityError, parse
from shoal.proto.references import claims_of
from shoal.proto.rules.resources import GPU, GPU_DEVICES, GPU_MILLI, ONE_GPU
from shoal.proto.v1 import objects_pb2 as o

CPU, MEMORY, STORAGE, PODS = "cpu", "memory", "ephemeral-storage", "pods"
BASE_RESOURCES = (CPU, MEMORY, STORAGE, PODS)  # the snapshot's first rows, in this order
CACHE_LIMIT = 20_000  # compiled specs that are remembered
UNSAID_CPU, UNSAID_MEMORY = 100, 200 << 20  # milli-CPU and bytes that a container without request is taken to use
MEMORY_PRESSURE = "node.kubernetes.io/memory-pressure"  # which pods that have asked for something may meet
GROUP_LABEL = "scheduling.x-k8s.io/pod-group"  # the name of a pod's PodGroup
AMOUNT_LIMIT = 2**50  # a pebibyte; sums of thousands stay exact in int64, and each in a float


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A toleration as plain data."""

    key: str
    exists: bool
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class PodClass:
    """A canonical scheduling spec; amounts are milli-CPU, bytes and counts."""

    requests: tuple[tuple[str, int], ...]
    selector: tuple[tuple[str, str], ...]
    tolerances: tuple[Tolerance, ...]
    load: tuple[int, int]  # cpu and memory as the scores count them
    owner: str  # uid of the controlling owner; replicas of one owner are spread
    claims: tuple[str, ...] = ()  # namespace/name
    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()  # sorted; what others' terms look at
    node_terms: tuple[NodeTerm, ...] | None = None  # required node affinity: one must hold; None: none is asked
    preferred_nodes: tuple[tuple[int, NodeTerm], ...] = ()  # with their weights
    affinity: tuple[PodTerm, ...] = ()  # required
    anti_affinity: tuple[PodTerm, ...] = ()  # required
    preferred_pods: tuple[tuple[int, PodTerm], ...] = ()  # with their weights, negative for anti-affinity
    spread: tuple[Spread, ...] = ()
    ports: tuple[tuple[str, str, int], ...] = ()  # protocol, host address ("0.0.0.0": all), port
    images: tuple[str, ...] = ()  # one per container, as nodes name them
    gpu_milli: int = 0  # a share of one device, below 1000
    gpu_count: int = 0  # whole devices
    priority: int = 0
    preempts: bool = True  # may have others evicted
    group: str = ""  # the name of its PodGroup, in its namespace
    profile: str = DEFAULT_PROFILE
    _hash: int = field(init=False, repr=False, compare=False)  # looked up often, and never changes

    def __post_init__(self) -> None:
        values = tuple(getattr(self, name) for name in COMPARED)
        object.__setattr__(self, "_hash", hash(values))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, PodClass) or self._hash != other._hash:
            return False
        return all(getattr(self, name) == getattr(other, name) for name in COMPARED)


COMPARED = tuple(one.name for one in fields(PodClass) if one.compare)


def amount(resource: str, text: str) -> int:
    """Milli-CPU for cpu, whole units for all else, rounded up, bounded. What cannot be read counts as nothing:
    admission has refused it before."""
    try:
        found = parse(text)
    except QuantityError:
        return 0
    return max(0, min(AMOUNT_LIMIT, found.milli() if resource == CPU else found.whole()))


def amounts(values: Mapping[str, o.Quantity]) -> dict[str, int]:
    return {name: amount(name, quantity.text) for name, quantity in values.items()}


def wanted_by(container: o.Container) -> dict[str, int]:
    """A limit without a request is one."""
    resources = container.resources
    return amounts(resources.limits) | amounts(resources.requests) if resources.ByteSize() else {}


def requests_of(spec: o.PodSpec) -> tuple[tuple[str, int], ...]:
    """What the pod takes at its most, sorted by resource: the containers and sidecars together, or an init container
    with the sidecars that are there by then; and the pod's overhead. Every pod takes a pod slot."""
    running: dict[str, int] = {}  # sidecars so far
    most: dict[str, int] = {}
    for container in spec.initContainers:
        wanted = wanted_by(container)
        if container.restartPolicy == "Always":
            running = _sum(running, wanted)
            wanted = {}
        most = _max(most, _sum(running, wanted))
    for container in spec.containers:
        running = _sum(running, wanted_by(container))
    total = _max(most, running)
    if spec.overhead:
        total = _sum(total, amounts(spec.overhead))
    total[PODS] = 1
    return tuple(sorted((name, value) for name, value in total.items() if value > 0))


def _sum(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {name: min(AMOUNT_LIMIT, first.get(name, 0) + second.get(name, 0)) for name in first.keys() | second.keys()}


def _max(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {name: max(first.get(name, 0), second.get(name, 0)) for name in first.keys() | second.keys()}


def devices_of(pod: o.Pod) -> tuple[int, ...]:
    """The devices that a bound pod was given, by their numbers; what cannot be read counts as none."""
    text = pod.metadata.annotations.get(GPU_DEVICES, "")
    return tuple(int(part) for part in text.split(",") if part.isdecimal()) if text else ()


def load_of(spec: o.PodSpec) -> tuple[int, int]:
    """(milli-CPU, bytes) for the scores: a container that asks for nothing still uses something, so that pods without
    requests spread; the amounts are Kubernetes'. An explicit 0 is 0."""
    cpu = memory = 0
    sidecars = [container for container in spec.initContainers if container.restartPolicy == "Always"]
    for container in (*sidecars, *spec.containers):
        wanted = wanted_by(container)
        cpu += wanted.get(CPU, UNSAID_CPU)
        memory += wanted.get(MEMORY, UNSAID_MEMORY)
    return min(cpu, AMOUNT_LIMIT), min(memory, AMOUNT_LIMIT)


def owner_of(pod: o.Pod) -> str:
    for ref in pod.metadata.ownerReferences:
        if ref.controller:
            return ref.uid
    return ""


def compile_class(pod: o.Pod) -> PodClass:
    """Everything about the pod that placement looks at. The spec has been admitted: nothing in it raises."""
    spec, space, labels = pod.spec, pod.metadata.namespace, dict(pod.metadata.labels)
    tolerances = {Tolerance(t.key, t.operator == "Exists", t.value, t.effect) for t in spec.tolerations}
    if qos_class(spec) != BEST_EFFORT:
        tolerances.add(Tolerance(MEMORY_PRESSURE, True, "", "NoSchedule"))
    requests = dict(requests_of(spec))
    gpu_count, gpu_milli = devices_asked(requests.pop(GPU, 0), requests.pop(GPU_MILLI, 0))
    nodes, near, apart = spec.affinity.nodeAffinity, spec.affinity.podAffinity, spec.affinity.podAntiAffinity
    required = nodes.requiredDuringSchedulingIgnoredDuringExecution
    preferred = nodes.preferredDuringSchedulingIgnoredDuringExecution
    return PodClass(
        tuple(sorted(requests.items())),
        tuple(sorted(spec.nodeSelector.items())),
        tuple(sorted(tolerances, key=lambda t: (t.key, t.exists, t.value, t.effect))),
        load_of(spec),
        owner_of(pod),
        claims_of_pod(pod),
        space,
        tuple(sorted(labels.items())),
        affinity.node_terms(required) if nodes.HasField("requiredDuringSchedulingIgnoredDuringExecution") else None,
        tuple((one.weight, affinity.node_term(one.preference)) for one in preferred),
        affinity.pod_terms(near.requiredDuringSchedulingIgnoredDuringExecution, space, labels),
        affinity.pod_terms(apart.requiredDuringSchedulingIgnoredDuringExecution, space, labels),
        affinity.weighted_terms(spec.affinity, space, labels),
        tuple(affinity.spread_of(one, space, labels) for one in spec.topologySpreadConstraints),
        affinity.host_ports(spec),
        tuple(affinity.image_name(container.image) for container in spec.containers),
        gpu_milli,
        gpu_count,
        spec.priority,
        spec.preemptionPolicy != "Never",
        labels.get(GROUP_LABEL, ""),
        spec.schedulerName or DEFAULT_PROFILE,
    )


def devices_asked(whole: int, milli: int) -> tuple[int, int]:
    """(whole devices, milli of one): thousands of milli are whole devices."""
    return (milli // ONE_GPU, 0) if milli and milli % ONE_GPU == 0 else (whole, milli % ONE_GPU)


def claims_of_pod(pod: o.Pod) -> tuple[str, ...]:
    """As namespace/name."""
    return tuple(f"{pod.metadata.namespace}/{name}" for name in claims_of(pod))


class Classes:
    """Remembers compiled specs by their bytes, so that a replica costs a lookup; equal classes are one object."""

    def __init__(self) -> None:
        self._by_bytes: dict[tuple[str, str, tuple[tuple[str, str], ...], bytes], PodClass] = {}
        self._classes: dict[PodClass, PodClass] = {}

    def of(self, pod: o.Pod) -> PodClass:
        spec, meta = pod.spec, pod.metadata
        if spec.nodeName:
            spec = o.PodSpec.FromString(spec.SerializeToString())
            spec.nodeName = ""
        labels = tuple(sorted(meta.labels.items()))
        key = (owner_of(pod), meta.namespace, labels, spec.SerializeToString(deterministic=True))
        found = self._by_bytes.get(key)
        if found is None:
            if len(self._by_bytes) >= CACHE_LIMIT:
                self._by_bytes.clear()
                self._classes.clear()
            made = compile_class(pod)
            found = self._by_bytes[key] = self._classes.setdefault(made, made)
        return found
