"""`shoal`: finds the verb, runs it, and turns what it raises into a message and an exit code.

Exit codes: 0 done; 1 refused or failed; 2 the command line is wrong; 3 waited in vain; 130 interrupted. `exec` passes
on the code of the command that it ran.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

import click

from shoal import __version__
from shoal.deploy.cli.failures import FAILED, INTERRUPTED, OK, USAGE, CommandError
from shoal.deploy.cli.printers.text import lines_of

# verb -> what it does; the module of the same name is imported when the verb is used
_APPLY = "write a manifest and apply it"
_GET_APPLY = "get it with -o yaml, change it and apply it"
_TAINT = "give the node unschedulable: true under its spec, or a taint (NoExecute to send its pods away), with apply"
# kubectl's verbs that are not ours (yet), and what does the same
ELSEWHERE = {
    **dict.fromkeys(("create", "run", "replace"), _APPLY),
    **dict.fromkeys(("edit", "patch", "set", "label", "annotate"), _GET_APPLY),
    **dict.fromkeys(("cordon", "uncordon", "drain", "taint"), _TAINT),
    "rollout": "apply --wait waits for a rollout and says why it fails; to go back, apply the manifest before",
    "wait": "apply --wait and delete wait",
    "expose": "there are no Services yet: pods are reached at their own addresses",
    "port-forward": "pods are reached at their own addresses from every node",
    "cluster-info": "see shoal get nodes, and shoal config",
    "api-resources": "see shoal get, which names them all",
    "diff": "see plan",
}
VERBS = {
    "up": "Start a development cluster on this machine.",
    "down": "Take the development cluster away.",
    "apply": "Make the cluster hold what manifests say.",
    "plan": "Show what applying manifests would come to.",
    "whatif": "Show what would become of the pods if nodes failed, were drained or added.",
    "fit": "Count how many more pods fit.",
    "rebalance": "Move pods off full nodes, a bounded number of them.",
    "get": "List objects, or show some.",
    "describe": "Show objects in detail, with their events.",
    "why": "Tell why something waits, restarts or has died.",
    "delete": "Delete objects.",
    "scale": "Set the number of replicas.",
    "logs": "Show what containers have written.",
    "exec": "Run a command in a container.",
    "attach": "Show a running container's output, and give it input.",
    "cp": "Copy files out of containers and into them.",
    "top": "Show what pods and nodes use.",
    "events": "List what happened.",
    "image": "Pull, push, load, list and remove images on the nodes.",
    "login": "Keep a registry's password, once a node has tried it.",
    "logout": "Forget a registry's password.",
    "scheduler": "Read the scheduler's decision log again.",
    "agent": "Run a node's agent, or many hollow ones to rehearse with.",
    "config": "Choose between clusters.",
    "version": "Show the versions of the command and the cluster.",
    "completion": "Print the completion script for a shell.",
}
NO_CLUSTER = ("up", "down", "config", "completion", "logout", "scheduler")  # verbs that ask no cluster
UNWIND_SECONDS = 1.0  # for an interrupted verb to clean up
EPILOG = (
    "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 waited in vain, 4 it was asked to tell (with "
    "--detailed-exitcode) and something would change. `exec` passes on its command's."
)


class ReaderGone(Exception):
    """Whoever read our output has enough (`| head`). click would end with 1 on the OSError itself."""


def _plain_flags(command: click.Command, arguments: list[str]) -> list[str]:
    """kubectl's --wait=false and --wait=true as click has them: --no-wait, and --wait or nothing."""
    flags = {name: option for option in command.params if _is_flag(option) for name in option.opts}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    plain: list[str] = []
    for argument in arguments[:end]:
        name, _, value = argument.partition("=")
        if name not in flags or value not in ("true", "false"):
            plain.append(argument)
        elif value == "true":
            plain.append(name)
        else:
            plain += flags[name].secondary_opts[:1]  # what is off by itself needs no word
    return plain + arguments[end:]


def _is_flag(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.is_flag


class Verbs(click.Group):
    """A group whose commands are imported one by one, when they are used."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            raise ReaderGone from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"shoal.deploy.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from shoal.proto.errors import nearest

            meant = nearest(args[0], VERBS)
            advice = ELSEWHERE.get(args[0]) or (f"did you mean '{meant}'?" if meant else "see shoal --help")
            raise click.UsageError(f"no verb is called '{args[0]}': {advice}", ctx)
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, _plain_flags(command, rest) if command is not None else rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):  # from the table: the verbs themselves stay unimported
            formatter.write_dl(list(VERBS.items()))


@click.version_option(__version__, prog_name="shoal", message="%(prog)s %(version)s")
@click.group(cls=Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--context", "context_name", metavar="NAME", help="The cluster, for any verb that asks one.")
@click.option("-n", "--namespace", metavar="NAME", help="The namespace, likewise.")
@click.pass_context
def cli(ctx: click.Context, context_name: str | None, namespace: str | None) -> None:
    """Shoal: a multi-node cluster scheduler."""
    if (context_name or namespace) and ctx.invoked_subcommand in NO_CLUSTER:
        raise click.UsageError(f"'{ctx.invoked_subcommand}' takes neither --context nor -n before it", ctx)


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line and gives its exit code; nothing escapes but an internal error."""
    try:
        code = cli.main(args=arguments, prog_name="shoal", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except CommandError as error:
        _say(f"error: {error}")
        return error.code
    except click.exceptions.NoArgsIsHelpError as error:
        _say(error.format_message())
        return USAGE
    except click.ClickException as error:
        usage = error.ctx.get_usage() + "\n" if isinstance(error, click.UsageError) and error.ctx else ""
        _say(f"{usage}error: {error.format_message()}")
        return USAGE if isinstance(error, click.UsageError) else FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ReaderGone:
        # The interpreter must not complain about it when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"error: {where}{error.strerror or error}")
        return FAILED


def _say(text: str) -> None:
    try:
        print(lines_of(text), file=sys.stderr)
    except OSError:
        pass


def _interrupted(_number: int, _frame: object) -> None:
    """Ctrl-C. Raised inside one of grpc's callbacks KeyboardInterrupt is lost: then the alarm ends us."""
    signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(INTERRUPTED))
    signal.setitimer(signal.ITIMER_REAL, UNWIND_SECONDS)
    raise KeyboardInterrupt


def main() -> None:
    """The entry point of the `shoal` program."""
    changing_this_machine = sys.argv[1:2] in (["up"], ["down"])  # they take the time that they need to unwind
    if not changing_this_machine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    sys.exit(run())


if __name__ == "__main__":
    main()
