"""What placement reads in a manifest: everything that a class says, by hand."""

from __future__ import annotations

from textwrap import indent

import pytest

from shoal.master.scheduler.classes import MEMORY_PRESSURE, PodClass, Tolerance, compile_class
from shoal.master.scheduler.terms import NAME_FIELD, NodeTerm, PodMatch, PodTerm, Rule, Selector, Spread
from shoal.proto.manifest import parse
from shoal.proto.v1 import objects_pb2 as o

MIB = 1 << 20
PLAIN = "containers: [{name: c, image: nginx}]"


def compiled(spec: str, labels: str = "{app: web, hash: h1}") -> PodClass:
    """Of a pod in the namespace `space`, read and checked as a manifest is."""
    head = f"apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: space, labels: {labels}}}\nspec:\n"
    parsed = parse(head + indent(spec, "  "))
    assert not parsed.errors, parsed.errors
    made = parsed.objects[0].message
    assert isinstance(made, o.Pod)
    return compile_class(made)


def requests(spec: str) -> dict[str, int]:
    return dict(compiled(spec).requests)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (PLAIN, {"pods": 1}),
        (
            "containers: [{name: c, image: i, resources: {requests: {cpu: 1500m, memory: 1Mi}}}]",
            {"cpu": 1500, "memory": MIB},
        ),
        ("containers: [{name: c, image: i, resources: {limits: {cpu: '2'}}}]", {"cpu": 2000}),  # a limit is a request
        ("containers: [{name: c, image: i, resources: {requests: {cpu: 100m}, limits: {cpu: '2'}}}]", {"cpu": 100}),
        (
            """
containers:
- {name: a, image: i, resources: {requests: {cpu: 100m}}}
- {name: b, image: i, resources: {requests: {cpu: 200m}}}
initContainers:
- {name: i, image: i, resources: {requests: {cpu: 250m, memory: 5Mi}}}
""",
            {"cpu": 300, "memory": 5 * MIB},  # whichever is more, resource by resource
        ),
        (
            """
containers: [{name: a, image: i, resources: {requests: {cpu: 100m}}}]
initContainers:
- {name: side, image: i, restartPolicy: Always, resources: {requests: {cpu: 50m}}}
- {name: init, image: i, resources: {requests: {cpu: 120m}}}
overhead: {cpu: 5m, memory: 1Mi}
""",
            {"cpu": 175, "memory": MIB},  # the init container beside the sidecar, and the overhead
        ),
    ],
)
def test_requests(spec: str, expected: dict[str, int]) -> None:
    assert requests(spec) == expected | {"pods": 1}


@pytest.mark.parametrize(
    ("limits", "milli", "count"),
    [
        ("shoal.dev/gpu: 2", 0, 2),
        ("shoal.dev/gpu-milli: 300", 300, 0),
        ("shoal.dev/gpu-milli: 3000", 0, 3),
    ],
)
def test_devices(limits: str, milli: int, count: int) -> None:
    found = compiled(f"containers: [{{name: c, image: i, resources: {{limits: {{{limits}}}}}}}]")
    assert (found.gpu_milli, found.gpu_count, dict(found.requests)) == (milli, count, {"pods": 1})


def test_nodes() -> None:
    found = compiled(
        PLAIN
        + """
nodeSelector: {b: "2", a: "1"}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
      - matchExpressions: [{key: z, operator: In, values: [y, x, y]}, {key: a, operator: Gt, values: ["4"]}]
      - matchFields: [{key: metadata.name, operator: In, values: [n1]}]
    preferredDuringSchedulingIgnoredDuringExecution:
    - {weight: 7, preference: {matchExpressions: [{key: k, operator: DoesNotExist}]}}
"""
    )
    assert found.selector == (("a", "1"), ("b", "2"))
    first = NodeTerm((Rule("a", "Gt", ("4",)), Rule("z", "In", ("x", "y"))))
    assert found.node_terms == (first, NodeTerm((), (Rule(NAME_FIELD, "In", ("n1",)),)))
    assert found.preferred_nodes == ((7, NodeTerm((Rule("k", "DoesNotExist"),))),)
    assert compiled(PLAIN).node_terms is None


def required(term: str) -> PodTerm:
    (found,) = compiled(
        PLAIN
        + f"""
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
    - {term}
"""
    ).affinity
    return found


WEB, OWN = Rule("app", "In", ("web",)), Rule("hash", "In", ("h1",))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ("labelSelector: {matchLabels: {app: web}}", PodMatch(("space",), None, Selector((WEB,)))),
        ("labelSelector: {}", PodMatch(("space",), None, Selector())),
        ("namespaces: [b, a]", PodMatch(("a", "b"), None, None)),
        ("namespaceSelector: {}", PodMatch((), Selector(), None)),
        (
            "namespaces: [a], namespaceSelector: {matchLabels: {app: web}}",
            PodMatch(("a",), Selector((WEB,)), None),
        ),
        (
            "labelSelector: {matchLabels: {app: web}}, matchLabelKeys: [hash, missing]",
            PodMatch(("space",), None, Selector((WEB, OWN))),
        ),
        (
            "labelSelector: {matchLabels: {app: web}}, mismatchLabelKeys: [hash]",
            PodMatch(("space",), None, Selector((WEB, Rule("hash", "NotIn", ("h1",))))),
        ),
    ],
)
def test_pods_that_a_term_means(fields: str, match: PodMatch) -> None:
    assert required(f"{{topologyKey: zone, {fields}}}") == PodTerm("zone", match)


def test_company() -> None:
    found = compiled(
        PLAIN
        + """
affinity:
  podAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - {weight: 5, podAffinityTerm: {topologyKey: zone, labelSelector: {}}}
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
    - {topologyKey: host, labelSelector: {}}
    preferredDuringSchedulingIgnoredDuringExecution:
    - {weight: 9, podAffinityTerm: {topologyKey: rack, labelSelector: {}}}
"""
    )
    every = PodMatch(("space",), None, Selector())
    assert found.anti_affinity == (PodTerm("host", every),)
    assert found.preferred_pods == ((5, PodTerm("zone", every)), (-9, PodTerm("rack", every)))


def test_spread() -> None:
    found = compiled(
        PLAIN
        + """
topologySpreadConstraints:
- {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}},
   minDomains: 3, matchLabelKeys: [hash], nodeAffinityPolicy: Ignore, nodeTaintsPolicy: Honor}
- {maxSkew: 2, topologyKey: host, whenUnsatisfiable: ScheduleAnyway}
"""
    )
    first = Spread("zone", 1, True, PodMatch(("space",), None, Selector((WEB, OWN))), 3, False, True)
    assert found.spread == (first, Spread("host", 2, False, PodMatch(("space",), None, None), 1, True, False))


def test_ports_and_images() -> None:
    found = compiled(
        """
containers:
- name: a
  image: nginx
  ports:
  - {containerPort: 80, hostPort: 8080}
  - {containerPort: 53, hostPort: 53, protocol: UDP, hostIP: 10.0.0.1}
  - {containerPort: 1}
- {name: b, image: "example.com:5000/team/app:v1"}
"""
    )
    assert found.ports == (("TCP", "0.0.0.0", 8080), ("UDP", "10.0.0.1", 53))
    assert found.images == ("docker.io/library/nginx:latest", "example.com:5000/team/app:v1")
    assert found.load == (200, 400 * MIB)


def test_the_rest() -> None:
    found = compiled(
        PLAIN
        + """
tolerations:
- {key: k, operator: Exists}
- {key: l, value: v, effect: NoSchedule}
priority: 7
preemptionPolicy: Never
schedulerName: bin-packing
volumes: [{name: data, persistentVolumeClaim: {claimName: claim}}]
""",
        "{app: web, scheduling.x-k8s.io/pod-group: gang}",
    )
    assert found.tolerances == (Tolerance("k", True, "", ""), Tolerance("l", False, "v", "NoSchedule"))
    assert (found.priority, found.preempts, found.profile) == (7, False, "bin-packing")
    assert (found.group, found.namespace, found.claims) == ("gang", "space", ("space/claim",))
    assert found.labels == (("app", "web"), ("scheduling.x-k8s.io/pod-group", "gang"))
    asks = compiled("containers: [{name: c, image: i, resources: {requests: {cpu: 1m}}}]").tolerances
    assert asks == (Tolerance(MEMORY_PRESSURE, True, "", "NoSchedule"),), "who has asked for something may stay"
    assert (compiled(PLAIN).priority, compiled(PLAIN).preempts, compiled(PLAIN).profile) == (
        0,
        True,
        "default-scheduler",
    )
