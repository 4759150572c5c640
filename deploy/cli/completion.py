"""`shoal completion`: the completion script of a shell."""

from __future__ import annotations

import click

from shoal.deploy.cli.failures import OK

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> int:
    """Print the completion script of a shell.

    \b
    bash: source <(shoal completion bash)
    zsh:  source <(shoal completion zsh)
    fish: shoal completion fish | source
    """
    from click.shell_completion import get_completion_class

    from shoal.deploy.cli.main import cli

    cls = get_completion_class(shell)
    assert cls is not None
    completion = cls(cli, {}, "shoal", "_SHOAL_COMPLETE")
    print(completion.source_template % completion.source_vars())
    return OK
