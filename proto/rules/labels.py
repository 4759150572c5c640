"""The rules for labels and label selectors, wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.proto import names
from shoal.proto.errors import keyed
from shoal.proto.rules.base import Report, at_most, say
from shoal.proto.v1 import objects_pb2 as o

MAX_LABELS = 500  # of one object; they are indexed, and every scheduling decision looks at them
MAX_EXPRESSIONS = 500
MAX_VALUES = 1000  # of one expression
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def labels(values: Mapping[str, str], path: str, report: Report) -> None:
    """Checks the number, the keys and the values of labels, or of what is compared with them."""
    if len(values) > MAX_LABELS:
        report(path, f"has {len(values)} entries: at most {MAX_LABELS} are allowed; use annotations for notes")
        return
    for key in sorted(values):
        say(report, keyed(path, key), names.not_label_key(key) or names.not_label_value(values[key]))


def label_selector(selector: o.LabelSelector, path: str, report: Report) -> bool:
    """Whether the selector can be used; reports why not. An empty one is fine here."""
    problems = 0

    def count(where: str, message: str) -> None:
        nonlocal problems
        problems += 1
        report(where, message)

    labels(selector.matchLabels, f"{path}.matchLabels", count)
    at_most(selector.matchExpressions, MAX_EXPRESSIONS, f"{path}.matchExpressions", count)
    for index, expression in enumerate(selector.matchExpressions):
        _expression(expression, f"{path}.matchExpressions[{index}]", count)
    return problems == 0


def _expression(expression: o.LabelSelectorRequirement, path: str, report: Report) -> None:
    say(report, f"{path}.key", names.not_label_key(expression.key))
    wrong = names.not_one_of(expression.operator, OPERATORS)
    if wrong is not None:
        report(f"{path}.operator", wrong)
    elif expression.operator in ("In", "NotIn"):
        if not expression.values:
            report(f"{path}.values", f"are missing: {expression.operator} needs at least one")
        at_most(expression.values, MAX_VALUES, f"{path}.values", report)
        for index, value in enumerate(expression.values):
            say(report, f"{path}.values[{index}]", names.not_label_value(value))
    elif expression.values:
        report(f"{path}.values", f"are not used by {expression.operator}: remove them")


def label_keys(keys: list[str], path: str, report: Report) -> None:
    """A list of distinct label keys."""
    at_most(keys, MAX_LABELS, path, report)
    for index, key in enumerate(keys):
        say(report, f"{path}[{index}]", names.not_label_key(key))
        if key in keys[:index]:
            report(f"{path}[{index}]", f'"{key}" is given twice: keep one')
