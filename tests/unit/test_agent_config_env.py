"""The environment of a container: what its manifest and what it refers to make of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.images.port import Image, ImageConfig
from shoal.agent.objects import MemoryObjects
from shoal.agent.pods import downward
from shoal.agent.pods.config import Unresolved, environment, is_variable_name
from shoal.agent.pods.spec import NodeFacts, command
from shoal.agent.runtime.port import StartError
from shoal.proto.v1 import objects_pb2 as o

NODE = NodeFacts("n1", "10.0.0.7", 1 << 30, "/logs", allocatable={"cpu": 1900, "memory": 900 << 20})
WEB = o.ConfigMap(
    kind="ConfigMap",
    metadata=o.ObjectMeta(name="web", namespace="shop"),
    data={"colour": "blue", "bad=name": "x", "1.two": "y"},
    binaryData={"blob": b"\x00\x01"},
)
DB = o.Secret(
    kind="Secret",
    metadata=o.ObjectMeta(name="db", namespace="shop"),
    data={"password": b"hunter2", "raw": b"\xff\xfe", "nul": b"a\0b"},
)


def objects() -> MemoryObjects:
    table = MemoryObjects()
    table.put(WEB)
    table.put(DB)
    return table


def pod(**container: object) -> o.Pod:
    meta = o.ObjectMeta(name="p", namespace="shop", uid="u1", labels={"app": "web"}, annotations={"a/b": "it's"})
    return o.Pod(metadata=meta, spec=o.PodSpec(containers=[o.Container(name="main", **container)]))  # type: ignore[arg-type]


def env_of(**container: object) -> dict[str, str]:
    one = pod(**container)
    return environment(one, one.spec.containers[0], objects(), NODE, "10.1.0.5")


def refusal(**container: object) -> str:
    with pytest.raises(Unresolved) as caught:
        env_of(**container)
    assert "hunter2" not in str(caught.value)
    assert caught.value.reason == "CreateContainerConfigError"
    return caught.value.message


def from_field(path: str) -> o.EnvVar:
    return o.EnvVar(name="X", valueFrom=o.EnvVarSource(fieldRef=o.ObjectFieldSelector(fieldPath=path)))


def from_key(kind: str, **selector: object) -> o.EnvVar:
    chosen = o.KeySelector(**selector)  # type: ignore[arg-type]
    return o.EnvVar(name="X", valueFrom=o.EnvVarSource(**{kind: chosen}))  # type: ignore[arg-type]


def from_resource(resource: str, divisor: str = "", name: str = "") -> o.EnvVar:
    selector = o.ResourceFieldSelector(resource=resource, divisor=o.Quantity(text=divisor), containerName=name)
    return o.EnvVar(name="X", valueFrom=o.EnvVarSource(resourceFieldRef=selector))


def test_env_from_comes_first_and_env_wins_and_may_refer_to_it() -> None:
    source = o.EnvFromSource(prefix="WEB_", configMapRef=o.EnvSource(name="web"))
    env = env_of(
        envFrom=[source, o.EnvFromSource(configMapRef=o.EnvSource(name="web"))],
        env=[o.EnvVar(name="colour", value="red"), o.EnvVar(name="both", value="$(colour) $(WEB_colour) $$(colour)")],
    )
    assert env == {
        "WEB_colour": "blue",
        "WEB_1.two": "y",
        "colour": "red",
        "1.two": "y",
        "both": "red blue $(colour)",
    }


def test_variables_that_double_each_other_are_refused_before_they_fill_the_memory() -> None:
    bomb = [o.EnvVar(name="V0", value="x" * 1000)]
    bomb += [o.EnvVar(name=f"V{n}", value=f"$(V{n - 1})" * 10) for n in range(1, 30)]
    assert "spec.containers[0].env[3].value" in refusal(env=bomb)
    assert len(env_of(env=bomb[:3])["V2"]) == 100_000
    many = [o.EnvVar(name="V", value="x" * 100_000), *(o.EnvVar(name=f"W{n}", value="$(V)") for n in range(100))]
    assert "characters together" in refusal(env=many)


def test_arguments_that_references_make_too_long_are_refused() -> None:
    image = Image("sha256:1", "sha256:2", (), 1, ("/l",), ImageConfig())
    main = o.Container(name="main", command=["true"], args=["$(V)" * 3])
    with pytest.raises(StartError, match=r"container main: command and args: \$\(NAME\) makes 300000 characters"):
        command(main, image, {"V": "x" * 100_000})
    del main.args[:]
    main.args.extend(["$(V)"] * 100)
    with pytest.raises(StartError, match="characters together"):
        command(main, image, {"V": "x" * 100_000})


def test_values_from_elsewhere_are_not_expanded() -> None:
    table = objects()
    table.put(o.Secret(kind="Secret", metadata=o.ObjectMeta(name="s", namespace="shop"), data={"k": b"$(A)"}))
    one = pod(env=[o.EnvVar(name="A", value="1"), from_key("secretKeyRef", name="s", key="k")])
    assert environment(one, one.spec.containers[0], table, NODE, "")["X"] == "$(A)"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['a/b']", "it's"),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", "default"),
        ("status.hostIP", "10.0.0.7"),
        ("status.podIP", "10.1.0.5"),
        ("status.podIPs", "10.1.0.5"),
    ],
)
def test_fields_of_the_pod(path: str, value: str) -> None:
    assert env_of(env=[from_field(path)]) == {"X": value}


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", "", "2"),  # the node's allocatable 1900m, rounded up
        ("limits.cpu", "1m", "1900"),
        ("limits.memory", "1Mi", "900"),
        ("requests.memory", "1Mi", "33"),  # 32 MiB and a byte, rounded up
        ("requests.memory", "", str((32 << 20) + 1)),
        ("requests.cpu", "", "0"),
        ("requests.cpu", "0", "0"),
        ("limits.ephemeral-storage", "", "0"),
    ],
)
def test_limits_default_to_what_the_node_can_give_and_round_up(resource: str, divisor: str, value: str) -> None:
    resources = o.ResourceRequirements(requests={"memory": o.Quantity(text=str((32 << 20) + 1))})
    assert env_of(resources=resources, env=[from_resource(resource, divisor)]) == {"X": value}


def test_what_is_missing_is_named_with_its_place_and_never_with_a_value() -> None:
    gone = refusal(env=[o.EnvVar(name="A"), from_key("configMapKeyRef", name="nope", key="k")])
    assert gone == "ConfigMap shop/nope does not exist (spec.containers[0].env[1].valueFrom.configMapKeyRef)"
    key = refusal(env=[from_key("secretKeyRef", name="db", key="user")])
    assert key.startswith('key "user" is not in Secret shop/db (it has: nul, password, raw) (spec.containers[0].env[0]')
    assert "envFrom[0].secretRef" in refusal(envFrom=[o.EnvFromSource(secretRef=o.EnvSource(name="nope"))])
    assert "NUL" in refusal(env=[from_key("secretKeyRef", name="db", key="nul")])
    assert 'key "blob"' in refusal(env=[from_key("configMapKeyRef", name="web", key="blob")])
    assert "no container 'other'" in refusal(env=[from_resource("limits.cpu", name="other")])
    assert "status.phase" in refusal(env=[from_field("status.phase")])


def test_an_optional_one_leaves_its_variable_unset() -> None:
    assert env_of(env=[from_key("configMapKeyRef", name="nope", key="k", optional=True)]) == {}
    assert env_of(env=[from_key("secretKeyRef", name="db", key="k", optional=True)]) == {}
    assert env_of(envFrom=[o.EnvFromSource(configMapRef=o.EnvSource(name="nope", optional=True))]) == {}


def test_bytes_that_are_no_text_reach_the_process_as_they_are() -> None:
    value = env_of(env=[from_key("secretKeyRef", name="db", key="raw")])["X"]
    assert value.encode("utf-8", "surrogateescape") == b"\xff\xfe"


def test_the_same_name_in_another_namespace_is_another_object() -> None:
    one = pod(env=[from_key("secretKeyRef", name="db", key="password")])
    one.metadata.namespace = "other"
    with pytest.raises(Unresolved, match="Secret other/db does not exist"):
        environment(one, one.spec.containers[0], objects(), NODE, "")


@given(st.text(max_size=8))
def test_no_name_that_a_process_cannot_take_passes(name: str) -> None:
    if is_variable_name(name):
        assert name and "=" not in name and "\0" not in name and name.isascii()


def test_labels_are_written_as_lines_in_go_s_quotes() -> None:
    assert downward.lines({"b": 'say "hi"\n', "a": "é\x01\\"}) == 'a="é\\x01\\\\"\nb="say \\"hi\\"\\n"'


# ---- devices ----
def test_a_container_that_asks_for_gpus_is_told_which() -> None:
    one = pod(resources=o.ResourceRequirements(limits={"shoal.dev/gpu-milli": o.Quantity(text="500")}))
    one.spec.containers.add(name="beside")

    def told(number: int) -> dict[str, str]:
        return environment(one, one.spec.containers[number], objects(), NODE, "10.1.0.5")

    assert told(0) == {}
    one.metadata.annotations["shoal.dev/gpu-devices"] = "0,3"
    assert told(0) == {"NVIDIA_VISIBLE_DEVICES": "0,3"}
    assert told(1) == {}
    one.spec.containers[0].env.add(name="NVIDIA_VISIBLE_DEVICES", value="none")
    assert told(0) == {"NVIDIA_VISIBLE_DEVICES": "none"}
