"""Death certificates: which runs get one, and what stands in it. Pure.

A run that ended in failure has exactly one. What the container has written last is added where the file is read.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import replace

from shoal.agent.pods import instructions as i
from shoal.agent.pods.facts import APP, ENDED, ContainerFacts, Run
from shoal.agent.pods.healthy import (
    Baseline,
    Baselines,
    baseline_of,
    better,
    changes,
    died_with,
    workload_key,
)
from shoal.agent.pods.pod import Limit, PodFacts
from shoal.agent.pods.probing import Verdict
from shoal.agent.pods.status import MESSAGE_BYTES, shortened, time_of
from shoal.agent.pods.steps import Steps
from shoal.agent.runtime.port import ContainerID, Resources
from shoal.agent.state import ProbeTry
from shoal.proto.causes import AFTER_GRACE, OOM, SELF_MADE, cause
from shoal.proto.v1 import objects_pb2 as o

TAIL_LINES, LINE_CHARS, TAIL_BYTES = 50, 500, 16 * 1024
TRY_CHARS = 300
NAME_CHARS, UID_CHARS = 200, 8  # of a certificate's name, and of the pod's uid in it
AT_ONCE_S = 0.5  # so much earlier than the end of the grace period KILL may have come, by the clocks


class Burying:
    """The part of a pod's machine that sees to its dead runs."""

    def __init__(self, facts: PodFacts, steps: Steps, known: Baselines) -> None:
        self._facts, self._steps, self._known = facts, steps, known

    def plan(self, now: float) -> list[i.Instruction]:
        out: list[i.Instruction] = []
        for container in self._facts.ordered:
            for run in (container.previous, container.run):
                if run is not None and run.state == ENDED and not run.note.buried and not run.misconfigured:
                    out += self._run(container, run, now)
        return out

    def _run(self, container: ContainerFacts, run: Run, now: float) -> list[i.Instruction]:
        """The certificate of a run that failed, once; and what a run proves of its container's health."""
        facts = self._facts
        if run.exit is not None and not run.started_at and self._steps.in_flight(f"start {container.spec.name}"):
            return []  # its end was told before its start
        reason = reason_of(facts, container, run)
        out: list[i.Instruction] = []
        if not run.weighed:
            run.weighed = True
            found = baseline_of(facts, container, run, now, dead=bool(reason))
            if found is not None:
                out += self._remember(container, found)
            if reason:
                run.death = certificate(facts, container, run, reason, self._since(container, found))
        if run.death is not None:
            out += self._steps.give(i.Bury(facts.id(container, run.attempt), run.death))
        return out

    def _remember(self, container: ContainerFacts, found: Baseline) -> list[i.Instruction]:
        key = workload_key(self._facts.pod, container.spec.name)
        kept = better(self._known.kept(key), found)
        return [i.Remember(key, kept)] if kept is found else []

    def _since(self, container: ContainerFacts, own: Baseline | None) -> Baseline | None:
        """What a dead run is compared with: another's proof where there is a good one, else its own."""
        other = self._known.find(workload_key(self._facts.pod, container.spec.name))
        if own is None or (other is not None and own.weak and (not other.weak or other.at < own.at)):
            return other
        return own

    def living(self, key: str, now: float) -> Baseline | None:
        """What a container that runs well now proves of the workload with this key."""
        for container in self._facts.ordered:
            run = container.run
            if container.live and run is not None and workload_key(self._facts.pod, container.spec.name) == key:
                doomed = self._facts.stopping or self._facts.failed or run.note.end_since > 0
                return None if doomed else baseline_of(self._facts, container, run, now, dead=False)
        return None

    def buried(self, id: ContainerID) -> None:
        container = self._facts.containers[id.name]
        for run in (container.run, container.previous):
            if run is not None and run.attempt == id.attempt:
                run.note, run.death = replace(run.note, buried=True), None


# ---- which runs ----
def reason_of(facts: PodFacts, container: ContainerFacts, run: Run) -> str:
    """Why a run that has ended counts as a death, in one word; "" when it does not: it ended well, or as asked."""
    ended = run.exit
    if ended is None:
        return run.reason  # it could not be started
    if run.note.reason:
        return run.note.reason
    if ended.oom and run.code != 0:
        return OOM
    if facts.failed and run.finished_at >= facts.record.failed_at and ended.signal not in SELF_MADE:
        return facts.record.failed_reason
    asked = _asked(facts, run)
    if asked is None:
        return run.reason if run.code != 0 else ""
    if ended.signal in SELF_MADE:
        return run.reason
    late = run.kill_due or run.finished_at >= asked.at - AT_ONCE_S
    return AFTER_GRACE if ended.signal == signal.SIGKILL and asked.grace > 0 and late else ""


def _asked(facts: PodFacts, run: Run) -> Limit | None:
    """The end that was asked of it before it came; None: none was."""
    limits = [Limit(run.note.end_since, run.note.grace)] if run.note.end_since else []
    if facts.stopping:
        limits.append(Limit(facts.record.stop_started, facts.stop_grace))
    due = [limit for limit in limits if limit.since <= run.finished_at]
    return min(due, key=lambda limit: limit.at, default=None)


def tries_of(verdict: Verdict) -> tuple[ProbeTry, ...]:
    """What led to a verdict, as it is kept over restarts of the agent."""
    return tuple(
        ProbeTry(one.kind, one.at, one.passed, one.message[:TRY_CHARS], one.milliseconds) for one in verdict.history
    )


# ---- what stands in it ----
def name_of(pod: o.Pod, container: str, attempt: int) -> str:
    """<pod>.<container>.<attempt>.<start of the uid>; of a long pod's name the start."""
    rest = f".{container}.{attempt}.{pod.metadata.uid[:UID_CHARS]}"
    return pod.metadata.name[: NAME_CHARS - len(rest)].rstrip("-.") + rest


def certificate(facts: PodFacts, container: ContainerFacts, run: Run, reason: str, since: Baseline | None) -> o.Death:
    """All of it but the last lines of the log."""
    pod, seen = facts.pod, run.seen
    image = seen.image if seen is not None else container.image
    death = o.Death(
        apiVersion="shoal.dev/v1",
        kind="Death",
        pod=o.ObjectReference(
            apiVersion="v1",
            kind="Pod",
            name=pod.metadata.name,
            namespace=pod.metadata.namespace,
            uid=pod.metadata.uid,
        ),
        node=facts.node.name,
        container=container.spec.name,
        attempt=run.attempt,
        initContainer=container.kind != APP,
        image=(seen.container if seen is not None else container.spec).image,
        imageID=image.id if image is not None else "",
        exitCode=run.code,
        signal=run.exit.signal if run.exit is not None else 0,
        reason=reason,
        message=shortened(run.end_message or _given_up(facts, run), MESSAGE_BYTES),
        startedAt=time_of(run.started_at) if run.started_at else None,
        finishedAt=time_of(run.finished_at),
        probes=[_probe(one) for one in run.note.tries],
        resources=resources(run.exit.resources) if run.exit is not None and run.exit.resources else None,
    )
    death.metadata.name = name_of(pod, container.spec.name, run.attempt)
    death.metadata.namespace = pod.metadata.namespace
    if since is not None:
        death.lastHealthyAt.CopyFrom(time_of(since.at))
        death.changes.extend(changes(since.what, died_with(facts, container, run)))
    death.cause = cause(death)
    return death


def _given_up(facts: PodFacts, run: Run) -> str:
    return facts.record.failed_message if facts.failed and run.finished_at >= facts.record.failed_at else ""


def _probe(one: ProbeTry) -> o.ProbeRecord:
    return o.ProbeRecord(
        probe=one.probe, at=time_of(one.at), passed=one.passed, message=one.message, milliseconds=one.milliseconds
    )


def resources(used: Resources) -> o.ResourceRecord:
    return o.ResourceRecord(
        peakMemoryBytes=used.peak_memory_bytes,
        memoryLimitBytes=used.memory_limit_bytes,
        cpuSeconds=used.cpu_seconds,
        periods=used.periods,
        throttledPeriods=used.throttled_periods,
        throttledSeconds=used.throttled_seconds,
        oomKills=used.oom_kills,
        refusedForks=used.refused_forks,
        pressure=[
            o.Pressure(resource=name, someSeconds=stall.some_seconds, fullSeconds=stall.full_seconds)
            for name, stall in sorted(used.pressure.items())
        ],
    )


def with_tail(death: o.Death, text: str) -> o.Death:
    """The same with the last lines of its log, the newest of them within the bound."""
    whole = o.Death()
    whole.CopyFrom(death)
    del whole.logTail[:]
    whole.logTail.extend(last_lines(text.splitlines()))
    return whole


def last_lines(lines: Iterable[str]) -> list[str]:
    kept: list[str] = []
    room = TAIL_BYTES
    for line in reversed(list(lines)[-TAIL_LINES:]):
        cut = line if len(line) <= LINE_CHARS else line[: LINE_CHARS - 3] + "..."
        room -= len(cut.encode("utf-8", "replace"))
        if room < 0:
            break
        kept.append(cut)
    return kept[::-1]
