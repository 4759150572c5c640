"""In which order a pod's containers start and end. Pure.

Init containers run one after the other, each to its good end; a sidecar (an init container that restarts always) only
has to be started before the next one's turn. Then all of the app's start. At the end the app's are stopped together,
then the sidecars, the last one first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal.agent.pods.facts import APP, ENDED, INIT, SIDECAR, ContainerFacts


def startable(containers: Sequence[ContainerFacts]) -> list[ContainerFacts]:
    """Those whose turn has come; `containers` in the order in which they start."""
    reached = max((n for n, c in enumerate(containers) if c.run is not None and not c.run.stale), default=-1)
    found: list[ContainerFacts] = []
    for number, container in enumerate(containers):
        found.append(container)
        if not _passed(container, number < reached):
            break
    return found


def _passed(container: ContainerFacts, later_ran: bool) -> bool:
    """Whether the next one's turn has come; `later_ran`: in this sandbox it had come before."""
    if container.kind == SIDECAR:
        return container.started or later_ran
    if container.kind == INIT:
        return container.finished or (container.run is None and later_ran)
    return True


def initialized(containers: Sequence[ContainerFacts]) -> bool:
    """All of the app's may start."""
    return len(startable(containers)) == len(containers)


def groups_to_end(containers: Sequence[ContainerFacts]) -> Iterator[list[ContainerFacts]]:
    """Each group is ended when nothing of those before it is left."""
    yield [c for c in containers if c.kind != SIDECAR]
    for container in reversed(containers):
        if container.kind == SIDECAR:
            yield [container]


def all_over(containers: Sequence[ContainerFacts], policy: str) -> bool:
    """The app has ended for good, or will never start because an init container failed."""
    failed = any(c.kind == INIT and c.over(policy) and not c.finished for c in containers)
    return failed or all(c.run is not None and c.run.state == ENDED and c.over(policy) for c in _apps(containers))


def _apps(containers: Sequence[ContainerFacts]) -> list[ContainerFacts]:
    return [c for c in containers if c.kind == APP]
