"""Random clusters and queues from a seed: few values, so that things collide, tie and fill up."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from shoal.master.scheduler.classes import MEMORY_PRESSURE, UNSAID_CPU, UNSAID_MEMORY, PodClass, Tolerance
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.master.scheduler.terms import NAME_FIELD, NodeTerm, PodMatch, PodTerm, Rule, Selector, Spread
from tests.reference.cluster import Budget, Cluster, Group, Pod
from tests.reference.devices import GPU, choose
from tests.reference.filters import Look, reason
from tests.reference.nodes import Node
from tests.reference.objects import GROUP_LABEL
from tests.reference.storage import Claim, Volume

FEATURES = (
    "selector",
    "node_affinity",
    "preferred_nodes",
    "taints",
    "ports",
    "extended",
    "devices",
    "volumes",
    "affinity",
    "anti_affinity",
    "preferred_pods",
    "spread",
    "soft_spread",
    "images",
    "siblings",
    "profiles",
    "priority",
    "nominated",
    "budgets",
    "gangs",
    "leaving",
)
TOGETHER = (  # features that act on each other, looked at without the rest
    ("spread", "soft_spread", "selector", "taints", "leaving"),
    ("spread", "soft_spread", "node_affinity", "preferred_nodes"),
    ("spread", "taints"),
    ("spread", "anti_affinity", "affinity", "leaving"),
    ("affinity", "anti_affinity", "preferred_pods", "siblings"),
    ("volumes", "ports", "extended", "devices"),
    ("devices", "selector", "node_affinity", "leaving"),
    ("priority", "nominated", "leaving", "ports", "extended"),
    ("priority", "budgets", "leaving", "devices"),
    ("priority", "nominated", "spread", "anti_affinity", "affinity"),
    ("priority", "volumes", "budgets", "nominated"),
    ("gangs", "priority", "extended", "ports"),
    ("gangs", "spread", "anti_affinity", "affinity", "preferred_pods"),
    ("gangs", "devices", "volumes", "images"),
)
HOSTNAME, ZONE, RACK, DISK, SIZE = "kubernetes.io/hostname", "zone", "rack", "disk", "size"
SPACES = ("default", "other", "third", "unlabelled")
IMAGES = ("docker.io/library/a:1", "docker.io/library/b:1", "docker.io/library/c:1")
CLAIMS = ("c0", "c1", "c2", "c3")
MIB = 1 << 20


@dataclass
class Maker:
    """Draws from `rng`; `on` are the features in use."""

    rng: random.Random
    on: Collection[str]

    def chance(self, feature: str, odds: float = 1.0) -> bool:
        """The fewer features there are, the more often each is used."""
        return feature in self.on and self.rng.random() < odds ** min(1.0, len(self.on) / 10)

    # ---- nodes ----
    def node(self, name: str) -> Node:
        rng = self.rng
        labels = {HOSTNAME: name} if rng.random() < 0.9 else {}
        for key, values in ((ZONE, "abc"), (RACK, ("r0", "r1", "r2", "r3")), (DISK, ("ssd", "hdd"))):
            if rng.random() < 0.85:
                labels[key] = rng.choice(values)
        if rng.random() < 0.5:
            labels[SIZE] = rng.choice(["1", "5", "10", "-3", "x", ""])
        alloc = {
            "cpu": rng.choice([1000, 2000, 3000, 4000, 8000, 0]),
            "memory": rng.choice([1024, 2048, 4096, 8192]) * MIB,
            "pods": rng.choice([3, 6, 12, 110]),
            "ephemeral-storage": 100 << 30,
        }
        if self.chance("extended", 0.5):
            alloc["example.com/fpga"] = rng.choice([1, 2])
        if self.chance("devices", 0.6):
            alloc[GPU] = rng.choice([1, 2, 4])
        return Node(
            name,
            alloc,
            labels,
            frozenset(self.taint() for _ in range(rng.choice([0, 0, 1, 2])) if "taints" in self.on),
            rng.random() > 0.08,
            {image: rng.choice([10, 300, 1500]) * 10**6 for image in IMAGES if self.chance("images", 0.4)},
        )

    def taint(self) -> tuple[str, str, str]:
        effect = self.rng.choice(["NoSchedule", "NoExecute", "PreferNoSchedule", "PreferNoSchedule"])
        return self.rng.choice("kl"), self.rng.choice(["", "v"]), effect

    # ---- terms ----
    def node_rule(self) -> Rule:
        rng = self.rng
        operator = rng.choice(["In", "In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"])
        if operator in ("Gt", "Lt"):
            return Rule(SIZE, operator, (rng.choice(["0", "5", "7"]),))
        key = rng.choice([ZONE, RACK, DISK])
        if operator in ("Exists", "DoesNotExist"):
            return Rule(key, operator)
        pool = {ZONE: ("a", "b", "c"), RACK: ("r0", "r1", "r2"), DISK: ("ssd", "hdd")}[key]
        return Rule(key, operator, tuple(sorted(rng.sample(pool, rng.choice([1, 2])))))

    def node_term(self) -> NodeTerm:
        fields: tuple[Rule, ...] = ()
        if self.rng.random() < 0.15:
            fields = (Rule(NAME_FIELD, self.rng.choice(["In", "NotIn"]), (f"n{self.rng.randrange(6)}",)),)
        rules = [self.node_rule() for _ in range(self.rng.choice([0, 1, 1, 2]))]
        return NodeTerm(_sorted(rules), fields)

    def pod_selector(self) -> Selector | None:
        rng = self.rng
        if rng.random() < 0.05:
            return None
        rules = []
        for key, values in (("app", ("web", "db")), ("tier", ("front", "back"))):
            if rng.random() < (0.75 if key == "app" else 0.2):
                operator = rng.choice(["In", "In", "In", "NotIn", "Exists", "DoesNotExist"])
                some = tuple(sorted(rng.sample(values, rng.choice([1, 1, 2])))) if "In" in operator else ()
                rules.append(Rule(key, operator, some))
        return Selector(_sorted(rules))

    def match(self, space: str, selector: Selector | None) -> PodMatch:
        rng = self.rng
        if rng.random() < 0.6:
            return PodMatch((space,), None, selector)
        spaces = None
        if rng.random() < 0.5:
            rule = Rule("team", rng.choice(["In", "NotIn", "Exists", "DoesNotExist"]))
            rule = replace(rule, values=("red",)) if "In" in rule.operator else rule
            spaces = Selector(() if rng.random() < 0.2 else (rule,))
        named = rng.sample(SPACES, rng.choice([1, 2])) if spaces is None or rng.random() < 0.3 else []
        return PodMatch(tuple(sorted(named)), spaces, selector)

    def pod_term(self, space: str, key: str = "") -> PodTerm:
        key = key or self.rng.choice([HOSTNAME, HOSTNAME, ZONE, ZONE, RACK, "nowhere"])
        return PodTerm(key, self.match(space, self.pod_selector()))

    def constraint(self, space: str, labels: dict[str, str], hard: bool) -> Spread:
        rng = self.rng
        selector = self.pod_selector()
        if rng.random() < 0.6 and "app" in labels:
            selector = Selector((Rule("app", "In", (labels["app"],)),))
        return Spread(
            rng.choice([HOSTNAME, ZONE, ZONE, RACK]),
            rng.choice([1, 1, 2, 3]),
            hard,
            PodMatch((space,), None, selector),
            rng.choice([1, 1, 1, 2, 4]) if hard else 1,
            rng.random() < 0.8,
            rng.random() < 0.3,
        )

    # ---- pods ----
    def what(self) -> PodClass:
        rng = self.rng
        space = rng.choice(["default", "default", "default", *SPACES])
        labels = {}
        if rng.random() < 0.9:
            labels["app"] = rng.choice(["web", "db"])
        if rng.random() < 0.3:
            labels["tier"] = rng.choice(["front", "back"])
        made = self._needs(space, labels)
        made = self._terms(made, space, labels)
        if self.chance("priority", 0.6):
            made = replace(made, priority=rng.choice([-5, 10, 10, 100]), preempts=rng.random() < 0.85)
        if self.chance("profiles", 0.4):
            made = replace(made, profile=rng.choice([*sorted(BUILT_IN), *sorted(BUILT_IN), "missing"]))
        return made

    def _needs(self, space: str, labels: dict[str, str]) -> PodClass:
        """Amounts and what goes with them."""
        rng = self.rng
        requests = {"pods": 1}
        if cpu := rng.choice([0, 100, 250, 333, 500, 1000]):
            requests["cpu"] = cpu
        if memory := rng.choice([0, 64, 200, 512]) * MIB:
            requests["memory"] = memory
        if self.chance("extended", 0.15):
            requests["example.com/fpga"] = 1
        tolerances = set()
        for _ in range(3 if self.chance("taints", 0.5) else 0):
            exists = rng.random() < 0.4
            key = rng.choice(["k", "l", ""]) if exists else rng.choice("kl")
            value = "" if exists else rng.choice(["", "v"])
            effect = rng.choice(["", "NoSchedule", "NoExecute", "PreferNoSchedule"])
            tolerances.add(Tolerance(key, exists, value, effect))
        milli = count = 0
        if self.chance("devices", 0.35):
            milli, count = rng.choice([(300, 0), (500, 0), (700, 0), (0, 1), (0, 2)])
        if cpu or memory:
            tolerances.add(Tolerance(MEMORY_PRESSURE, True, "", "NoSchedule"))
        images = (
            tuple(rng.choice(IMAGES) for _ in range(rng.choice([1, 1, 2]))) if "images" in self.on else (IMAGES[0],)
        )
        others = len(images) - 1
        load = (cpu or UNSAID_CPU) + others * UNSAID_CPU, (memory or UNSAID_MEMORY) + others * UNSAID_MEMORY
        return PodClass(
            tuple(sorted(requests.items())),
            self._selector(),
            tuple(sorted(tolerances, key=lambda t: (t.key, t.exists, t.value, t.effect))),
            load,
            rng.choice(["", "o0", "o1"]) if "siblings" in self.on else "",
            tuple(f"{space}/{name}" for name in rng.sample(CLAIMS, rng.choice([1, 1, 2])))
            if self.chance("volumes", 0.15)
            else (),
            space,
            tuple(sorted(labels.items())),
            images=images,
            gpu_milli=milli,
            gpu_count=count,
            ports=self._ports(),
        )

    def _selector(self) -> tuple[tuple[str, str], ...]:
        if not self.chance("selector", 0.2):
            return ()
        return tuple(sorted(dict(self.rng.choice([(ZONE, "a"), (ZONE, "b"), (DISK, "ssd")]) for _ in range(2)).items()))

    def _ports(self) -> tuple[tuple[str, str, int], ...]:
        if not self.chance("ports", 0.2):
            return ()
        rng = self.rng
        one = rng.choice(["TCP", "TCP", "UDP"]), rng.choice(["0.0.0.0", "10.0.0.1", "10.0.0.2"]), rng.choice([80, 81])
        return (one,)

    def _terms(self, made: PodClass, space: str, labels: dict[str, str]) -> PodClass:
        rng = self.rng
        if self.chance("node_affinity", 0.2):
            made = replace(made, node_terms=tuple(self.node_term() for _ in range(rng.choice([1, 1, 2]))))
        if self.chance("preferred_nodes", 0.4):
            terms = [(rng.choice([1, 10, 50, 100]), self.node_term()) for _ in range(rng.choice([1, 2]))]
            made = replace(made, preferred_nodes=tuple(terms))
        if self.chance("affinity", 0.2):
            made = replace(made, affinity=tuple(self.pod_term(space) for _ in range(rng.choice([1, 1, 2]))))
        if self.chance("anti_affinity", 0.25):
            made = replace(made, anti_affinity=tuple(self.pod_term(space) for _ in range(rng.choice([1, 1, 2]))))
        if self.chance("preferred_pods", 0.3):
            weights = [-100, -50, -1, 1, 50, 100]
            some = [(rng.choice(weights), self.pod_term(space)) for _ in range(rng.choice([1, 2]))]
            made = replace(made, preferred_pods=tuple(sorted(some, key=lambda pair: pair[0] < 0)))
        spread = [
            self.constraint(space, labels, True) for _ in range(rng.choice([1, 1, 2])) if self.chance("spread", 0.3)
        ]
        if self.chance("soft_spread", 0.3):
            spread.append(self.constraint(space, labels, False))
        unique = {(one.key, one.hard): one for one in spread}
        return replace(made, spread=tuple(unique.values()))


def _sorted(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """One per key and operator, as compiling a class orders them."""
    return tuple(sorted(set(rules), key=lambda rule: (rule.key, rule.operator, rule.values)))


def important(what: PodClass, cpu: int) -> PodClass:
    """Of high priority; asks for that much cpu, if for any, so that several pods must go for it."""
    if cpu:
        amounts, others = dict(what.requests), len(what.images) - 1
        load = cpu + others * UNSAID_CPU, what.load[1]
        tolerances = {*what.tolerances, Tolerance(MEMORY_PRESSURE, True, "", "NoSchedule")}
        what = replace(
            what,
            requests=tuple(sorted((amounts | {"cpu": cpu}).items())),
            load=load,
            tolerances=tuple(sorted(tolerances, key=lambda t: (t.key, t.exists, t.value, t.effect))),
        )
    return replace(what, priority=100, preempts=True)


def joined(what: PodClass, space: str, group: str) -> PodClass:
    """The class as a member of a group there."""
    return replace(
        what,
        namespace=space,
        group=group,
        labels=tuple(sorted({**dict(what.labels), GROUP_LABEL: group}.items())),
        claims=tuple(f"{space}/{name.split('/')[1]}" for name in what.claims),
        spread=tuple(replace(one, match=replace(one.match, namespaces=(space,))) for one in what.spread),
    )


@dataclass
class Case:
    seed: int
    on: tuple[str, ...]
    cluster: Cluster
    queue: list[Pod] = field(default_factory=list)


def case(seed: int, features: Collection[str] = FEATURES, *, all_of_them: bool = False) -> Case:
    """A cluster with pods in it, and a queue; every third case uses all features, others some of them."""
    rng = random.Random(seed)
    odds = rng.choice([0.15, 0.4, 1.0]) if not all_of_them else 1.0
    on = tuple(name for name in FEATURES if name in features and rng.random() < odds)
    maker = Maker(rng, on)
    cluster = Cluster(nodes={f"n{i}": maker.node(f"n{i}") for i in range(rng.choice([1, 2, 4, 6, 8]))})
    cluster.spaces = {"default": {}, "other": {"team": "red"}, "third": {"team": "blue"}}
    if "volumes" in on:
        _storage(maker, cluster)
    if "budgets" in on:
        cluster.budgets = [a_budget(maker) for _ in range(rng.choice([1, 2]))]
    if "gangs" in on:
        for name in ("g0", "g1"):
            space = rng.choice(["default", "default", "other"])
            cluster.groups[space, name] = Group(rng.choice([1, 2, 3, 5]), rng.choice(["", "", ZONE, RACK]))
    kinds = [maker.what() for _ in range(rng.choice([1, 2, 4, 6]))]
    _bound(maker, cluster, kinds)
    return Case(seed, on, cluster, _queue(maker, cluster, kinds))


def a_budget(maker: Maker) -> Budget:
    return Budget(
        maker.rng.choice(["default", "default", "other"]), maker.pod_selector(), maker.rng.choice([0, 0, 1, 2])
    )


def _bound(maker: Maker, cluster: Cluster, kinds: Sequence[PodClass]) -> None:
    """Pods that are there already, some on nodes that are not, more than fit now and then."""
    rng = maker.rng
    crowded = maker.chance("priority", 0.5)
    for number in range(rng.choice([20, 60] if crowded else [0, 2, 6, 12])):
        what = rng.choice(kinds) if rng.random() < 0.4 else maker.what()
        name = rng.choice([*cluster.nodes, "unknown"] if rng.random() < 0.2 else list(cluster.nodes))
        if crowded:
            what = replace(what, priority=rng.choice([-5, 0, 0, what.priority]))
        if name in cluster.nodes and reason(Look(cluster, what), cluster.nodes[name]) and rng.random() < 0.9:
            continue
        nominated = "nominated" in maker.on and rng.random() < 0.15
        pod = Pod(
            f"b{number}",
            what,
            rng.randrange(5),
            name,
            "leaving" in maker.on and not nominated and rng.random() < 0.15,
            nominated,
            name=f"{rng.choice('abc')}{number}",
        )
        if what.gpu_milli or what.gpu_count:
            node = cluster.nodes.get(name)
            got = choose(cluster.left(node), what) if node else None
            if got is None:
                continue
            pod = replace(pod, devices=got)
        cluster.hold(pod)


def _queue(maker: Maker, cluster: Cluster, kinds: Sequence[PodClass]) -> list[Pod]:
    """Runs of one class, some classes coming back, gangs, and nominated pods that try again."""
    rng = maker.rng
    queue: list[Pod] = []
    for _ in range(rng.choice([1, 3, 6])):
        what = rng.choice(kinds) if rng.random() < 0.8 else maker.what()
        if maker.chance("gangs", 0.3):
            space, group = rng.choice([*cluster.groups, *cluster.groups, ("default", "missing")])
            what = joined(what, space, group)
        if maker.chance("priority", 0.3):
            what = important(what, rng.choice([0, 0, 1500, 3000]))
        for _ in range(rng.choice([1, 1, 2, 3, 5, 12])):
            number = len(queue)
            queue.append(Pod(f"q{number}", what, number // 4, name=f"{rng.choice('abc')}{number}"))
    for pod in cluster.pods.values():
        if pod.nominated and rng.random() < 0.7:
            queue.insert(rng.randint(0, len(queue)), replace(pod, node="", devices=(), nominated=False))
    return queue


def _storage(maker: Maker, cluster: Cluster) -> None:
    rng, storage = maker.rng, cluster.storage
    names = [f"n{i}" for i in range(6)]
    for number in range(rng.choice([0, 2, 4])):
        homes = set(rng.sample(names, rng.choice([0, 1, 2])))
        storage.volumes[f"v{number}"] = Volume(rng.choice(["disks", "now"]), homes, rng.choice([1, 2, 3]))
    for name in CLAIMS:
        if rng.random() < 0.2:
            continue
        claim = Claim(rng.choice(["made", "disks", "disks", "now", "unknown"]))
        claim.mode = rng.choice(["ReadWriteOnce", "ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"])
        claim.size, claim.leaving = rng.choice([1, 2, 3]), rng.random() < 0.1
        claim.volume = rng.choice(["", "", "v0", "v1", "gone"])
        claim.tied = rng.choice(["", "", *names]) if not claim.volume else ""
        storage.claims[f"default/{name}"] = claim
        found = storage.volumes.get(claim.volume)
        if found is not None and not found.claim and rng.random() < 0.8:
            found.claim = f"default/{name}"
