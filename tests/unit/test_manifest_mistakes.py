"""Mistakes as people make them: each is named with its line, its path and what to do."""

import pytest

from shoal.proto import known
from shoal.proto.manifest import parse

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: web
    image: nginx:1.27
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels:
      app: web
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
      - name: web
        image: nginx:1.27
"""
CONTAINER = "spec.containers[0]"


def errors(text: str) -> list[str]:
    return [str(problem) for problem in parse(text, "f.yaml").errors]


def pod(extra: str) -> str:
    """A pod whose container has these lines too."""
    return POD + "".join(f"    {line}\n" for line in extra.splitlines())


def spec(extra: str) -> str:
    """A pod whose spec has these lines too."""
    return POD + "".join(f"  {line}\n" for line in extra.splitlines())


def meta(extra: str) -> str:
    return POD.replace("  name: web\nspec", f"  name: web\n  {extra}\nspec")


def test_good_ones_have_no_errors() -> None:
    assert errors(POD) == []
    assert errors(DEPLOYMENT) == []
    assert errors(POD + "---\n---\n# nothing\n---\n" + DEPLOYMENT) == []


CASES = [
    # unknown and unsupported fields
    (spec("foo: 1"), 9, "spec.foo: unknown field; known fields are containers"),
    (spec("nodeSelectors: {a: b}"), 9, 'spec.nodeSelectors: unknown field; did you mean "nodeSelector"?'),
    (spec("image: x"), 9, "spec.image: unknown field; it belongs under spec.containers[]"),
    (DEPLOYMENT + "  containers: []\n", 18, "spec.containers: unknown field; it belongs under spec.template.spec"),
    (spec("DnsPolicy: x"), 9, 'did you mean "dnsPolicy"? (That one is not supported yet.)'),
    (spec("ephemeralContainers: [{name: x}]"), 9, "spec.ephemeralContainers: not supported yet"),
    (spec("runtimeClassName: kata"), 9, "spec.runtimeClassName: not supported yet: there is one runtime"),
    (spec("dnsPolicy: Default"), 9, "spec.dnsPolicy: not supported yet: remove it"),
    (pod("volumeDevices: [{name: x}]"), 9, f"{CONTAINER}.volumeDevices: not supported yet"),
    (pod("lifecycle: {stopSignal: SIGINT}"), 9, f"{CONTAINER}.lifecycle.stopSignal: not supported yet"),
    (
        pod("env:\n- name: A\n  valueFrom: {fileKeyRef: {path: x}}"),
        11,
        "env[0].valueFrom.fileKeyRef: not supported yet",
    ),
    (pod("securityContext: {procMount: Unmasked}"), 9, f"{CONTAINER}.securityContext.procMount: not supported yet"),
    (DEPLOYMENT + "  strategy: {type: Recreate}\n", 18, "spec.strategy: not supported yet"),
    (POD.replace("image:", "imgae:"), 8, 'unknown field; did you mean "image"?'),
    (POD.replace("metadata:", "metdata:"), 3, 'metdata: unknown field; did you mean "metadata"?'),
    # wrong types
    (DEPLOYMENT.replace("replicas: 2", "replicas: '2'"), 6, 'the text "2": remove the quotes'),
    (DEPLOYMENT.replace("replicas: 2", "replicas: two"), 6, "must be a whole number"),
    (DEPLOYMENT.replace("replicas: 2", "replicas: 2.0"), 6, "must be a whole number, but it is the number 2.0"),
    (DEPLOYMENT.replace("replicas: 2", "replicas: 3000000000"), 6, "must be from -2147483648 to 2147483647"),
    (DEPLOYMENT.replace("replicas: 2", "replicas: -1"), 6, "must not be negative, but it is -1"),
    (DEPLOYMENT.replace("replicas: 2", "replicas: true"), 6, "must be a whole number, but it is the boolean true"),
    (pod("ports: [{containerPort: '80'}]"), 9, 'the text "80": remove the quotes'),
    (pod("env: [{name: A, value: 80}]"), 9, 'env[0].value: must be a text, but it is the number 80: quote it: "80"'),
    (pod("env: [{name: A, value: true}]"), 9, 'the boolean true: quote it: "true"'),
    (pod("env: {A: b}"), 9, "env: must be a list, but it is a set of fields"),
    (pod("env: [A=b]"), 9, 'env[0]: must be a set of fields, but it is the text "A=b"'),
    (pod("command: sleep 3600"), 9, f"{CONTAINER}.command: must be a list"),
    (pod("command: [sleep, 3600]"), 9, 'command[1]: must be a text, but it is the number 3600: quote it: "3600"'),
    (pod("args:\n-"), 10, f"{CONTAINER}.args[0]: is empty"),
    (pod("securityContext: {runAsNonRoot: yes}"), 9, 'the text "yes": write true, without quotes'),
    (pod("securityContext: {runAsUser: root}"), 9, "runAsUser: must be a whole number"),
    (meta("labels: {version: 1.10}"), 5, 'the number 1.10: quote it: "1.10"'),
    (meta("labels: {mode: 0644}"), 5, 'the number 0644: quote it: "0644"'),
    (meta("labels: {a: [x]}"), 5, "metadata.labels.a: must be a text, but it is a list"),
    (meta("labels: [x]"), 5, "metadata.labels: must be a set of names and values"),
    (meta("creationTimestamp: yesterday"), 5, 'must be a time such as "2024'),
    (POD.replace("spec:", "spec: [\n]\nx:"), 5, "spec: must be a set of fields, but it is a list"),
    # quantities
    (pod("resources: {limits: {memory: 64MB}}"), 9, 'limits.memory: "64MB" is not a quantity'),
    (pod("resources: {limits: {memory: 64Mi, cpu: [1]}}"), 9, "limits.cpu: must be a quantity"),
    (pod("resources: {limits: {cpu: -1}}"), 9, "limits.cpu: must not be negative"),
    (pod("resources: {limits: {cpu: .inf}}"), 9, 'limits.cpu: "inf" is not a quantity'),
    (pod("resources: {limits: {cpu: 1}, requests: {cpu: 1500m}}"), 9, "1500m is more than the limit of 1"),
    (pod("resources: {requests: {gpu: 1}}"), 9, '"gpu" is not a resource: use one of cpu, memory'),
    (pod("resources: {requests: {example.com/gpu: 1}}"), 9, "a device is asked for by its limit"),
    (pod("resources: {limits: {example.com/gpu: 500m}}"), 9, "must be a whole number, but it is 500m"),
    (pod("resources: {limits: {hugepages-2Mi: 4Mi}}"), 9, "huge pages are not supported yet"),
    # names
    (POD.replace("name: web\nspec", "name: ../etc\nspec"), 4, '"../etc" is not a valid name'),
    (POD.replace("name: web\nspec", "name: Web\nspec"), 4, '"Web" is not a valid name: use small letters'),
    (POD.replace("name: web\nspec", f"name: {'x' * 254}\nspec"), 4, "has 254 characters: at most 253"),
    (POD.replace("  name: web\nspec", "  namespace: a\nspec"), 3, "metadata.name: is missing"),
    (meta("namespace: a/b"), 5, 'metadata.namespace: "a/b" is not a valid name'),
    (meta("labels: {-x: y}"), 5, "is not a valid key"),
    (meta('labels: {a: "b c"}'), 5, "is not a valid label value"),
    (meta("labels: {Example.com/x: y}"), 5, "the part before '/'"),
    (meta("finalizers: [x]"), 5, "must have a domain in front"),
    (POD.replace("- name: web", "- name: web_1"), 7, f'{CONTAINER}.name: "web_1" is not a valid name'),
    (POD.replace("  - name: web\n    image", "  - image"), 7, f"{CONTAINER}.name: is missing: name the container"),
    (POD.replace("    image: nginx:1.27\n", ""), 7, f"{CONTAINER}.image: is missing: name the image"),
    (POD.replace("nginx:1.27", "Nginx"), 8, "only a host and a tag may have capital letters"),
    (POD.replace("nginx:1.27", "'nginx '"), 8, "has spaces around it"),
    (POD.replace("nginx:1.27", "../../etc"), 8, "is not a valid image"),
    (POD + "  - name: web\n    image: x\n", 9, '"web" is another container\'s name too'),
    # ports and env
    (pod("ports: [{containerPort: 0}]"), 9, "must be from 1 to 65535, and it is missing or 0"),
    (pod("ports: [{containerPort: 65536}]"), 9, "must be from 1 to 65535, but it is 65536"),
    (pod("ports: [{containerPort: 80, protocol: tcp}]"), 9, '"tcp" is not valid: did you mean "TCP"?'),
    (pod("ports:\n- containerPort: 80\n- containerPort: 80"), 11, "80/TCP is given twice"),
    (pod("ports: [{containerPort: 80, name: HTTP}]"), 9, "is not a valid name"),
    (pod("ports: [{containerPort: 1, name: a}, {containerPort: 2, name: a}]"), 9, '"a" is another port'),
    (pod("env:\n- {name: A}\n- {name: A}"), 11, 'env[1].name: "A" is given twice'),
    (pod('env: [{name: "A=B"}]'), 9, "printable ASCII without '='"),
    (pod("env: [{value: x}]"), 9, "env[0].name: is missing"),
    (pod('args: ["a\\0b"]'), 9, "holds a NUL character"),
    (pod("workingDir: data"), 9, "must begin with '/'"),
    # security and placement
    (pod("securityContext: {runAsUser: -1}"), 9, "runAsUser: must be from 0 to 2147483647"),
    (
        pod("securityContext: {capabilities: {drop: [CAP_NET_RAW]}}"),
        9,
        'drop[0]: "CAP_NET_RAW" is not a capability: write NET_RAW',
    ),
    (pod("securityContext: {capabilities: {drop: [all]}}"), 9, "write ALL"),
    (spec("restartPolicy: always"), 9, 'did you mean "Always"?'),
    (spec("terminationGracePeriodSeconds: -1"), 9, "must be from 0 to"),
    (spec("tolerations: [{operator: Equal, value: x}]"), 9, 'must be "Exists" when key is empty'),
    (spec("tolerations: [{key: a, operator: Exists, value: x}]"), 9, 'must be empty when operator is "Exists"'),
    (spec("tolerations: [{key: a, effect: NoSchedul}]"), 9, 'did you mean "NoSchedule"?'),
    (spec("tolerations: [{key: a, tolerationSeconds: 5}]"), 9, 'must be "NoExecute" when tolerationSeconds'),
    (spec("nodeSelector: {disk: 1}"), 9, 'nodeSelector.disk: must be a text, but it is the number 1: quote it: "1"'),
    # workloads
    (DEPLOYMENT.replace("        app: web", "        app: x"), 12, "do not match spec.selector"),
    (DEPLOYMENT.replace("  selector:\n    matchLabels:\n      app: web\n", ""), 5, "spec.selector: is missing"),
    (DEPLOYMENT + "      restartPolicy: Never\n", 18, 'must be "Always" for pods of a Deployment'),
    (
        DEPLOYMENT.replace("apps/v1", "extensions/v1beta1"),
        1,
        "is not the version of Deployment: write apiVersion: apps/v1",
    ),
    (DEPLOYMENT.replace("apps/v1", "v1"), 1, "write apiVersion: apps/v1"),
    (DEPLOYMENT.replace("apiVersion: apps/v1\n", ""), 1, "apiVersion: is missing: write apiVersion: apps/v1"),
    # kinds
    (POD.replace("kind: Pod", "kind: pod"), 2, '"pod" is not a known kind; did you mean Pod?'),
    (POD.replace("kind: Pod", "kind: Deploymnet"), 2, "did you mean Deployment?"),
    (POD.replace("kind: Pod", "kind: Banana"), 2, "is not a known kind; known kinds are Namespace"),
    (POD.replace("kind: Pod\n", ""), 1, "kind: is missing"),
    (POD.replace("kind: Pod", "kind: [Pod]"), 2, "kind: must be a text, but it is a list"),
    ("- a\n- b\n", 1, "an object must be a set of fields"),
    ("just text\n", 1, "an object must be a set of fields"),
    ("42\n", 1, "an object must be a set of fields"),
    # YAML
    (POD + "spec:\n  containers: []\n", 9, 'the key "spec" is given twice (first in line 5)'),
    (meta("labels: {a: b, a: c}"), 5, 'the key "a" is given twice'),
    (meta("labels: {1: b}"), 5, 'the key 1 must be a text: quote it: "1"'),
    (meta("labels: {? [a] : b}"), 5, "cannot be a key"),
    (meta("labels: {a: !!python/object:os.system x}"), 5, "the tag"),
    (POD.replace("  name: web\nspec", "  <<: {name: web}\nspec"), 4, "merge keys (<<) are not supported"),
    (POD.replace("    image", "\timage"), 8, "is not valid YAML, column 1"),
    (meta("labels: *nowhere"), 5, "the alias *nowhere was not defined before"),
    (meta("labels: &a {x: *a}"), 5, "the alias *a refers to itself"),
    # the same object twice
    (POD + "---\n" + POD, 13, "this object is already in line 1"),
    # data
    ("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: 'not base64!'}\n", 4, "data.a: is not base64"),
    ("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: 'YQ'}\n", 4, "data.a: is not base64"),
    ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {../a: b}\n", 4, "must not begin with '..'"),
    ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {a/b: b}\n", 4, "is not a valid name"),
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {a: b}\nbinaryData: {a: Yg==}\n",
        5,
        "is under data too",
    ),
    ("apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: s}\n", 1, "is missing: a Secret of type"),
    (
        "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: {taints: [{key: a}]}\n",
        4,
        "effect: is missing: use one of",
    ),
    ("apiVersion: v1\nkind: Namespace\nmetadata: {name: n, namespace: x}\n", 3, "belongs to no namespace"),
]


@pytest.mark.parametrize(("text", "line", "expected"), CASES)
def test_mistake(text: str, line: int, expected: str) -> None:
    found = errors(text)
    assert any(expected in error for error in found), found
    assert any(error.startswith(f"f.yaml:{line}:") for error in found if expected in error), found


def test_all_errors_come_at_once() -> None:
    text = POD.replace(
        "image: nginx:1.27", "imgae: x\n    ports: [{containerPort: '80'}]\n    env: [{name: A, value: 1}]"
    )
    text = text.replace("name: web\nspec", "name: Web\nspec") + "  foo: 1\n"
    found = errors(text)
    assert len(found) == 6, found
    assert found == sorted(found, key=lambda error: int(error.split(":")[1]))


def test_a_field_that_could_not_be_read_is_not_also_missing() -> None:
    found = errors(POD.replace("image: nginx:1.27", "image: 5"))
    assert found == [
        'f.yaml:8: Pod web: spec.containers[0].image: must be a text, but it is the number 5: quote it: "5"'
    ]


def test_very_many_errors_are_bounded() -> None:
    found = errors(POD + "".join(f"  f{n}: 1\n" for n in range(5000)))
    assert len(found) <= 201


def test_fields_that_say_nothing_may_stay() -> None:
    text = DEPLOYMENT.replace("  name: web\nspec", "  name: web\n  creationTimestamp: null\nspec")
    assert errors(text + "  strategy: {}\nstatus: {}\n") == []
    assert errors(spec("volumes: []\naffinity: null")) == []


@pytest.mark.parametrize(
    "text",
    [
        spec("dnsPolicy: ClusterFirst\nautomountServiceAccountToken: false\nenableServiceLinks: false"),
        spec("hostUsers: true\npriorityClassName: ''"),
        spec("serviceAccountName: default\nos: {name: linux}"),
        pod("securityContext: {procMount: Default}"),
        pod("ports: [{containerPort: 80, hostPort: 0, hostIP: ''}]"),
        DEPLOYMENT + "  strategy: {type: RollingUpdate}\n  minReadySeconds: 0\n  paused: false\n",
        DEPLOYMENT + "  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n",
    ],
)
def test_unsupported_fields_may_say_what_is_so_anyway(text: str) -> None:
    assert errors(text) == []


@pytest.mark.parametrize(
    "text",
    [
        spec("automountServiceAccountToken: true"),
        spec("automountServiceAccountToken: 0"),
        spec("hostUsers: false"),
        spec("serviceAccountName: builder"),
        DEPLOYMENT + "  paused: true\n",
        DEPLOYMENT + "  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 1}}\n",
    ],
)
def test_unsupported_fields_that_would_change_something_are_refused(text: str) -> None:
    (error,) = errors(text)
    assert "not supported yet" in error


def test_values_that_hold_anyway_are_of_fields_that_are_not_supported() -> None:
    for message, fields in known.HOLDS_ANYWAY.items():
        assert fields.keys() <= known.UNSUPPORTED_FIELDS[message].keys(), message


def test_other_kinds_are_named_and_kept_apart() -> None:
    service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {Type: x}\n"
    crd = "---\napiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: mon}\n"
    parsed = parse(POD + service + crd, "f.yaml")
    assert parsed.errors == []
    assert [(u.kind, u.name, u.line) for u in parsed.unsupported] == [
        ("Service", "web", 10),
        ("ServiceMonitor", "mon", 15),
    ]
    assert [found.message.kind for found in parsed.objects] == ["Pod"]


def test_lists() -> None:
    listed = "kind: List\napiVersion: v1\nitems:\n" + "".join(
        ("- " if n == 0 else "  ") + line + "\n" for n, line in enumerate(POD.splitlines())
    )
    parsed = parse(listed + "- kind: Nod\n", "f.yaml")
    assert [found.message.metadata.name for found in parsed.objects] == ["web"]
    assert [str(error) for error in parsed.errors] == [
        'f.yaml:12: items[1].kind: "Nod" is not a known kind; did you mean Node?'
    ]
    assert parse("kind: PodList\napiVersion: v1\nitems: []\n").errors == []


def test_json_with_surrogate_pairs() -> None:
    text = '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"a":"\\ud83d\\ude00","b":"\\/"}}'
    parsed = parse(text)
    assert parsed.errors == []
    assert dict(parsed.objects[0].message.data) == {"a": "😀", "b": "/"}  # type: ignore[union-attr]
    assert "given twice" in str(parse(text.replace('"b"', '"a"')).errors[0])
    assert "is not valid YAML" in str(parse(text[:-1]).errors[0])
    assert "surrogate" in str(parse(text.replace("\\ude00", "")).errors[0])
