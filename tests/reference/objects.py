"""The plain cluster as the objects and events that the real snapshot is fed with."""

from __future__ import annotations

from shoal.master.model import Event, Key, Object, Record, key_of
from shoal.master.scheduler.classes import MEMORY_PRESSURE, PodClass
from shoal.master.scheduler.profiles import DEFAULT_PROFILE
from shoal.master.scheduler.terms import NAME_FIELD, NodeTerm, PodMatch, PodTerm, Selector, Spread
from shoal.master.volumes import SELECTED_NODE
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import claim, made_class, meta, volume
from tests.reference.cluster import Budget, Cluster, Group, Pod
from tests.reference.devices import GPU
from tests.reference.nodes import Node
from tests.reference.storage import Storage

GROUP_LABEL = "scheduling.x-k8s.io/pod-group"
DEVICES = "shoal.dev/gpu-devices"


def added(obj: Object, created: int = 1) -> Event:
    key = key_of(obj)
    return Event(key, created, None, Record(key, obj, b"", created, created))


def changed(old: Object, new: Object, created: int = 1) -> Event:
    key = key_of(new)
    return Event(key, created + 1, Record(key, old, b"", created, created), Record(key, new, b"", created + 1, created))


def gone(obj: Object, created: int = 1) -> Event:
    key = key_of(obj)
    return Event(key, created + 1, Record(key, obj, b"", created, created), None)


def key_for(pod: Pod) -> Key:
    return Key("Pod", pod.what.namespace, pod.name or pod.uid)


# ---- nodes ----
def node_object(node: Node) -> o.Node:
    made = o.Node(apiVersion="v1", kind="Node", metadata=meta("Node", node.name, node.labels))
    for name, amount in node.alloc.items():
        made.status.allocatable[name].text = f"{amount}m" if name == "cpu" else str(amount)
    for key, value, effect in sorted(node.taints):
        made.spec.taints.append(o.Taint(key=key, value=value, effect=effect))
    made.status.conditions.append(o.Condition(type="Ready", status="True" if node.ready else "Unknown"))
    for name, size in sorted(node.images.items()):
        made.status.images.add(names=[name], sizeBytes=size)
    return made


# ---- pods ----
def pod_object(pod: Pod) -> o.Pod:
    what = pod.what
    made = o.Pod(apiVersion="v1", kind="Pod", metadata=o.ObjectMeta(uid=pod.uid, labels=pod.labels))
    made.metadata.name, made.metadata.namespace = pod.name or pod.uid, what.namespace
    if what.owner:
        made.metadata.ownerReferences.add(kind="ReplicaSet", name=what.owner, uid=what.owner, controller=True)
    if pod.leaving:
        made.metadata.deletionTimestamp.seconds = 1
    if pod.devices:
        made.metadata.annotations[DEVICES] = ",".join(map(str, pod.devices))
    made.spec.nodeName = "" if pod.nominated else pod.node
    made.status.nominatedNodeName = pod.node if pod.nominated else ""
    made.status.phase = "Pending"
    _fill(made.spec, what)
    return made


def _fill(spec: o.PodSpec, what: PodClass) -> None:
    for number, image in enumerate(what.images or ("docker.io/library/a:1",)):
        spec.containers.add(name=f"c{number}", image=image)
    wants = spec.containers[0].resources.requests
    for name, amount in what.requests:
        if name != "pods":
            wants[name].text = f"{amount}m" if name == "cpu" else str(amount)
    if what.gpu_count:
        wants[GPU].text = str(what.gpu_count)
    if what.gpu_milli:
        wants[f"{GPU}-milli"].text = str(what.gpu_milli)
    for protocol, address, port in what.ports:
        one = spec.containers[0].ports.add(containerPort=port, hostPort=port, protocol=protocol)
        one.hostIP = "" if address == "0.0.0.0" else address
    for name in what.claims:
        spec.volumes.add(name=name.split("/")[1]).persistentVolumeClaim.claimName = name.split("/")[1]
    for one_tolerance in what.tolerances:
        if one_tolerance.key != MEMORY_PRESSURE:
            operator = "Exists" if one_tolerance.exists else "Equal"
            spec.tolerations.add(
                key=one_tolerance.key, operator=operator, value=one_tolerance.value, effect=one_tolerance.effect
            )
    spec.nodeSelector.update(dict(what.selector))
    spec.priority, spec.preemptionPolicy = what.priority, "PreemptLowerPriority" if what.preempts else "Never"
    if what.profile != DEFAULT_PROFILE:
        spec.schedulerName = what.profile
    _fill_affinity(spec.affinity, what)
    for constraint in what.spread:
        _fill_spread(spec.topologySpreadConstraints.add(), constraint)


def _fill_affinity(affinity: o.Affinity, what: PodClass) -> None:
    for term in what.node_terms or ():
        required = affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution
        _fill_node_term(required.nodeSelectorTerms.add(), term)
    for weight, term in what.preferred_nodes:
        preferred = affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution.add(weight=weight)
        _fill_node_term(preferred.preference, term)
    for one in what.affinity:
        _fill_pod_term(affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution.add(), one, what)
    for one in what.anti_affinity:
        _fill_pod_term(affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution.add(), one, what)
    for weight, one in what.preferred_pods:
        side = affinity.podAffinity if weight > 0 else affinity.podAntiAffinity
        weighted = side.preferredDuringSchedulingIgnoredDuringExecution.add(weight=abs(weight))
        _fill_pod_term(weighted.podAffinityTerm, one, what)


def _fill_node_term(made: o.NodeSelectorTerm, term: NodeTerm) -> None:
    for rule in term.labels:
        made.matchExpressions.add(key=rule.key, operator=rule.operator, values=rule.values)
    for rule in term.fields:
        made.matchFields.add(key=NAME_FIELD, operator=rule.operator, values=rule.values)


def _fill_pod_term(made: o.PodAffinityTerm, term: PodTerm, what: PodClass) -> None:
    made.topologyKey = term.key
    _fill_match(made, term.match)
    if term.match.namespaces != (what.namespace,) or term.match.spaces is not None:
        made.namespaces.extend(term.match.namespaces)
    if term.match.spaces is not None:
        made.namespaceSelector.CopyFrom(selector_object(term.match.spaces))


def _fill_match(made: o.PodAffinityTerm | o.TopologySpreadConstraint, match: PodMatch) -> None:
    if match.selector is not None:
        made.labelSelector.CopyFrom(selector_object(match.selector))


def selector_object(selector: Selector) -> o.LabelSelector:
    made = o.LabelSelector()
    for rule in selector.rules:
        made.matchExpressions.add(key=rule.key, operator=rule.operator, values=rule.values)
    return made


def _fill_spread(made: o.TopologySpreadConstraint, constraint: Spread) -> None:
    made.topologyKey, made.maxSkew = constraint.key, constraint.max_skew
    made.whenUnsatisfiable = "DoNotSchedule" if constraint.hard else "ScheduleAnyway"
    _fill_match(made, constraint.match)
    if constraint.min_domains != 1:
        made.minDomains = constraint.min_domains
    made.nodeAffinityPolicy = "Honor" if constraint.honor_affinity else "Ignore"
    made.nodeTaintsPolicy = "Honor" if constraint.honor_taints else "Ignore"


# ---- the rest ----
def group_object(space: str, name: str, group: Group) -> o.PodGroup:
    made = o.PodGroup(kind="PodGroup", metadata=o.ObjectMeta(namespace=space, name=name, uid=f"group-{space}-{name}"))
    made.spec.minMember, made.spec.topologyKey = group.minimum, group.key
    return made


def budget_object(name: str, budget: Budget) -> o.PodDisruptionBudget:
    made = o.PodDisruptionBudget(
        kind="PodDisruptionBudget", metadata=o.ObjectMeta(namespace=budget.namespace, name=name)
    )
    made.metadata.uid = f"budget-{name}"
    if budget.selector is not None:
        made.spec.selector.CopyFrom(selector_object(budget.selector))
    made.status.disruptionsAllowed = budget.allowed
    return made


def space_object(name: str, labels: dict[str, str]) -> o.Namespace:
    return o.Namespace(apiVersion="v1", kind="Namespace", metadata=meta("Namespace", name, labels))


def storage_objects(storage: Storage) -> list[Object]:
    objects: list[Object] = [
        made_class("made"),
        made_class("disks", "kubernetes.io/no-provisioner"),
        made_class("now", "kubernetes.io/no-provisioner", wait=False),
    ]
    for name, plain in storage.claims.items():
        one = claim(name.split("/")[1], f"{plain.size}Gi", plain.storage_class, plain.mode)
        one.spec.volumeName = plain.volume
        if plain.tied:
            one.metadata.annotations[SELECTED_NODE] = plain.tied
        if plain.leaving:
            one.metadata.deletionTimestamp.seconds = 1
        objects.append(one)
    for name, plain_volume in storage.volumes.items():
        vol = volume(name, f"{plain_volume.size}Gi", plain_volume.storage_class)
        vol.spec.accessModes.extend(["ReadWriteOncePod", "ReadWriteMany"])
        if plain_volume.homes:
            rule = vol.spec.nodeAffinity.required.nodeSelectorTerms.add().matchExpressions.add()
            rule.key, rule.operator = "kubernetes.io/hostname", "In"
            rule.values.extend(sorted(plain_volume.homes))
        if plain_volume.claim:
            short = plain_volume.claim.split("/")[1]
            vol.spec.claimRef.namespace, vol.spec.claimRef.name = "default", short
            vol.spec.claimRef.uid = f"uid-PersistentVolumeClaim-{short}"
        objects.append(vol)
    return objects


def events_of(cluster: Cluster) -> list[Event]:
    """Everything in it, pods before their nodes."""
    return [
        *(added(space_object(name, dict(labels))) for name, labels in cluster.spaces.items()),
        *(added(pod_object(pod), pod.arrival + 1) for pod in cluster.pods.values()),
        *(added(node_object(node)) for node in reversed(cluster.in_order())),
        *(added(one) for one in storage_objects(cluster.storage)),
        *(added(budget_object(f"b{i}", budget)) for i, budget in enumerate(cluster.budgets)),
        *(added(group_object(*key, group)) for key, group in cluster.groups.items()),
    ]
