"""`shoal plan`: shows what applying manifests would come to, before anything is applied."""

from __future__ import annotations

import click

from shoal.deploy.cli.failures import FAILED, OK, CommandError
from shoal.deploy.cli.options import Session, with_session

CHANGES = 4  # the exit code of --detailed-exitcode: 1 to 3 mean something already


@click.command("plan")
@with_session
@click.option("-f", "--filename", "names", multiple=True, required=True, metavar="FILE", help="File, folder or -.")
@click.option("-R", "--recursive", is_flag=True, help="Read folders with all that is in them.")
@click.option("--out", metavar="PLAN", help="Write the plan to this file, for apply --plan.")
@click.option("--skip-unsupported", is_flag=True, help="Plan the rest when some kinds are not supported.")
@click.option("--detailed-exitcode", "detailed", is_flag=True, help="End with 4 when something would change.")
@click.option("-o", "--output", type=click.Choice(["wide", "yaml", "json"]), help="Every pod; or for programs.")
def command(
    session: Session,
    names: tuple[str, ...],
    recursive: bool,
    out: str | None,
    skip_unsupported: bool,
    detailed: bool,
    output: str | None,
) -> int:
    """Show what applying manifests would come to: objects, the node of every pod, who is evicted, what stays pending
    and why, and which images are to be fetched. Nothing is changed.

    Ends with 0 when the plan was made, and 1 when something in it would be refused.
    """
    from shoal.deploy.cli.apply import ordered
    from shoal.deploy.cli.printers import plans

    objects = ordered(session, names, recursive, skip_unsupported)
    if not objects:
        return OK
    plan = session.client.plan(objects)
    refused = any(found.HasField("failure") for found in plan.objects)
    if output in ("yaml", "json"):
        show_tree(plan, output)
    else:
        print("\n".join(plans.plan_lines(plan, wide=output == "wide")))
        print(plans.summary(plan.objects, plan.pods))
    if refused:
        if out:
            raise CommandError(f"the plan is not written to {out}: put right what would be refused")
        return FAILED
    if out:
        from shoal.deploy.cli import planfile

        planfile.write(out, objects, plan)
        if output not in ("yaml", "json"):
            print(f"written to {out}; carry it out with: shoal apply --plan {out}")
    changes = bool(plan.pods) or any(found.action != "unchanged" for found in plan.objects)
    return CHANGES if detailed and changes else OK


def show_tree(message: object, form: str) -> None:
    """A whole answer, for programs."""
    from google.protobuf.message import Message

    from shoal.proto.printing import to_json, to_yaml

    assert isinstance(message, Message)
    print((to_yaml if form == "yaml" else to_json)(message).rstrip("\n"))
