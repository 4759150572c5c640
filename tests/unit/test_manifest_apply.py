"""Defaults, the rules for changes, and the three-way merge of apply."""

import yaml

from shoal.proto import defaults, merge, printing
from shoal.proto.kinds import CLASSES, Object
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.validation import validate, validate_update
from shoal.proto.walker import from_tree, to_tree


def make(text: str, *, complete: bool = False) -> Object:
    tree = yaml.safe_load(text)
    message, problems = from_tree(tree, CLASSES[tree["kind"]])
    assert problems == []
    if complete:
        defaults.apply_defaults(message)
    return message


POD = """
{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {a: b}}, spec: {
  tolerations: [{key: x}],
  containers: [{name: c, image: i, ports: [{containerPort: 80}], resources: {limits: {cpu: 1}}}]}}
"""
DEPLOYMENT = """
{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, template: {
  metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i, resources: {limits: {cpu: 1}}}]}}}}
"""


def test_defaults_of_pods() -> None:
    pod = make(POD, complete=True)
    assert isinstance(pod, o.Pod)
    assert to_tree(pod.spec) == {
        "containers": [
            {
                "name": "c",
                "image": "i",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "Always",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "securityContext": {},
        "tolerations": [{"key": "x", "operator": "Equal"}],
    }
    assert pod.metadata.namespace == "default"
    assert validate(pod) == []


EVERYTHING = """
{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {
  initContainers: [{name: i, image: "a:1", resources: {limits: {memory: 1Mi}}, env: [{name: A, valueFrom: {fieldRef: {
    fieldPath: metadata.name}}}, {name: B, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]}],
  containers: [{name: c, image: "a@sha256:0011", ports: [{containerPort: 1}],
    livenessProbe: {httpGet: {port: 1}, timeoutSeconds: 0}, readinessProbe: {grpc: {port: 1}, periodSeconds: 3},
    startupProbe: {tcpSocket: {port: 1}, failureThreshold: 30},
    lifecycle: {preStop: {httpGet: {port: 1, path: /bye}}}}],
  volumes: [{name: n}, {name: h, hostPath: {path: /x}}, {name: m, configMap: {name: x}}, {name: s, secret: {
    secretName: x, defaultMode: 0400}}, {name: d, downwardAPI: {items: [{path: f, fieldRef: {fieldPath: x}}]}},
    {name: q, projected: {sources: [{downwardAPI: {items: [{path: f, resourceFieldRef: {resource: x, divisor: "0"}}]
    }}]}}]}}
"""


def test_defaults_of_all_that_a_pod_may_have() -> None:
    pod = make(EVERYTHING, complete=True)
    assert isinstance(pod, o.Pod)
    tree = to_tree(pod.spec)
    init, main = tree["initContainers"][0], tree["containers"][0]
    assert (init["imagePullPolicy"], main["imagePullPolicy"]) == ("IfNotPresent", "IfNotPresent")
    assert init["resources"]["requests"] == {"memory": "1Mi"}
    assert init["env"][0]["valueFrom"]["fieldRef"] == {"apiVersion": "v1", "fieldPath": "metadata.name"}
    assert init["env"][1]["valueFrom"]["resourceFieldRef"] == {"resource": "limits.cpu", "divisor": "1"}
    numbers = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
    assert main["livenessProbe"] == {"httpGet": {"path": "/", "port": 1, "scheme": "HTTP"}} | numbers
    assert main["readinessProbe"] == {"grpc": {"port": 1, "service": ""}} | numbers | {"periodSeconds": 3}
    assert main["startupProbe"] == {"tcpSocket": {"port": 1}} | numbers | {"failureThreshold": 30}
    assert main["lifecycle"]["preStop"]["httpGet"] == {"path": "/bye", "port": 1, "scheme": "HTTP"}
    assert [{k: v for k, v in volume.items() if k != "name"} for volume in tree["volumes"]] == [
        {"emptyDir": {}},
        {"hostPath": {"path": "/x", "type": ""}},
        {"configMap": {"name": "x", "defaultMode": 0o644}},
        {"secret": {"secretName": "x", "defaultMode": 0o400}},
        {
            "downwardAPI": {
                "items": [{"path": "f", "fieldRef": {"apiVersion": "v1", "fieldPath": "x"}}],
                "defaultMode": 0o644,
            }
        },
        {
            "projected": {
                "sources": [
                    {"downwardAPI": {"items": [{"path": "f", "resourceFieldRef": {"resource": "x", "divisor": "0"}}]}}
                ],
                "defaultMode": 0o644,
            }
        },
    ]


def test_a_pull_policy_follows_the_tag() -> None:
    moving = ("nginx", "nginx:latest", "host:5000/nginx", "nginx:latest@sha256:00")
    fixed = ("nginx:1", "host:5000/nginx:1.2", "nginx@sha256:00", "nginx:1@sha256:00")
    assert {name: defaults.tag(name) == "latest" for name in moving + fixed} == {
        **dict.fromkeys(moving, True),
        **dict.fromkeys(fixed, False),
    }


def test_defaults_of_storage() -> None:
    def spec(text: str) -> object:
        return to_tree(make(text, complete=True))

    volume = spec("{apiVersion: v1, kind: PersistentVolume, metadata: {name: v}, spec: {hostPath: {path: /x}}}")
    assert volume["spec"] == {  # type: ignore[index]
        "persistentVolumeReclaimPolicy": "Retain",
        "volumeMode": "Filesystem",
        "hostPath": {"path": "/x", "type": ""},
    }
    claim = spec("{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: v}}")
    assert claim["spec"] == {"volumeMode": "Filesystem"}  # type: ignore[index]
    for provisioner, mode in (
        ("shoal.dev/local", "WaitForFirstConsumer"),
        ("kubernetes.io/no-provisioner", "Immediate"),
    ):
        text = (
            f"{{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {{name: c}}, provisioner: {provisioner}}}"
        )
        made = make(text, complete=True)
        assert isinstance(made, o.StorageClass)
        assert (made.reclaimPolicy, made.volumeBindingMode) == ("Delete", mode)


def test_defaults_of_workloads_and_secrets() -> None:
    deployment = make(DEPLOYMENT, complete=True)
    assert isinstance(deployment, o.Deployment)
    assert deployment.spec.replicas == 1
    assert "cpu" not in deployment.spec.template.spec.containers[0].resources.requests
    secret = make(
        "{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {a: b2xk}, stringData: {a: new}}", complete=True
    )
    assert isinstance(secret, o.Secret)
    assert (secret.type, dict(secret.data), len(secret.stringData)) == ("Opaque", {"a": b"new"}, 0)


def test_defaults_are_idempotent() -> None:
    for text in (POD, DEPLOYMENT, EVERYTHING):
        once = make(text, complete=True)
        again = make(text, complete=True)
        defaults.apply_defaults(again)
        assert once == again


def change(text: str, old: str, new: str) -> list[str]:
    return [str(e) for e in validate_update(make(text, complete=True), make(text.replace(old, new), complete=True))]


def test_changes_that_are_allowed() -> None:
    assert change(POD, "{a: b}", "{a: c}") == []
    assert change(POD, "[{key: x}]", "[{key: x}, {key: y}]") == []
    assert change(DEPLOYMENT, "image: i", "image: j") == []


def test_changes_that_are_refused() -> None:
    assert change(POD, "image: i", "image: j")[0].startswith("spec.containers: cannot be changed: delete the pod")
    assert change(POD, "[{key: x}]", "[]")[0].startswith("spec.tolerations: of a pod can be added to")
    assert change(POD, "name: p", "name: q")[0].startswith('metadata.name: cannot be changed (from "p" to "q")')
    assert change(DEPLOYMENT, "{a: b}", "{a: c}")[0].startswith("spec.selector: cannot be changed")
    fixed = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: b}, immutable: true}"
    assert change(fixed, "a: b", "a: c") == ["data: this ConfigMap is immutable: delete it and create it anew"]
    assert "cannot be taken back" in change(fixed, "true", "false")[0]
    secret = "{apiVersion: v1, kind: Secret, type: x, metadata: {name: c}}"
    assert change(secret, "type: x", "type: y")[0].startswith("type: cannot be changed")


DEADLINE = POD.replace("tolerations: [", "activeDeadlineSeconds: 60, tolerations: [")


def test_a_deadline_may_only_come_nearer() -> None:
    assert change(DEADLINE, "Seconds: 60", "Seconds: 59") == []
    assert change(POD, "tolerations: [", "activeDeadlineSeconds: 60, tolerations: [") == []
    for worse in ("Seconds: 61", "Seconds: null"):
        assert change(DEADLINE, "Seconds: 60", worse) == ["spec.activeDeadlineSeconds: can only be lowered: it is 60"]


def test_nothing_else_of_a_pod_may_change() -> None:
    for field, value in (
        ("volumes", "[{name: v}]"),
        ("initContainers", "[{name: i, image: i}]"),
        ("hostPID", "true"),
        ("schedulerName", "balanced"),
        ("priorityClassName", "high"),
        ("overhead", "{cpu: 1}"),
        ("affinity", "{nodeAffinity: {}}"),
        ("hostname", "h"),
        ("securityContext", "{runAsUser: 1}"),
        ("imagePullSecrets", "[{name: s}]"),
    ):
        found = change(POD, "spec: {", f"spec: {{{field}: {value}, ")
        assert [error.partition(": ")[0] for error in found] == [f"spec.{field}"]


def test_a_pod_of_an_earlier_version_is_not_changed_by_new_defaults() -> None:
    old, new = make(POD, complete=True), make(POD, complete=True)
    assert isinstance(old, o.Pod)
    old.spec.ClearField("securityContext")
    for name in ("imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy"):
        old.spec.containers[0].ClearField(name)
    assert validate_update(old, new) == []


STORAGE = {
    "PersistentVolume": """{apiVersion: v1, kind: PersistentVolume, metadata: {name: v}, spec: {
      capacity: {storage: 1Gi},
      accessModes: [ReadWriteOnce], local: {path: /a}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions:
      [{key: host, operator: In, values: [n1]}]}]}}}}""",
    "PersistentVolumeClaim": """{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: v}, spec: {
      accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, storageClassName: x, volumeName: v1}}""",
    "StorageClass": """{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: v}, reclaimPolicy: Delete,
      provisioner: shoal.dev/local}""",
}


def test_changes_of_storage() -> None:
    volume, claim, kind = STORAGE.values()
    assert change(volume, "storage: 1Gi", "storage: 2Gi") == []
    assert change(volume, "name: v}", "name: v, labels: {a: b}}") == []
    assert change(volume, "path: /a", "path: /b")[0].startswith("spec.local: cannot be changed")
    assert change(volume, "[n1]", "[n2]")[0].startswith("spec.nodeAffinity: cannot be changed")
    assert change(claim, "storage: 1Gi", "storage: 2Gi")[0].startswith("spec.resources: cannot be changed")
    assert change(claim, "volumeName: v1", "volumeName: v2")[0].startswith("spec.volumeName: cannot be changed: the cl")
    assert change(claim, "storageClassName: x", "storageClassName: y")[0].startswith("spec.storageClassName: cannot be")
    assert change(claim, "[ReadWriteOnce]", "[ReadWriteMany]")[0].startswith("spec.accessModes: cannot be changed")
    unbound = claim.replace(", storageClassName: x, volumeName: v1", "")
    assert validate_update(make(unbound, complete=True), make(claim, complete=True)) == []
    assert change(kind, "Delete", "Retain")[0].startswith("reclaimPolicy: cannot be changed")


def test_binding_and_status_of_a_pod_may_change() -> None:
    old, new = make(POD, complete=True), make(POD, complete=True)
    assert isinstance(new, o.Pod)
    new.spec.nodeName = "n1"
    new.status.phase = "Running"
    assert validate_update(old, new) == []
    assert "is bound to" in str(validate_update(new, old)[0])


# ---- merge ----
def merged(current: str, last: str, new: str) -> dict[str, object]:
    result = merge.merge(make(current), make(last), make(new))
    return dict(to_tree(result))


def config(data: str, extra: str = "") -> str:
    return f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c{extra}}}, data: {data}}}"


def test_merge_of_maps() -> None:
    got = merged(config("{a: 1x, b: 2x, other: 3x}"), config("{a: 1x, b: 2x}"), config("{a: 9x, c: 4x}"))
    assert got["data"] == {"a": "9x", "c": "4x", "other": "3x"}
    got = merged(
        config("{a: x}", ", labels: {mine: x, theirs: y}"), config("{a: x}", ", labels: {mine: x}"), config("{}")
    )
    assert got["metadata"] == {"name": "c", "labels": {"theirs": "y"}}
    assert "data" not in got


def workload(containers: str, more: str = "") -> str:
    return f"{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {{containers: {containers}{more}}}}}"


def test_a_volume_that_becomes_another_sort_keeps_nothing_of_the_first() -> None:
    plain = workload("[{name: a}]", ", volumes: [{name: v}, {name: kept, emptyDir: {}}]")
    current = make(plain, complete=True)
    wanted = make(workload("[{name: a}]", ", volumes: [{name: v, configMap: {name: c}}, {name: kept, emptyDir: {}}]"))
    result = to_tree(merge.merge(current, make(plain), wanted))
    assert result["spec"]["volumes"] == [{"name": "v", "configMap": {"name": "c"}}, {"name": "kept", "emptyDir": {}}]


def test_merge_of_lists_with_a_key() -> None:
    current = workload(
        "[{name: a, image: old, workingDir: /w, env: [{name: X, value: x}, {name: Y, value: y}]},"
        " {name: side, image: s}]"
    )
    last = workload("[{name: a, image: old, env: [{name: X, value: x}]}]")
    new = workload("[{name: a, image: new, env: [{name: Z, value: z}]}, {name: b, image: i}]")
    got = merged(current, last, new)
    assert got["spec"] == {
        "containers": [
            {
                "name": "a",
                "image": "new",
                "workingDir": "/w",
                "env": [{"name": "Z", "value": "z"}, {"name": "Y", "value": "y"}],
            },
            {"name": "b", "image": "i"},
            {"name": "side", "image": "s"},
        ]
    }


def test_merge_removes_what_the_last_manifest_had() -> None:
    last = workload(
        "[{name: a, image: i, workingDir: /w, command: [x]}, {name: b, image: i}]", ", nodeSelector: {d: e}"
    )
    got = merged(last, last, workload("[{name: a, image: i}]"))
    assert got["spec"] == {"containers": [{"name": "a", "image": "i"}]}


def test_merge_keeps_defaults_and_matches_ports_by_their_defaulted_protocol() -> None:
    current = workload("[{name: a, image: i, ports: [{containerPort: 80, protocol: TCP}]}]", ", restartPolicy: Always")
    manifest = workload("[{name: a, image: i, ports: [{containerPort: 80}]}]")
    assert merged(current, manifest, manifest) == to_tree(make(current))


def test_merge_replaces_other_lists() -> None:
    current = workload("[{name: a, image: i, command: [a, b]}]", ", tolerations: [{key: x}, {key: y}]")
    new = workload("[{name: a, image: i, command: [c]}]", ", tolerations: [{key: z}]")
    got = merged(current, current, new)
    assert got["spec"] == {"containers": [{"name": "a", "image": "i", "command": ["c"]}], "tolerations": [{"key": "z"}]}


def test_merge_without_a_last_manifest_only_adds() -> None:
    result = merge.merge(make(config("{a: x}")), None, make(config("{b: y}")))
    assert to_tree(result)["data"] == {"a": "x", "b": "y"}


def test_merge_keeps_what_the_server_wrote() -> None:
    current = make(config("{a: x}", ", uid: u1, generation: 3, creationTimestamp: '2024-05-01T12:00:00Z'"))
    new = make(config("{a: x}", ", uid: u2, resourceVersion: '7'"))
    assert merge.merge(current, None, new) == current


def test_merge_of_a_secret_follows_its_string_data() -> None:
    def secret(data: str) -> str:
        return f"{{apiVersion: v1, kind: Secret, metadata: {{name: s}}, stringData: {data}}}"

    current = make(secret("{a: x, b: y}"), complete=True)
    got = merge.merge(current, make(secret("{a: x, b: y}")), make(secret("{a: z}")))
    assert isinstance(got, o.Secret)
    assert (dict(got.data), len(got.stringData)) == ({"a": b"z"}, 0)


def test_merge_changes_no_argument_and_leaves_the_status() -> None:
    current, manifest = make(POD, complete=True), make(POD)
    assert isinstance(current, o.Pod)
    current.status.phase = "Running"
    before = (current.SerializeToString(deterministic=True), manifest.SerializeToString(deterministic=True))
    result = merge.merge(current, manifest, manifest)
    defaults.apply_defaults(result)
    assert result == current
    assert (current.SerializeToString(deterministic=True), manifest.SerializeToString(deterministic=True)) == before


# ---- printing ----
def test_yaml_looks_like_kubectl() -> None:
    assert printing.to_yaml(make(POD)) == (
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  labels:\n    a: b\nspec:\n  containers:\n  - name: c\n"
        '    image: i\n    ports:\n    - containerPort: 80\n    resources:\n      limits:\n        cpu: "1"\n'
        "  tolerations:\n  - key: x\n"
    )


def test_yaml_of_long_texts() -> None:
    text = printing.to_yaml(o.ConfigMap(data={"f": "a\n\n  b: c\n", "no": "x", "e": "", "t": "12:30"}))
    assert text == 'data:\n  e: ""\n  f: |\n    a\n\n      b: c\n  "no": x\n  t: "12:30"\n'


def test_compact_json() -> None:
    assert (
        printing.to_json(o.ConfigMap(kind="ConfigMap", data={"a": "é"}), indent=None)
        == '{"kind":"ConfigMap","data":{"a":"é"}}'
    )
