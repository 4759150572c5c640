"""`shoal down`: takes a development cluster away, with all that it made."""

from __future__ import annotations

from pathlib import Path

import click

from shoal.deploy.cli.contexts import remove
from shoal.deploy.cli.failures import OK, CommandError
from shoal.deploy.cli.up import DEFAULT_NAME


@click.command("down")
@click.option("--name", default=DEFAULT_NAME, metavar="NAME", help=f"Which cluster ({DEFAULT_NAME}).")
@click.option("--data", metavar="FOLDER", help="Where it keeps everything (/var/lib/shoal/NAME).")
@click.option("--keep-data", is_flag=True, help="Leave its folder, for the next `up`.")
def command(name: str, data: str | None, keep_data: bool) -> int:
    """Take the development cluster away, with all that runs in it."""
    from shoal.deploy.devcluster import lifecycle
    from shoal.deploy.devcluster.plan import DATA_ROOT, Refusal, check_name

    try:
        check_name(name)
        lifecycle.need_root("down")
        folder = Path(data) if data else DATA_ROOT / name
        with lifecycle.locked(name):
            found = lifecycle.take_down(name, folder.absolute(), keep_data)
    except Refusal as refused:
        raise CommandError(str(refused)) from None
    if not keep_data:
        remove(name)
    print(f"cluster {name} is gone" if found else f"there is no cluster {name}: nothing to do")
    return OK
