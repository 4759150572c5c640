"""The Cluster service as the verbs see it: plain calls, with retries, over mutual TLS. Only this imports grpc."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log lines would stand among ours
import grpc
from google.protobuf.message import DecodeError

from shoal.deploy.cli.contexts import Context
from shoal.deploy.cli.diagnose import certificate_problem, why_unreachable
from shoal.deploy.cli.failures import TIMED_OUT, CommandError, Refused
from shoal.proto.kinds import CLASSES, Object
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import session_pb2 as s
from shoal.proto.v1.cluster_pb2_grpc import ClusterStub

CALL_SECONDS = 20.0  # one attempt
PLAN_SECONDS = 75.0  # one attempt at a plan; the master gives up before
PATIENCE_SECONDS = 30.0  # all attempts of a call that can be retried
UNREACHABLE_SECONDS = 5.0  # the same while no server takes the connection: a master that ended is back by then
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 2.0
PAGE = 500  # objects
BATCH_OBJECTS = 100  # the API's bound for one request
BATCH_BYTES = 2 * 1024 * 1024
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
FRAME_BYTES = 64 * 1024
FAILURE_KEY = "shoal-failure-bin"
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),
]
_RETRYABLE = {grpc.StatusCode.UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class Found:
    """A list as of one revision."""

    objects: list[Object]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells. `type`: ADDED, MODIFIED, DELETED (with the last state)."""

    type: str
    object: Object


class Client:
    """Calls to one cluster. Every method raises CommandError (Refused for the API's own answers)."""

    def __init__(
        self, context: Context, patience: float = PATIENCE_SECONDS, unreachable: float = UNREACHABLE_SECONDS
    ) -> None:
        self.context = context
        self._patience, self._unreachable = patience, unreachable
        self._credentials = grpc.ssl_channel_credentials(
            context.pem("ca"), context.pem("key"), context.pem("certificate")
        )
        self._server = 0
        self._channel: grpc.Channel | None = None
        self._stub: ClusterStub | None = None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._stub = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- objects ----
    def apply(self, objects: Sequence[Object], dry_run: bool = False) -> list[c.WriteResult]:
        """Applies in batches; one result per object, in order."""
        results: list[c.WriteResult] = []
        for batch in _batches(objects):
            request = c.WriteRequest(request_id=new_request_id(), objects=batch, dry_run=dry_run)
            results.extend(self._write("Apply", request).results)
        return results

    def delete(
        self, keys: Sequence[c.Key], *, grace: int | None = None, propagation: str = "", dry_run: bool = False
    ) -> list[c.WriteResult]:
        """Deletes in batches; one result per key, in order."""
        results: list[c.WriteResult] = []
        for start in range(0, len(keys), BATCH_OBJECTS):
            request = c.DeleteRequest(
                request_id=new_request_id(),
                keys=keys[start : start + BATCH_OBJECTS],
                grace_period_seconds=grace,
                propagation=propagation,
                dry_run=dry_run,
            )
            results.extend(self._write("Delete", request).results)
        return results

    def scale(self, key: c.Key, replicas: int, current: int | None) -> c.WriteResult:
        """Sets the number of replicas."""
        request = c.ScaleRequest(request_id=new_request_id(), key=key, replicas=replicas, current_replicas=current)
        results = self._write("Scale", request).results
        return results[0] if results else c.WriteResult()

    def get(self, kind: str, namespace: str, name: str) -> Object:
        """One object. Refused with reason NotFound when there is none."""
        return decode(self._call("Get", c.GetRequest(key=c.Key(kind=kind, namespace=namespace, name=name))))

    def list_objects(self, kind: str, namespace: str = "", labels: str = "", fields: str = "") -> Found:
        """All objects, page by page, as of one revision."""
        while True:
            try:
                return self._pages(kind, namespace, labels, fields)
            except Refused as refused:
                if refused.reason != "Expired":
                    raise

    def _pages(self, kind: str, namespace: str, labels: str, fields: str) -> Found:
        objects: list[Object] = []
        token = ""
        while True:
            request = c.ListRequest(
                kind=kind,
                namespace=namespace,
                label_selector=labels,
                field_selector=fields,
                limit=PAGE,
                continue_token=token,
            )
            page = self._call("List", request)
            objects.extend(decode(envelope) for envelope in page.objects)
            token = page.continue_token
            if not token:
                return Found(objects, page.revision)

    def watch(
        self,
        kinds: Sequence[str],
        namespace: str,
        revision: int,
        *,
        labels: str = "",
        fields: str = "",
        deadline: float | None = None,
    ) -> Iterator[tuple[int, list[Change]]]:
        """Batches after `revision`, through lost connections, until the deadline (on time.monotonic's clock).

        Refused with reason Expired when the revision is gone: list again."""
        while deadline is None or time.monotonic() < deadline:
            request = c.WatchRequest(
                kinds=kinds,
                namespace=namespace,
                label_selector=labels,
                field_selector=fields,
                from_revision=revision,
            )
            try:
                for batch in self._stream("Watch", request, deadline):
                    revision = batch.revision or revision
                    yield revision, [Change(event.type, decode(event.object)) for event in batch.events]
            except Refused as refused:
                if refused.reason == "Timeout" and deadline is not None:
                    return
                if not refused.retryable:
                    raise
                self.reach(deadline)

    def reach(self, deadline: float | None = None) -> None:
        """Waits, within patience, until some master answers."""
        self._call("Version", c.VersionRequest(), until=deadline)

    # ---- planning ----
    def plan(self, objects: Sequence[Object]) -> c.PlanResponse:
        """What applying these objects would come to."""
        answer: c.PlanResponse = self._call("Plan", c.PlanRequest(objects=envelopes(objects)), seconds=PLAN_SECONDS)
        return answer

    def carry_out(self, objects: Sequence[Object], expected: c.PlanResponse) -> c.CarryOutResponse:
        """Applies the objects of a plan if it still holds."""
        request = c.CarryOutRequest(request_id=new_request_id(), objects=envelopes(objects), expected=expected)
        answer: c.CarryOutResponse = self._call("CarryOut", request, seconds=PLAN_SECONDS)
        return answer

    def what_if(self, request: c.WhatIfRequest) -> c.WhatIfResponse:
        """What would become of the pods."""
        answer: c.WhatIfResponse = self._call("WhatIf", request, seconds=PLAN_SECONDS)
        return answer

    def fit(self, objects: Sequence[Object], limit: int) -> c.FitResponse:
        """How many more pods of these objects fit."""
        request = c.FitRequest(objects=envelopes(objects), limit=limit)
        answer: c.FitResponse = self._call("Fit", request, seconds=PLAN_SECONDS)
        return answer

    def rebalance(self, max_moves: int) -> c.RebalanceResponse:
        """Which pods to move."""
        request = c.RebalanceRequest(max_moves=max_moves)
        answer: c.RebalanceResponse = self._call("Rebalance", request, seconds=PLAN_SECONDS)
        return answer

    def why(self, pod: c.Key) -> c.WhyResponse:
        """What was decided about where the pod goes, and what would change that."""
        answer: c.WhyResponse = self._call("Why", c.WhyRequest(pod=pod), seconds=PLAN_SECONDS)
        return answer

    def evict(self, pod: c.Key, uid: str) -> c.WriteResult:
        """Deletes the pod if the disruption budgets allow it."""
        return self._write("Evict", c.EvictRequest(request_id=new_request_id(), key=pod, uid=uid)).results[0]

    # ---- streams ----
    def logs(self, pod: c.Key, options: s.LogsOpen) -> Iterator[s.TunnelFrame]:
        """The frames of a log, up to and with its end."""
        self.reach()
        return self._stream("Logs", c.LogsRequest(pod=pod, options=options), None)

    def exec(self, pod: c.Key, options: s.ExecOpen, frames: Iterable[s.TunnelFrame]) -> Iterator[s.TunnelFrame]:
        """Runs a command; `frames` is its input."""
        self.reach()  # a command must not be started twice, so that only this is retried

        def requests() -> Iterator[c.ExecRequest]:
            yield c.ExecRequest(start=c.ExecStart(pod=pod, options=options))
            for frame in frames:
                yield c.ExecRequest(frame=frame)

        return self._stream("Exec", requests(), None)

    def attach(self, pod: c.Key, options: s.AttachOpen, frames: Iterable[s.TunnelFrame]) -> Iterator[s.TunnelFrame]:
        """A running container's own streams; `frames` is its input."""
        self.reach()

        def requests() -> Iterator[c.AttachRequest]:
            yield c.AttachRequest(start=c.AttachStart(pod=pod, options=options))
            for frame in frames:
                yield c.AttachRequest(frame=frame)

        return self._stream("Attach", requests(), None)

    def copy(self, pod: c.Key, options: s.CopyOpen, data: Iterable[bytes]) -> Iterator[s.TunnelFrame]:
        """A tar stream out of a container, or `data` as one into it."""
        self.reach()

        def requests() -> Iterator[c.CopyRequest]:
            yield c.CopyRequest(start=c.CopyStart(pod=pod, options=options))
            if not options.out:
                for piece in data:
                    yield c.CopyRequest(frame=s.TunnelFrame(data=piece))
                yield c.CopyRequest(frame=s.TunnelFrame(close_input=True))

        return self._stream("Copy", requests(), None)

    def top(self, request: c.TopRequest) -> c.TopResponse:
        """What pods or nodes use now."""
        answer: c.TopResponse = self._call("Top", request)
        return answer

    def load_image(self, start: c.LoadImageStart, chunks: Iterable[bytes]) -> Iterator[c.LoadImageResponse]:
        """Sends an archive to nodes; lines of progress come back."""
        self.reach()

        def requests() -> Iterator[c.LoadImageRequest]:
            yield c.LoadImageRequest(start=start)
            for chunk in chunks:
                yield c.LoadImageRequest(data=chunk)

        return self._stream("LoadImage", requests(), None)

    def remove_image(self, request: c.RemoveImageRequest) -> Iterator[c.LoadImageResponse]:
        """Removes an image from nodes."""
        self.reach()
        return self._stream("RemoveImage", request, None)

    def image(self, request: c.ImageRequest) -> Iterator[c.LoadImageResponse]:
        """One operation on the images of nodes; a line per node and step."""
        self.reach()
        return self._stream("Image", request, None)

    def save_image(self, request: c.SaveImageRequest) -> Iterator[s.TunnelFrame]:
        """Images as an archive, in `data` frames."""
        self.reach()
        return self._stream("SaveImage", request, None)

    def version(self) -> c.VersionResponse:
        """What the cluster says of itself."""
        version: c.VersionResponse = self._call("Version", c.VersionRequest())
        return version

    # ---- transport ----
    def _connected(self) -> ClusterStub:
        if self._stub is None:
            server = self.context.servers[self._server % len(self.context.servers)]
            self._channel = grpc.secure_channel(server, self._credentials, options=_OPTIONS)
            self._stub = ClusterStub(self._channel)
        return self._stub

    def _next_server(self) -> None:
        self.close()
        self._server += 1

    def _call(self, method: str, request: Any, until: float | None = None, seconds: float = CALL_SECONDS) -> Any:
        """One answer, by as many attempts as patience allows; the same request each time, so that it counts once.
        `seconds`: what one attempt may take."""
        patience = max(self._patience, seconds) if seconds > CALL_SECONDS else self._patience
        end = time.monotonic() + patience
        pause = FIRST_PAUSE_SECONDS
        while True:
            left = (end if until is None else min(end, until)) - time.monotonic()
            try:
                return getattr(self._connected(), method)(request, timeout=max(0.1, min(seconds, left)))
            except grpc.RpcError as error:
                refused = self._refusal(error)
                if refused.reason == "Unreachable":
                    if pause == FIRST_PAUSE_SECONDS:
                        self._check_certificates()
                    left -= patience - self._unreachable
                wait = random.uniform(pause / 2, pause)  # noqa: S311  (jitter)
                if not refused.retryable or left <= wait:
                    raise self._explained(refused) from None
                self._next_server()
                time.sleep(wait)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _write(self, method: str, request: Any) -> c.WriteResponse:
        """As _call, and again while objects failed for a passing reason: by its id the request counts once."""
        end = time.monotonic() + self._patience
        pause = FIRST_PAUSE_SECONDS
        while True:
            response: c.WriteResponse = self._call(method, request, until=end)
            passing = any(result.HasField("failure") and result.failure.retryable for result in response.results)
            if not passing or time.monotonic() + pause > end:
                return response
            time.sleep(random.uniform(pause / 2, pause))  # noqa: S311  (jitter)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _stream(self, method: str, request: Any, deadline: float | None) -> Iterator[Any]:
        timeout = None if deadline is None else max(0.1, deadline - time.monotonic())
        call = getattr(self._connected(), method)(request, timeout=timeout)
        try:
            yield from call
        except grpc.RpcError as error:
            refused = self._refusal(error)
            if refused.retryable:
                self._next_server()
            raise refused from None
        finally:
            call.cancel()

    def _refusal(self, error: grpc.RpcError) -> Refused:
        code, details = error.code(), error.details() or ""
        for key, value in cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ()):
            if key == FAILURE_KEY:
                try:
                    return refused_by(c.Failure.FromString(value))
                except DecodeError:
                    break
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return Refused("Timeout", "the master did not answer in time; it may be overloaded: try again", True)
        if code in _RETRYABLE:
            return Refused("Unreachable", details, True)
        return Refused(
            code.name.replace("_", " ").title().replace(" ", ""), details or f"the call failed ({code.name})"
        )

    def _check_certificates(self) -> None:
        """A certificate that is refused looks like an unreachable server: no need to be patient with that."""
        wrong = certificate_problem(self.context)
        if wrong is not None:
            raise CommandError(wrong)

    def _explained(self, refused: Refused) -> CommandError:
        if refused.reason == "Unreachable":
            return CommandError(why_unreachable(self.context))
        return CommandError(str(refused), TIMED_OUT) if refused.reason == "Timeout" else refused


def refused_by(failure: c.Failure) -> Refused:
    """The API's Failure as an error; its message names the fields already, where there are any."""
    message = failure.message or failure.reason
    missing = [f"{field.path}: {field.message}" for field in failure.fields if field.message not in message]
    return Refused(failure.reason, "; ".join([message, *missing]), failure.retryable)


def new_request_id() -> str:
    return str(uuid.uuid4())


def decode(envelope: c.Object) -> Object:
    """The object with its resourceVersion filled in. Raises CommandError for a kind that this version does not know."""
    cls = CLASSES.get(envelope.kind)
    if cls is None:
        raise CommandError(f"the master sent a {envelope.kind}, which this version of shoal does not know: update it")
    message = cls()
    message.ParseFromString(envelope.body)
    message.metadata.resourceVersion = str(envelope.revision)
    return message


def envelopes(objects: Iterable[Object]) -> list[c.Object]:
    return [c.Object(kind=found.kind, body=found.SerializeToString(deterministic=True)) for found in objects]


def _batches(objects: Iterable[Object]) -> Iterator[list[c.Object]]:
    batch: list[c.Object] = []
    size = 0
    for message in objects:
        body = message.SerializeToString(deterministic=True)
        if batch and (len(batch) >= BATCH_OBJECTS or size + len(body) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(c.Object(kind=message.kind, body=body))
        size += len(body)
    if batch:
        yield batch
