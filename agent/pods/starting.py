"""What brings a pod's containers to run: sandbox, address, volumes, images, their turn, hooks and probes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shoal.agent.pods import instructions as i
from shoal.agent.pods.config import Unresolved, environment
from shoal.agent.pods.deaths import tries_of
from shoal.agent.pods.facts import ANSWERED, ASKED, NOT_ASKED, RUNNING, ContainerFacts, Run
from shoal.agent.pods.healthy import seen
from shoal.agent.pods.hostports import host_ports
from shoal.agent.pods.images import Pulling
from shoal.agent.pods.order import startable
from shoal.agent.pods.pod import PodFacts
from shoal.agent.pods.probing import LIVENESS, READINESS, STARTUP, Target, Verdict
from shoal.agent.pods.spec import container_spec, sandbox_spec
from shoal.agent.pods.steps import Steps
from shoal.agent.pods.volumes import mounts_of, volume_specs
from shoal.agent.runtime.port import StartError
from shoal.agent.volumes.port import Files, Prepared, VolumeSpec
from shoal.proto.v1 import objects_pb2 as o

POST_START_S = 3600.0  # a postStart hook may take long, but not for ever
HOOK_FAILED, UNHEALTHY = "FailedPostStartHook", "Unhealthy"


class Starting:
    def __init__(self, facts: PodFacts, steps: Steps) -> None:
        self._facts, self._steps = facts, steps
        self.pulling = Pulling(facts, steps)

    def plan(self, now: float) -> list[i.Instruction]:
        out = self._ground()
        turn = startable(self._facts.ordered)
        for container in self._facts.ordered:
            out += self._container(container, container in turn)
            out += self._accompany(container)
        return out

    # ---- what all containers stand on ----
    def _ground(self) -> list[i.Instruction]:
        facts, give = self._facts, self._steps.give
        if not facts.netns:
            if facts.unsaved:
                return []
            try:
                return give(i.EnsureSandbox(sandbox_spec(facts.pod, facts.node)))
            except StartError as fault:
                facts.held = (fault.reason, fault.message)
                return []
        if not facts.attached and not facts.pod.spec.hostNetwork:
            return give(i.Attach(facts.netns, host_ports(facts.pod.spec)))
        facts.attached, facts.address = True, facts.address or facts.node.address
        return self._volumes() if facts.pod.spec.volumes else []

    def _volumes(self) -> list[i.Instruction]:
        facts = self._facts
        if facts.prepared is not None and not facts.volumes_stale:
            return []
        try:
            specs = volume_specs(facts.pod, facts.objects, facts.node, facts.address)
        except (Unresolved, StartError) as fault:
            facts.held, facts.unresolved = (fault.reason, fault.message), True
            return []
        if facts.unresolved:  # else what held the pod back was the node, which a look at the manifest does not mend
            facts.held, facts.unresolved = None, False
        if facts.prepared is None:
            return self._steps.give(i.PrepareVolumes(tuple(specs)))
        return self._update(specs)

    def _update(self, specs: Sequence[VolumeSpec]) -> list[i.Instruction]:
        """The files of volumes whose content has changed."""
        known = {spec.name: spec for spec in self._facts.specs}
        changed = [spec for spec in specs if isinstance(spec.source, Files) and known.get(spec.name) != spec]
        given = self._steps.give(i.UpdateVolumes(tuple(changed))) if changed else []
        self._facts.volumes_stale = bool(changed) and not given
        return given

    def volumes_prepared(self, step: i.PrepareVolumes, prepared: dict[str, Prepared]) -> None:
        self._facts.prepared, self._facts.specs = prepared, step.specs

    def volumes_updated(self, step: i.UpdateVolumes) -> None:
        fresh = {spec.name: spec for spec in step.specs}
        self._facts.specs = tuple(fresh.get(spec.name, spec) for spec in self._facts.specs)

    # ---- one container ----
    def _container(self, container: ContainerFacts, turn: bool) -> list[i.Instruction]:
        facts, run = self._facts, container.run
        out: list[i.Instruction] = []
        for attempt in sorted(container.older):
            out += self._steps.give(i.RemoveContainer(facts.id(container, attempt)))
        if run is not None and (run.state == RUNNING or container.over(facts.policy)):
            return out
        if run is not None and run.misconfigured:
            remove = i.RemoveContainer(facts.id(container, run.attempt))
            return out if container.resting else out + self._steps.give(remove)
        out += self.pulling.plan(container)
        ready = turn and not container.resting and self._grounded() and self.pulling.usable(container)
        return out + self._start(container) if ready else out

    def _grounded(self) -> bool:
        facts = self._facts
        volumes = facts.prepared is not None or not facts.pod.spec.volumes
        return bool(facts.netns) and facts.attached and volumes and facts.recorded

    def _start(self, container: ContainerFacts) -> list[i.Instruction]:
        facts, attempt = self._facts, container.next_attempt()
        if not self._steps.free(f"start {container.spec.name}"):
            return []
        assert container.image is not None
        try:
            env = environment(facts.pod, container.spec, facts.objects, facts.node, facts.address)
            mounts = mounts_of(facts.pod, container.spec, facts.prepared or {}, env)
            spec = container_spec(
                facts.pod, container.spec, container.image, attempt, facts.address, facts.node, env, mounts
            )
        except (Unresolved, StartError) as fault:
            container.problem = (fault.reason, fault.message)
            return []
        container.open_run(attempt).seen = seen(facts, container)
        return self._steps.give(i.Start(spec))

    # ---- while it runs ----
    def _accompany(self, container: ContainerFacts) -> list[i.Instruction]:
        """The postStart hook, then the probes."""
        run = container.run
        if run is None or not container.live or run.note.end_since:
            return []
        if not container.up:
            return self._post_start(container, run)
        return self._watch(container, run)

    def _post_start(self, container: ContainerFacts, run: Run) -> list[i.Instruction]:
        if run.post_start != NOT_ASKED:
            return []
        facts, handler = self._facts, container.spec.lifecycle.postStart
        id = facts.id(container, run.attempt)
        given = self._steps.give(
            i.RunHook(id, "postStart", handler, facts.address, facts.ports(container), POST_START_S)
        )
        run.post_start = ASKED if given else run.post_start
        return given

    def hook_done(self, step: i.RunHook, fault: str, now: float) -> None:
        run = self._facts.containers[step.id.name].run
        if run is None or run.attempt != step.id.attempt:
            return
        run.post_start = ANSWERED
        if fault:
            run.doom(HOOK_FAILED, f"the postStart hook failed: {fault}", self._facts.own_grace, now)
        else:
            run.note = replace(run.note, hooked=True)

    def _watch(self, container: ContainerFacts, run: Run) -> list[i.Instruction]:
        probes = probes_of(container.spec)
        if run.probed or not probes:
            return []
        run.probed = True
        facts = self._facts
        target = Target(
            facts.id(container, run.attempt),
            facts.address,
            run.started_at,
            probes,
            facts.ports(container),
            run.note.started,
            run.note.ready,
        )
        return [i.SetProbes(target)]

    def told(self, verdict: Verdict, now: float) -> None:
        """What a probe found, of the run that is meant."""
        container = self._facts.containers.get(verdict.id.name)
        run = container.run if container is not None else None
        if container is None or run is None or run.attempt != verdict.id.attempt or not container.live:
            return
        if verdict.kind == READINESS:
            run.unready = "" if verdict.passed else f"readiness probe failed: {verdict.message}"
            if run.note.ready != verdict.passed:
                run.note = replace(run.note, ready=verdict.passed, changed=now)
        elif verdict.kind == STARTUP and verdict.passed:
            if not run.note.started:
                run.note = replace(run.note, started=True, changed=now)
        elif not verdict.passed:
            probe = probes_of(container.spec).get(verdict.kind)
            own = probe is not None and probe.HasField("terminationGracePeriodSeconds")
            grace = float(probe.terminationGracePeriodSeconds) if probe is not None and own else self._facts.own_grace
            if not run.note.end_since:
                run.note = replace(run.note, tries=tries_of(verdict))
            run.doom(UNHEALTHY, f"{verdict.kind} probe failed: {verdict.message}", grace, now)


def probes_of(container: o.Container) -> dict[str, o.Probe]:
    fields = {STARTUP: "startupProbe", LIVENESS: "livenessProbe", READINESS: "readinessProbe"}
    return {kind: getattr(container, name) for kind, name in fields.items() if container.HasField(name)}  # type: ignore[arg-type]
