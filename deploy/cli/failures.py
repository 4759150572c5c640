"""How the command ends: its exit codes, and the errors that lead to them."""

from __future__ import annotations

OK = 0
FAILED = 1  # the cluster or the input refused
USAGE = 2  # the command line is wrong
TIMED_OUT = 3  # waited in vain
INTERRUPTED = 130


class CommandError(Exception):
    """The verb cannot go on; the message is for people, `code` for scripts."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class Refused(CommandError):
    """The API's answer. `reason` is one of cluster.proto's Failure reasons; `retryable`: asking again can help."""

    def __init__(self, reason: str, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
