"""What a class of refused pods waits for: which news could help it.

A node refuses a class for its first reason; as long as that holds there, nothing else about the node matters. So the
reasons of a refusal say which news are worth another look. A class that may have others evicted was refused under
more conditions than its reasons tell: all that it asks for counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.terms import PodMatch
from shoal.master.scheduling.news import News

AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
SYMMETRY = "node(s) didn't satisfy existing pods anti-affinity rules"
SPREAD = "node(s) didn't match pod topology spread constraints"
PORTS = "node(s) didn't have free ports"
ROOM = ("Too many pods", "Insufficient ")
# Reasons that the test of a node's facts and room covers; those of volumes come with the class's claims.
COVERED = (
    "no nodes are registered", "node(s) were not ready", "node(s) didn't match Pod's node", "node(s) had untolerated",
    *ROOM, AFFINITY, ANTI_AFFINITY, SYMMETRY, SPREAD, PORTS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Needs:
    """`below`: pods of lower priority than this may be evicted for it; None: nobody."""

    pods: PodClass
    below: int | None
    affinity: bool
    anti: bool
    symmetry: bool
    spread: bool
    ports: bool
    by_room: bool  # some node lacks nothing but room
    anything: bool  # a reason that nobody here knows: every piece of news is worth a look

    @staticmethod
    def of(pods: PodClass, reasons: Collection[str], evicts: bool) -> Needs:
        def asks(has: bool, reason: str) -> bool:
            return has and (evicts or any(word.startswith(reason) for word in reasons))

        unknown = any(not word.startswith(COVERED) for word in reasons) and not pods.claims and not pods.group
        return Needs(
            pods,
            pods.priority if evicts else None,
            asks(bool(pods.affinity), AFFINITY),
            asks(bool(pods.anti_affinity), ANTI_AFFINITY),
            asks(True, SYMMETRY),
            asks(any(constraint.hard for constraint in pods.spread), SPREAD),
            asks(bool(pods.ports), PORTS),
            any(word.startswith(ROOM) for word in reasons),
            unknown,
        )

    @property
    def shape(self) -> tuple[tuple[tuple[str, int], ...], int | None]:
        """Classes of one shape need the same room."""
        return self.pods.requests, self.below

    @property
    def plain(self) -> bool:
        """Room and a node's facts decide alone: it was refused everywhere, so room that suffices is new."""
        return not (
            self.affinity or self.anti or self.symmetry or self.spread or self.ports or self.anything
            or self.pods.claims or self.pods.gpu_milli or self.pods.gpu_count
        )  # fmt: skip

    @property
    def odd(self) -> bool:
        """More than the room and the facts of single nodes can help."""
        return self.affinity or self.anti or self.spread or self.anything or bool(self.pods.claims)

    def met_by(self, pods: PodClass) -> bool:
        """The pod that left a node took away what was in the way there, besides room."""
        if self.ports and pods.ports:
            return True
        return bool((pods.gpu_milli or pods.gpu_count) and (self.pods.gpu_milli or self.pods.gpu_count))

    def helped(self, news: News, spaces: Mapping[str, Mapping[str, str]], fresh: bool = False) -> bool:
        """By something that did not happen to one node's room. `spaces`: the labels of namespaces; `fresh`: refused in
        the last window, after those of its own class that found a place then."""
        if self.anything or (news.volumes and self.pods.claims):
            return True
        if not (self.affinity or self.anti or self.spread or self.symmetry):
            return False
        if self._by_nodes(news) or self._by_spaces(news):
            return True
        return any(self._by_leaving(pods, spaces) for pods in news.left) or any(
            self._by_coming(pods, spaces) for pods in news.came if not (fresh and pods is self.pods)
        )

    def _by_nodes(self, news: News) -> bool:
        """Domains came, went or changed."""
        for old, new in news.nodes.values():
            if old is None or new is None or old.labels != new.labels:
                return True
            if self.spread and old.taints != new.taints:
                return True
        return False

    def _by_spaces(self, news: News) -> bool:
        if not news.spaces:
            return False
        terms = (*self.pods.affinity, *self.pods.anti_affinity)
        return (self.symmetry and self.pods.namespace in news.spaces) or any(
            term.match.spaces is not None for term in terms
        )

    def _by_leaving(self, gone: PodClass, spaces: Mapping[str, Mapping[str, str]]) -> bool:
        """A pod that was in the way; or the only one that a required affinity could mean: the first may go anywhere."""
        own = self.pods
        if self.anti and any(_means(term.match, gone, spaces) for term in own.anti_affinity):
            return True
        if self.symmetry and any(_means(term.match, own, spaces) for term in gone.anti_affinity):
            return True
        return (self.spread and self._spreads_over(gone)) or self._company(gone, spaces)

    def _by_coming(self, come: PodClass, spaces: Mapping[str, Mapping[str, str]]) -> bool:
        """A pod that an affinity asks for; or one in the emptiest domain of a spread."""
        return self._company(come, spaces) or (self.spread and self._spreads_over(come))

    def _company(self, other: PodClass, spaces: Mapping[str, Mapping[str, str]]) -> bool:
        terms = self.pods.affinity
        return self.affinity and all(_means(term.match, other, spaces) for term in terms)

    def _spreads_over(self, other: PodClass) -> bool:
        labels = dict(other.labels)
        return other.namespace == self.pods.namespace and any(
            constraint.hard and constraint.match.matches(other.namespace, labels, {}) for constraint in self.pods.spread
        )


def _means(match: PodMatch, pods: PodClass, spaces: Mapping[str, Mapping[str, str]]) -> bool:
    return match.matches(pods.namespace, dict(pods.labels), spaces.get(pods.namespace, {}))
