"""The plain scheduler itself: the queue's order, runs, gangs, and what each pod's turn does to the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tests.reference.cluster import Cluster, Group, Pod
from tests.reference.devices import choose as take
from tests.reference.filters import Look, reason
from tests.reference.nodes import Node
from tests.reference.preemption import Option, preempt
from tests.reference.scores import score

OUTSIDE = "node(s) were outside the pod group's domain"


@dataclass
class Outcome:
    """What became of one pod: a node (with the devices it got there), or how many nodes each reason rejected, and
    where it has been nominated after all."""

    uid: str
    node: str = ""
    devices: tuple[int, ...] = ()
    reasons: Counter[str] | None = None
    nominated: str = ""
    victims: tuple[str, ...] = ()
    breaks: int = 0


# ---- the queue ----
def order(pods: Iterable[Pod]) -> list[Pod]:
    """By priority, then arrival, then name and uid; within a priority a gang's members, and pods of one class, stand
    together at the place of their first."""
    ranked = sorted(pods, key=Pod.importance)
    found: list[Pod] = []
    for _, level in groupby(ranked, key=lambda pod: pod.what.priority):
        for unit in _together(level, _unit):
            found += [pod for row in _together(unit, lambda p: p.what) for pod in row]
    return found


def _unit(pod: Pod) -> object:
    return gang_of(pod) if pod.what.group else pod.what


def gang_of(pod: Pod) -> tuple[str, str]:
    return pod.what.namespace, pod.what.group


def _together(pods: Iterable[Pod], key: Callable[[Pod], object]) -> list[list[Pod]]:
    """Rows of pods of one key, in the order of their first ones."""
    rows: dict[object, list[Pod]] = {}
    for pod in pods:
        rows.setdefault(key(pod), []).append(pod)
    return list(rows.values())


# ---- one pod ----
def choose(cluster: Cluster, pod: Pod, inside: Collection[str] | None = None) -> tuple[Outcome, float]:
    """The node for one more pod, with its score, or the reasons of all nodes."""
    look = Look(cluster, pod.what)
    reasons: Counter[str] = Counter()
    best: tuple[float, Node] | None = None
    for node in cluster.in_order():
        why = reason(look, node)
        if not why and inside is not None and node.name not in inside:
            why = OUTSIDE
        if why:
            reasons[why] += 1
            continue
        value = score(look, node)
        if best is None or value > best[0]:
            best = value, node
    if best is None:
        return Outcome(pod.uid, reasons=reasons), 0.0
    found = take(cluster.left(best[1]), pod.what)
    assert found is not None
    return Outcome(pod.uid, best[1].name, found), best[0]


def settle(cluster: Cluster, pod: Pod, outcome: Outcome) -> None:
    """The pod takes its part of its node."""
    cluster.hold(replace(pod, node=outcome.node, devices=outcome.devices, nominated=False))


def nominate(cluster: Cluster, pod: Pod, option: Option, outcome: Outcome) -> None:
    """The pod holds the room there, beside its victims, which count as leaving from now on."""
    for victim in option.victims:
        cluster.pods[victim.uid] = replace(victim, leaving=True)
        for budget in cluster.budgets:
            budget.allowed -= 1 if budget.covers(victim) else 0
    for other in option.overtaken:
        del cluster.pods[other.uid]
    node = cluster.nodes[option.node]
    found = take(option.without.left(node), pod.what)
    assert found is not None
    cluster.hold(replace(pod, node=option.node, devices=found, nominated=True))
    outcome.nominated, outcome.breaks = option.node, option.breaks
    outcome.victims = tuple(victim.uid for victim in option.victims)


# ---- runs ----
def schedule(cluster: Cluster, queue: Sequence[Pod]) -> list[Outcome]:
    """In the order of the queue; changes the cluster."""
    found: list[Outcome] = []
    for row in runs(cluster, queue, _unit_in_queue):
        cluster.typical.renew(pod.what for pod in cluster.pods.values())
        found += place_gang(cluster, row) if row[0].what.group else place_run(cluster, row)
    return found


def _unit_in_queue(pod: Pod) -> object:
    return (gang_of(pod), pod.what.priority) if pod.what.group else pod.what


def runs(cluster: Cluster, queue: Sequence[Pod], key: Callable[[Pod], object]) -> Iterator[list[Pod]]:
    """Neighbours of one key; a nominated pod stands alone, save in its gang."""
    row: list[Pod] = []
    for pod in queue:
        alone = not pod.what.group and any(one.uid in cluster.pods for one in (pod, *row))
        if row and (alone or key(pod) != key(row[0])):
            yield row
            row = []
        row.append(pod)
    if row:
        yield row


def place_run(cluster: Cluster, row: Sequence[Pod]) -> list[Outcome]:
    found: list[Outcome] = []
    for number, pod in enumerate(row):
        cluster.pods.pop(pod.uid, None)  # a nominated pod gives up its room
        outcome, _ = choose(cluster, pod)
        found.append(outcome)
        if outcome.node:
            settle(cluster, pod, outcome)
            continue
        option = preempt(cluster, pod.what)
        if option is None:
            return found + [Outcome(rest.uid, reasons=outcome.reasons) for rest in row[number + 1 :]]
        nominate(cluster, pod, option, outcome)
    return found


# ---- gangs ----
@dataclass
class Trial:
    """A gang's members placed one after the other, in a copy of the cluster."""

    cluster: Cluster
    outcomes: list[Outcome]
    placed: int
    total: float
    domain: str = ""


def place_gang(cluster: Cluster, members: Sequence[Pod]) -> list[Outcome]:
    for pod in members:
        cluster.pods.pop(pod.uid, None)
    space, name = gang_of(members[0])
    group = cluster.groups.get((space, name))
    if group is None:
        return _all_wait(members, Counter({f"pod group {name} does not exist": len(cluster.nodes)}))
    held = [node for pod, node in cluster.held() if gang_of(pod) == (space, name) and not pod.leaving]
    if len(held) + len(members) < group.minimum:
        why = f"pod group {name} has {len(held) + len(members)} of {group.minimum} members"
        return _all_wait(members, Counter({why: len(cluster.nodes)}))
    best = _best_trial(cluster, group, members, held)
    if len(held) + best.placed >= group.minimum:
        cluster.pods = best.cluster.pods
        return best.outcomes
    return _all_wait(members, next(one.reasons for one in best.outcomes if one.reasons is not None))


def _all_wait(members: Sequence[Pod], reasons: Counter[str]) -> list[Outcome]:
    return [Outcome(pod.uid, reasons=reasons) for pod in members]


def _best_trial(cluster: Cluster, group: Group, members: Sequence[Pod], held: Sequence[Node]) -> Trial:
    if not group.key:
        return _trial(cluster, members, None)
    there = Counter(node.labels[group.key] for node in held if group.key in node.labels)
    everywhere = {node.labels[group.key] for node in cluster.nodes.values() if group.key in node.labels}
    domains = [min(there, key=lambda d: (-there[d], d))] if there else sorted(everywhere)
    trials = []
    for domain in domains:
        inside = {node.name for node in cluster.nodes.values() if node.labels.get(group.key) == domain}
        trial = _trial(cluster, members, inside)
        trial.domain = domain
        trials.append(trial)
    if not trials:
        return _trial(cluster, members, set())
    return min(trials, key=lambda trial: (-trial.placed, -trial.total, trial.domain))


def _trial(cluster: Cluster, members: Sequence[Pod], inside: Collection[str] | None) -> Trial:
    """Once a member is refused, the rest of its run is."""
    trial = Trial(cluster.without(()), [], 0, 0.0)
    for _, row in groupby(members, key=lambda pod: pod.what):
        refused: Outcome | None = None
        for pod in row:
            if refused is not None:
                trial.outcomes.append(Outcome(pod.uid, reasons=refused.reasons))
                continue
            outcome, value = choose(trial.cluster, pod, inside)
            trial.outcomes.append(outcome)
            if outcome.node:
                settle(trial.cluster, pod, outcome)
                trial.placed, trial.total = trial.placed + 1, trial.total + value
            else:
                refused = outcome
    return trial
