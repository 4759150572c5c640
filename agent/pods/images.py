"""How a container comes by its image: held when it is here, pulled when it is not, tried again more and more slowly.

Pure."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.agent.images import names
from shoal.agent.images.auth import credentials_of
from shoal.agent.images.port import Credential, Image, ImageFault
from shoal.agent.pods import instructions as i
from shoal.agent.pods.backoff import pull_delay
from shoal.agent.pods.config import absent
from shoal.agent.pods.facts import ContainerFacts
from shoal.agent.pods.pod import PodFacts
from shoal.agent.pods.status import clock_time
from shoal.agent.pods.steps import Steps
from shoal.proto.v1 import objects_pb2 as o

ALWAYS, IF_NOT_PRESENT, NEVER = "Always", "IfNotPresent", "Never"
PULL_AGAIN, PULL_SAID = "pull ", "pull said "
SAY_S = 1.0  # how long ErrImagePull is shown before ImagePullBackOff
CREATING, PULL_ERROR, PULL_BACKOFF = "ContainerCreating", "ErrImagePull", "ImagePullBackOff"
NEVER_PULLED, BAD_NAME = "ErrImageNeverPull", "InvalidImageName"
ALWAYS_NOTE = "; imagePullPolicy Always asks the registry at each start, IfNotPresent would take what is on the node"
PERMANENT = frozenset({BAD_NAME, NEVER_PULLED})


class Pulling:
    def __init__(self, facts: PodFacts, steps: Steps) -> None:
        self._facts, self._steps = facts, steps

    def usable(self, container: ContainerFacts) -> bool:
        return container.image is not None and (container.pulled or pull_policy(container.spec) != ALWAYS)

    def plan(self, container: ContainerFacts) -> list[i.Instruction]:
        if self.usable(container) or container.unusable:
            return []
        name, image, holder = container.spec.name, container.spec.image, self._facts.holder(container)
        policy = pull_policy(container.spec)
        if policy != ALWAYS and not container.looked:
            return [] if self._steps.in_flight(f"pull {name}") else self._steps.give(i.HoldImage(name, image, holder))
        if policy == NEVER or container.pull_resting or self._steps.in_flight(f"hold {name}"):
            return []
        given = self._steps.give(i.PullImage(name, image, holder, tuple(self._credentials(container))))
        if given and container.problem is None:
            self.progress(container, "asking the registry")
        return given

    def _credentials(self, container: ContainerFacts) -> Sequence[Credential]:
        """Of the secrets that are there: the others may not be needed, and the registry says when they are."""
        found: list[Credential] = []
        namespace = self._facts.pod.metadata.namespace
        for reference in self._facts.pod.spec.imagePullSecrets:
            secret = self._facts.objects.secret(namespace, reference.name)
            if secret is None:
                container.pull_note = (
                    f"; Secret {namespace}/{reference.name} of imagePullSecrets {absent(self._facts.objects)}"
                )
                continue
            try:
                found += credentials_of(secret)
            except ImageFault as fault:
                container.pull_note = f"; {fault.message}"
        return found

    # ---- what came of it ----
    def held(self, container: ContainerFacts, image: Image | None) -> None:
        container.looked = True
        if image is not None:
            self._got(container, image)
        elif pull_policy(container.spec) == NEVER:
            message = (
                f"image {container.spec.image} is not on node {self._facts.node.name} and imagePullPolicy is Never; "
                "load it with: shoal image load"
            )
            container.problem, container.unusable = (NEVER_PULLED, message), True

    def pulled(self, container: ContainerFacts, image: Image) -> None:
        container.pulled, container.pull_failures, container.pull_note = True, 0, ""
        self._got(container, image)

    def _got(self, container: ContainerFacts, image: Image) -> None:
        container.image, container.problem = image, None

    def failed(self, event: i.Failed, container: ContainerFacts, now: float) -> list[i.Instruction]:
        """Of a pull, or of a hold that no other try will mend."""
        self._steps.ended(event.step)
        if event.reason in PERMANENT or not event.retryable:
            container.problem, container.unusable = (event.reason, event.message), True
            return []
        container.pull_failures += 1
        delay = pull_delay(container.pull_failures, event.retry_after)
        container.pull_resting, container.pull_next = True, now + delay
        message, container.pull_note = event.message + container.pull_note, ""
        message += ALWAYS_NOTE if pull_policy(container.spec) == ALWAYS else ""
        container.problem = (PULL_ERROR, f"failed to pull image {container.spec.image}: {message}")
        name = container.spec.name
        return [i.SetTimer(PULL_AGAIN + name, delay), i.SetTimer(PULL_SAID + name, SAY_S)]

    def progress(self, container: ContainerFacts, text: str) -> None:
        if container.problem is None or container.problem[0] in (PULL_ERROR, PULL_BACKOFF, CREATING):
            container.problem = (CREATING, f"pulling image {container.spec.image}: {text}")

    def timer(self, name: str) -> bool:
        """Whether this timer is one of this part."""
        for start in (PULL_SAID, PULL_AGAIN):
            container = self._facts.containers.get(name.removeprefix(start))
            if name.startswith(start) and container is not None:
                if start == PULL_AGAIN:
                    container.pull_resting = False
                elif container.pull_resting and container.problem is not None:
                    self._back_off(container, container.problem[1])
                return True
        return False

    def _back_off(self, container: ContainerFacts, why: str) -> None:
        text = f'Back-off pulling image "{container.spec.image}", next try at {clock_time(container.pull_next)}: {why}'
        container.problem = (PULL_BACKOFF, text)

    # ---- what may change it ----
    def ended(self, container: ContainerFacts) -> None:
        """A run has ended: under Always the next one asks the registry again."""
        container.pulled = False

    def look_again(self, container: ContainerFacts) -> None:
        """Images came or went: one that is missing may be here now."""
        if container.image is None:
            container.looked = False
        if container.unusable:
            container.unusable, container.problem = False, None

    def try_again(self, container: ContainerFacts) -> None:
        """What its pull depends on has changed."""
        self.look_again(container)
        container.pull_resting = False


def pull_policy(container: o.Container) -> str:
    """As written; else Always for `:latest` or no tag, and IfNotPresent for all others (kubelet)."""
    if container.imagePullPolicy:
        return container.imagePullPolicy
    try:
        name = names.parse(container.image)
    except ImageFault:
        return IF_NOT_PRESENT
    return ALWAYS if name.tag == names.DEFAULT_TAG and not name.digest else IF_NOT_PRESENT
