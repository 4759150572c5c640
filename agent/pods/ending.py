"""How a pod's containers are ended: preStop, the stop signal, KILL, within one grace period. Pure."""

from __future__ import annotations

import re
import signal

from shoal.agent.images.port import Image
from shoal.agent.pods import instructions as i
from shoal.agent.pods.facts import (
    ANSWERED,
    ASKED,
    ENDED,
    NOT_ASKED,
    SIDECAR,
    ContainerFacts,
    Run,
)
from shoal.agent.pods.order import groups_to_end
from shoal.agent.pods.pod import Limit, PodFacts
from shoal.agent.pods.steps import Steps

KILL_AGAIN_S = 5.0  # a process that KILL has not ended yet (it waits for a disk, say) is killed again
EXTRA_S = 2.0  # for the stop signal after a hook, or the containers before it, have used all of the grace (kubelet)
GRACE, KILL = "grace ", "kill "
STOP_SIGNAL = re.compile(r"(?P<number>[0-9]{1,2})|(?:SIG)?(?P<name>[A-Z0-9]+)(?:\+(?P<more>[0-9]{1,2}))?")


class Ending:
    def __init__(self, facts: PodFacts, steps: Steps) -> None:
        self._facts, self._steps = facts, steps

    def plan_doomed(self, now: float) -> list[i.Instruction]:
        """Ends the runs that the agent gave up, and no others."""
        out: list[i.Instruction] = []
        for container in self._facts.ordered:
            if container.live and container.run is not None and container.run.note.end_since:
                out += self._end(container, now)
        return out

    def plan_all(self, now: float) -> tuple[list[i.Instruction], bool]:
        """Ends all containers in their order; the second is True while something is left."""
        for group in groups_to_end(self._facts.ordered):
            out: list[i.Instruction] = []
            left = False
            for container in group:
                left = left or container.live or self._steps.in_flight(f"start {container.spec.name}")
                if container.live and container.run is not None:
                    if not (self._facts.stopping or self._facts.failed):
                        container.run.doom("", "", self._facts.own_grace, now)
                    out += self._end(container, now)
            if left:
                return out, True
        return [], False

    def tails(self) -> list[i.Instruction]:
        """Reads the end of the logs of runs that have failed without a message, where that is asked for."""
        out: list[i.Instruction] = []
        for container in self._facts.ordered:
            run = container.run
            if run is not None and wants_tail(container, run):
                given = self._steps.give(i.ReadLogTail(self._facts.id(container, run.attempt)))
                run.tail = ASKED if given else run.tail
                out += given
        return out

    def timer(self, name: str) -> bool:
        """Whether this timer is one of this part."""
        for start in (GRACE, KILL):
            container = self._facts.containers.get(name.removeprefix(start))
            if name.startswith(start) and container is not None:
                run = container.run
                if run is not None and start == GRACE:
                    run.kill_due = run.kill_at > 0  # else it was an earlier run's
                elif run is not None:
                    run.kill_sent = False
                return True
        return False

    def hook_done(self, step: i.RunHook) -> None:
        container = self._facts.containers[step.id.name]
        if container.run is not None and container.run.attempt == step.id.attempt:
            container.run.pre_stop = ANSWERED

    def unsignalled(self, step: i.Signal) -> None:
        run = self._facts.containers[step.id.name].run
        if run is not None and run.attempt == step.id.attempt:
            run.term_sent = run.kill_sent = False

    # ---- one container ----
    def _limit(self, run: Run) -> Limit:
        """The earliest of what was said of the run, and of the pod."""
        facts, record = self._facts, self._facts.record
        limits = [Limit(run.note.end_since, run.note.grace)] if run.note.end_since else []
        if facts.stopping:
            limits.append(Limit(record.stop_started, facts.stop_grace))
        if facts.failed:
            limits.append(Limit(record.failed_at, record.failed_grace))
        return min(limits, key=lambda limit: limit.at)

    def _end(self, container: ContainerFacts, now: float) -> list[i.Instruction]:
        run = container.run
        assert run is not None
        limit = self._limit(run)
        left = min(max(limit.at - now, 0.0), limit.grace)
        out = forget_probes(container)
        late_is_kill = not run.told_at and run.pre_stop == NOT_ASKED and container.kind != SIDECAR
        if run.kill_due or limit.grace <= 0 or (left <= 0 and late_is_kill):
            return out + self._kill(container, run)
        if self._hook_first(container, run, left):
            out += self._hook(container, run, left)
            return out + self._arm(container, run, limit.at + EXTRA_S, limit, now)
        if not run.term_sent:
            id = self._facts.id(container, run.attempt)
            term = self._steps.give(i.Signal(id, stop_signal(container.image)))
            run.term_sent = bool(term)
            run.told_at = run.told_at or now
            out += term
        last = max(limit.at, run.told_at + min(limit.grace, EXTRA_S))
        return out + self._arm(container, run, last, limit, now)

    def _hook_first(self, container: ContainerFacts, run: Run, left: float) -> bool:
        if not container.has_hook("preStop") or run.pre_stop == ANSWERED:
            return False
        return run.pre_stop == ASKED or (left > 0 and not run.told_at)

    def _hook(self, container: ContainerFacts, run: Run, left: float) -> list[i.Instruction]:
        facts, handler = self._facts, container.spec.lifecycle.preStop
        id = facts.id(container, run.attempt)
        given = self._steps.give(i.RunHook(id, "preStop", handler, facts.address, facts.ports(container), left))
        run.pre_stop = ASKED if given else run.pre_stop
        return given

    def _arm(self, container: ContainerFacts, run: Run, at: float, limit: Limit, now: float) -> list[i.Instruction]:
        """KILL at that time, however the clock jumps meanwhile."""
        if run.kill_at == at:
            return []
        run.kill_at = at
        left = min(max(at - now, 0.0), limit.grace + EXTRA_S)
        return [i.SetTimer(GRACE + container.spec.name, left)]

    def _kill(self, container: ContainerFacts, run: Run) -> list[i.Instruction]:
        if run.kill_sent:
            return []
        kill = self._steps.give(i.Signal(self._facts.id(container, run.attempt), signal.SIGKILL))
        run.kill_sent = bool(kill)
        return [*kill, i.SetTimer(KILL + container.spec.name, KILL_AGAIN_S)] if kill else []


def forget_probes(container: ContainerFacts) -> list[i.Instruction]:
    if container.run is None or not container.run.probed:
        return []
    container.run.probed = False
    return [i.ForgetProbes(container.spec.name)]


def wants_tail(container: ContainerFacts, run: Run) -> bool:
    """FallbackToLogsOnError: a run that failed and left no message of its own."""
    asked = container.spec.terminationMessagePolicy == "FallbackToLogsOnError" and run.tail == NOT_ASKED
    ended = run.state == ENDED and run.code != 0 and run.exit is not None
    return asked and ended and run.exit is not None and not run.exit.message and not run.note.said


def stop_signal(image: Image | None) -> int:
    """The image's STOPSIGNAL ("SIGQUIT", "3", "SIGRTMIN+3"), else TERM."""
    text = image.config.stop_signal.upper() if image else ""
    form = STOP_SIGNAL.fullmatch(text)
    if form is None:
        return int(signal.SIGTERM)
    known = getattr(signal, f"SIG{form['name']}", None) if form["name"] else None
    number = int(known) if isinstance(known, signal.Signals) else 0
    number += int(form["more"] or form["number"] or 0) if number or form["number"] else 0
    return number if 0 < number < signal.NSIG else int(signal.SIGTERM)
