"""The YAML file with a program's settings, read as strictly as manifests are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.proto.yamltree import Document, YamlError, read_documents


class SettingsFileError(ValueError):
    """The file cannot be used; the message names it, the line and what is wrong."""


def read_settings(path: Path) -> dict[str, Any]:
    """The one mapping that the file holds. Raises SettingsFileError."""
    try:
        documents = list(read_documents(path.read_text(encoding="utf-8")))
    except OSError as fault:
        raise SettingsFileError(f"{path} cannot be read: {fault.strerror or fault}") from fault
    except UnicodeDecodeError as fault:
        raise SettingsFileError(f"{path} is not valid YAML: it is not UTF-8 text") from fault
    except YamlError as fault:
        raise SettingsFileError(_at(path, fault)) from fault
    if len(documents) != 1 or not isinstance(documents[0].tree, dict):
        raise SettingsFileError(f"{path} must hold one mapping of settings, such as `name: value`")
    return _whole(path, documents[0])


def _whole(path: Path, document: Document) -> dict[str, Any]:
    if document.duplicates:
        raise SettingsFileError("\n".join(_at(path, fault) for fault in document.duplicates))
    return dict(document.tree)


def _at(path: Path, fault: YamlError) -> str:
    return f"{path}{f':{fault.line}' if fault.line else ''}: {fault}"
