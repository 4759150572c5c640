"""What pods may say of where they go, and the kinds that scheduling knows: each mistake is told with its path."""

from typing import Any

import pytest
import yaml

from shoal.proto.kinds import CLASSES, Object
from shoal.proto.manifest import parse
from shoal.proto.validation import validate_update
from tests.unit.test_manifest_pods import put

GOOD = """
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {app: web, scheduling.x-k8s.io/pod-group: g}}
spec:
  priorityClassName: high
  preemptionPolicy: Never
  schedulerName: bin-packing
  schedulingGates: [{name: example.com/quota}]
  overhead: {cpu: 100m, memory: 64Mi}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
        - matchExpressions: [{key: disk, operator: In, values: [ssd]}, {key: cores, operator: Gt, values: ["4"]}]
          matchFields: [{key: metadata.name, operator: NotIn, values: [n1]}]
        - matchExpressions: [{key: a, operator: In, values: [x]}, {key: a, operator: NotIn, values: [x]}]
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 100, preference: {matchExpressions: [{key: zone, operator: Exists}]}}
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - labelSelector: {matchLabels: {app: db}}
        namespaces: [data]
        namespaceSelector: {}
        topologyKey: topology.kubernetes.io/zone
        matchLabelKeys: [pod-template-hash]
        mismatchLabelKeys: [tenant]
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 1
        podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
  topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: DoNotSchedule
    minDomains: 3
    nodeAffinityPolicy: Ignore
    nodeTaintsPolicy: Honor
    matchLabelKeys: [pod-template-hash]
    labelSelector: {matchExpressions: [{key: app, operator: In, values: [web]}]}
  - {maxSkew: 2, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}
  containers:
  - name: main
    image: nginx:1.22
    ports:
    - {name: http, containerPort: 80, hostPort: 8080, hostIP: 10.0.0.1}
    - {name: dns, containerPort: 53, protocol: UDP, hostPort: 8080}
    resources: {limits: {shoal.dev/gpu-milli: 500, example.com/fpga: 2}}
  - {name: more, image: "nginx:1.22", ports: [{containerPort: 81, hostPort: 8080, hostIP: 10.0.0.2}]}
"""
NODE, POD, ANTI = "spec.affinity.nodeAffinity", "spec.affinity.podAffinity", "spec.affinity.podAntiAffinity"
REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
TERM = f"{NODE}.{REQUIRED}.nodeSelectorTerms[0]"
RULE = f"{TERM}.matchExpressions[0]"
NEAR = f"{POD}.{REQUIRED}[0]"
WEIGHED = f"{ANTI}.{PREFERRED}[0]"
SPREAD = "spec.topologySpreadConstraints[0]"
C = "spec.containers[0]"
LIMITS, REQUESTS = f"{C}.resources.limits", f"{C}.resources.requests"


def told(changes: dict[str, Any], text: str = GOOD) -> list[str]:
    tree = yaml.safe_load(text)
    for path, value in changes.items():
        put(tree, path, value)
    return [f"{problem.path}: {problem.message}" for problem in parse(yaml.safe_dump(tree), "f").errors]


def test_a_pod_with_everything_is_fine() -> None:
    assert told({}) == []


MISTAKES: list[tuple[dict[str, Any], str]] = [
    # node affinity
    ({f"{NODE}.required": {}}, f"{NODE}.required: unknown field; "),
    ({f"{NODE}.{REQUIRED}.nodeSelectorTerms": []}, f"{NODE}.{REQUIRED}.nodeSelectorTerms: is missing: give at least"),
    ({f"{RULE}.operator": "in"}, f'{RULE}.operator: "in" is not valid: did you mean "In"?'),
    ({f"{RULE}.values": []}, f"{RULE}.values: are missing: In needs at least one"),
    ({f"{RULE}.values": ["x" * 64]}, f"{RULE}.values[0]: "),
    ({f"{RULE}.values": [str(n) for n in range(1001)]}, f"{RULE}.values: has 1001 items: at most 1000"),
    ({f"{RULE}.key": "a b"}, f'{RULE}.key: "a b" is not a valid key'),
    ({f"{TERM}.matchExpressions[1].values": ["many"]}, "matchExpressions[1].values: must be one whole number"),
    ({f"{TERM}.matchFields[0].key": "metadata.uid"}, f"{TERM}.matchFields[0].key: must be metadata.name"),
    ({f"{NODE}.{PREFERRED}[0].weight": 0}, f"{NODE}.{PREFERRED}[0].weight: must be from 1 to 100, but it is 0"),
    ({f"{NODE}.{PREFERRED}[0].preference.matchExpressions[0].values": ["x"]}, "values: are not used by Exists"),
    # pod affinity
    ({f"{NEAR}.topologyKey": ""}, f"{NEAR}.topologyKey: is missing: name a label of nodes"),
    ({f"{NEAR}.topologyKey": "a/b/c"}, f"{NEAR}.topologyKey: "),
    ({f"{NEAR}.namespaces": ["Data"]}, f'{NEAR}.namespaces[0]: "Data" is not a valid name'),
    ({f"{NEAR}.namespaceSelector": {"matchLabels": {"a": "b c"}}}, f"{NEAR}.namespaceSelector.matchLabels.a: "),
    ({f"{NEAR}.labelSelector": None}, f"{NEAR}.matchLabelKeys: needs a labelSelector"),
    ({f"{NEAR}.labelSelector": {"matchLabels": {"tenant": "a"}}}, f'{NEAR}.mismatchLabelKeys[0]: "tenant" is in label'),
    ({f"{NEAR}.mismatchLabelKeys": ["pod-template-hash"]}, "is in matchLabelKeys too: no pod could match"),
    ({f"{NEAR}.matchLabelKeys": ["a", "a"]}, f'{NEAR}.matchLabelKeys[1]: "a" is given twice'),
    ({f"{WEIGHED}.weight": 101}, f"{WEIGHED}.weight: must be from 1 to 100, but it is 101"),
    (
        {f"{WEIGHED}.podAffinityTerm.labelSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}},
        "operator: ",
    ),
    ({f"{WEIGHED}.topologyKey": "x"}, "topologyKey: unknown field; it belongs under"),
    # spread
    ({f"{SPREAD}.maxSkew": 0}, f"{SPREAD}.maxSkew: must be from 1 to"),
    ({f"{SPREAD}.topologyKey": None}, f"{SPREAD}.topologyKey: is missing"),
    (
        {f"{SPREAD}.whenUnsatisfiable": "Never"},
        f'{SPREAD}.whenUnsatisfiable: "Never" is not valid: use one of DoNotSch',
    ),
    (
        {f"{SPREAD}.whenUnsatisfiable": "ScheduleAnyway"},
        f'{SPREAD}.minDomains: is for whenUnsatisfiable "DoNotSchedule"',
    ),
    ({f"{SPREAD}.minDomains": 0}, f"{SPREAD}.minDomains: must be from 1 to"),
    (
        {f"{SPREAD}.nodeAffinityPolicy": "honor"},
        f'{SPREAD}.nodeAffinityPolicy: "honor" is not valid: did you mean "Hon',
    ),
    ({f"{SPREAD}.nodeTaintsPolicy": "No"}, f"{SPREAD}.nodeTaintsPolicy: "),
    ({f"{SPREAD}.matchLabelKeys": ["app"]}, f'{SPREAD}.matchLabelKeys[0]: "app" is in labelSelector too'),
    (
        {
            f"{SPREAD[:-3]}[1].topologyKey": "topology.kubernetes.io/zone",
            f"{SPREAD[:-3]}[1].whenUnsatisfiable": "DoNotSchedule",
        },
        f"{SPREAD[:-3]}[1]: another one has the topologyKey",
    ),
    # priority, profile, gates, overhead
    ({"spec.priorityClassName": "High"}, 'spec.priorityClassName: "High" is not a valid name'),
    ({"spec.priority": "1"}, "spec.priority: must be a whole number"),
    ({"spec.preemptionPolicy": "never"}, 'spec.preemptionPolicy: "never" is not valid: did you mean "Never"?'),
    ({"spec.schedulerName": "My Profile"}, "spec.schedulerName: "),
    ({"spec.schedulingGates": [{"name": "a"}, {"name": "a"}]}, 'spec.schedulingGates[1].name: "a" is another gate\'s'),
    ({"spec.schedulingGates": [{}]}, "spec.schedulingGates[0].name: is missing"),
    ({"spec.nodeName": "n1"}, "spec.nodeName: must be empty while schedulingGates hold the pod back"),
    ({"spec.overhead": {"cpu": -1}}, "spec.overhead.cpu: must not be negative, but it is -1"),
    (
        {"spec.overhead": {"example.com/fpga": 1}},
        'spec.overhead["example.com/fpga"]: is a device, which only containers',
    ),
    # host ports
    ({f"{C}.ports[0].hostPort": 65536}, f"{C}.ports[0].hostPort: must be from 1 to 65535, but it is 65536"),
    ({f"{C}.ports[0].hostIP": "host"}, f'{C}.ports[0].hostIP: "host" is not an address of a node'),
    ({f"{C}.ports[0].hostIP": "::1"}, f'{C}.ports[0].hostIP: "::1" is an IPv6 address'),
    ({f"{C}.ports[0].hostPort": 0}, f"{C}.ports[0].hostIP: does nothing without hostPort"),
    ({f"{C}.ports[0].hostIP": "0.0.0.0"}, "spec.containers[1].ports[0].hostPort: 8080/TCP is another port's"),
    ({"spec.hostNetwork": True}, f"{C}.ports[0].hostPort: must be 80, the containerPort, as the pod uses the node's"),
    (
        {"spec.initContainers": [{"name": "i", "image": "i", "ports": [{"containerPort": 1, "hostPort": 1}]}]},
        "spec.initContainers[0].ports[0].hostPort: is for containers that go on running",
    ),
    # amounts
    ({f"{LIMITS}.cpu": "2000T"}, f"{LIMITS}.cpu: must be at most 1125899906842624m, but it is 2000T"),
    ({f"{LIMITS}.memory": "2Pi"}, f"{LIMITS}.memory: must be at most 1Pi, but it is 2Pi"),
    ({f"{LIMITS}.memory": "-1"}, f"{LIMITS}.memory: must not be negative"),
    ({f"{LIMITS}.shoal": 1}, f'{LIMITS}.shoal: "shoal" is not a resource'),
]
DEVICES: list[tuple[str, dict[str, Any], str]] = [
    ("requests", {"example.com/fpga": 1}, f'{REQUESTS}["example.com/fpga"]: a device is asked for by its limit'),
    ("limits", {"example.com/fpga": "1500m"}, f'{LIMITS}["example.com/fpga"]: must be a whole number'),
    ("limits", {"kubernetes.io/fpga": 1}, '"kubernetes.io/fpga" is not a resource: kubernetes.io has none of its own'),
    ("limits", {"node.kubernetes.io/x": 1}, "node.kubernetes.io has none of its own"),
    ("limits", {"shoal.dev/gpus": 1}, '"shoal.dev/gpus" is not a resource: did you mean "shoal.dev/gpu"?'),
    ("limits", {"shoal.dev/gpu-milli": 1500}, "must be from 1 to 1000, or a multiple of it, but it is 1500"),
    ("limits", {"shoal.dev/gpu-milli": 500, "shoal.dev/gpu": 1}, '["shoal.dev/gpu-milli"]: excludes shoal.dev/gpu'),
    ("limits", {"a b/c": 1}, "the part before '/' in \"a b/c\" must be a domain name"),
]


@pytest.mark.parametrize(("changes", "expected"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_mistake(changes: dict[str, Any], expected: str) -> None:
    found = told(changes)
    assert any(expected in error for error in found), found


@pytest.mark.parametrize(("sort", "amounts", "expected"), DEVICES, ids=lambda value: str(value)[:60])
def test_mistakes_about_devices(sort: str, amounts: dict[str, Any], expected: str) -> None:
    found = told({f"{C}.resources": {sort: amounts}})
    assert any(expected in error for error in found), found


@pytest.mark.parametrize("amount", [1, 999, 1000, 4000])
def test_shares_of_a_gpu_and_whole_ones(amount: int) -> None:
    assert told({f"{C}.resources": {"limits": {"shoal.dev/gpu-milli": amount}}}) == []


def test_shares_add_up_over_a_pods_containers() -> None:
    limits = {"limits": {"shoal.dev/gpu-milli": 600}}
    found = told({f"{C}.resources": limits, "spec.containers[1].resources": limits})
    assert [error.partition(": ")[2] for error in found] == [
        "the containers ask for 1200 together: a pod has a share of one device (at most 1000) or whole ones"
    ]


@pytest.mark.parametrize("path", ["metadata.labels", "spec.nodeSelector", f"{NEAR}.labelSelector.matchLabels"])
def test_ten_thousand_labels_are_refused_with_one_reason(path: str) -> None:
    found = told({path: {f"l{n}": "x" for n in range(10_000)}})
    assert found == [f"{path}: has 10000 entries: at most 500 are allowed; use annotations for notes"]


def test_ports_of_pods_on_the_nodes_network_are_the_nodes() -> None:
    text = (
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {hostNetwork: true, containers: [{name: c, image: i:1,"
    )
    assert parse(f"{text} ports: [{{containerPort: 80}}, {{containerPort: 81, hostPort: 81}}]}}]}}}}", "f").errors == []


# ---- kinds ----
KINDS: dict[str, str] = {
    "PriorityClass": "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}",
    "PodDisruptionBudget": """{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: b},
      spec: {minAvailable: 50%, selector: {matchLabels: {app: web}}}}""",
    "PodGroup": """{apiVersion: scheduling.x-k8s.io/v1alpha1, kind: PodGroup, metadata: {name: g},
      spec: {minMember: 4, scheduleTimeoutSeconds: 60, topologyKey: topology.kubernetes.io/rack}}""",
}
OF_KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("PriorityClass", {"value": 1_000_000_001}, "value: must be from -2147483648 to 1000000000, but it is 1000000001"),
    ("PriorityClass", {"value": None}, "value: is missing"),
    ("PriorityClass", {"value": "high"}, "value: must be a whole number"),
    ("PriorityClass", {"metadata.name": "system-mine"}, 'metadata.name: "system-" in front is for the classes of'),
    ("PriorityClass", {"metadata.name": "system-node-critical"}, "value: cannot be changed: system-node-critical is"),
    ("PriorityClass", {"preemptionPolicy": "Always"}, "preemptionPolicy: "),
    ("PriorityClass", {"metadata.namespace": "default"}, "metadata.namespace: a PriorityClass belongs to no namespace"),
    ("PriorityClass", {"description": "x" * 5000}, "description: has 5000 characters"),
    ("PriorityClass", {"spec": {"value": 1}}, "spec: unknown field"),
    ("PodDisruptionBudget", {"spec.maxUnavailable": 1}, "spec: has minAvailable and maxUnavailable: keep one"),
    ("PodDisruptionBudget", {"spec.minAvailable": None}, "spec: must have one of minAvailable, maxUnavailable"),
    ("PodDisruptionBudget", {"spec.minAvailable": -1}, "spec.minAvailable: must not be negative"),
    ("PodDisruptionBudget", {"spec.minAvailable": "101%"}, 'spec.minAvailable: "101%" is neither a number of pods'),
    ("PodDisruptionBudget", {"spec.minAvailable": "3"}, 'spec.minAvailable: "3" is neither a number of pods'),
    ("PodDisruptionBudget", {"spec.selector.matchLabels": {"a b": "c"}}, 'spec.selector.matchLabels["a b"]: '),
    ("PodDisruptionBudget", {"spec.unhealthyPodEvictionPolicy": "Always"}, "spec.unhealthyPodEvictionPolicy: "),
    ("PodDisruptionBudget", {"apiVersion": "policy/v1beta1"}, 'apiVersion: "policy/v1beta1" is not the version'),
    ("PodGroup", {"spec.minMember": 0}, "spec.minMember: must be from 1 to 10000"),
    ("PodGroup", {"spec.minMember": None}, "spec.minMember: is missing"),
    ("PodGroup", {"spec.scheduleTimeoutSeconds": 0}, "spec.scheduleTimeoutSeconds: must be from 1"),
    ("PodGroup", {"spec.topologyKey": "a b"}, "spec.topologyKey: "),
    ("PodGroup", {"spec.minResources": {"cpu": 4}}, "spec.minResources: not supported yet: remove it"),
    ("PodGroup", {"metadata.name": "g" * 64}, "metadata.name: has 64 characters: pods name it in a label's value"),
    ("PodGroup", {"apiVersion": "scheduling.k8s.io/v1alpha1"}, "write apiVersion: scheduling.x-k8s.io/v1alpha1"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_read(kind: str) -> None:
    parsed = parse(KINDS[kind], "f")
    assert (parsed.errors, parsed.unsupported, [found.message.kind for found in parsed.objects]) == ([], [], [kind])


@pytest.mark.parametrize(("kind", "changes", "expected"), OF_KINDS, ids=lambda value: str(value)[:50])
def test_mistakes_of_kinds(kind: str, changes: dict[str, Any], expected: str) -> None:
    found = told(changes, KINDS[kind])
    assert any(expected in error for error in found), found


def test_another_projects_pod_group_is_not_ours() -> None:
    text = KINDS["PodGroup"].replace("scheduling.x-k8s.io/v1alpha1", "scheduling.volcano.sh/v1beta1")
    assert [found.kind for found in parse(text, "f").unsupported] == ["PodGroup"]


# ---- changes ----
def make(text: str) -> Object:
    parsed = parse(text, "f", check=False)
    assert parsed.errors == []
    from shoal.proto.defaults import apply_defaults

    message = CLASSES[parsed.objects[0].message.kind]()
    message.CopyFrom(parsed.objects[0].message)  # type: ignore[arg-type]
    apply_defaults(message)
    return message


def changed(old: dict[str, Any], new: dict[str, Any], text: str) -> list[str]:
    """What is said of a change between two versions of the object."""
    versions = []
    for changes in (old, new):
        tree = yaml.safe_load(text)
        for path, value in changes.items():
            put(tree, path, value)
        versions.append(make(yaml.safe_dump(tree)))
    return [str(error).partition(": ")[0] for error in validate_update(*versions)]


def test_a_class_keeps_its_value() -> None:
    text = KINDS["PriorityClass"]
    assert changed({}, {"description": "new", "globalDefault": True}, text) == []
    assert changed({}, {"value": 1001, "preemptionPolicy": "Never"}, text) == ["value", "preemptionPolicy"]


def test_gates_can_only_be_removed() -> None:
    gates = "spec.schedulingGates"
    assert changed({}, {gates: []}, GOOD) == []
    assert changed({gates: []}, {}, GOOD) == [gates]
    assert changed({}, {gates: [{"name": "other"}]}, GOOD) == [gates]


def test_a_gated_pod_may_be_narrowed_down() -> None:
    selector, affinity = "spec.nodeSelector", "spec.affinity"
    assert changed({}, {selector: {"a": "b"}}, GOOD) == []
    assert changed({selector: {"a": "b"}}, {selector: {"a": "c"}}, GOOD) == [selector]
    assert changed({affinity: None}, {}, GOOD) == []
    assert changed({}, {affinity: None}, GOOD) == [affinity]
    free: dict[str, Any] = {"spec.schedulingGates": []}
    assert changed(free, free | {selector: {"a": "b"}}, GOOD) == [selector]
