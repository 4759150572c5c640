"""Any message survives being written as a tree, YAML and JSON; any text is read or refused, never a traceback."""

import json
from typing import Any

import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.proto import manifest, merge, printing, walker, yamltree
from shoal.proto.kinds import CLASSES

BOUNDS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
TEXT = st.one_of(
    st.text(max_size=8), st.sampled_from(["yes", "0644", "1.0", "a\nb\n", " x", "x ", "\n", "- a", "#", "~"])
)


def scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_STRING:
        return TEXT
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=6)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return st.floats(-1e9, 1e9)
    return st.integers(*BOUNDS[field.type])


@st.composite
def filled(draw: st.DrawFn, message: Message, chance: int = 3) -> Message:
    """Fills about one field in `chance` of the message, in place."""
    for field in message.DESCRIPTOR.fields:
        if draw(st.integers(1, chance)) == 1:
            fill(draw, message, field)
    return message


def fill(draw: st.DrawFn, message: Any, field: Any) -> None:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        value = entry.fields_by_name["value"]
        for key in draw(st.lists(TEXT, max_size=2)):
            if value.message_type is None:
                getattr(message, field.name)[key] = draw(scalar(value))
            else:
                fill_message(draw, getattr(message, field.name)[key], value.message_type)
    elif field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            if entry is None:
                getattr(message, field.name).append(draw(scalar(field)))
            else:
                fill_message(draw, getattr(message, field.name).add(), entry)
    elif entry is None:
        setattr(message, field.name, draw(scalar(field)))
    else:
        getattr(message, field.name).SetInParent()
        fill_message(draw, getattr(message, field.name), entry)


def fill_message(draw: st.DrawFn, message: Any, descriptor: Descriptor) -> None:
    if descriptor.name == "Quantity":
        message.text = draw(st.sampled_from(["1", "0.5", "64Mi", "1e3", "-2"]))
    elif descriptor.name == "IntOrString":
        if draw(st.booleans()):
            message.number = draw(st.integers(*BOUNDS[FieldDescriptor.TYPE_INT32]))
        else:
            message.text = draw(TEXT)
    elif descriptor.name == "Time":
        message.seconds = draw(st.integers(-62135596800, 253402300799))
        message.nanos = draw(st.integers(0, 999_999_999))
    else:
        draw(filled(message))


@st.composite
def objects(draw: st.DrawFn) -> Any:
    return draw(filled(draw(st.sampled_from(list(CLASSES.values())))(), 2))


few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@few
@given(objects())
def test_messages_come_back_from_tree_yaml_and_json(message: Any) -> None:
    tree = walker.to_tree(message)
    assert walker.from_tree(tree, type(message)) == (message, [])
    (document,) = list(yamltree.read_documents(printing.to_yaml(message)))
    assert document.duplicates == []
    assert walker.from_tree(document.tree, type(message)) == (message, [])
    assert yaml.safe_load(printing.to_yaml(message)) == tree
    assert json.loads(printing.to_json(message)) == tree


@few
@given(objects(), st.data())
def test_merge_laws(current: Any, data: st.DataObject) -> None:
    new = data.draw(filled(type(current)(), 2))
    once = merge.merge(current, new, new)
    assert merge.merge(once, new, new) == once  # applying the same manifest again changes nothing
    assert merge.merge(current, None, type(current)()) == merge.merge(current, None, current)


ALPHABET = "ab:-[]{},&*!|>'\"%@`#? \n\t01.~<=\\x\u00e9\U0001f600"


@few
@given(st.text(ALPHABET, max_size=60))
def test_random_yaml_is_read_or_refused(text: str) -> None:
    for problem in manifest.parse(text, "f").errors:
        assert str(problem).startswith("f")


WORDS = [
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "spec",
    "containers",
    "image",
    "env",
    "value",
    "data",
    "labels",
    "items",
]
trees = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from(["v1", "Pod", "List", "Secret"])
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=25,
)


@few
@given(trees, st.sampled_from(sorted(CLASSES)))
def test_random_trees_are_read_or_refused(tree: Any, kind: str) -> None:
    walker.from_tree(tree, CLASSES[kind])
    whole = {"apiVersion": "v1", "kind": kind, "metadata": tree, "spec": tree, "data": tree}
    for problem in manifest.parse(json.dumps(whole).replace("NaN", ".nan").replace("Infinity", ".inf"), "f").errors:
        assert str(problem).startswith("f:")
