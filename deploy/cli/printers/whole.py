"""Objects as YAML and JSON: one as itself, several as a List."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor

from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.proto.errors import nearest
from shoal.proto.kinds import CLASSES, Object
from shoal.proto.printing import to_json, to_yaml
from shoal.proto.walker import to_tree


def whole_text(objects: Sequence[Object], form: str, *, as_list: bool = False) -> str:
    """The text of -o yaml or -o json, without a final newline."""
    trees = [to_tree(obj) for obj in objects]
    tree = trees[0] if len(trees) == 1 and not as_list else {"apiVersion": "v1", "kind": "List", "items": trees}
    return (to_yaml(tree) if form == "yaml" else to_json(tree)).rstrip("\n")


def print_whole(objects: Sequence[Object], form: str, *, as_list: bool = False) -> None:
    print(whole_text(objects, form, as_list=as_list))


def check_path(kind: str, path: str) -> None:
    """Raises CommandError (usage) when objects of the kind have no such field to sort by."""
    descriptor: Descriptor | None = CLASSES[kind].DESCRIPTOR
    for name in _parts(path):
        if descriptor is None:
            raise CommandError(f'cannot sort by "{path}": nothing lies below the field before "{name}"', USAGE)
        field = descriptor.fields_by_name.get(name)
        if field is None:
            meant = nearest(name, descriptor.fields_by_name)
            advice = f'; did you mean "{meant}"?' if meant else ", such as .metadata.name"
            raise CommandError(f'cannot sort by "{path}": a {kind} has no field "{name}" there{advice}', USAGE)
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            return
        if field.is_repeated:
            raise CommandError(f'cannot sort by "{path}": "{name}" is a list', USAGE)
        descriptor = inner


def _parts(path: str) -> list[str]:
    return path.strip("{}").strip(".").split(".")


def sort_value(obj: Object, path: str) -> tuple[int, Any]:
    """The value at a path such as .metadata.name, for sorting: numbers, then texts, then what is unset."""
    value: Any = to_tree(obj)
    for name in _parts(path):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, int):  # booleans too
        return 0, value
    return (1, value) if isinstance(value, str) else (2, 0)
