"""Why a container died, in plain words: one or two sentences from what its death certificate says. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from shoal.proto.quantity import of_bytes
from shoal.proto.v1 import objects_pb2 as o

OOM, UNHEALTHY, HOOK_FAILED = "OOMKilled", "Unhealthy", "FailedPostStartHook"
DEADLINE, EVICTED, AFTER_GRACE = "DeadlineExceeded", "Evicted", "KilledAfterGrace"
CODE_LOST = "ContainerStatusUnknown"
NOT_STARTED = frozenset({"StartError", "ContainerCannotRun", "RunContainerError"})
SIGNALLED = 128  # a shell's exit code for a child that a signal ended is 128 + signal
MOST_CHARS = 600  # of a message within a cause
MIB = 1 << 20
THROTTLED_PART, FEW_PERIODS = 0.5, 10
SELF_MADE = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})
_SIGNALS = {
    signal.SIGABRT: "it gave up by itself: a failed assertion, or an error that it did not handle",
    signal.SIGSEGV: "it crashed: it touched memory that is not its own",
    signal.SIGBUS: "it crashed: memory that it had mapped was not there (a file cut short, or a full disk or /dev/shm)",
    signal.SIGILL: "it crashed: an instruction that this processor does not know; is the image for this machine?",
    signal.SIGFPE: "it crashed: a division by zero, most likely",
    signal.SIGSYS: "it made a system call that its seccomp profile forbids",
    signal.SIGPIPE: "it wrote to somebody who was not there any more",
    signal.SIGKILL: "neither its node nor its memory limit asked for that: it killed itself, somebody on the node did, "
    "or the kernel did because the whole node was out of memory",
    signal.SIGTERM: "its node did not send that: it came from within the container, or from somebody on the node",
}
_CODES = {
    1: "it ended by itself with an error",
    2: "it ended by itself: wrong usage, or an error that a shell reports",
    126: "the command was found but cannot be executed: is it a program, for this machine, with the x permission?",
    127: "command not found: a shell did not find what it was to run in the image's PATH",
    255: "it ended by itself with an error (255 is also exit -1)",
}


def cause(death: o.Death) -> str:
    """Why, and what to do about it where that is known."""
    return "; ".join([_main(death), *_hints(death)])


def signal_name(number: int) -> str:
    """SIGKILL for 9; `signal 63` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _main(death: o.Death) -> str:
    said = shortened(death.message)
    match death.reason:
        case "OOMKilled":
            return f"OOMKilled: {_memory(death)}"
        case "Unhealthy":
            return f"{_probe(death, said)}, so its node ended it: {how(death)}"
        case "FailedPostStartHook":
            return f"{said or 'its postStart hook failed'}, so its node ended it: {how(death)}"
        case "DeadlineExceeded":
            return f"its pod was active for longer than activeDeadlineSeconds, so its node ended it: {how(death)}"
        case "KilledAfterGrace":
            return (
                "it was asked to stop, did not end within its grace period, and was killed: it ignores the stop signal"
                " (a shell that is PID 1 does: let it `exec` the program), or needs a longer "
                "terminationGracePeriodSeconds"
            )
        case "ContainerStatusUnknown":
            return "how it ended is not known: its node, or the runtime there, went away while it ran"
        case "Evicted":
            return f"evicted: {said or 'its node was short of something'}; {how(death)}"
    if death.reason in NOT_STARTED or not (death.startedAt.seconds or death.reason in ("Error", "Completed")):
        return f"it could not be started: {said or death.reason or 'its node does not say why'}"
    return _by_itself(death)


def how(death: o.Death) -> str:
    """How it ended, shortly: `SIGKILL (exit code 137)`."""
    if death.signal:
        return f"{signal_name(death.signal)} ended it (exit code {death.exitCode})"
    return f"it ended with exit code {death.exitCode}"


def _by_itself(death: o.Death) -> str:
    number, code = death.signal, death.exitCode
    if number:
        text = f"{signal_name(number)} ended it (exit code {code})"
        return f"{text}: {_SIGNALS[signal.Signals(number)]}" if number in _SIGNALS else text
    if code in _CODES:
        return f"exit code {code}: {_CODES[code]}"
    if SIGNALLED < code <= SIGNALLED + signal.SIGRTMAX:
        name = signal_name(code - SIGNALLED)
        return f"exit code {code}: it reports that {name} ended a process of its own ({code} is 128 + {code - 128})"
    return f"exit code {code}: it ended by itself; what the code means is the program's own"


def _memory(death: o.Death) -> str:
    used, limit = death.resources.peakMemoryBytes, death.resources.memoryLimitBytes
    kills = max(death.resources.oomKills, 1)
    who = "it" if death.signal == signal.SIGKILL and kills == 1 else f"{kills} process{'es' * (kills > 1)} of it"
    text = f"the kernel killed {who} for memory: "
    if not (limit or used):
        text += "it used more than its limit, or than its pod or node had"
        text += "; raise resources.limits.memory, or make it use less"
    elif limit:
        text += f"it used {_size(used)} of its limit of {of_bytes(limit)}" if used else f"limit {of_bytes(limit)}"
        text += "; raise resources.limits.memory, or make it use less"
    else:
        text += f"it has no limit of its own{f' and used {_size(used)}' if used else ''}, its pod or node was out of "
        text += "memory; give the containers requests and limits that fit"
    return text if death.signal == signal.SIGKILL else f"{text}; {how(death)}"


def _size(amount: int) -> str:
    """Measured, so that more than whole MiB would say nothing."""
    return of_bytes(round(amount / MIB) * MIB) if amount >= MIB else of_bytes(amount)


def _probe(death: o.Death, said: str) -> str:
    tries = list(death.probes)
    row = 0
    while row < len(tries) and not tries[-1 - row].passed:
        row += 1
    if not row:
        return said or "a probe failed"
    last = tries[-1]
    times = f"{row} times in a row" if row > 1 else "once"
    return f"its {last.probe} probe failed {times}: {shortened(last.message)}"


def _hints(death: o.Death) -> Iterator[str]:
    used = death.resources
    if used.oomKills and death.reason != OOM:
        number = used.oomKills
        yield f"while it ran the kernel killed {number} process{'es' * (number > 1)} of it for memory"
    if used.periods >= FEW_PERIODS and used.throttledPeriods >= THROTTLED_PART * used.periods:
        part = 100 * used.throttledPeriods // used.periods
        yield f"its CPU limit held it back in {part} % of the time, {used.throttledSeconds:.1f} s in all"
    if used.refusedForks:
        yield f"{used.refusedForks} new processes were refused: too many at once"
    if death.changes:
        others = len(death.changes) - 1
        more = f" (and {others} more change{'s' * (others > 1)})" if others else ""
        yield f"changed since it was last healthy: {shortened(death.changes[0])}{more}"


def shortened(text: str, most: int = MOST_CHARS) -> str:
    """On one line, at most that long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."
