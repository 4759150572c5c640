"""A pod's volumes and mounts, as they follow from its manifest and what it refers to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.objects import MemoryObjects
from shoal.agent.pods.config import Unresolved
from shoal.agent.pods.spec import NodeFacts
from shoal.agent.pods.volumes import mounts_of, size_limit, volume_specs
from shoal.agent.runtime.port import Mount
from shoal.agent.volumes.port import EmptyDir, File, Files, HostPath, Local, Prepared, VolumeSpec
from shoal.proto import manifest
from shoal.proto.v1 import objects_pb2 as o

NODE = NodeFacts("n1", "10.0.0.7", 1 << 30, "/logs", allocatable={"cpu": 1900, "memory": 900 << 20})


def objects() -> MemoryObjects:
    table = MemoryObjects()
    here = "shop"
    table.put(
        o.ConfigMap(
            kind="ConfigMap",
            metadata=o.ObjectMeta(name="web", namespace=here),
            data={"a": "A", "b": "B"},
            binaryData={"bin": b"\x00\xff"},
        )
    )
    table.put(o.Secret(kind="Secret", metadata=o.ObjectMeta(name="db", namespace=here), data={"a": b"S"}))
    for name, volume in (("data", "pv1"), ("free", ""), ("far", "pv9"), ("hosted", "pv2"), ("stolen", "pv3")):
        meta = o.ObjectMeta(name=name, namespace=here, uid=f"uid-{name}")
        spec = o.PersistentVolumeClaimSpec(volumeName=volume)
        table.put(o.PersistentVolumeClaim(kind="PersistentVolumeClaim", metadata=meta, spec=spec))
    specs = {
        "pv1": o.PersistentVolumeSpec(
            local=o.LocalVolumeSource(), claimRef=o.ObjectReference(namespace=here, name="data", uid="uid-data")
        ),
        "pv2": o.PersistentVolumeSpec(hostPath=o.HostPathVolumeSource(path="/srv", type="Directory")),
        "pv3": o.PersistentVolumeSpec(
            local=o.LocalVolumeSource(), claimRef=o.ObjectReference(namespace=here, name="stolen", uid="older")
        ),
    }
    for name, one in specs.items():
        table.put(o.PersistentVolume(kind="PersistentVolume", metadata=o.ObjectMeta(name=name), spec=one))
    return table


def pod(spec: str, **meta: object) -> o.Pod:
    """From the YAML of its spec, so that the tests read as manifests do."""
    indented = "\n".join(f"  {line}" for line in spec.strip("\n").splitlines())
    text = f"apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop}}\nspec:\n{indented}\n"
    made = manifest.parse(text, check=False).objects[0].message
    assert isinstance(made, o.Pod)
    made.metadata.MergeFrom(o.ObjectMeta(**meta))  # type: ignore[arg-type]
    return made


def specs(volumes: str, extra: str = "") -> list[VolumeSpec]:
    text = f"containers: [{{name: main, image: busy}}]\n{extra}\nvolumes:\n{volumes}"
    return volume_specs(pod(text, labels={"app": "web"}), objects(), NODE, "10.1.0.5")


def files(volume: str, extra: str = "") -> Files:
    (spec,) = specs(f"- {{name: v, {volume}}}", extra)
    assert isinstance(spec.source, Files)
    assert spec.read_only
    return spec.source


def refusal(volume: str) -> str:
    with pytest.raises(Unresolved) as caught:
        specs(f"- {{name: v, {volume}}}")
    assert caught.value.reason == "FailedMount"
    return caught.value.message


# ---- what is to be prepared ----
def test_empty_dirs_have_the_least_of_their_bounds() -> None:
    found = specs(
        "- {name: disk, emptyDir: {sizeLimit: 1Mi}}\n- {name: fast, emptyDir: {medium: Memory}}\n"
        "- {name: small, emptyDir: {medium: Memory, sizeLimit: 2Mi}}\n- {name: none}"
    )
    assert [spec.source for spec in found] == [
        EmptyDir(size_bytes=1 << 20),
        EmptyDir(memory=True, size_bytes=900 << 20),
        EmptyDir(memory=True, size_bytes=2 << 20),
        EmptyDir(),
    ]
    limited = pod(
        "containers: [{name: main, image: busy, resources: {limits: {memory: 64Mi}}}]\n"
        "volumes: [{name: fast, emptyDir: {medium: Memory}}]"
    )
    (fast,) = volume_specs(limited, objects(), NODE, "")
    assert fast.source == EmptyDir(memory=True, size_bytes=64 << 20)
    assert size_limit(limited.spec.volumes[0]) == 0


def test_config_map_as_files_with_items_modes_and_binary_data() -> None:
    assert files("configMap: {name: web}").files == {"a": File(b"A"), "b": File(b"B"), "bin": File(b"\x00\xff")}
    chosen = files(
        "configMap: {name: web, defaultMode: 0400, items: [{key: a, path: x/y}, {key: b, path: z, mode: 0444}]}"
    )
    assert chosen == Files({"x/y": File(b"A", 0o400), "z": File(b"B", 0o444)}, secret=False)


def test_secrets_are_marked_and_so_is_what_holds_one() -> None:
    assert files("secret: {secretName: db}") == Files({"a": File(b"S")}, secret=True)
    both = files("projected: {sources: [{configMap: {name: web}}, {secret: {name: db}}]}")
    assert both.secret
    assert both.files["a"] == File(b"S"), "the later source wins"
    assert set(both.files) == {"a", "b", "bin"}


def test_downward_files() -> None:
    found = files(
        "downwardAPI: {defaultMode: 0440, items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, "
        "{path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}}]}"
    )
    assert found.files == {"labels": File(b'app="web"', 0o440), "cpu": File(b"1900", 0o440)}


def test_what_is_missing_is_named_with_its_place() -> None:
    assert refusal("configMap: {name: nope}") == "ConfigMap shop/nope does not exist (spec.volumes[0].configMap)"
    assert refusal("secret: {secretName: db, items: [{key: k, path: p}]}") == (
        'key "k" is not in Secret shop/db (it has: a) (spec.volumes[0].secret.items[0].key)'
    )
    where = refusal("projected: {sources: [{configMap: {name: web}}, {secret: {name: nope}}]}")
    assert where == "Secret shop/nope does not exist (spec.volumes[0].projected.sources[1].secret)"
    assert files("secret: {secretName: nope, optional: true}") == Files({}, secret=True)
    assert files("configMap: {name: web, optional: true, items: [{key: k, path: p}]}").files == {}


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "/etc", "..data", "a//b"])
def test_no_path_leaves_a_volume(path: str) -> None:
    assert "relative" in refusal(f"configMap: {{name: web, items: [{{key: a, path: '{path}'}}]}}")


def test_a_path_is_not_a_file_and_a_folder() -> None:
    items = "[{key: a, path: x}, {key: b, path: x/y}]"
    assert "x is a file, and x/y needs a folder there" in refusal(f"configMap: {{name: web, items: {items}}}")


def test_claims_lead_to_their_volumes() -> None:
    def claim(name: str) -> object:
        return specs(f"- {{name: v, persistentVolumeClaim: {{claimName: {name}}}}}")[0].source

    assert claim("data") == Local("pv1")
    assert claim("hosted") == HostPath("/srv", "Directory")
    for name, why in {
        "nope": "shop/nope does not exist",
        "free": "is not bound to a volume yet",
        "far": "pv9, which is not on this node",
        "stolen": "belongs to another claim",
    }.items():
        assert why in refusal(f"persistentVolumeClaim: {{claimName: {name}}}")


def test_a_group_owns_all_but_the_host_s_paths() -> None:
    found = specs(
        "- {name: a, emptyDir: {}}\n- {name: b, hostPath: {path: /x}}\n- {name: c, secret: {secretName: db}}",
        "securityContext: {fsGroup: 2000, fsGroupChangePolicy: OnRootMismatch}",
    )
    assert [spec.fs_group for spec in found] == [2000, None, 2000]
    assert not found[0].fs_group_always


# ---- mounts ----
PREPARED = {name: Prepared(name, f"/v/{name}", is_file=name == "file") for name in ("data", "web", "file")}
VOLUMES = (
    "volumes: [{name: data, emptyDir: {}}, {name: web, configMap: {name: web}}, {name: file, hostPath: {path: /f}}]"
)


def mounts(wanted: str, **env: str) -> list[Mount]:
    made = pod(f"containers: [{{name: main, image: busy, volumeMounts: [{wanted}]}}]\n{VOLUMES}")
    return mounts_of(made, made.spec.containers[0], PREPARED, env)


def mount_refusal(wanted: str, **env: str) -> str:
    with pytest.raises(Unresolved) as caught:
        mounts(wanted, **env)
    assert caught.value.reason == "CreateContainerConfigError"
    return caught.value.message


def test_parents_come_first_and_files_are_read_only() -> None:
    found = mounts("{name: web, mountPath: /a/b/c}, {name: data, mountPath: /a/, mountPropagation: HostToContainer}")
    assert found == [
        Mount("/v/data", "/a/", propagation="HostToContainer"),
        Mount("/v/web", "/a/b/c", read_only=True),
    ]
    assert mounts("{name: data, mountPath: /a, readOnly: true}")[0].read_only


def test_sub_paths_expand_the_container_s_variables() -> None:
    found = mounts("{name: data, mountPath: /a, subPathExpr: logs/$(POD)}", POD="p-1")
    assert found[0].sub_path == "logs/p-1"
    assert mounts("{name: data, mountPath: /a, subPath: x/$(POD)}")[0].sub_path == "x/$(POD)"


@pytest.mark.parametrize(
    ("value", "why"), [("/tmp", "is absolute"), ("..", "leaves"), ("a/../b", "leaves"), ("`id`", "backtick")]
)
def test_sub_paths_stay_inside_the_volume(value: str, why: str) -> None:
    said = mount_refusal("{name: data, mountPath: /a, subPathExpr: $(X)}", X=value)
    assert why in said
    assert said.endswith("(spec.containers[0].volumeMounts[0].subPathExpr)")


def test_unknown_names_and_files_are_refused() -> None:
    assert "names POD, which" in mount_refusal("{name: data, mountPath: /a, subPathExpr: $(POD)}")
    assert "is a file" in mount_refusal("{name: file, mountPath: /a, subPath: x}")


@given(st.text(alphabet="a./`$()X\0", max_size=12))
def test_whatever_is_written_no_sub_path_leaves(value: str) -> None:
    made = o.Pod(spec=o.PodSpec(volumes=[o.Volume(name="data")]))
    made.spec.containers.add(name="main").volumeMounts.add(name="data", mountPath="/a", subPathExpr="$(V)")
    try:
        (mount,) = mounts_of(made, made.spec.containers[0], PREPARED, {"V": value})
    except Unresolved:
        return
    assert not mount.sub_path.startswith("/")
    assert ".." not in mount.sub_path.split("/")
