"""What went wrong in a start, in words: the child can only report numbers. Standard library only."""

from __future__ import annotations

import errno
import os

from shoal.agent.runtime import init, users
from shoal.agent.runtime.cgroups import CgroupError, Cgroups

COMMAND_NOT_FOUND, COMMAND_NOT_EXECUTABLE, NOT_STARTED = 127, 126, 128


class LaunchError(Exception):
    """Nothing runs. `reason` is one of port.StartError's; the message says what, where and what to do."""

    def __init__(self, reason: str, message: str, exit_code: int = NOT_STARTED) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = exit_code


def as_launch_error(error: BaseException) -> BaseException:
    """The errors of the preparation as a LaunchError; what is none of them stays as it is."""
    if isinstance(error, CgroupError):
        return LaunchError("CreateContainerError", str(error))
    if isinstance(error, UnicodeError):
        return LaunchError("CreateContainerConfigError", f"a text in the container's spec is no valid Unicode: {error}")
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        return LaunchError("CreateContainerError", f"cannot prepare the container:{place}: {error.strerror}")
    return error


def in_words(error: BaseException) -> str:
    """A fault for people: where, why, and what to do when the disk is full."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    why = error.strerror
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "the node's disk is full: remove images or files there, or enlarge it"
    return f"{error.filename}: {why}" if error.filename else why


def explain(job: init.Job, report: bytes, cgroups: Cgroups, path: str) -> LaunchError:
    """The child's numbers as an error for people."""
    record = report.removeprefix(init.READY)
    if len(record) != init.RECORD.size:
        if cgroups.oom_kills(path):
            text = "the memory limit is too small even to start the command (OOM); raise resources.limits.memory"
            return LaunchError("StartError", text)
        return LaunchError("StartError", "the process was killed before it could run the command")
    stage, detail, number = init.RECORD.unpack(record)
    if stage == init.EXECUTE:
        return _explain_execute(job, detail, number)
    if stage == init.USER and detail:
        return LaunchError("CreateContainerConfigError", _explain_user(job, detail))
    what = init.STAGE_NAMES.get(stage, f"stage {stage}")
    if stage == init.MOUNTS and detail < len(job.plan):
        what = job.plan[detail].describe()
    elif stage == init.USER and job.cwd_step is not None:
        what = job.cwd_step.describe()
    why = os.strerror(number) if number else "internal error"
    return LaunchError("CreateContainerError", f"cannot {what}: {why}")


def _explain_user(job: init.Job, code: int) -> str:
    user = os.fsdecode(job.user)
    return {
        users.NO_USER: f"the image's /etc/passwd has no user {user!r}; use a number in runAsUser",
        users.NO_GROUP: f"the image's /etc/group has no group for {user!r}; use a number in runAsGroup",
        users.BAD_ID: f"the id of user {user!r} is not a number from 0 to {users.MAX_ID}",
        users.IS_ROOT: "runAsNonRoot is set, but the container would run as root (uid 0); set runAsUser",
    }.get(code, f"the user {user!r} cannot be used")


def _explain_execute(job: init.Job, detail: int, number: int) -> LaunchError:
    command = os.fsdecode(job.argv[0])
    if number == errno.E2BIG:
        text = "command, args and environment together are too long for the kernel; shorten them"
        return LaunchError("ContainerCannotRun", text, COMMAND_NOT_EXECUTABLE)
    if number == errno.ENOENT and detail == init.NO_INTERPRETER:
        text = f"{command}: the program is in the image, but its interpreter or loader is not (see its first line)"
        return LaunchError("ContainerCannotRun", text, COMMAND_NOT_FOUND)
    if number == errno.ENOENT:
        where = "" if "/" in command else " in any folder of PATH (" + os.fsdecode(b":".join(job.path)) + ")"
        text = f"{command}: command not found in the image{where}; check command and args"
        return LaunchError("ContainerCannotRun", text, COMMAND_NOT_FOUND)
    why = {
        errno.ENOEXEC: "no known program format (a script needs a #! line)",
        errno.EACCES: "Permission denied; it must be executable, and so must the interpreter in a script's first line",
    }.get(number, os.strerror(number))
    return LaunchError("ContainerCannotRun", f"{command}: cannot be executed: {why}", COMMAND_NOT_EXECUTABLE)
