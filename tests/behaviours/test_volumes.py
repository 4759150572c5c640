"""Volumes, seen from inside the containers and from the kernel: B8, B9, B56 to B67."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.behaviours.world import Object, World, config_map, container, deaths, pod, secret, why
from tests.devcluster import until

SLEEP = "sleep 600"
UPDATE_SECONDS = 60.0
MIB = 1 << 20


def mounted(script: str, path: str = "/v", **fields: Any) -> Object:
    """A container that mounts the volume `v`; `mount` is more of the mount."""
    mount = {"name": "v", "mountPath": path, **fields.pop("mount", {})}
    return container(script, volumeMounts=[mount], **fields)


def volume(**source: Any) -> dict[str, Any]:
    """A pod's volumes: one, `v`."""
    return {"volumes": [{"name": "v", **source}]}


def shown(world: World, script: str, *, spec: Mapping[str, Any] | None = None, **source: Any) -> list[str]:
    """What a script prints in a pod that mounts one volume on /v."""
    return world.output(pod("p", mounted(script), **volume(**source), **(spec or {}))).splitlines()


def node_root(world: World, name: str) -> Path:
    """The root of the node that a pod runs on, as its processes see it."""
    holder = world.cluster.part(f"holder-{world.pod(name)['spec']['nodeName']}")
    assert holder is not None
    return Path(f"/proc/{holder.pid}/root")


# ---- B8, B9 ----
def test_b8_sub_path_expr_expands_the_container_s_variables(world: World) -> None:
    env = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    mounts = [
        {"name": "v", "mountPath": "/own", "subPathExpr": "logs/$(POD)"},
        {"name": "v", "mountPath": "/all"},
    ]
    script = "echo mine >/own/file; cat /all/logs/p/file"
    assert world.output(pod("p", container(script, env=env, volumeMounts=mounts), **volume(emptyDir={}))) == "mine\n"


@pytest.mark.parametrize(("value", "why"), [("/tmp", "is absolute"), ("..", "leaves"), ("`id`", "backtick")])
def test_b9_sub_path_expr_stays_inside_its_volume(world: World, value: str, why: str) -> None:
    env = [{"name": "WHERE", "value": value}]
    made = mounted(SLEEP, mount={"subPathExpr": "$(WHERE)"}, env=env)
    world.apply(pod("p", made, **volume(emptyDir={})))
    said = world.waiting("p", "CreateContainerConfigError")
    assert why in said
    assert "spec.containers[0].volumeMounts[0].subPathExpr" in said


# ---- B56, B57 ----
def test_b56_containers_share_an_empty_dir(world: World) -> None:
    first = mounted("echo one >/v/one; until [ -e /v/two ]; do sleep 0.1; done; cat /v/two", name="first")
    second = mounted("until [ -e /v/one ]; do sleep 0.1; done; cat /v/one; echo two >/v/two", name="second", path="/v/")
    world.run(pod("p", first, second, restartPolicy="Never", **volume(emptyDir={})))
    assert (world.logs("p", "-c", "first"), world.logs("p", "-c", "second")) == ("two\n", "one\n")


def test_b56_an_empty_dir_outlives_its_container_and_goes_with_its_pod(world: World) -> None:
    script = "if [ -e /v/seen ]; then echo again; sleep 600; fi; echo x >/v/seen; exit 1"
    world.apply(pod("p", mounted(script), **volume(emptyDir={})))
    world.ready("p")
    world.said("p", "again\n", whole=True)
    uid = world.pod("p")["metadata"]["uid"]
    left = node_root(world, "p")
    world.shoal("delete", "pod", "p")
    data = world.cluster.data
    until(lambda: "\n".join(map(str, data.glob(f"**/volumes/{uid}"))), UPDATE_SECONDS)
    assert not list(left.glob(f"run/shoal/volumes/{uid}"))


def test_b57_an_empty_dir_is_on_disk_and_open_to_any_user(world: World) -> None:
    script = "stat -c %a /v; id -u; echo x >/v/file; stat -c %u /v/file; grep -c ' /v tmpfs ' /proc/mounts || true"
    context = {"securityContext": {"runAsUser": 1001}}
    assert shown(world, script, spec=context, emptyDir={}) == ["777", "1001", "1001", "0"]


def test_b57_an_empty_dir_in_memory_is_a_tmpfs_of_its_size(world: World) -> None:
    script = (
        "stat -c %a /v; grep -o ' /v tmpfs ' /proc/mounts; df -k /v | awk 'END {print $2}'; "
        "dd if=/dev/zero of=/v/large bs=1k count=2048 2>&1 | grep -o 'No space left on device'"
    )
    found = shown(world, script, emptyDir={"medium": "Memory", "sizeLimit": "1Mi"})
    assert found == ["777", " /v tmpfs ", "1024", "No space left on device"]


def test_b57_a_pod_above_the_size_limit_of_its_empty_dir_is_evicted(world: World) -> None:
    script = "head -c 3m /dev/zero >/v/large; sleep 600"
    world.apply(pod("p", mounted(script), **volume(emptyDir={"sizeLimit": "1Mi"})))
    status = world.phase("p", "Failed")["status"]
    assert status["reason"] == "Evicted"
    assert 'Usage of EmptyDir volume "v" exceeds the limit "1Mi"' in status["message"]
    (death,) = deaths(world, "p")
    assert (death["reason"], death["message"]) == ("Evicted", status["message"])
    world.shoal("delete", "pod", "p", "--wait")
    said = why(world, "p")
    assert "pod/p is gone" in said and status["message"] in said


def test_b57_a_pod_above_its_ephemeral_storage_is_evicted(world: World) -> None:
    limits = {"limits": {"ephemeral-storage": "2Mi"}}
    world.apply(pod("p", mounted("head -c 4m /dev/zero >/v/large; sleep 600", resources=limits), **volume(emptyDir={})))
    status = world.phase("p", "Failed")["status"]
    assert status["reason"] == "Evicted"
    assert "ephemeral" in status["message"]


# ---- B58 to B61: ConfigMaps and Secrets as files ----
def test_b58_a_config_map_is_files_with_items_and_modes(world: World) -> None:
    world.apply(config_map("conf", {"a.conf": "A", "b.conf": "B"}))
    items = [{"key": "a.conf", "path": "deep/x"}, {"key": "b.conf", "path": "y", "mode": 0o400}]
    script = "cd /v; find . -type l -o -type f | grep -v '[.][.]' | sort; cat deep/x y; stat -Lc %a deep/x y"
    source = {"name": "conf", "items": items, "defaultMode": 0o440}
    assert shown(world, script, configMap=source) == ["./deep", "./y", "AB440", "400"]


def test_b58_a_config_map_s_files_are_all_its_keys_binary_ones_too_and_read_only(world: World) -> None:
    raw = bytes(range(256))
    binary = {"binaryData": {"raw": base64.b64encode(raw).decode()}}
    world.apply(config_map("conf", {"text": "hello\n"}, **binary))
    script = "cat /v/text; stat -Lc %a /v/text; sha256sum </v/raw; touch /v/new 2>/dev/null || echo refused"
    text, mode, digest, refused = shown(world, script, configMap={"name": "conf"})
    expected = subprocess.run(["sha256sum"], input=raw, capture_output=True, check=True).stdout.split()[0].decode()
    assert (text, mode, digest.split()[0], refused) == ("hello", "644", expected, "refused")


def test_b58_a_config_map_of_a_full_mebibyte_reaches_its_pod(world: World) -> None:
    world.apply(config_map("large", {"k": "x" * (MIB - 1)}))
    assert shown(world, "wc -c </v/k", configMap={"name": "large"}) == [str(MIB - 1)]


def test_b58_a_missing_config_map_holds_its_pod_back(world: World) -> None:
    items = [{"key": "k", "path": "k"}]
    world.apply(pod("p", mounted("cat /v/k; sleep 600"), **volume(configMap={"name": "late", "items": items})))
    assert f"ConfigMap {world.namespace}/late does not exist" in world.waiting("p", "FailedMount")
    world.apply(config_map("late", {"k": "came"}))
    world.said("p", "came", whole=True)


def test_b59_a_secret_is_files_in_memory_and_on_no_disk_of_the_node(world: World) -> None:
    value = f"hunter2-{os.getpid()}-{world.namespace}"
    world.apply(secret("keys", {"password": value, "other": "x"}))
    items = [{"key": "password", "path": "pw", "mode": 0o400}]
    script = f"cat /v/pw; echo; ls /v; stat -Lc %a /v/pw; grep -o ' /v tmpfs ' /proc/mounts; {SLEEP}"
    world.apply(pod("p", mounted(script), **volume(secret={"secretName": "keys", "items": items})))
    world.said("p", "\n".join([value, "pw", "400", " /v tmpfs ", ""]), whole=True)
    node = world.pod("p")["spec"]["nodeName"]
    folder = next(path for path in world.cluster.data.rglob(node) if path.is_dir())
    found = subprocess.run(["grep", "-rlF", value, str(folder)], capture_output=True, text=True).stdout.split()
    assert [path for path in found if not path.endswith(".log")] == []


def reread(world: World, command: str, wanted: str) -> None:
    """Until a container sees what it should."""

    def problem() -> str:
        seen = world.exec("p", "sh", "-c", command)
        return "" if seen == wanted else f"it sees {seen!r}"

    until(problem, UPDATE_SECONDS)


def test_b60_a_changed_config_map_or_secret_reaches_the_running_container(world: World) -> None:
    world.apply(config_map("conf", {"k": "old", "gone": "x"}), secret("keys", {"k": "old"}))
    mounts = [{"name": "conf", "mountPath": "/conf"}, {"name": "keys", "mountPath": "/keys"}]
    volumes = [
        {"name": "conf", "configMap": {"name": "conf"}},
        {"name": "keys", "secret": {"secretName": "keys"}},
    ]
    world.apply(pod("p", container(SLEEP, volumeMounts=mounts), volumes=volumes))
    world.ready("p")
    assert world.exec("p", "sh", "-c", "cat /conf/k /keys/k; ls /conf") == "oldoldgone\nk\n"
    world.apply(config_map("conf", {"k": "new", "more": "y"}), secret("keys", {"k": "new"}))
    reread(world, "cat /conf/k /keys/k; ls /conf", "newnewk\nmore\n")
    assert world.status("p")["restartCount"] == 0


def test_b60_an_update_is_atomic(world: World) -> None:
    """Whoever opens ..data first sees the old pair of files or the new one, and every generation is whole."""
    world.apply(config_map("conf", {"a": "0", "b": "0"}))
    script = (
        'while :; do cd /v/..data/ && a=$(cat a) b=$(cat b) && [ "$a" != "$b" ] && echo torn $a $b; '
        '[ "$a" = 5 ] && echo last && sleep 600; done 2>/dev/null'
    )
    world.apply(pod("p", mounted(script), **volume(configMap={"name": "conf"})))
    world.ready("p")
    for number in range(1, 6):
        world.apply(config_map("conf", {"a": str(number), "b": str(number)}))
    until(lambda: "" if "last" in world.logs("p") else "the last one has not come", UPDATE_SECONDS)
    assert world.logs("p") == "last\n"


def test_b61_immutable_ones_cannot_change(world: World) -> None:
    world.apply(config_map("conf", {"k": "old"}, immutable=True), secret("keys", {"k": "old"}, immutable=True))
    sources = [{"configMap": {"name": "conf"}}, {"secret": {"name": "keys", "items": [{"key": "k", "path": "s"}]}}]
    world.apply(pod("p", mounted(SLEEP), **volume(projected={"sources": sources})))
    world.ready("p")
    assert "immutable" in world.refused(config_map("conf", {"k": "new"}, immutable=True))
    assert "immutable" in world.refused(secret("keys", {"k": "new"}, immutable=True))
    assert world.exec("p", "sh", "-c", "cat /v/k /v/s") == "oldold"


# ---- B62 to B66 ----
def test_b62_fs_group_makes_files_of_mode_0440_readable(world: World) -> None:
    world.apply(secret("keys", {"k": "readable"}))
    context = {"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2345}}
    source = {"secretName": "keys", "defaultMode": 0o440}
    found = shown(world, "cat /v/k; echo; stat -Lc '%a %u %g' /v/k; id -G", spec=context, secret=source)
    assert found[:2] == ["readable", "440 0 2345"]
    assert "2345" in found[2].split()


def test_b62_fs_group_owns_an_empty_dir_and_what_is_made_in_it(world: World) -> None:
    context = {"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2345}}
    script = "touch /v/new; stat -c '%a %g' /v; stat -c %g /v/new"
    assert shown(world, script, spec=context, emptyDir={}) == ["2777 2345", "2345"]


def test_b64_a_downward_volume_follows_the_pod_s_labels(world: World) -> None:
    items = [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}, "mode": 0o400},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}},
    ]
    limits = {"limits": {"cpu": "250m"}}
    made = pod("p", mounted(SLEEP, resources=limits), labels={"app": "web"}, **volume(downwardAPI={"items": items}))
    world.apply(made)
    world.ready("p")
    assert world.exec("p", "sh", "-c", "cat /v/labels /v/name /v/cpu; stat -Lc %a /v/name") == 'app="web"p250400\n'
    made["metadata"]["labels"]["tier"] = "front"
    world.apply(made)
    reread(world, "cat /v/labels", 'app="web"\ntier="front"')


def test_b65_a_projected_volume_merges_its_sources(world: World) -> None:
    world.apply(config_map("conf", {"a": "config"}), secret("keys", {"b": "secret"}))
    sources = [
        {"configMap": {"name": "conf"}},
        {"secret": {"name": "keys", "items": [{"key": "b", "path": "deep/b", "mode": 0o400}]}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"configMap": {"name": "never", "optional": True}},
    ]
    script = "cd /v; ls; cat a deep/b name; echo; stat -Lc %a a deep/b; grep -o ' /v tmpfs ' /proc/mounts"
    found = shown(world, script, projected={"sources": sources, "defaultMode": 0o444})
    assert found == ["a", "deep", "name", "configsecretp", "444", "400", " /v tmpfs "]


def test_b66_sub_path_shows_a_folder_or_one_file_of_a_volume(world: World) -> None:
    world.apply(config_map("conf", {"a.conf": "A", "b.conf": "B"}))
    mounts = [
        {"name": "v", "mountPath": "/etc/a.conf", "subPath": "a.conf"},
        {"name": "data", "mountPath": "/one", "subPath": "first/second"},
        {"name": "data", "mountPath": "/all"},
    ]
    volumes = [{"name": "v", "configMap": {"name": "conf"}}, {"name": "data", "emptyDir": {}}]
    script = "cat /etc/a.conf; echo; ls /etc/b.conf 2>&1 | grep -c 'No such'; echo x >/one/file; ls /all/first/second"
    made = pod("p", container(script, volumeMounts=mounts), volumes=volumes)
    assert world.output(made).splitlines() == ["A", "1", "file"]


def test_b66_a_sub_path_keeps_its_file_when_the_config_map_changes(world: World) -> None:
    world.apply(config_map("conf", {"k": "old"}))
    mounts = [{"name": "v", "mountPath": "/one", "subPath": "k"}, {"name": "v", "mountPath": "/v"}]
    world.apply(pod("p", container(SLEEP, volumeMounts=mounts), **volume(configMap={"name": "conf"})))
    world.ready("p")
    world.apply(config_map("conf", {"k": "new"}))
    reread(world, "cat /v/k", "new")
    assert world.exec("p", "cat", "/one") == "old"


def test_b66_a_link_in_a_volume_leads_nowhere_outside_of_it(world: World) -> None:
    """An init container leaves a link to the node's root; a later subPath through it finds the volume only."""
    first = mounted("ln -s / /v/out; ln -s ../../../../etc /v/up", name="first")
    mounts = [{"name": "v", "mountPath": "/out", "subPath": "out"}, {"name": "v", "mountPath": "/up", "subPath": "up"}]
    made = container("ls -a /out/etc/shadow /up/shadow 2>&1; true", volumeMounts=mounts)
    manifest = pod("p", made, initContainers=[first], restartPolicy="Never", **volume(emptyDir={}))
    world.apply(manifest)

    def settled(found: Object) -> bool:
        state = found["status"].get("containerStatuses", [{}])[0].get("state", {})
        held = state.get("waiting", {}).get("reason", "") not in ("", "PodInitializing", "ContainerCreating")
        return held or "terminated" in state

    state = world.until("p", "refused or over", settled)["status"]["containerStatuses"][0]["state"]
    if "terminated" in state and state["terminated"].get("reason") == "Completed":
        lines = world.logs("p").splitlines()
        assert len(lines) == 2 and all("No such file" in line for line in lines)
    else:
        assert "subPath" in str(state)


# ---- B67 ----
@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A folder of the node itself: its containers see the same disk."""
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "file").write_text("from the node\n")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "sock"))
    yield folder
    server.close()


def host_volumes(*paths: tuple[str, str]) -> dict[str, Any]:
    volumes = [{"name": f"h{n}", "hostPath": {"path": path, "type": kind}} for n, (path, kind) in enumerate(paths)]
    return {"volumes": volumes}


def host_mounts(count: int) -> list[Object]:
    return [{"name": f"h{number}", "mountPath": f"/h{number}"} for number in range(count)]


def test_b67_host_paths_of_every_type_are_mounted(world: World, host: Path) -> None:
    world.label(pod_security="privileged")
    paths = (
        (str(host), "Directory"),
        (f"{host}/file", "File"),
        (f"{host}/new/folder", "DirectoryOrCreate"),
        (f"{host}/made", "FileOrCreate"),
        (f"{host}/sock", "Socket"),
        ("/dev/null", "CharDevice"),
        (f"{host}/file", ""),
    )
    script = (
        "cat /h0/file /h1 /h6; echo inside >/h2/made; echo written >/h3; test -S /h4 && echo socket; "
        "test -c /h5 && echo device"
    )
    made = pod("p", container(script, volumeMounts=host_mounts(len(paths))), **host_volumes(*paths))
    assert world.output(made).splitlines() == ["from the node"] * 3 + ["socket", "device"]
    assert (host / "new/folder/made").read_text() == "inside\n"
    assert (host / "made").read_text() == "written\n"


@pytest.mark.parametrize(
    ("name", "kind", "why"), [("file", "Directory", "not a folder"), ("none", "File", "there is nothing at that path")]
)
def test_b67_a_host_path_of_another_type_holds_its_pod_back(
    world: World, host: Path, name: str, kind: str, why: str
) -> None:
    world.label(pod_security="privileged")
    made = container(SLEEP, volumeMounts=host_mounts(1))
    world.apply(pod("p", made, **host_volumes((f"{host}/{name}", kind))))
    said = world.waiting("p", "FailedMount")
    assert f"hostPath {host}/{name} has type {kind}" in said
    assert why in said


def test_b67_only_privileged_namespaces_may_mount_the_node_s_paths(world: World, host: Path) -> None:
    world.label(pod_security="baseline")
    made = container(SLEEP, volumeMounts=host_mounts(1))
    assert "hostPath" in world.refused(pod("p", made, **host_volumes((str(host), "Directory"))))
