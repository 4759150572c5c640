"""One run: people change things while faults strike; then the faults stop, and everything must come to rest."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping

from shoal.agent.images.port import ImageFault
from shoal.agent.pods.probing import LIVENESS, Verdict
from shoal.agent.state import DEATHS
from shoal.agent.volumes.port import Files
from shoal.master.core import Master
from shoal.master.model import KINDS, Key, Object
from shoal.proto.references import claims_of
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests.sim import placement
from tests.sim.loop import SimulatedLoop, run
from tests.sim.watchdog import Broken, ended
from tests.sim.watcher import Watcher
from tests.sim.world import FLAKY, FULL_IMAGE, IMAGE, SimNode, World

ACTIVE_SECONDS = 60.0
CALM_SECONDS = 400.0  # backoffs, tolerations and lease run-outs included
POLL_SECONDS = 1.0
QUIET_SECONDS = 6.0  # nothing wrong for this long is rest
VALUES = 6  # ConfigMaps and Secrets are called v1 to v6
TAINT = "example.com/maintenance"
BEHAVIOURS = (["run"], ["run"], ["graceful", "1"], ["stubborn"], ["sleep", "8"], ["exit", "1"])
CONFIGURATIONS = 3  # ConfigMaps that pods refer to, whether they are there or not
COUNTS = re.compile(r"0/(\d+) nodes are available: (.+)\.")


def template(rng: random.Random, app: str, version: int) -> o.PodTemplateSpec:
    made = o.PodTemplateSpec()
    made.metadata.labels["app"] = app
    made.metadata.labels["version"] = str(version)
    container = made.spec.containers.add(name="main", image=IMAGE)
    container.command.extend(rng.choice(BEHAVIOURS[:4]))
    container.resources.requests["cpu"].text = f"{rng.choice((50, 100, 300))}m"
    container.resources.requests["memory"].text = f"{rng.choice((16, 64))}Mi"
    if rng.random() < 0.3:
        helper = made.spec.containers.add(name="helper", image=IMAGE)
        helper.command.extend(rng.choice(BEHAVIOURS[:4]))
        helper.resources.requests["cpu"].text = "20m"
    made.spec.terminationGracePeriodSeconds = rng.choice((1, 3))
    furnish(rng, made.spec)
    refer(rng, made.spec)
    placement.place_particularly(rng, made.spec, app)
    return made


def refer(rng: random.Random, spec: o.PodSpec) -> None:
    """Names ConfigMaps and Secrets that may be there, or come, change and go."""
    for _ in range(rng.choice((0, 0, 1, 2))):
        name = f"v{rng.randint(1, VALUES)}"
        if rng.random() < 0.5:
            spec.containers[0].envFrom.add().secretRef.MergeFrom(o.EnvSource(name=name, optional=True))
        else:
            volume = spec.volumes.add(name=f"x{len(spec.volumes)}")
            volume.configMap.MergeFrom(o.ConfigMapVolumeSource(name=name, optional=True))


def claim(rng: random.Random, name: str) -> o.PersistentVolumeClaim:
    made = o.PersistentVolumeClaim(apiVersion="v1", kind="PersistentVolumeClaim")
    made.metadata.name, made.metadata.namespace = name, "default"
    made.spec.accessModes.append(rng.choice(("ReadWriteOnce", "ReadWriteOnce", "ReadWriteOncePod")))
    made.spec.resources.requests["storage"].text = "1Mi"
    return made


def furnish(rng: random.Random, spec: o.PodSpec) -> None:
    """What everyday pods have besides: init containers, a sidecar, probes, hooks, configuration, volumes."""
    main = spec.containers[0]
    main.imagePullPolicy = rng.choice(("Always", "IfNotPresent"))
    if rng.random() < 0.3:
        for number in range(rng.randint(1, 2)):
            command = rng.choice((["exit", "0"], ["sleep", "0.3"], [FLAKY]))
            spec.initContainers.add(name=f"init{number}", image=IMAGE, command=command)
    if rng.random() < 0.2:
        spec.initContainers.add(name="proxy", image=IMAGE, command=rng.choice(BEHAVIOURS[:4]), restartPolicy="Always")
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if rng.random() < 0.2:
            getattr(main, name).tcpSocket.port.number = 80
    for name in ("postStart", "preStop"):
        if rng.random() < 0.15:
            getattr(main.lifecycle, name).sleep.seconds = rng.randint(0, 1)
    conf = f"conf{rng.randint(1, CONFIGURATIONS)}"
    if rng.random() < 0.2:
        main.env.add(name="VALUE").valueFrom.configMapKeyRef.CopyFrom(o.KeySelector(name=conf, key="value"))
    if rng.random() < 0.3:
        spec.volumes.add(name="conf").configMap.name = conf
        main.volumeMounts.add(name="conf", mountPath="/conf")


def deployment(rng: random.Random, name: str, namespace: str = "default") -> o.Deployment:
    made = o.Deployment(apiVersion="apps/v1", kind="Deployment")
    made.metadata.name, made.metadata.namespace = name, namespace
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
    if rng.random() < 0.3:
        made.spec.containers.add(name="helper", image=IMAGE).command.extend(rng.choice(BEHAVIOURS))
    if rng.random() < 0.3:
        made.spec.tolerations.add(key=TAINT, operator="Exists", effect="NoExecute", tolerationSeconds=3)
    made.spec.restartPolicy = rng.choice(("Always", "OnFailure", "Never"))
    made.spec.terminationGracePeriodSeconds = 2
    furnish(rng, made.spec)
    refer(rng, made.spec)
    return made


def data(rng: random.Random, name: str, namespace: str = "default") -> o.ConfigMap | o.Secret:
    """A ConfigMap or, of another name, a Secret, with a value that nobody wrote before."""
    made: o.ConfigMap | o.Secret
    if rng.random() < 0.5:
        made = o.ConfigMap(apiVersion="v1", kind="ConfigMap", data={"value": f"{rng.getrandbits(64)}"})
    else:
        made = o.Secret(apiVersion="v1", kind="Secret", data={"value": b"%d" % rng.getrandbits(64)})
    made.metadata.name, made.metadata.namespace = name, namespace
    return made


def packed(*objects: Object) -> list[c.Object]:
    return [c.Object(kind=x.kind, body=x.SerializeToString()) for x in objects]


class People:
    """They create, change, scale and delete, one thing at a time."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, world.fork()
        self._made = 0
        self.names: list[Key] = []
        self.values: dict[Key, Object | None] = {}  # ConfigMaps and Secrets as acknowledged; None: deleted
        self.spaces: list[str] = []  # namespaces that are to be there, save the default one
        self.claims: list[str] = []  # names, of deleted ones too
        self.gone: set[str] = set()  # namespaces that are to go, with all that is in them
        self.tainted: set[str] = set()

    def _id(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"

    async def act(self) -> None:
        changes = (
            self.create, self.create_pod, self.scale, self.scale, self.roll, self.roll, self.delete, self.write_value,
            self.write_value, self.delete_value, self.make_space, self.end_space, self.taint, self.configure,
            self.use_claim, self.use_claim, self.delete_claim, self.gather, self.hurry, self.hurry,
            self.protect,
        )  # fmt: skip
        choice = self.create if len(self.names) < 2 else self.rng.choice(changes)
        try:
            await choice()
        except TimeoutError:
            self.world.say("a person gave up: no leader answered")

    async def _write(self, verb: str, *objects: Object) -> None:
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

    async def prepare(self) -> None:
        await self._write("create", *placement.priority_classes())

    async def gather(self) -> None:
        """A gang: with its PodGroup first, or last."""
        self._made += 1
        name, cpu = f"g{self._made}", self.rng.choice(("200m", "900m", "1500m"))
        made = placement.gang(name, self.rng.choice(BEHAVIOURS[:4]), cpu, IMAGE)
        await self._write("create", *(made if self.rng.random() < 0.5 else reversed(made)))
        self.names += [Key("Pod", "default", one.metadata.name) for one in made if isinstance(one, o.Pod)]

    async def hurry(self) -> None:
        """A large pod that matters more than what is there."""
        self._made += 1
        made = pod(self.rng, f"p{self._made}")
        made.spec.containers[0].resources.requests["cpu"].text = self.rng.choice(("800m", "1500m"))
        made.spec.priorityClassName = "high"
        await self._write("create", made)
        self.names.append(Key("Pod", "default", made.metadata.name))

    async def protect(self) -> None:
        """A budget for a deployment's pods."""
        if key := self._some("Deployment"):
            await self._write("apply", placement.budget(f"keep-{key.name}", key.name))

    async def use_claim(self) -> None:
        """A pod with a claim: a new one, one that others use, or one that is deleted or not there yet."""
        self._made += 1
        made = pod(self.rng, f"p{self._made}")
        name = self.rng.choice(self.claims) if self.claims and self.rng.random() < 0.5 else f"c{self._made}"
        made.spec.volumes.add(name="data").persistentVolumeClaim.claimName = name
        first: list[Object] = []
        if name not in self.claims and self.rng.random() < 0.8:
            first = [claim(self.rng, name)]
        self.claims += [name] if name not in self.claims else []
        objects = [*first, made]
        await self._write("create", *(objects if self.rng.random() < 0.7 else reversed(objects)))
        self.names.append(Key("Pod", "default", made.metadata.name))

    async def delete_claim(self) -> None:
        if self.claims:
            await self._delete(Key("PersistentVolumeClaim", "default", self.rng.choice(self.claims)))

    async def write_value(self) -> None:
        """A new ConfigMap or Secret, or another value for one that is there."""
        there = [made for made in self.values.values() if isinstance(made, o.ConfigMap | o.Secret)]
        self._made += 1
        made = data(self.rng, f"v{self.rng.randint(1, VALUES)}")
        if there and self.rng.random() < 0.6:
            old = self.rng.choice(there)
            made = data(self.rng, old.metadata.name)
            while made.kind != old.kind:
                made = data(self.rng, old.metadata.name)
        key = Key(made.kind, "default", made.metadata.name)
        self.values.pop(key, None)  # not known, should nobody answer
        await self._write("apply", made)
        self.values[key] = made

    async def delete_value(self) -> None:
        if there := [key for key, made in self.values.items() if made is not None]:
            key = self.rng.choice(there)
            del self.values[key]
            await self._delete(key)
            self.values[key] = None

    async def configure(self, number: int = 0) -> None:
        """Writes a ConfigMap that pods refer to, or a new value into it."""
        name = f"conf{number or self.rng.randint(1, CONFIGURATIONS)}"
        for namespace in ("default", *self.spaces):
            made = o.ConfigMap(apiVersion="v1", kind="ConfigMap", data={"value": f"{self.rng.getrandbits(64)}"})
            made.metadata.name, made.metadata.namespace = name, namespace
            key = Key("ConfigMap", namespace, name)
            self.values.pop(key, None)
            await self._write("apply", made)
            self.values[key] = made

    async def make_space(self) -> None:
        """A namespace with things in it."""
        self._made += 1
        name = f"s{self._made}"
        made = o.Namespace(apiVersion="v1", kind="Namespace")
        made.metadata.name = name
        await self._write("create", made)
        self.spaces.append(name)
        inside = deployment(self.rng, f"d{self._made}", name)
        await self._write("create", inside, data(self.rng, "value", name))
        self.names.append(Key("Deployment", name, inside.metadata.name))

    async def end_space(self) -> None:
        """A namespace goes, while somebody still writes into it."""
        if self.spaces:
            name = self.rng.choice(self.spaces)
            self.spaces.remove(name)
            self.gone.add(name)
            self.names = [key for key in self.names if key.namespace != name]
            late = asyncio.create_task(self._write_late(name), name="late writer")
            try:
                await self._delete(Key("Namespace", "", name))
            finally:
                await late

    async def _write_late(self, namespace: str) -> None:
        for number in range(3):
            await asyncio.sleep(self.rng.uniform(0, 0.1))
            objects = packed(
                data(self.rng, f"late{number}", namespace), deployment(self.rng, f"late{number}", namespace)
            )
            request = c.WriteRequest(request_id=self._id(), objects=objects)
            try:
                response = await self.world.ask(lambda core, request=request: core.service.create(request))  # type: ignore[misc]
            except TimeoutError:
                return
            for result in response.results:
                if result.failure.reason not in ("", "Forbidden", "NotFound"):
                    raise Broken(f"late write: {result.failure.message}")

    async def taint(self) -> None:
        """A node is emptied, or may be used again."""
        name = self.rng.choice(sorted(self.world.nodes))
        await self.set_taint(name, name not in self.tainted)

    async def set_taint(self, name: str, wanted: bool) -> None:
        """As a person with an editor: reads, changes, and writes on the condition that nobody else did."""
        (self.tainted.add if wanted else self.tainted.discard)(name)
        for _ in range(20):
            found = self.world.watchdog.objects.get(Key("Node", "", name))
            if not isinstance(found, o.Node):
                return
            made = o.Node.FromString(found.SerializeToString())
            kept = [taint for taint in made.spec.taints if taint.key != TAINT]
            del made.spec.taints[:]
            made.spec.taints.extend([*kept, *([o.Taint(key=TAINT, effect="NoExecute")] if wanted else [])])
            envelope = packed(made)[0]
            envelope.revision = self.world.watchdog.revisions[Key("Node", "", name)]
            request = c.WriteRequest(request_id=self._id(), objects=[envelope])
            response = await self.world.ask(lambda core, request=request: core.service.update(request))  # type: ignore[misc]
            reason = response.results[0].failure.reason
            if reason not in ("", "Conflict", "NotFound"):
                raise Broken(f"taint of {name}: {response.results[0].failure.message}")
            if reason != "Conflict":
                self.world.say(f"{name} {'is emptied' if wanted else 'may be used'}")
                return
            await asyncio.sleep(0.1)

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
        await self._delete(key)
        self.names.remove(key)

    async def _delete(self, key: Key) -> None:
        request = c.DeleteRequest(request_id=self._id(), keys=[c.Key(**key._asdict())])
        response = await self.world.ask(lambda core: core.service.delete(request))
        if response.results[0].failure.reason not in ("", "NotFound"):
            raise Broken(f"delete {key}: {response.results[0].failure.message}")
        self.world.say(f"delete {key}")


class Trouble:
    """Faults of every kind that this world knows."""

    def __init__(self, world: World, people: People) -> None:
        self.world, self.people, self.rng = world, people, world.fork()

    async def strike(self) -> None:
        kinds = (
            self.agent_crash, self.agent_crash, self.session_cut, self.partition, self.reboot, self.container_crash,
            self.leader_crash, self.leader_freeze, self.lost_answers, self.stale_watch, self.bad_weather,
            self.spawner_away, self.compaction, self.node_removed,
            self.etcd_full, self.registry_away, self.registry_away, self.unhealthy, self.unhealthy, self.disk_full,
            self.memory_short, self.memory_short,
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

    async def registry_away(self) -> None:
        self.world.say("the registry does not answer")
        for node in self.world.nodes.values():
            node.images.faults[FULL_IMAGE] = ImageFault("RegistryUnavailable", "no route to host")
        await asyncio.sleep(self.rng.uniform(1, 8))
        self._registry_back()

    def _registry_back(self) -> None:
        for node in self.world.nodes.values():
            node.images.faults.clear()

    async def unhealthy(self) -> None:
        """A container's probes turn against it, or it is unready for a while."""
        node = self._node()
        targets = sorted(node.prober.targets.values(), key=lambda target: str(target.id))
        if targets:
            target = self.rng.choice(targets)
            kind = self.rng.choice(sorted(target.probes))
            self.world.say(f"the {kind} probe of {target.id} fails")
            node.prober.tell(Verdict(target.id, kind, False, "HTTP 500"))
            await asyncio.sleep(self.rng.uniform(0, 4))
            if kind != LIVENESS:
                node.prober.tell(Verdict(target.id, kind, True, "passed"))

    async def disk_full(self) -> None:
        """No volume can be made."""
        node = self._node()
        self.world.say(f"the disk of {node.name} is full")
        node.volumes.full = True
        await asyncio.sleep(self.rng.uniform(1, 6))
        node.volumes.full = False

    async def memory_short(self) -> None:
        """Pods that use memory go, until there is enough of it again."""
        node = self._node()
        self.world.say(f"{node.name} is short of memory")
        node.short_of_memory(True)
        await asyncio.sleep(self.rng.uniform(0.5, 5))
        node.short_of_memory(False)
        self.world.say(f"{node.name} has enough memory again")

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

    async def compaction(self) -> None:
        revision = self.world.watchdog.seen - self.rng.choice((0, 3, 30))
        if revision > self.world.etcd.compacted:
            self.world.say(f"etcd's history is compacted up to revision {revision}")
            self.world.compactions += 1
            self.world.etcd.compact(revision)

    async def etcd_full(self) -> None:
        """Its alarm refuses all writes, leases too, until somebody makes room."""
        self.world.say("etcd's quota is used up")
        self.world.compactions += 1
        self.world.etcd.no_space = True

    async def node_removed(self) -> None:
        """Somebody deletes the Node: with its agent running it joins anew at once, else when the agent is back."""
        node = self._node()
        dead = self.rng.random() < 0.5
        if dead:
            await node.stop()
        try:
            await self.people._delete(Key("Node", "", node.name))
        except TimeoutError:
            pass
        if dead:
            await asyncio.sleep(self.rng.choice((0.0, 1.0, 8.0)))
            node.start()

    async def bad_weather(self) -> None:
        weather = self.world.weather
        weather.slow, weather.repeat, weather.lose = self.rng.choice(
            ((0.3, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.05), (0.2, 0.1, 0.02))
        )
        self.world.say(f"weather: {weather}")
        await asyncio.sleep(self.rng.uniform(1, 10))
        weather.slow = weather.repeat = weather.lose = 0.0

    def calm(self) -> None:
        self._registry_back()
        weather = self.world.weather
        weather.slow = weather.repeat = weather.lose = 0.0
        for node in self.world.nodes.values():
            node.reachable, node.volumes.full = True, False
            node.short_of_memory(False)
            if node.runtime.gone:
                node.runtime.come_back()
        for master in self.world.masters.values():
            if master.port and master.core is not None:
                master.port.heal()
                master.port.faults.lose_next = 0


async def live(loop: SimulatedLoop, seed: int, verbose: bool = False) -> World:
    """The whole run. Raises Broken when an invariant fails or nothing comes to rest."""
    rng = random.Random(seed)
    world = World(loop, seed, nodes=rng.randint(3, 5), masters=rng.choice((2, 2, 3)))
    world.verbose = verbose
    world.start()
    people = People(world)
    trouble = Trouble(world, people)
    watchers = [Watcher(world, KINDS), Watcher(world, ("ConfigMap", "Secret")), Watcher(world, ("Node", "Namespace"))]
    watching = [asyncio.create_task(watcher.run(), name="watcher") for watcher in watchers]
    try:
        await people.prepare()
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
        for name in sorted(people.tainted):
            await people.set_taint(name, wanted=False)
        for number in range(1, CONFIGURATIONS + 1):
            await people.configure(number)
        await come_to_rest(world, people)
        nothing_acknowledged_was_lost(world)
        for watcher, task in zip(watchers, watching, strict=True):
            if task.done():
                task.result()
            watcher.judge()
        world.watched = watchers[0].seen
        return world
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
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
    wrong += [f"node {name} has not joined" for name in world.nodes if Key("Node", "", name) not in objects]
    wrong += [text for found in objects.values() if isinstance(found, o.Node) for text in _pressed(found)]
    wrong += _values(objects, people)
    wrong += _storage(objects, pods)
    wrong += [text for node in world.nodes.values() for text in world.watchdog.delivered(node.name, node.objects.table)]
    for one in pods:
        if one.metadata.HasField("deletionTimestamp"):
            wrong.append(f"pod {one.metadata.name} is still being deleted")
        elif not one.spec.nodeName:
            wrong += _pending(world, one, pods)
        elif one.metadata.uid in world.watchdog.evicted and one.status.phase != "Failed":
            wrong.append(f"pod {one.metadata.name} was evicted and is {one.status.phase}")
        elif one.status.phase == "Pending":
            wrong.append(f"pod {one.metadata.name} has not started on {one.spec.nodeName}")
    if not wrong:
        wrong += placement.overlooked(objects, world.watchdog.created)
    wrong += _stale_volumes(world, pods)
    wrong += _unburied(world, pods)
    wanted = {(p.spec.nodeName, p.metadata.uid) for p in pods if p.spec.nodeName and not ended(p)}
    for name in world.nodes:
        have = {id.pod_uid for id in world.running(name)}
        wrong += [f"{name} runs {uid}, which is not assigned to it" for uid in have if (name, uid) not in wanted]
    return wrong


def _pressed(node: o.Node) -> list[str]:
    """The need is over: so are its condition and its taint."""
    held = [one.type for one in node.status.conditions if one.type.endswith("Pressure") and one.status != "False"]
    held += [taint.key for taint in node.spec.taints if taint.key.endswith("-pressure")]
    return [f"{node.metadata.name} still has {', '.join(held)}"] if held else []


def _values(objects: Mapping[Key, Object], people: People) -> list[str]:
    """ConfigMaps and Secrets hold what was acknowledged last."""
    wrong = []
    for key, made in people.values.items():
        if key.namespace in people.gone:
            continue
        found = objects.get(key)
        if isinstance(made, o.ConfigMap | o.Secret):
            if not isinstance(found, o.ConfigMap | o.Secret) or dict(found.data) != dict(made.data):
                wrong.append(f"{key} is not what was acknowledged")
        elif found is not None:
            wrong.append(f"deleted {key} is still there")
    return wrong


def _stale_volumes(world: World, pods: list[o.Pod]) -> list[str]:
    """Every running pod's volume holds what the ConfigMap holds now."""
    wrong = []
    for pod in pods:
        found = world.watchdog.objects.get(Key("ConfigMap", pod.metadata.namespace, _configuration(pod)))
        if not isinstance(found, o.ConfigMap) or pod.status.phase != "Running" or ended(pod):
            continue
        spec = world.nodes[pod.spec.nodeName].volumes.pods.get(pod.metadata.uid, {}).get("conf")
        have = spec.source.files["value"].content.decode() if spec and isinstance(spec.source, Files) else "nothing"
        if have != found.data["value"]:
            wrong.append(f"the volume of {pod.metadata.name} holds {have}, its ConfigMap {found.data['value']}")
    return wrong


def _unburied(world: World, pods: list[o.Pod]) -> list[str]:
    """The last failed run of every container has its certificate, and no node keeps one that was taken."""
    wrong = [
        f"{node.name} still keeps the certificate {name}"
        for node in world.nodes.values()
        for name in node.state.shelves[DEATHS]
    ]
    for pod in pods:
        sidecars = {one.name for one in pod.spec.initContainers if one.restartPolicy == "Always"} if ended(pod) else ()
        meta, status = pod.metadata, pod.status
        if meta.HasField("deletionTimestamp") or status.reason == "Lost":
            continue
        for container in (*status.initContainerStatuses, *status.containerStatuses):
            last = (
                container.state.terminated if container.state.HasField("terminated") else container.lastState.terminated
            )
            name = f"{meta.name}.{container.name}.{last.containerID.rpartition('/')[2]}.{meta.uid[:8]}"
            asked = container.name in sidecars
            if last.exitCode and not asked and Key("Death", meta.namespace, name) not in world.watchdog.objects:
                wrong.append(f"death {name} was not told")
    return wrong


def _configuration(pod: o.Pod) -> str:
    return next((volume.configMap.name for volume in pod.spec.volumes if volume.name == "conf"), "")


def _storage(objects: Mapping[Key, Object], pods: list[o.Pod]) -> list[str]:
    """Claims of placed pods are bound, deleted ones go unless they are in use, and no volume outlives its claim."""
    wrong = []
    used = {(p.metadata.namespace, name) for p in pods if p.spec.nodeName and not ended(p) for name in claims_of(p)}
    for key, found in objects.items():
        if isinstance(found, o.PersistentVolumeClaim):
            in_use = (key.namespace, key.name) in used
            if found.metadata.HasField("deletionTimestamp") and not in_use:
                wrong.append(f"{key} is still being deleted")
            if in_use and found.status.phase != "Bound":
                wrong.append(f"{key} is {found.status.phase}, and a pod that uses it was placed")
        elif isinstance(found, o.PersistentVolume):
            owner = objects.get(Key("PersistentVolumeClaim", found.spec.claimRef.namespace, found.spec.claimRef.name))
            if owner is None or owner.metadata.uid != found.spec.claimRef.uid:
                wrong.append(f"{key} is still there without its claim")
    return wrong


def _stray(key: Key, people: People) -> bool:
    if key.namespace in people.gone or (key.kind == "Namespace" and key.name in people.gone):
        return True
    if key.kind in ("Deployment", "Pod") and re.fullmatch(r"[dpg]\d+", key.name):
        return key not in people.names
    return False


def _deployment(found: o.Deployment, pods: list[o.Pod]) -> list[str]:
    name, want = found.metadata.name, found.spec.replicas
    version = found.spec.template.metadata.labels["version"]
    ours = [p for p in pods if p.metadata.namespace == found.metadata.namespace]
    alive = [p for p in ours if p.metadata.labels.get("app") == name and not ended(p)]
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
    """A pending pod must say why, with all nodes counted, and what it says of its claims must be true."""
    name = one.metadata.name
    said = next((x.message for x in one.status.conditions if x.type == "PodScheduled" and x.status == "False"), "")
    match = COUNTS.search(said)
    if not match or not 0 < int(match[1]) <= len(world.nodes):  # counts may age, the reasons may not
        return [f"pod {name} is pending without a true reason: {said!r}"]
    why = _claims_why(world, one, pods)
    return [f"pod {name} is pending because {why}, but says {said!r}"] if why and why not in said else []


def _claims_why(world: World, one: o.Pod, pods: list[o.Pod]) -> str:
    """Why the pod's claims leave it no node; "" when they leave one."""
    for name in claims_of(one):
        found = world.watchdog.objects.get(Key("PersistentVolumeClaim", one.metadata.namespace, name))
        if not isinstance(found, o.PersistentVolumeClaim):
            return f"claim {name} does not exist"
        if found.metadata.HasField("deletionTimestamp"):
            return f"claim {name} is being deleted"
        users = [p for p in pods if p.spec.nodeName and not ended(p) and name in claims_of(p)]
        if "ReadWriteOncePod" in found.spec.accessModes and users:
            return f"claim {name} is in use by another pod"
    return ""


def nothing_acknowledged_was_lost(world: World) -> None:
    """Every write that was acknowledged is in etcd's history at the revision that the caller was told."""
    for write in world.acknowledged:
        if world.watchdog.committed.get(write.revision, {}).get(write.key) != write.uid:
            raise Broken(f"{write.key} was acknowledged at revision {write.revision}, but etcd does not have it")


def play(seed: int, verbose: bool = False) -> World:
    """Runs one seed to its end. Raises Broken."""

    async def main() -> World:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        return await live(loop, seed, verbose)

    return run(seed, main())
