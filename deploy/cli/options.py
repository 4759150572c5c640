"""Options that several verbs share, and the session that they make."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shoal.deploy.cli.contexts import Context, config_path, load
from shoal.deploy.cli.failures import USAGE, CommandError

if TYPE_CHECKING:
    from shoal.deploy.cli.client import Client

F = TypeVar("F", bound=Callable[..., Any])
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass
class Session:
    """The chosen cluster and namespace; the connection is made when it is first used."""

    context_name: str | None
    namespace_option: str | None = None
    all_namespaces: bool = False

    @cached_property
    def context(self) -> Context:
        return load(config_path()).choose(self.context_name)

    @cached_property
    def client(self) -> Client:
        from shoal.deploy.cli.client import Client  # grpc, protobuf: not for --help

        return Client(self.context)

    @property
    def namespace(self) -> str:
        """The namespace to act in."""
        return self.namespace_option or self.context.namespace

    @property
    def scope(self) -> str:
        """The namespace to list; empty: all."""
        return "" if self.all_namespaces else self.namespace

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


def with_session(verb: F) -> F:
    """Gives the verb --context and -n, as its first argument `session`."""

    def run(context_name: str | None, namespace: str | None, all_namespaces: bool = False, **rest: Any) -> Any:
        given = click.get_current_context().find_root().params  # kubectl takes them before the verb too
        context_name = context_name or given.get("context_name")
        namespace = namespace if namespace is not None else given.get("namespace")
        if namespace is not None and all_namespaces:
            raise CommandError("-n and -A exclude each other", USAGE)
        if namespace is not None:
            _check_namespace(namespace)
        session = Session(context_name, namespace, all_namespaces)
        try:
            return verb(session, **rest)
        finally:
            session.close()

    run.__doc__ = verb.__doc__
    run.__name__ = verb.__name__
    if hasattr(verb, "__click_params__"):
        run.__click_params__ = verb.__click_params__  # type: ignore[attr-defined]
    run = click.option("-n", "--namespace", metavar="NAME", help="The namespace (else the context's).")(run)
    context = click.option("--context", "context_name", metavar="NAME", help="The cluster (else the current one).")
    return context(run)  # type: ignore[return-value]


def _check_namespace(name: str) -> None:
    from shoal.proto.names import not_dns_label

    wrong = not_dns_label(name)
    if wrong is not None:
        raise CommandError(f"the namespace {wrong}", USAGE)


all_namespaces_option = click.option("-A", "--all-namespaces", is_flag=True, help="In every namespace.")
selector_option = click.option("-l", "--selector", default="", metavar="LABELS", help="Such as app=web,tier!=db.")
fields_option = click.option("--field-selector", default="", metavar="FIELDS", help="Such as status.phase=Running.")


class Duration(click.ParamType[float]):
    """90, 90s, 5m, 1h30m; the value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
            return float(value)
        parts = list(_PART.finditer(value))
        if not parts or "".join(part[0] for part in parts) != value:
            self.fail(f"{value!r} is not a duration: write 30s, 5m or 1h30m", param, ctx)
        return sum(float(part[1]) * _SECONDS[part[2]] for part in parts)


DURATION = Duration()


def check_selectors(labels: str, fields: str, kinds: list[str]) -> None:
    """Refuses selectors that cannot be read before anything is asked. Raises CommandError (usage)."""
    if not labels and not fields:
        return
    from shoal.proto.selector import SelectorError, parse_fields, parse_selector

    try:
        parse_selector(labels)
        for kind in kinds if fields else ():
            parse_fields(fields, kind)
    except SelectorError as wrong:
        raise CommandError(str(wrong), USAGE) from None
