"""`shoal agent`: the agent of this node as it is, or with --hollow many nodes without containers in one process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.deploy.cli.contexts import Context, config_path, load
from shoal.deploy.cli.failures import OK, USAGE, CommandError
from shoal.deploy.cli.options import DURATION

if TYPE_CHECKING:
    from shoal.agent.hollow.node import HollowConfig

MOST_HOLLOW = 10_000


@click.command("agent", context_settings={"ignore_unknown_options": True})
@click.option("--hollow", type=click.IntRange(1, MOST_HOLLOW), metavar="N", help="Run N nodes without containers.")
@click.option("--hollow-name", default="hollow-", metavar="PREFIX", help="Their names are PREFIX0, PREFIX1, ...")
@click.option("--hollow-first", type=click.IntRange(min=0), default=0, metavar="I", help="Begin at PREFIXI instead.")
@click.option("--hollow-cpu", default="4", metavar="AMOUNT", help="What each has (4).")
@click.option("--hollow-memory", default="32Gi", metavar="AMOUNT", help="Likewise (32Gi).")
@click.option("--hollow-pods", type=click.IntRange(1, 250), default=110, metavar="N", help="Likewise (110).")
@click.option("--hollow-labels", default="", metavar="KEY=VALUE,...", help="More labels of each.")
@click.option(
    "--hollow-zones", type=click.IntRange(min=0), default=0, metavar="Z", help="Spread over zone-0, zone-1, ..."
)
@click.option("--hollow-start", type=DURATION, default=0.0, metavar="TIME", help="What a pod takes to run (0s).")
@click.option("--authority", metavar="FOLDER", help="Where ca.crt and ca.key are (the folder of the context's ca).")
@click.option(
    "--master", "masters", multiple=True, metavar="HOST:PORT", help="Instead of the context's; may be repeated."
)
@click.option("--context", "context_name", metavar="NAME", help="The cluster (else the current one).")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    hollow: int | None,
    hollow_name: str,
    hollow_first: int,
    hollow_cpu: str,
    hollow_memory: str,
    hollow_pods: int,
    hollow_labels: str,
    hollow_zones: int,
    hollow_start: float,
    authority: str | None,
    masters: tuple[str, ...],
    context_name: str | None,
    arguments: tuple[str, ...],
) -> int:
    """Run the agent of this node (its own options follow: --config FILE, ...), or with --hollow N nodes that take
    pods, report them as running and run nothing: to see how a cluster of that size behaves."""
    if hollow is None:
        from shoal.agent.main import main

        return main([*arguments, *(f"--master={master}" for master in masters)])
    if arguments:
        raise CommandError(f"{arguments[0]}: with --hollow there is no such option; see shoal agent --help", USAGE)
    from shoal.agent.hollow.node import HollowConfig
    from shoal.agent.hollow.program import CannotRun, run

    config = HollowConfig(
        masters=masters or _context(context_name).servers,
        prefix=hollow_name,
        first=hollow_first,
        cpu=_amount("--hollow-cpu", hollow_cpu),
        memory=_amount("--hollow-memory", hollow_memory),
        pods=hollow_pods,
        labels=_labels(hollow_labels),
        zones=hollow_zones,
        start_s=hollow_start,
    )
    _check_names(config, hollow)
    try:
        run(config, hollow, _identities(context_name, authority), lambda line: print(line, file=sys.stderr, flush=True))
    except CannotRun as fault:
        raise CommandError(str(fault)) from None
    return OK


def _context(name: str | None) -> Context:
    """Also when it is named before the verb. Raises CommandError."""
    return load(config_path()).choose(name or click.get_current_context().find_root().params.get("context_name"))


def _identities(context_name: str | None, folder: str | None) -> Callable[[str], tuple[bytes, bytes, bytes]]:
    """Issues a certificate for each name, in memory. Raises CommandError."""
    from shoal.deploy.certs.ca import Authority, CertificateError

    given = folder or str(Path(_context(context_name).ca).parent)
    try:
        authority = Authority.open(Path(given))
        ca = authority.certificate.read_bytes()
    except (CertificateError, OSError) as fault:
        raise CommandError(f"{fault}; nodes need certificates: name the authority's folder with --authority") from None
    return lambda name: (ca, *authority.pair("node", name))


def _check_names(config: HollowConfig, count: int) -> None:
    from shoal.deploy.certs.ca import COMMON_NAME_LIMIT
    from shoal.proto.names import not_dns_subdomain

    last = config.name(count - 1)
    why = not_dns_subdomain(last) or ("" if len(last) <= COMMON_NAME_LIMIT else f"is over {COMMON_NAME_LIMIT} long")
    if why:
        raise CommandError(f"--hollow-name {config.prefix}: {last!r} can be no node's name: {why}", USAGE)


def _amount(flag: str, text: str) -> str:
    from shoal.proto.quantity import QuantityError, parse

    try:
        if parse(text).nanos <= 0:
            raise CommandError(f"{flag} {text}: must be more than nothing", USAGE)
    except QuantityError as wrong:
        raise CommandError(f"{flag}: {wrong}", USAGE) from None
    return text


def _labels(text: str) -> dict[str, str]:
    from shoal.proto.names import not_label_key, not_label_value

    labels: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise CommandError(f"--hollow-labels {item}: write KEY=VALUE", USAGE)
        if why := not_label_key(key) or not_label_value(value):
            raise CommandError(f"--hollow-labels {item}: {why}", USAGE)
        labels[key] = value
    return labels
