"""A spec that is known to be sound spares the work and changes nothing of what comes out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.master.api.admission import Stamp, prepare_create
from shoal.master.api.faults import Invalid
from shoal.master.api.shapes import Shapes
from shoal.master.model import Key
from shoal.proto.v1 import objects_pb2 as o
from tests.masterkit import MemoryStore

LEVEL = "pod-security.kubernetes.io/enforce"


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    for name, level in (("default", "baseline"), ("strict", "restricted")):
        space = o.Namespace(apiVersion="v1", kind="Namespace")
        space.metadata.name, space.metadata.labels[LEVEL] = name, level
        made._put(Key("Namespace", "", name), space, None, [])
    return made


def pod(name: str, namespace: str = "default", change: Callable[[o.Pod], object] = lambda pod: None) -> o.Pod:
    made = o.Pod(apiVersion="v1", kind="Pod")
    made.metadata.name, made.metadata.namespace = name, namespace
    made.metadata.labels["app"] = name
    container = made.spec.containers.add(name="c", image="app:1")
    container.resources.requests["cpu"].text = "1"
    change(made)
    return made


def prepared(store: MemoryStore, obj: o.Pod, shapes: Shapes | None) -> o.Pod | list[tuple[str, str]]:
    copy = o.Pod()
    copy.CopyFrom(obj)
    try:
        prepare_create(store.view, copy, Stamp("r", 0, 5.0), shapes=shapes)
    except Invalid as fault:
        return list(fault.fields)
    return copy


def test_the_second_pod_of_a_shape_is_what_it_would_have_been(store: MemoryStore) -> None:
    shapes = Shapes()
    for name in ("a", "b", "a"):
        assert prepared(store, pod(name), shapes) == prepared(store, pod(name), None)
    [shape] = shapes._found.values()
    assert shape.allowed == {"baseline"} and not shape.spec.HasField("priority"), "what is looked up is not kept"


def test_a_shape_does_not_carry_over_what_depends_on_more_than_the_spec(store: MemoryStore) -> None:
    shapes = Shapes()
    prepared(store, pod("a"), shapes)
    for other in (
        pod("a", "strict"),
        pod("A wrong name"),
        pod("b", change=lambda p: p.metadata.labels.update({"a b": "c"})),
        pod("c", change=lambda p: setattr(p.spec, "priorityClassName", "none")),
    ):
        plain = prepared(store, other, None)
        assert isinstance(plain, list)
        assert prepared(store, other, shapes) == plain
    assert isinstance(prepared(store, pod("a", "strict"), shapes), list), "and what one level allows another does not"


def test_what_is_wrong_is_said_each_time_and_never_remembered(store: MemoryStore) -> None:
    shapes = Shapes()
    wrong = pod("a", change=lambda p: setattr(p.spec.containers[0], "image", ""))
    first = prepared(store, wrong, shapes)
    assert isinstance(first, list) and first == prepared(store, wrong, shapes) == prepared(store, wrong, None)
    assert not shapes._found


def test_few_are_kept_and_none_that_is_large(store: MemoryStore) -> None:
    shapes = Shapes(most=2)
    for number in (1, 2, 3):
        cpu = str(number)
        prepared(store, pod("a", change=lambda p, cpu=cpu: p.spec.containers[0].args.append(cpu)), shapes)  # type: ignore[misc]
    assert len(shapes._found) == 2
    prepared(store, pod("a", change=lambda p: p.spec.containers[0].args.append("x" * 20_000)), shapes)
    assert len(shapes._found) == 2 and shapes.key(pod("a")) is not None
