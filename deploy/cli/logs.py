"""`shoal logs`: shows what containers have written."""

from __future__ import annotations

import re
import time
from calendar import timegm
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from shoal.deploy.cli.completing import containers, pods
from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.deploy.cli.options import DURATION, Session, check_selectors, selector_option, with_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.deploy.cli.client import Client
    from shoal.deploy.cli.logstreams import Source
    from shoal.proto.v1 import objects_pb2 as o
    from shoal.proto.v1 import session_pb2 as s

NS = 10**9
SELECTED_TAIL = 10  # lines, as kubectl shows of each when a selector chooses
MOST_STREAMS = 5
INSTANT = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)")


class Instant(click.ParamType[int]):
    """RFC 3339; the value is in nanoseconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        form = INSTANT.fullmatch(value)
        try:
            if form is None:
                raise ValueError
            zone = "+00:00" if form[3] in "Zz" else form[3]
            seconds = timegm(datetime.fromisoformat(form[1].upper() + zone).utctimetuple())
        except ValueError:
            self.fail(f"{value!r} is not a time: write 2026-01-31T12:00:00Z", param, ctx)
        return seconds * NS + int((form[2] or "").ljust(9, "0"))


@click.command("logs")
@with_session
@click.argument("target", required=False, metavar="[POD | TYPE/NAME]", shell_complete=pods)
@click.argument("container_name", required=False, metavar="[CONTAINER]", shell_complete=containers)
@selector_option
@click.option("-c", "--container", metavar="NAME", help="Which container, also an init one.", shell_complete=containers)
@click.option("--all-containers", is_flag=True, help="Of all containers, init ones too.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes from now on, also after restarts.")
@click.option("-p", "--previous", is_flag=True, help="Of the run before the last restart.")
@click.option("--tail", type=click.IntRange(min=-1), metavar="LINES", help="Only the last lines (-1: all).")
@click.option("--since", type=DURATION, metavar="TIME", help="Only what is not older, such as 5m.")
@click.option("--since-time", type=Instant(), metavar="INSTANT", help="The same, such as 2026-01-31T12:00:00Z.")
@click.option("--limit-bytes", type=click.IntRange(min=1), metavar="BYTES", help="At most so many of each container.")
@click.option("--timestamps", is_flag=True, help="With the time of each line.")
@click.option("--prefix", is_flag=True, help="With the pod and container before each line.")
@click.option("--ignore-errors", is_flag=True, help="Go on with the others when one cannot be shown.")
@click.option("--max-log-requests", type=click.IntRange(min=1), default=MOST_STREAMS, help="Followed at once, at most.")
def command(
    session: Session,
    target: str | None,
    container_name: str | None,
    selector: str,
    container: str | None,
    all_containers: bool,
    prefix: bool,
    ignore_errors: bool,
    max_log_requests: int,
    **wanted: Any,
) -> int:
    """Show what containers have written.

    \b
    shoal logs web-0                          of a pod
    shoal logs -f deploy/web -c app           as it comes, over restarts
    shoal logs -l app=web --prefix --tail 20  of every pod with that label
    shoal logs web-0 -p                       of the run before the last restart
    """
    named = container or container_name
    _check(target, selector, named, all_containers, wanted)
    if selector and wanted["tail"] is None:
        wanted["tail"] = SELECTED_TAIL
    from shoal.deploy.cli.logstreams import Crowd, Output

    sources = _sources(session, target, selector, named, all_containers)
    options, follow = _options(wanted), bool(wanted["follow"])
    if follow and len(sources) > max_log_requests:
        raise CommandError(
            f"{len(sources)} logs are to be followed, allowed are {max_log_requests}: --max-log-requests"
        )
    output = Output(alone=len(sources) == 1 and not (selector and follow), prefix=prefix)
    if not follow or (len(sources) == 1 and not selector):
        return _one_by_one(session, sources, options, output, ignore_errors)

    def matching(client: Client) -> Iterator[list[Source]]:
        from shoal.deploy.cli.follow import follow as changes

        for state in changes(client, ["Pod"], session.namespace, None, selector):
            yield _of_pods(list(state.values()), named, all_containers, quiet=True)

    crowd = Crowd(lambda: type(session.client)(session.context), options, output, ignore_errors=ignore_errors)
    crowd.follow(sources, matching if selector else None, max_log_requests)
    return 0


def _check(target: str | None, selector: str, named: str | None, every: bool, wanted: dict[str, Any]) -> None:
    if bool(target) == bool(selector):
        raise CommandError("name a pod (or TYPE/NAME), or choose pods with -l: one of the two", USAGE)
    if named and every:
        raise CommandError("-c and --all-containers exclude each other", USAGE)
    if wanted["since"] is not None and wanted["since_time"] is not None:
        raise CommandError("--since and --since-time exclude each other", USAGE)
    if wanted["follow"] and wanted["previous"]:
        raise CommandError("-f and -p exclude each other: a run that has ended writes nothing more", USAGE)
    check_selectors(selector, "", ["Pod"])


def _options(wanted: dict[str, Any]) -> s.LogsOpen:
    from shoal.proto.v1 import objects_pb2 as o
    from shoal.proto.v1 import session_pb2 as s

    since, tail = wanted["since_time"], wanted["tail"]
    if wanted["since"] is not None:
        since = time.time_ns() - int(wanted["since"] * NS)
    return s.LogsOpen(
        follow=wanted["follow"],
        previous=wanted["previous"],
        tail_lines=tail if tail is not None and tail >= 0 else None,
        since=o.Time(seconds=since // NS, nanos=since % NS) if since is not None else None,
        timestamps=wanted["timestamps"],
        limit_bytes=wanted["limit_bytes"],
    )


def _sources(session: Session, target: str | None, selector: str, named: str | None, every: bool) -> list[Source]:
    from shoal.deploy.cli.pods import find_pod

    if target:
        return _of_pods([find_pod(session, target)], named, every, quiet=False)
    found = session.client.list_objects("Pod", session.namespace, selector).objects
    if not found:
        raise CommandError(f"no pods with {selector} in namespace {session.namespace}")
    return _of_pods(sorted(found, key=lambda pod: pod.metadata.name), named, every, quiet=False)


def _of_pods(found: list[Any], named: str | None, every: bool, *, quiet: bool) -> list[Source]:
    from shoal.deploy.cli.logstreams import Source
    from shoal.deploy.cli.pods import all_containers, container_of

    def names(pod: o.Pod) -> list[str]:
        return all_containers(pod) if every else [container_of(pod, named, quiet=quiet)]

    return [Source(pod, pod.metadata.uid, name) for pod in found for name in names(pod)]


def _one_by_one(session: Session, sources: list[Source], options: s.LogsOpen, output: Any, ignore_errors: bool) -> int:
    from shoal.deploy.cli.logstreams import Stream, say

    for source in sources:
        try:
            output.copy(source, Stream(session.client, source, options).pieces())
        except CommandError as fault:
            if not ignore_errors:
                raise
            say(f"note: {source.label}: {fault}")
    return 0
