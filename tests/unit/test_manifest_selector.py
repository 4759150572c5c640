"""Label and field selectors: syntax, matching, refusals."""

import pytest

from shoal.proto import selector
from shoal.proto.v1 import objects_pb2 as o

LABELS = {"app": "web", "tier": "front", "n": "5", "example.com/x": "y", "empty": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app=db", False),
        ("app!=db", True),
        ("app!=web", False),
        ("missing!=x", True),
        ("app", True),
        ("missing", False),
        ("!missing", True),
        ("! app", False),
        ("app in (web,db)", True),
        ("app in (db, x)", False),
        ("app notin (db)", True),
        ("missing notin (db)", True),
        ("app=web,tier=front", True),
        ("app=web , tier = back", False),
        ("example.com/x=y", True),
        ("empty=", True),
        ("empty in ()", True),
        ("n>4", True),
        ("n<5", False),
        ("app>1", False),
        ("in=1", False),
        ("app in(web)", True),
    ],
)
def test_label_selector(text: str, matches: bool) -> None:
    assert selector.parse_selector(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("app=web,", "ends with a comma"),
        ("app=web tier=x", "expected a comma"),
        ("=web", "is not a label key"),
        ("app in web", 'expected "\\("'),
        ("app in (web", 'a "\\)" is missing'),
        ("app in (a b)", "expected a comma"),
        ("a=b=c", "expected a comma"),
        ("app=-x", "is not a label value"),
        ("UPPER.com/x=y", "is not a label key"),
        ("n>x", "whole number"),
        ("app ~ x", "is no operator"),
        ("!", "is not a label key"),
        ("../x=y", "is not a label key"),
    ],
)
def test_bad_label_selector(text: str, why: str) -> None:
    with pytest.raises(selector.SelectorError, match=why):
        selector.parse_selector(text)


def test_message_form() -> None:
    message = o.LabelSelector(
        matchLabels={"app": "web"},
        matchExpressions=[
            o.LabelSelectorRequirement(key="tier", operator="In", values=["front", "back"]),
            o.LabelSelectorRequirement(key="old", operator="DoesNotExist"),
        ],
    )
    compiled = selector.from_message(message)
    assert compiled.matches(LABELS)
    assert not compiled.matches(LABELS | {"old": ""})
    assert not compiled.matches({"app": "web"})
    assert compiled.equalities() == [("app", "web")]


def test_field_selector() -> None:
    pod = o.Pod(kind="Pod")
    pod.metadata.name = "web"
    pod.spec.nodeName = "n1"
    pod.status.phase = "Running"
    assert selector.parse_fields("spec.nodeName=n1,status.phase!=Pending", "Pod").matches(pod)
    assert selector.parse_fields("metadata.name==web", "Pod").matches(pod)
    assert not selector.parse_fields("spec.nodeName=", "Pod").matches(pod)
    assert selector.parse_fields("", "Pod").matches(pod)


def test_every_declared_field_can_be_read() -> None:
    for kind, paths in selector.FIELDS.items():
        cls = getattr(o, kind or "Pod")
        for path in paths:
            assert selector.field_value(cls(), path) in ("", "0")


@pytest.mark.parametrize(
    ("text", "why"),
    [("spec.foo=1", "cannot be selected by .spec.foo.: use one of metadata.name"), ("nonsense", "should look like")],
)
def test_bad_field_selector(text: str, why: str) -> None:
    with pytest.raises(selector.SelectorError, match=why):
        selector.parse_fields(text, "Pod")
