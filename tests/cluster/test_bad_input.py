"""Bad input against a real cluster: each is refused with what, where, why and what to do, and nothing is half done."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shoal.deploy.certs.ca import Authority
from tests import images
from tests.cluster import bad_input
from tests.cluster.bad_input import Shoal, config_map, pod
from tests.devcluster import until
from tests.leaks import nothing_left

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def clean_machine() -> Iterator[None]:
    """Compares the machine once for the whole module: its cluster lives as long."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces, cgroups and links")
    if not bad_input.BUSYBOX.exists():
        pytest.skip("needs busybox-static")
    with nothing_left():
        yield


@pytest.fixture(scope="module")
def cluster(clean_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shoal]:
    with bad_input.cluster(tmp_path_factory.mktemp("bad")) as made:
        yield made


@pytest.fixture
def shoal(cluster: Shoal) -> Iterator[Shoal]:
    yield cluster
    cluster.clear()


# ---- manifests ----
def mounting(mount: str = "{name: v, mountPath: /data}", source: str = "emptyDir: {}") -> str:
    text = pod("p", more=f", volumeMounts: [{mount}]")
    return text.replace(", containers:", f", volumes: [{{name: v, {source}}}], containers:")


WRONG: dict[str, tuple[str | bytes, str]] = {
    "unknown field": (
        pod("p", more=", imag: x"),
        "manifest.yaml:1: Pod p: spec.containers[0].imag: unknown field; did you mean",
    ),
    "wrong type": (pod("p", more=", ports: 80"), "spec.containers[0].ports: must be a list"),
    "bad quantity": (
        pod("p", more=", resources: {limits: {memory: 10 apples}}"),
        'resources.limits.memory: "10 apples" is not a quantity: write a number with an optional suffix',
    ),
    "number as text": (config_map("c", "{a: 5}"), 'data.a: must be a text, but it is the number 5: quote it: "5"'),
    "duplicate name": (config_map("c") + "---\n" + config_map("c"), "manifest.yaml:3: ConfigMap c"),
    "duplicate key": ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\nkind: Pod\n", "manifest.yaml:4:"),
    "climbing name": (config_map("../c"), 'metadata.name: "../c" is not a valid name'),
    "long name": (config_map("c" * 254), "metadata.name"),
    "bad namespace": (
        config_map("c").replace("name: c", "name: c, namespace: A_b"),
        'metadata.namespace: "A_b" is not',
    ),
    "other kind": ("{apiVersion: v1, kind: Service, metadata: {name: web}}", "not supported: Service (web)"),
    "no such kind": ("{apiVersion: v1, kind: Bananas, metadata: {name: web}}", "Bananas"),
    "wrong version": ("{apiVersion: v2, kind: Pod, metadata: {name: p}}", "apiVersion"),
    "other field": (
        pod("p", more=", volumeDevices: [{name: v}]"),
        "spec.containers[0].volumeDevices: not supported yet",
    ),
    "no kind": ("{apiVersion: v1, metadata: {name: c}}", "kind"),
    "text": ("just text", "manifest.yaml:1: an object must be a set of fields with apiVersion and kind"),
    "broken yaml": ("a: [1,\n", "manifest.yaml:2: is not valid YAML"),
    "deep nesting": ("[" * 101 + "]" * 101, "is nested deeper than 100 levels"),
    "very deep nesting": ("[" * 100_000, "is nested deeper than 100 levels"),
    "above 10 MB": ("# " + "x" * (10 * MIB), "is larger than 10 MB: split it into several files"),
    "binary": (b"\x00\x01\xff\xfe\x80", "manifest.yaml:1:"),
    "negative replicas": (
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {replicas: -1,"
        " selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}},"
        " spec: {containers: [{name: c, image: b}]}}}}",
        "spec.replicas",
    ),
    "security level": (
        "{apiVersion: v1, kind: Namespace, metadata: {name: n, labels: {pod-security.kubernetes.io/enforce: strict}}}",
        'metadata.labels["pod-security.kubernetes.io/enforce"]: "strict" is not valid: did you mean "restricted"?',
    ),
    "no such volume": (
        pod("p", more=", volumeMounts: [{name: data, mountPath: /data}]"),
        'spec.containers[0].volumeMounts[0].name: the pod has no volume "data": it has none',
    ),
    "relative mount": (
        mounting("{name: v, mountPath: data}"),
        "spec.containers[0].volumeMounts[0].mountPath: \"data\" must begin with '/'",
    ),
    "climbing subPath": (
        mounting("{name: v, mountPath: /data, subPath: ../x}"),
        'volumeMounts[0].subPath: "../x" must not climb with',
    ),
    "climbing hostPath": (
        mounting(source="hostPath: {path: /a/../b}"),
        'spec.volumes[0].hostPath.path: "/a/../b" must not climb with',
    ),
    "climbing key": (
        mounting(source="configMap: {name: c, items: [{key: k, path: ../k}]}"),
        'spec.volumes[0].configMap.items[0].path: "../k" must not climb with',
    ),
    "absolute key": (
        mounting(source="secret: {secretName: s, items: [{key: k, path: /k}]}"),
        "spec.volumes[0].secret.items[0].path: \"/k\" must not begin with '/'",
    ),
    "unknown field of the pod": (
        pod("p", more=", env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeNames}}}]"),
        '"spec.nodeNames" is no field of a pod that can be had: did you mean "spec.nodeName"?',
    ),
    "unknown resource": (
        pod("p", more=", env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.gpu}}}]"),
        'valueFrom.resourceFieldRef.resource: "limits.gpu" is not valid: did you mean "limits.cpu"?',
    ),
    "machine's own sysctl": (
        pod("p").replace(
            ", containers:", ", securityContext: {sysctls: [{name: vm.swappiness, value: a}]}, containers:"
        ),
        'spec.securityContext.sysctls[0].name: "vm.swappiness" does not belong to a pod, but to the whole machine',
    ),
    "Secret that is not base64": (
        "{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {token: 'not base64!'}}",
        "manifest.yaml:1: Secret s: data.token: is not base64",
    ),
    "large Secret": (
        json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "x" * MIB}}),
        f"holds {MIB + 1} bytes: a Secret holds at most {MIB}",
    ),
    "large ConfigMap": (
        config_map("c", json.dumps({"k": "x" * MIB})),
        f"holds {MIB + 1} bytes: a ConfigMap holds at most {MIB}",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_manifest(shoal: Shoal, case: str) -> None:
    text, told = WRONG[case]
    shoal.refuses(text, "error: ", "manifest.yaml:" if case != "above 10 MB" else "manifest.yaml", told)


def test_a_yaml_bomb(shoal: Shoal) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    shoal.refuses("\n".join(lines), "aliases")


def test_every_error_of_every_file_at_once(shoal: Shoal) -> None:
    folder = shoal.folder / "several"
    folder.mkdir()
    (folder / "a.yaml").write_text(config_map("good") + "---\n" + config_map("c", "{a: 1, b: true}"))
    (folder / "b.json").write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "P"}}))
    (folder / "ignored.txt").write_text("not: [a manifest")
    shoal("apply", "-f", str(folder), code=1)
    for told in (
        "a.yaml:3: ConfigMap c: data.a:",
        "a.yaml:3: ConfigMap c: data.b:",
        'b.json:1: Pod P: metadata.name: "P"',
    ):
        assert told in shoal.err
    assert shoal.items("cm,pods") == []


def test_what_is_not_supported_can_be_skipped(shoal: Shoal) -> None:
    text = config_map("c") + "---\n{apiVersion: v1, kind: Service, metadata: {name: web}}\n"
    shoal.refuses(text, "kinds that are not supported: Service (web)", "--skip-unsupported")
    assert shoal.apply(text, "--skip-unsupported") == "configmap/c created\n"
    assert "warning: skipping" in shoal.err


def test_files_that_cannot_be_read(shoal: Shoal) -> None:
    shoal("apply", "-f", "/nowhere/x.yaml", code=1)
    assert shoal.err == "error: cannot read /nowhere/x.yaml: No such file or directory\n"
    shoal.apply("", code=1)
    assert "manifest.yaml" in shoal.err and "holds no objects" in shoal.err
    shoal("apply", "-f", "-", stdin="", code=1)
    assert "<stdin>" in shoal.err and "holds no objects" in shoal.err
    empty = shoal.folder / "empty"
    empty.mkdir()
    shoal("apply", "-f", str(empty), code=1)
    assert "the folder holds no .yaml, .yml, .json file" in shoal.err
    shoal("apply", "-f", "http://example.org/x.yaml", code=1)
    assert "addresses are not fetched" in shoal.err
    looping = shoal.folder / "loop.yaml"
    looping.symlink_to(looping)
    shoal("apply", "-f", str(looping), code=1)
    assert f"cannot read {looping}" in shoal.err


def test_json_and_standard_input(shoal: Shoal) -> None:
    text = json.dumps(yaml.safe_load(config_map("c")))
    assert shoal("apply", "-f", "-", stdin=text) == "configmap/c created\n"
    assert shoal("apply", "-f", "-", stdin=text) == "configmap/c unchanged\n"
    shoal("apply", "-f", "-", stdin=text[:-1], code=1)
    assert "is not valid YAML" in shoal.err


# ---- bounds ----
@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_a_mebibyte_of_any_bytes_is_kept(shoal: Shoal, kind: str) -> None:
    """All the way and back: the command, gRPC, the store; and changed once more, which sends the old and the new."""
    field = "binaryData" if kind == "ConfigMap" else "data"
    tree = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "big"}}
    for fill in (b"\xff", b"\x00"):
        data = {"k": base64.b64encode(fill * (MIB - 1)).decode()}
        shoal.apply(json.dumps({**tree, field: data}))
        [found] = shoal.items(kind.lower() + "s")
        assert found[field] == data
    full = {"k": data["k"], "l": ""}
    shoal.apply(json.dumps({**tree, field: full}), code=1)
    assert f"holds {MIB + 1} bytes: a {kind} holds at most {MIB}" in shoal.err


def test_the_largest_that_is_taken(shoal: Shoal) -> None:
    assert shoal.apply(config_map("c", json.dumps({"k": "x" * (MIB - 1)}))) == "configmap/c created\n"
    name = ".".join(["n" * 62] * 4) + "nn"
    assert len(name) == 253
    shoal.apply(config_map(name))
    assert {item["metadata"]["name"] for item in shoal.items("cm")} == {"c", name}


def test_unicode(shoal: Shoal) -> None:
    text = pod(
        "p", command='["sh", "-c", "echo $GREETING; sleep 1000"]', more=', env: [{name: GREETING, value: "żółw 🐢"}]'
    )
    shoal.apply(text.replace("{name: p}", '{name: p, annotations: {note: "日本語"}}'), "--wait", "--timeout", "180s")
    until(lambda: "" if (log := shoal("logs", "p")) == "żółw 🐢\n" else repr(log), bad_input.WAIT_SECONDS)
    assert shoal.pod("p")["metadata"]["annotations"]["note"] == "日本語"
    assert "日本語" in shoal("describe", "pod", "p")


def test_three_hundred_pods_in_one_file(shoal: Shoal) -> None:
    text = "---\n".join(
        pod(f"p{n:03}").replace("{terminationGrace", "{nodeSelector: {no: where}, terminationGrace") for n in range(300)
    )
    assert shoal.apply(text).count(" created\n") == 300
    assert len(shoal.items("pods")) == 300
    assert shoal.apply(text).count(" unchanged\n") == 300


# ---- images ----
def test_a_missing_image_is_told_and_loaded_later(shoal: Shoal) -> None:
    never = pod("p", image="later:1").replace("image: later:1", "imagePullPolicy: Never, image: later:1")
    shoal.apply(never, "--wait", "--timeout", "5s", code=3)
    assert "image later:1 is not on node node-" in shoal.err and "shoal image load" in shoal.err
    waiting = shoal.until("p", lambda state: "waiting" in state)["waiting"]
    assert waiting["reason"] == "ErrImageNeverPull"
    shoal("logs", "p", code=1)
    assert "has not started yet: see its state with `shoal describe pod`" in shoal.err
    shoal("exec", "p", "--", "true", code=1)
    assert "container main of pod p does not run" in shoal.err
    shoal("image", "load", shoal.file(bad_input.busybox("later:1"), "later.tar"))
    shoal.running("p")


def test_a_command_that_the_image_has_not(shoal: Shoal) -> None:
    shoal.apply(pod("p", command='["nosuch"]').replace("{terminationGrace", "{restartPolicy: Never, terminationGrace"))
    ended = shoal.until("p", lambda state: "terminated" in state)["terminated"]
    assert ended["exitCode"] == 127
    assert "nosuch: command not found in the image" in ended["message"]
    assert "nosuch: command not found" in shoal("describe", "pod", "p")


def test_an_entrypoint_that_is_the_runtimes_own_program(shoal: Shoal) -> None:
    shoal("image", "load", shoal.file(images.self_exe("selfexe:1"), "self.tar"))
    shoal.apply(
        pod("p", image="selfexe:1", command="").replace("{terminationGrace", "{restartPolicy: Never, terminationGrace")
    )
    ended = shoal.until("p", lambda state: "terminated" in state)["terminated"]
    assert ended["exitCode"] in (126, 127, 128)
    assert "/entry" in ended["message"]
    shoal("image", "rm", "selfexe:1", code=1)  # in use
    assert "the image selfexe:1 is used by pod default/p: delete its pods first" in shoal.err
    assert "first line" in ended["message"]
    used = re.findall(r"error: (node-[12]): InUse", shoal.err)
    shoal.clear()
    shoal("image", "rm", "selfexe:1", "--node", *used)
    assert "selfexe" not in shoal("image", "ls")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (images.bad_digest(), "digest"),
        (images.climbing(), "outside"),
        (images.climbing("/../../../../tmp/escaped"), "escaped"),
        (b"just text\n" * 200, "BadArchive"),
        (b"", "BadArchive"),
        (bad_input.busybox("cut:1")[:500_000], "cut off"),
    ],
    ids=["bad digest", "climbing", "climbing from the root", "text", "empty", "truncated"],
)
def test_archives_that_are_refused(shoal: Shoal, data: bytes, told: str) -> None:
    before, blobs = shoal("image", "ls"), stored(shoal)
    assert shoal("image", "load", shoal.file(data, "bad.tar"), code=1) == ""
    assert told in shoal.err and "error: node-1: " in shoal.err and "error: node-2: " in shoal.err
    assert shoal("image", "ls") == before
    assert stored(shoal) == blobs
    assert not list(shoal.folder.rglob("*escaped*")) and not Path("/tmp/escaped").exists()


def stored(shoal: Shoal) -> set[str]:
    """What the nodes' image stores hold: layers and what is being unpacked."""
    roots = [path for path in (shoal.folder / "data" / "nodes").rglob("images") if path.is_dir()]
    assert len(roots) == 2
    return {str(path) for root in roots for path in [*root.glob("*/*"), *root.glob("*/*/*")]}


def test_image_commands(shoal: Shoal) -> None:
    shoal("image", "load", "/nowhere.tar", code=1)
    assert shoal.err == "error: /nowhere.tar: No such file or directory\n"
    shoal("image", "load", shoal.folder.as_posix(), code=1)
    assert "Is a directory" in shoal.err
    shoal("image", "load", shoal.file(b"", "x.tar"), "--node", "node-9", code=1)
    assert "no such node: node-9; there are node-1, node-2" in shoal.err
    shoal("image", "rm", "nosuch:1", code=1)
    assert "there is no image nosuch:1" in shoal.err
    shoal("image", "rm", "../../etc", code=1)


# ---- who asks, and whom ----
def written(shoal: Shoal, name: str, **changes: object) -> Path:
    tree = yaml.safe_load(shoal.config.read_text())
    tree["contexts"][0] |= changes
    path = shoal.folder / name
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_client_with_another_clusters_certificate(shoal: Shoal, tmp_path: Path) -> None:
    stranger = Authority.ensure(tmp_path / "certs")
    own = stranger.issue("admin", "mallory")
    config = written(shoal, "foreign", certificate=str(own.certificate), key=str(own.key))
    shoal("get", "pods", config=config, code=1)
    assert "it does not accept our certificate" in shoal.err and "is it from this cluster's CA?" in shoal.err
    config = written(shoal, "foreign", ca=str(stranger.certificate))
    shoal("get", "pods", config=config, code=1)
    assert "its certificate is not from this context's CA" in shoal.err


def test_a_client_without_a_certificate(shoal: Shoal) -> None:
    config = written(shoal, "bare", certificate=None)
    shoal("get", "pods", config=config, code=1)
    assert "contexts[0].certificate: is missing" in shoal.err
    context = yaml.safe_load(shoal.config.read_text())["contexts"][0]
    host, _, port = context["servers"][0].rpartition(":")
    tls = ssl.create_default_context(cafile=context["ca"])
    tls.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), 5) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        connection = tls.wrap_socket(raw, server_hostname=host)
        with connection:
            if not connection.recv(1):  # in TLS 1.3 the server's verdict comes with the first read
                raise ConnectionError("closed at once")


def test_contexts_and_servers(shoal: Shoal) -> None:
    shoal("get", "pods", "--context", "nosuch", code=1)
    assert 'there is no context "nosuch"' in shoal.err and bad_input.NAME in shoal.err
    shoal("get", "pods", config=written(shoal, "wrong", servers=["127.0.0.1:1"]), code=1)
    assert "127.0.0.1:1: nothing listens there; is the master running?" in shoal.err
    shoal("get", "pods", config=written(shoal, "wrong", servers=["localhost"]), code=1)
    assert "contexts[0].servers: must be a list of host:port" in shoal.err
    shoal("get", "pods", config=written(shoal, "wrong", serverz=[]), code=1)
    assert "contexts[0].serverz: unknown field" in shoal.err


# ---- command lines ----
LINES = [
    (("get", "nosuch"), 2, 'no kind is called "nosuch"'),
    (("get", "depoyments"), 2, 'did you mean "deployments"?'),
    (("get", "services"), 2, "Service is not supported"),
    (("get", "svc"), 2, "Service is not supported"),
    (("get", "pod", "nosuch"), 1, "pod/nosuch not found in namespace default"),
    (("get", "pod", "../x"), 2, '"../x"'),
    (("get", "pods", "-l", "(("), 2, "cannot read the selector"),
    (("get", "pods", "--field-selector", "x=1"), 2, "cannot be selected by"),
    (("get", "pods", "--sort-by", ".metadata.nam"), 2, 'did you mean "name"?'),
    (("get", "pods", "-n", "Bad_"), 2, '"Bad_" is not a valid name'),
    (("get", "pods", "-n", "x", "-A"), 2, "exclude each other"),
    (("get", "pods", "-o", "bogus"), 2, "'bogus' is not one of"),
    (("get", "--bogus"), 2, "No such option"),
    (("gte", "pods"), 2, "no verb is called 'gte'"),
    (("scale", "pod/x", "--replicas", "2"), 2, "a Pod has no replicas"),
    (("scale", "deploy/x", "--replicas", "-1"), 2, "-1 is not in the range"),
    (("scale", "deploy/x", "--replicas", "1"), 1, "x"),
    (("delete", "pods"), 2, "Give names, -l or --all"),
    (("delete",), 2, "say what"),
    (("delete", "pod", "nosuch"), 1, "not found"),
    (("delete", "pod", "x", "--all"), 2, "names exclude"),
    (("delete", "-f", "/nowhere.yaml"), 1, "cannot read /nowhere.yaml"),
    (("logs", "nosuch"), 1, "not found"),
    (("logs", "node/node-1"), 2, "a Node has no containers"),
    (("logs", "x", "--since", "soon"), 2, "is not a duration"),
    (("exec", "x"), 2, "COMMAND"),
    (("exec", "nosuch", "--", "true"), 1, "not found"),
    (("events", "--for", "x"), 2, "write KIND/NAME"),
    (("apply",), 2, "say what to apply: -f FILE, or --plan PLAN"),
    (("config", "use-context", "nosuch"), 1, 'there is no context "nosuch"'),
    (("completion", "tcsh"), 2, "is not one of"),
]


@pytest.mark.parametrize(
    ("words", "code", "told"), LINES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_command_line(cluster: Shoal, words: tuple[str, ...], code: int, told: str) -> None:
    assert cluster(*words, code=code) == ""
    assert "error: " in cluster.err and told in cluster.err, cluster.err


def test_inside_a_pod(shoal: Shoal) -> None:
    shoal.apply(pod("p"), "--wait", "--timeout", "180s")
    shoal("exec", "p", "-c", "nosuch", "--", "true", code=1)
    assert 'pod/p has no container "nosuch": it has main' in shoal.err
    shoal("exec", "p", "--", "nosuch", code=127)
    assert "nosuch: command not found in the image" in shoal.err
    shoal("exec", "p", "--", "sh", "-c", "exit 9", code=9)
    shoal("logs", "p", "-p", code=1)
    assert "has no previous run" in shoal.err
    assert shoal("exec", "-i", "p", "--", "wc", "-c", stdin=b"x" * 300_000).strip() == "300000"
    assert shoal("exec", "-it", "p", "--", "cat", stdin="hi") == "hi"
    assert "warning: no terminal for -t" in shoal.err


def test_what_the_namespace_forbids(shoal: Shoal) -> None:
    where = "spec.containers[0].securityContext.privileged: is not allowed: remove it"
    label = "the label pod-security.kubernetes.io/enforce=privileged on it would allow this"
    shoal.refuses(
        pod("p", more=", securityContext: {privileged: true}"),
        f"error: pod/p: Pod default/p is invalid: {where}",
        label,
    )
    template = "{metadata: {labels: {a: b}}, spec: {hostNetwork: true, containers: [{name: c, image: b}]}}"
    deployment = f"{{selector: {{matchLabels: {{a: b}}}}, template: {template}}}"
    text = f"{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: d}}, spec: {deployment}}}"
    shoal.refuses(text, "deployment/d", "spec.template.spec.hostNetwork: is not allowed", label)


def test_levels_of_security(shoal: Shoal) -> None:
    def space(level: str) -> str:
        labels = f"{{pod-security.kubernetes.io/enforce: {level}}}"
        return f"{{apiVersion: v1, kind: Namespace, metadata: {{name: levels, labels: {labels}}}}}\n---\n"

    host = (
        pod("p")
        .replace("name: p", "name: p, namespace: levels")
        .replace(", containers:", ", hostPID: true, containers:")
    )
    shoal.apply(space("restricted") + host, code=1)
    told = ("hostPID", "allowPrivilegeEscalation", "capabilities.drop", "runAsNonRoot", "seccompProfile.type")
    assert all(f"{path}: " in shoal.err for path in told), shoal.err
    shoal.apply(space("baseline") + host, code=1)
    assert "spec.hostPID: is not allowed" in shoal.err and "capabilities" not in shoal.err
    assert "pod/p created" in shoal.apply(space("privileged") + host)
    shoal("delete", "namespace", "levels", "--force", "--timeout", "180s")


def test_a_field_that_cannot_change(shoal: Shoal) -> None:
    shoal.apply(pod("p"))
    shoal.apply(pod("p", command='["sleep", "2000"]'), code=1)
    assert "pod/p" in shoal.err and "spec.containers: cannot be changed: delete the pod" in shoal.err
    assert shoal.pod("p")["spec"]["containers"][0]["command"] == ["sleep", "1000"]


def test_ctrl_c_ends_a_watch_and_a_log(shoal: Shoal) -> None:
    shoal.apply(pod("p", command='["sh", "-c", "echo ready; sleep 1000"]'), "--wait", "--timeout", "180s")
    for words, first in ((["get", "pods", "-w", "-o", "name"], "pod/p\n"), (["logs", "-f", "p"], "ready\n")):
        # What a shell starts in the background ignores SIGINT, and so would all that these tests start.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "shoal.deploy.cli.main", *words]
        environment = os.environ | {"SHOAL_CONFIG": str(shoal.config)}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == first
            timer = threading.Timer(120, running.kill)  # so that a failure is one, and no hang
            timer.start()
            running.send_signal(signal.SIGINT)
            _, err = running.communicate()
            timer.cancel()
            assert (running.returncode, err.strip()) == (130, "")
