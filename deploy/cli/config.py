"""`shoal config`: the clusters that the command knows."""

from __future__ import annotations

import click

from shoal.deploy.cli.contexts import PEM, config_path, load, save
from shoal.deploy.cli.failures import OK, CommandError
from shoal.deploy.cli.printers.text import table


@click.group("config")
def command() -> None:
    """Choose between clusters."""


@command.command("get-contexts")
def get_contexts() -> int:
    """List the clusters that the command knows."""
    config = load(config_path())
    rows = [["CURRENT", "NAME", "SERVERS", "NAMESPACE"]]
    for context in config.contexts.values():
        mark = "*" if context.name == config.current else ""
        rows.append([mark, context.name, ",".join(context.servers), context.namespace])
    for line in table(rows):
        print(line)
    return OK


@command.command("current-context")
def current_context() -> int:
    """Print the current context's name."""
    print(load(config_path()).choose(None).name)
    return OK


@command.command("use-context")
@click.argument("name")
def use_context(name: str) -> int:
    """Make a context the current one."""
    config = load(config_path())
    config.choose(name)
    config.current = name
    save(config)
    print(f'now using context "{name}"')
    return OK


@command.command("set-namespace")
@click.argument("namespace")
@click.option("--context", "name", metavar="NAME", help="Of this context (else the current one).")
def set_namespace(namespace: str, name: str | None) -> int:
    """Change the namespace that a context's verbs act in."""
    from dataclasses import replace

    from shoal.proto.names import not_dns_label

    wrong = not_dns_label(namespace)
    if wrong is not None:
        raise CommandError(wrong)
    config = load(config_path())
    context = config.choose(name)
    config.contexts[context.name] = replace(context, namespace=namespace)
    save(config)
    print(f'context "{context.name}" now uses namespace "{namespace}"')
    return OK


@command.command("view")
def view() -> int:
    """Show the configuration, without its keys."""
    from shoal.proto.printing import to_yaml

    config = load(config_path())
    contexts = [
        {
            "name": context.name,
            "servers": list(context.servers),
            "ca": _veiled(context.ca, "CERTIFICATE"),
            "certificate": _veiled(context.certificate, "CERTIFICATE"),
            "key": _veiled(context.key, "KEY"),
            "namespace": context.namespace,
        }
        for context in config.contexts.values()
    ]
    print(to_yaml({"current-context": config.current, "contexts": contexts}), end="")
    return OK


def _veiled(value: str, what: str) -> str:
    return f"(inline {what})" if value.startswith(PEM) else value
