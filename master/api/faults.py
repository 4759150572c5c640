"""The API's own faults, and every fault as the Failure that callers get."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.master import model
from shoal.master.model import Fault
from shoal.proto.v1 import cluster_pb2 as c


class Invalid(model.Invalid):
    """The object or the request is wrong; `fields` are (path, message), all of them at once."""

    def __init__(self, message: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


class Forbidden(Fault):
    reason = "Forbidden"


class Timeout(Fault):
    reason = "Timeout"
    retryable = True


def failure_of(fault: Fault) -> c.Failure:
    """A fault as data."""
    failure = c.Failure(reason=fault.reason, message=str(fault), retryable=fault.retryable)
    if isinstance(fault, Invalid):
        failure.fields.extend(c.FieldError(path=path, message=message) for path, message in fault.fields)
    return failure


def invalid_object(what: str, problems: Sequence[tuple[str, str]]) -> Invalid:
    """All that is wrong with one object."""
    shown = "; ".join(f"{path}: {message}" if path else message for path, message in problems)
    return Invalid(f"{what} is invalid: {shown}", problems)
