"""What the shell may complete: kinds, and names of objects that a cluster has."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from shoal.deploy.cli.naming import PLURALS, kind_of, namespaced

PATIENCE_SECONDS = 1.0  # nobody waits long for a completion
MOST_NAMES = 200


def objects(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kinds, and after a kind the names of its objects; KIND/NAME too."""
    before = _words(ctx.params.get(param.name or ""))
    kind, slash, start = incomplete.partition("/")
    if slash:
        return [CompletionItem(f"{kind}/{name}") for name in _names(ctx, kind) if name.startswith(start)]
    if before and "/" not in before[0]:
        return [CompletionItem(name) for name in _names(ctx, before[0]) if name.startswith(incomplete)]
    return [CompletionItem(plural) for plural in sorted(PLURALS.values()) if plural.startswith(incomplete)]


def pods(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of pods."""
    return [CompletionItem(name) for name in _names(ctx, "pod") if name.startswith(incomplete)]


def nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of nodes."""
    return [CompletionItem(name) for name in _names(ctx, "node") if name.startswith(incomplete)]


def containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the containers of the pod that stands before."""
    try:
        from shoal.deploy.cli.client import Client
        from shoal.deploy.cli.contexts import config_path, load
        from shoal.proto.v1 import objects_pb2 as o

        context = load(config_path()).choose(ctx.params.get("context_name"))
        namespace = ctx.params.get("namespace") or context.namespace
        with Client(context, PATIENCE_SECONDS, PATIENCE_SECONDS) as client:
            pod = client.get("Pod", namespace, str(ctx.params["target"]).removeprefix("pod/"))
        assert isinstance(pod, o.Pod)
        found = [each.name for each in (*pod.spec.initContainers, *pod.spec.containers)]
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]
    except Exception:
        return []


def _words(value: Any) -> list[str]:
    return list(value) if isinstance(value, tuple | list) else []


def _names(ctx: click.Context, word: str) -> list[str]:
    """The names that there are; none when they cannot be had: a completion never complains."""
    try:
        from shoal.deploy.cli.client import Client
        from shoal.deploy.cli.contexts import config_path, load

        kind = kind_of(word)
        context = load(config_path()).choose(ctx.params.get("context_name"))
        namespace = (ctx.params.get("namespace") or context.namespace) if namespaced(kind) else ""
        with Client(context, PATIENCE_SECONDS, PATIENCE_SECONDS) as client:
            found = client.list_objects(kind, namespace).objects
            return sorted(obj.metadata.name for obj in found)[:MOST_NAMES]
    except Exception:
        return []
