"""One run: people change things while faults strike; then the faults stop, and everything must come to rest."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable

from shoal.master.core import Master
from shoal.master.model import KINDS, Key
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests.sim.loop import SimulatedLoop, run
from tests.sim.watchdog import Broken, amount, ended, requests
from tests.sim.world import IMAGE, SimNode, World

ACTIVE_SECONDS = 60.0
CALM_SECONDS = 400.0  # backoffs, tolerations and lease run-outs included
POLL_SECONDS = 1.0
QUIET_SECONDS = 6.0  # nothing wrong for this long is rest
BEHAVIOURS = (["run"], ["run"], ["graceful", "1"], ["stubborn"], ["sleep", "8"], ["exit", "1"])
COUNTS = re.compile(r"0/(\d+) nodes are available: (.+)\.")


def template(rng: random.Random, app: str, version: int) -> o.PodTemplateSpec:
    made = o.PodTemplateSpec()
    made.metadata.labels["app"] = app
    made.metadata.labels["version"] = str(version)
    container = made.spec.containers.add(name="main", image=IMAGE)
    container.command.extend(rng.choice(BEHAVIOURS[:4]))
    container.resources.requests["cpu"].text = f"{rng.choice((50, 100, 300))}m"
    container.resources.requests["memory"].text = f"{rng.choice((16, 64))}Mi"
    made.spec.terminationGracePeriodSeconds = rng.choice((1, 3))
    return made


def deployment(rng: random.Random, name: str) -> o.Deployment:
    made = o.Deployment(apiVersion="apps/v1", kind="Deployment")
    made.metadata.name, made.metadata.namespace = name, "default"
    made.spec.replicas = rng.randint(1, 5)
    made.spec.selector.matchLabels["app"] = name
    made.spec.template.CopyFrom(template(rng, name, 0))
    return made


def pod(rng: random.Random, name: str) -> o.Pod:
    made = o.Pod(apiVersion="v1", kind="Pod")
    made.metadata.name, made.metadata.namespace = name, "default"
    container = made.spec.containers.add(name="main", image=IMAGE)
    container.command.extend(rng.choice(BEHAVIOURS))
    container.resources.requests["cpu"].text = rng.choice(("100m", "500m", "64"))
    made.spec.restartPolicy = rng.choice(("Always", "OnFailure", "Never"))
    made.spec.terminationGracePeriodSeconds = 2
    return made


def packed(*objects: o.Deployment | o.Pod | o.Node) -> list[c.Object]:
    return [c.Object(kind=x.kind, body=x.SerializeToString()) for x in objects]


class People:
    """They create, change, scale and delete, one thing at a time."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, world.fork()
        self._made = 0
        self.names: list[Key] = []
        self.wanted: dict[str, int] = {}

    def _id(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"

    async def act(self) -> None:
        changes = (self.create, self.create_pod, self.scale, self.scale, self.roll, self.roll, self.delete)
        choice = self.create if len(self.names) < 2 else self.rng.choice(changes)
        try:
            await choice()
        except TimeoutError:
            self.world.say("a person gave up: no leader answered")

    async def _write(self, verb: str, *objects: o.Deployment | o.Pod | o.Node) -> None:
        request = c.WriteRequest(request_id=self._id(), objects=packed(*objects))
        calls: dict[str, Callable[[Master], Awaitable[c.WriteResponse]]] = {
            "create": lambda core: core.service.create(request),
            "apply": lambda core: core.service.apply(request),
        }
        response = await self.world.ask(calls[verb])
        for made, result in zip(objects, response.results, strict=True):
            if result.failure.reason:
                raise Broken(f"{verb} of {made.metadata.name}: {result.failure.reason} {result.failure.message}")
        self.world.say(f"{verb} {', '.join(f'{x.kind} {x.metadata.name}' for x in objects)}")

    async def create(self) -> None:
        self._made += 1
        made = deployment(self.rng, f"d{self._made}")
        await self._write("create", made)
        self.names.append(Key("Deployment", "default", made.metadata.name))

    async def create_pod(self) -> None:
        self._made += 1
        made = pod(self.rng, f"p{self._made}")
        await self._write("create", made)
        self.names.append(Key("Pod", "default", made.metadata.name))

    def _some(self, kind: str) -> Key | None:
        chosen = [key for key in self.names if key.kind == kind]
        return self.rng.choice(chosen) if chosen else None

    async def scale(self) -> None:
        if key := self._some("Deployment"):
            replicas = self.rng.randint(0, 6)
            request = c.ScaleRequest(request_id=self._id(), key=c.Key(**key._asdict()), replicas=replicas)
            await self.world.ask(lambda core: core.service.scale(request))
            self.world.say(f"scale {key.name} to {replicas}")

    async def roll(self) -> None:
        if key := self._some("Deployment"):
            found = self.world.watchdog.objects.get(key)
            if not isinstance(found, o.Deployment):
                return
            made = o.Deployment(apiVersion="apps/v1", kind="Deployment")
            made.metadata.name, made.metadata.namespace = key.name, key.namespace
            made.spec.selector.CopyFrom(found.spec.selector)
            made.spec.template.CopyFrom(template(self.rng, key.name, self.rng.randint(1, 9)))
            await self._write("apply", made)

    async def delete(self) -> None:
        if not self.names:
            return
        key = self.rng.choice(self.names)
        request = c.DeleteRequest(request_id=self._id(), keys=[c.Key(**key._asdict())])
        response = await self.world.ask(lambda core: core.service.delete(request))
        if response.results[0].failure.reason not in ("", "NotFound"):
            raise Broken(f"delete {key}: {response.results[0].failure.message}")
        self.names.remove(key)
        self.world.say(f"delete {key}")


class Trouble:
    """Faults of every kind that this world knows."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, world.fork()

    async def strike(self) -> None:
        kinds = (
            self.agent_crash, self.agent_crash, self.session_cut, self.partition, self.reboot, self.container_crash,
            self.leader_crash, self.leader_freeze, self.lost_answers, self.stale_watch, self.bad_weather,
            self.spawner_away,
        )  # fmt: skip
        await self.rng.choice(kinds)()

    def _node(self) -> SimNode:
        return self.world.nodes[self.rng.choice(sorted(self.world.nodes))]

    async def agent_crash(self) -> None:
        node = self._node()
        self.world.say(f"agent of {node.name} crashes")
        await node.stop()
        await asyncio.sleep(self.rng.choice((0.0, 0.1, 2.0, 9.0)))
        node.start()

    async def reboot(self) -> None:
        node = self._node()
        self.world.say(f"{node.name} reboots")
        await node.reboot()

    async def session_cut(self) -> None:
        node = self._node()
        self.world.say(f"session of {node.name} is cut")
        node.cut()

    async def partition(self) -> None:
        node = self._node()
        self.world.say(f"{node.name} is cut off")
        node.reachable = False
        node.cut()
        await asyncio.sleep(self.rng.uniform(1, 15))
        node.reachable = True

    async def container_crash(self) -> None:
        node = self._node()
        if running := sorted(self.world.running(node.name), key=str):
            victim = self.rng.choice(running)
            self.world.say(f"container {victim} on {node.name} dies")
            node.runtime.crash(victim, signal=9)

    async def spawner_away(self) -> None:
        node = self._node()
        self.world.say(f"the runtime of {node.name} does not answer")
        node.runtime.gone = True
        await asyncio.sleep(self.rng.uniform(0.1, 3))
        node.runtime.come_back()

    async def leader_crash(self) -> None:
        if leader := self.world.leader():
            self.world.say(f"{leader.name}, the leader, crashes")
            await leader.stop()
            await asyncio.sleep(self.rng.uniform(0, 8))
            leader.start()

    async def leader_freeze(self) -> None:
        leader = self.world.leader()
        if leader and (port := leader.port):
            self.world.say(f"etcd does not answer {leader.name}, the leader")
            port.faults.frozen = True
            await asyncio.sleep(self.rng.uniform(0.5, 8))
            port.heal()

    async def lost_answers(self) -> None:
        leader = self.world.leader()
        if leader and leader.port:
            self.world.say(f"etcd's next answers to {leader.name} are lost")
            leader.port.faults.lose_next = self.rng.randint(1, 4)

    async def stale_watch(self) -> None:
        for master in self.world.masters.values():
            if master.port and not master.leads:
                self.world.say(f"the watch of {master.name} breaks")
                master.port.cut_watches()

    async def bad_weather(self) -> None:
        weather = self.world.weather
        weather.slow, weather.repeat, weather.lose = self.rng.choice(
            ((0.3, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.05), (0.2, 0.1, 0.02))
        )
        self.world.say(f"weather: {weather}")
        await asyncio.sleep(self.rng.uniform(1, 10))
        weather.slow = weather.repeat = weather.lose = 0.0

    def calm(self) -> None:
        weather = self.world.weather
        weather.slow = weather.repeat = weather.lose = 0.0
        for node in self.world.nodes.values():
            node.reachable = True
            if node.runtime.gone:
                node.runtime.come_back()
        for master in self.world.masters.values():
            if master.port and master.core is not None:
                master.port.heal()
                master.port.faults.lose_next = 0


async def live(loop: SimulatedLoop, seed: int, verbose: bool = False) -> World:
    """The whole run. Raises Broken when an invariant fails or nothing comes to rest."""
    rng = random.Random(seed)
    world = World(loop, seed, nodes=rng.randint(3, 5))
    world.verbose = verbose
    world.start()
    try:
        people, trouble = People(world), Trouble(world)
        strikes: set[asyncio.Task[None]] = set()
        end = loop.time() + ACTIVE_SECONDS
        while loop.time() < end:
            await asyncio.sleep(rng.uniform(0.05, 2))
            if rng.random() < 0.7:
                await people.act()
            if rng.random() < 0.4:
                strikes.add(asyncio.create_task(trouble.strike(), name="trouble"))
        await asyncio.gather(*strikes)
        world.say("the faults stop")
        trouble.calm()
        await come_to_rest(world, people)
        nothing_acknowledged_was_lost(world)
        return world
    finally:
        await world.stop()


async def come_to_rest(world: World, people: People) -> None:
    """Waits until nothing is wrong for a while. Raises Broken with what still is."""
    end = world.loop.time() + CALM_SECONDS
    quiet_since: float | None = None
    wrong: list[str] = []
    while world.loop.time() < end:
        world.parts_live()
        wrong = list(unfinished(world, people))
        if wrong:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = world.loop.time()
        elif world.loop.time() - quiet_since >= QUIET_SECONDS:
            return
        await asyncio.sleep(POLL_SECONDS)
    raise Broken("no rest after the faults stopped: " + "; ".join(wrong))


def unfinished(world: World, people: People) -> list[str]:
    """What is not yet as wished."""
    objects = world.watchdog.objects
    pods = [x for x in objects.values() if isinstance(x, o.Pod)]
    wrong: list[str] = []
    for key in people.names:
        found = objects.get(key)
        if found is None:
            if key.kind == "Deployment":
                wrong.append(f"{key} is gone")
        elif isinstance(found, o.Deployment):
            wrong += _deployment(found, pods)
    wrong += [f"deleted {key} is still there" for key in objects if _stray(key, people)]
    for one in pods:
        if one.metadata.HasField("deletionTimestamp"):
            wrong.append(f"pod {one.metadata.name} is still being deleted")
        elif not one.spec.nodeName:
            wrong += _pending(world, one, pods)
        elif one.status.phase == "Pending":
            wrong.append(f"pod {one.metadata.name} has not started on {one.spec.nodeName}")
    wanted = {(p.spec.nodeName, p.metadata.uid) for p in pods if p.spec.nodeName and not ended(p)}
    for name in world.nodes:
        have = {id.pod_uid for id in world.running(name)}
        wrong += [f"{name} runs {uid}, which is not assigned to it" for uid in have if (name, uid) not in wanted]
    return wrong


def _stray(key: Key, people: People) -> bool:
    if key.kind in ("Deployment", "Pod") and re.fullmatch(r"[dp]\d+", key.name):
        return key not in people.names
    return False


def _deployment(found: o.Deployment, pods: list[o.Pod]) -> list[str]:
    name, want = found.metadata.name, found.spec.replicas
    version = found.spec.template.metadata.labels["version"]
    alive = [p for p in pods if p.metadata.labels.get("app") == name and not ended(p)]
    current = [p for p in alive if p.metadata.labels.get("version") == version]
    if any(not p.spec.nodeName for p in alive):
        return []  # no room for the next one: the rollout waits, and _pending says whether that is true
    if len(alive) != want or len(current) != want:
        return [f"deployment {name} has {len(alive)} pods, {len(current)} of its version, and wants {want}"]
    status = found.status
    if status.readyReplicas != want or status.observedGeneration != found.metadata.generation:
        return [f"deployment {name} says {status.readyReplicas} of {want} are ready"]
    return []


def _pending(world: World, one: o.Pod, pods: list[o.Pod]) -> list[str]:
    """A pending pod must say why, with all nodes counted, and it must be true: no node has room."""
    name = one.metadata.name
    said = next((x.message for x in one.status.conditions if x.type == "PodScheduled" and x.status == "False"), "")
    match = COUNTS.match(said)
    if not match or int(match[1]) != len(world.nodes):
        return [f"pod {name} is pending without a true reason: {said!r}"]
    need = requests(one)
    for node in world.nodes:
        found = world.watchdog.objects[Key("Node", "", node)]
        assert isinstance(found, o.Node)
        free = {r: amount(r, found.status.allocatable[r]) for r in need}
        for other in pods:
            if other.spec.nodeName == node and not ended(other):
                for resource, used in requests(other).items():
                    free[resource] -= used
        if all(need[r] <= free[r] for r in need):
            return [f"pod {name} is pending although {node} has room; it says {said!r}"]
    return []


def nothing_acknowledged_was_lost(world: World) -> None:
    """Every write that was acknowledged is in etcd's history at the revision that the caller was told."""
    from shoal.master.store import codec, keys

    committed: dict[int, dict[str, str]] = {}
    for revision, events in world.etcd._history:
        for event in events:
            key = keys.decode(event.key)
            if key is not None and key.kind in KINDS and event.value is not None:
                record = codec.unpack(key, event.value, revision, event.create_revision)
                committed.setdefault(revision, {})[str(key)] = record.message.metadata.uid
    for write in world.acknowledged:
        if committed.get(write.revision, {}).get(write.key) != write.uid:
            raise Broken(f"{write.key} was acknowledged at revision {write.revision}, but etcd does not have it")


def play(seed: int, verbose: bool = False) -> World:
    """Runs one seed to its end. Raises Broken."""

    async def main() -> World:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        return await live(loop, seed, verbose)

    return run(seed, main())
