"""The mutating verbs, over the real store in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Sequence

import pytest
import pytest_asyncio

from shoal.master.api.admission import OBJECT_BYTES
from shoal.master.api.faults import Invalid
from shoal.master.api.service import ClusterService
from shoal.master.api.writes import Writes
from shoal.master.core import Master
from shoal.master.model import KINDS, Change, Delete, Event, Fault, Key, Modify, Object, Record, Unavailable, View
from shoal.master.store.memory import Faults
from shoal.master.store.pages import PAGE_BYTES
from shoal.master.store.store import Store
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests.masterkit import memory_master


@pytest_asyncio.fixture
async def master() -> AsyncIterator[Master]:
    async with memory_master(loops=False) as made:
        yield made


@pytest.fixture
def api(master: Master) -> ClusterService:
    return master.service


def pod(name: str = "web", namespace: str = "", **labels: str) -> o.Pod:
    made = o.Pod(apiVersion="v1", kind="Pod")
    made.metadata.name, made.metadata.namespace = name, namespace
    made.metadata.labels.update(labels)
    made.spec.containers.add(name="web", image="nginx:1")
    return made


def deployment(name: str = "web", replicas: int | None = 2, image: str = "nginx:1") -> o.Deployment:
    made = o.Deployment(apiVersion="apps/v1", kind="Deployment")
    made.metadata.name = name
    if replicas is not None:
        made.spec.replicas = replicas
    made.spec.selector.matchLabels["app"] = name
    made.spec.template.metadata.labels["app"] = name
    made.spec.template.spec.containers.add(name="web", image=image)
    return made


def sent(*objects: Object, request_id: str = "r1", revision: int = 0, dry_run: bool = False) -> c.WriteRequest:
    made = [c.Object(kind=obj.kind, body=obj.SerializeToString(), revision=revision) for obj in objects]
    return c.WriteRequest(request_id=request_id, objects=made, dry_run=dry_run)


def opened(envelope: c.Object) -> Object:
    return KINDS[envelope.kind].FromString(envelope.body)


async def created(api: ClusterService, obj: Object, request_id: str = "first") -> Object:
    [result] = (await api.create(sent(obj, request_id=request_id))).results
    assert result.action == "created", result
    return opened(result.object)


def deletion(name: str, kind: str = "Pod", request_id: str = "d1", **more: object) -> c.DeleteRequest:
    return c.DeleteRequest(request_id=request_id, keys=[c.Key(kind=kind, name=name)], **more)  # type: ignore[arg-type]


# ---- create ----
async def test_create_fills_in_what_the_server_says(master: Master, api: ClusterService) -> None:
    wish = pod()
    wish.metadata.uid, wish.metadata.resourceVersion, wish.metadata.generation = "forged", "77", 9
    wish.metadata.deletionTimestamp.seconds = 1
    wish.status.phase = "Running"
    response = await api.create(sent(wish))
    made = opened(response.results[0].object)
    assert isinstance(made, o.Pod)
    meta = made.metadata
    assert meta.namespace == "default"
    assert len(meta.uid) == 36
    assert (meta.resourceVersion, meta.generation) == ("", 1)
    assert meta.creationTimestamp.seconds > 0
    assert not meta.HasField("deletionTimestamp")
    assert made.status.phase == "Pending"
    assert made.spec.restartPolicy == "Always"
    record = master.store.view.record(Key("Pod", "default", "web"))
    assert record is not None
    assert (record.body, record.revision) == (response.results[0].object.body, response.revision)


async def test_a_retry_of_a_create_is_a_success_and_another_create_is_not(api: ClusterService) -> None:
    first = await created(api, pod(), "same")
    again = await created(api, pod(), "same")
    assert again.metadata.uid == first.metadata.uid
    [other] = (await api.create(sent(pod(), request_id="other"))).results
    assert other.failure.reason == "AlreadyExists"


async def test_generated_names_derive_from_the_request(api: ClusterService) -> None:
    wish = pod("")
    wish.metadata.generateName = "job-"
    response = await api.create(sent(wish, wish))
    names = [opened(result.object).metadata.name for result in response.results]
    assert len(set(names)) == 2
    assert all(name.startswith("job-") and len(name) == 9 for name in names)
    retry = await api.create(sent(wish, wish))
    assert [opened(result.object).metadata.name for result in retry.results] == names


async def test_each_object_has_its_own_result_and_all_errors_at_once(api: ClusterService) -> None:
    bad = pod("Bad_Name")
    bad.spec.containers[0].image = ""
    response = await api.create(sent(pod("one"), bad, pod("two")))
    assert [result.action for result in response.results] == ["created", "", "created"]
    failure = response.results[1].failure
    assert failure.reason == "Invalid"
    assert {field.path for field in failure.fields} == {"metadata.name", "spec.containers[0].image"}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (c.WriteRequest(request_id="", objects=[c.Object(kind="Pod")]), "request_id"),
        (c.WriteRequest(request_id="x"), "1 to 100"),
        (c.WriteRequest(request_id="x", objects=[c.Object(kind="Pod")] * 101), "1 to 100"),
    ],
)
async def test_a_malformed_request_fails_as_a_whole(api: ClusterService, request_: c.WriteRequest, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        await api.create(request_)


@pytest.mark.parametrize(
    ("envelope", "reason", "words"),
    [
        (c.Object(kind="Gadget"), "Invalid", "no kind 'Gadget'"),
        (c.Object(kind="Pod", body=b"\xff\xff"), "Invalid", "no Pod message"),
        (c.Object(kind="Pod", body=deployment().SerializeToString()), "Invalid", "the envelope says Pod"),
        (c.Object(kind="Pod", body=b"x" * (OBJECT_BYTES + 1)), "TooLarge", f"at most {OBJECT_BYTES}"),
    ],
)
async def test_a_bad_envelope_is_refused(api: ClusterService, envelope: c.Object, reason: str, words: str) -> None:
    [result] = (await api.create(c.WriteRequest(request_id="x", objects=[envelope]))).results
    assert result.failure.reason == reason
    assert words in result.failure.message


async def test_the_namespace_must_be_there_and_stay(api: ClusterService) -> None:
    [missing] = (await api.create(sent(pod(namespace="nowhere")))).results
    assert missing.failure.reason == "NotFound"
    namespace = o.Namespace(apiVersion="v1", kind="Namespace")
    namespace.metadata.name = "team"
    await created(api, namespace)
    await api.delete(deletion("team", "Namespace"))
    [closing] = (await api.create(sent(pod(namespace="team"), request_id="r2"))).results
    assert closing.failure.reason == "Forbidden"


async def test_what_only_the_master_writes_is_refused(api: ClusterService) -> None:
    node = o.Node(apiVersion="v1", kind="Node")
    node.metadata.name = "n"
    node.spec.podCIDR = "10.0.0.0/24"
    bound = pod()
    bound.spec.nodeName = "ghost"
    response = await api.create(sent(node, bound))
    assert [r.failure.fields[0].path for r in response.results] == ["spec.podCIDR", "spec.nodeName"]


async def test_a_dry_run_writes_nothing(master: Master, api: ClusterService) -> None:
    before = master.store.view.revision
    [result] = (await api.create(sent(pod(), dry_run=True))).results
    assert result.action == "created"
    assert opened(result.object).metadata.uid
    await api.apply(sent(deployment(), dry_run=True))
    assert master.store.view.revision == before
    await created(api, pod())
    [again] = (await api.create(sent(pod(), request_id="r9", dry_run=True))).results
    assert again.failure.reason == "AlreadyExists"


# ---- update ----
async def test_update_keeps_the_servers_fields_and_counts_generations(api: ClusterService) -> None:
    first = await created(api, deployment())
    wish = deployment(replicas=3)
    wish.metadata.labels["new"] = "label"
    wish.status.replicas = 99
    [result] = (await api.update(sent(wish))).results
    made = opened(result.object)
    assert isinstance(made, o.Deployment)
    assert result.action == "configured"
    assert (made.metadata.uid, made.metadata.generation) == (first.metadata.uid, 2)
    assert made.metadata.creationTimestamp == first.metadata.creationTimestamp
    assert (made.spec.replicas, made.status.replicas) == (3, 0)
    [again] = (await api.update(sent(wish))).results
    assert again.action == "unchanged"


async def test_update_with_a_stale_revision_conflicts_unless_it_is_a_retry(api: ClusterService) -> None:
    await created(api, deployment())
    at = (await api.get(c.GetRequest(key=c.Key(kind="Deployment", name="web")))).revision
    [one] = (await api.update(sent(deployment(replicas=3), revision=at))).results
    assert one.action == "configured"
    [retry] = (await api.update(sent(deployment(replicas=3), revision=at))).results
    assert retry.action == "unchanged"
    [stale] = (await api.update(sent(deployment(replicas=4), revision=at))).results
    assert stale.failure.reason == "Conflict"


async def test_update_refuses_what_cannot_change(api: ClusterService) -> None:
    await created(api, pod())
    await created(api, deployment(), "second")
    wish = pod()
    wish.spec.containers[0].command.append("/bin/other")
    moved = deployment()
    moved.spec.selector.matchLabels["app"] = moved.spec.template.metadata.labels["app"] = "other"
    response = await api.update(sent(wish, moved, pod("nobody")))
    assert [r.failure.reason for r in response.results] == ["Invalid", "Invalid", "NotFound"], response
    assert response.results[1].failure.fields[0].path == "spec.selector"


async def test_status_only_changes_the_status_alone(api: ClusterService) -> None:
    await created(api, deployment())
    wish = deployment(replicas=7)
    wish.status.readyReplicas = 2
    request = sent(wish)
    request.status_only = True
    [result] = (await api.update(request)).results
    made = opened(result.object)
    assert isinstance(made, o.Deployment)
    assert (made.spec.replicas, made.status.readyReplicas, made.metadata.generation) == (2, 2, 1)


async def test_the_status_of_pods_and_nodes_has_other_writers(api: ClusterService) -> None:
    await created(api, pod())
    wish = pod()
    wish.status.phase = "Failed"
    request = sent(wish)
    request.status_only = True
    [result] = (await api.update(request)).results
    assert result.failure.reason == "Forbidden"


async def test_a_resource_version_in_the_object_is_a_precondition(api: ClusterService) -> None:
    await created(api, deployment())
    mine, theirs = deployment(replicas=5), deployment(replicas=6)
    for write in (api.apply, api.update):
        read = await api.get(c.GetRequest(key=c.Key(kind="Deployment", name="web")))
        mine.metadata.resourceVersion = theirs.metadata.resourceVersion = str(read.revision)
        actions = [(await write(sent(mine, request_id="m"))).results[0].action for _ in range(2)]
        assert actions == ["configured", "unchanged"], "a retry that finds its own result is a success"
        [late] = (await write(sent(theirs, request_id="t"))).results
        assert late.failure.reason == "Conflict"
    mine.metadata.resourceVersion = "yesterday"
    [bad] = (await api.update(sent(mine))).results
    assert "resourceVersion" in bad.failure.message


async def test_one_request_id_for_two_objects_makes_two_uids(api: ClusterService) -> None:
    one, other = await created(api, pod("one"), "r"), await created(api, pod("other"), "r")
    assert one.metadata.uid != other.metadata.uid


async def test_a_leader_without_etcd_answers_no_write_from_what_it_remembers() -> None:
    faults = Faults()
    async with memory_master(loops=False, faults=faults) as master:
        faults.frozen = True
        leadership = master._term
        assert leadership is not None
        leadership.leadership.valid_until = 0.0
        with pytest.raises(Unavailable):
            await master.service.create(sent(pod("web", "nowhere")))
        with pytest.raises(Unavailable):
            await master.service.delete(deletion("nobody"))
        faults.frozen = False


# ---- apply ----
async def test_apply_creates_configures_and_leaves_alone(api: ClusterService) -> None:
    actions = []
    for wish in (deployment(), deployment(), deployment(image="nginx:2")):
        [result] = (await api.apply(sent(wish))).results
        actions.append(result.action)
    assert actions == ["created", "unchanged", "configured"]


async def test_apply_merges_three_ways(master: Master, api: ClusterService) -> None:
    wish = deployment(replicas=2)
    wish.metadata.labels.update({"keep": "1", "drop": "1"})
    await api.apply(sent(wish))
    await api.scale(c.ScaleRequest(request_id="s", key=c.Key(kind="Deployment", name="web"), replicas=9))

    def label(obj: Object) -> bool:
        obj.metadata.labels["foreign"] = "1"
        return True

    await master.store.write([Modify(Key("Deployment", "default", "web"), label)])
    later = deployment(replicas=None)  # no longer says how many: what it had said goes back to the default
    later.metadata.labels["keep"] = "2"
    [result] = (await api.apply(sent(later))).results
    made = opened(result.object)
    assert isinstance(made, o.Deployment)
    assert dict(made.metadata.labels) == {"keep": "2", "foreign": "1"}
    assert made.spec.replicas == 1


async def test_apply_leaves_alone_what_it_never_said(api: ClusterService) -> None:
    await api.apply(sent(deployment(replicas=None)))
    await api.scale(c.ScaleRequest(request_id="s", key=c.Key(kind="Deployment", name="web"), replicas=9))
    [result] = (await api.apply(sent(deployment(replicas=None, image="nginx:2")))).results
    made = opened(result.object)
    assert isinstance(made, o.Deployment)
    assert (made.spec.replicas, made.spec.template.spec.containers[0].image) == (9, "nginx:2")


async def test_apply_remembers_no_secret_values(api: ClusterService) -> None:
    secret = o.Secret(apiVersion="v1", kind="Secret")
    secret.metadata.name = "s"
    secret.stringData["password"] = "hunter2"
    secret.data["other"] = b"hunter3"
    [result] = (await api.apply(sent(secret))).results
    made = opened(result.object)
    assert isinstance(made, o.Secret)
    assert made.data["password"] == b"hunter2"
    remembered = made.metadata.annotations["shoal.dev/last-applied"]
    assert "hunter" not in remembered
    assert "aHVudGVy" not in remembered
    del secret.stringData["password"]
    [result] = (await api.apply(sent(secret))).results
    made = opened(result.object)
    assert isinstance(made, o.Secret)
    assert dict(made.data) == {"other": b"hunter3"}
    assert json.loads(made.metadata.annotations["shoal.dev/last-applied"])["metadata"]["name"] == "s"


async def test_apply_needs_a_name_and_a_namespace(api: ClusterService) -> None:
    nameless = pod("")
    nameless.metadata.generateName = "x-"
    response = await api.apply(sent(nameless, pod(namespace="nowhere")))
    assert [r.failure.reason for r in response.results] == ["Invalid", "NotFound"]


# ---- scale ----
async def test_scale(api: ClusterService) -> None:
    await created(api, deployment())
    key = c.Key(kind="Deployment", name="web")
    [up] = (await api.scale(c.ScaleRequest(request_id="s", key=key, replicas=5, current_replicas=2))).results
    assert up.action == "scaled"
    assert opened(up.object).metadata.generation == 2
    [wrong] = (await api.scale(c.ScaleRequest(request_id="t", key=key, replicas=1, current_replicas=2))).results
    assert wrong.failure.reason == "Conflict"
    [missing] = (await api.scale(c.ScaleRequest(request_id="t", key=c.Key(kind="Deployment", name="x")))).results
    assert missing.failure.reason == "NotFound"
    [retry] = (await api.scale(c.ScaleRequest(request_id="s", key=key, replicas=5, current_replicas=2))).results
    assert retry.action == "unchanged"
    with pytest.raises(Invalid, match="no replicas"):
        await api.scale(c.ScaleRequest(request_id="t", key=c.Key(kind="Pod", name="x"), replicas=1))
    with pytest.raises(Invalid, match="negative"):
        await api.scale(c.ScaleRequest(request_id="t", key=key, replicas=-1))


# ---- delete ----
async def bind(master: Master, name: str = "web", *, ready: bool = True) -> None:
    """Puts the pod on a node, as scheduler and dispatcher would."""
    node = o.Node(apiVersion="v1", kind="Node")
    node.metadata.name = "n1"
    await created(master.service, node, "node")

    def status(obj: Object) -> bool:
        assert isinstance(obj, o.Node)
        obj.status.conditions.add(type="Ready", status="True" if ready else "Unknown")
        return True

    def place(obj: Object) -> bool:
        assert isinstance(obj, o.Pod)
        obj.spec.nodeName = "n1"
        return True

    await master.store.write([Modify(Key("Node", "", "n1"), status), Modify(Key("Pod", "default", name), place)])


async def test_a_pod_without_a_node_goes_at_once_and_a_retry_knows(master: Master, api: ClusterService) -> None:
    await created(api, pod())
    [gone] = (await api.delete(deletion("web"))).results
    assert gone.action == "deleted"
    assert master.store.view.get("Pod", "default", "web") is None
    [retry] = (await api.delete(deletion("web"))).results
    assert retry.action == "deleted"
    [other] = (await api.delete(deletion("web", request_id="d2"))).results
    assert other.failure.reason == "NotFound"


async def test_a_retry_knows_of_a_graceful_deletion_and_not_of_a_rehearsal(master: Master, api: ClusterService) -> None:
    await created(api, pod())
    await bind(master)
    await api.delete(deletion("web"))
    await master.store.write([Delete(Key("Pod", "default", "web"))])
    [retry] = (await api.delete(deletion("web"))).results
    assert retry.action == "deleted"
    await created(api, pod("other"), "another")
    await api.delete(deletion("other", request_id="dry", dry_run=True))
    await api.delete(deletion("other"))
    [late] = (await api.delete(deletion("other", request_id="dry"))).results
    assert late.failure.reason == "NotFound"


async def test_a_pod_that_is_ended_at_once_stays_until_its_agent_says_so(master: Master, api: ClusterService) -> None:
    await created(api, pod())
    await bind(master)
    await api.delete(deletion("web", grace_period_seconds=0))
    [result] = (await api.update(sent(pod("web", "", tier="x"), request_id="u"))).results
    assert result.action == "configured"
    assert master.store.view.get("Pod", "default", "web") is not None


async def test_a_pod_on_a_node_goes_gracefully_and_grace_only_shrinks(master: Master, api: ClusterService) -> None:
    await created(api, pod())
    await bind(master)

    def grace() -> int:
        found = master.store.view.get("Pod", "default", "web")
        assert isinstance(found, o.Pod)
        assert found.metadata.HasField("deletionTimestamp")
        return found.metadata.deletionGracePeriodSeconds

    await api.delete(deletion("web"))
    assert grace() == 30
    for asked, expected in ((60, 30), (5, 5), (0, 0)):
        await api.delete(deletion("web", request_id=f"d{asked}", grace_period_seconds=asked))
        assert grace() == expected


async def test_grace_0_on_a_node_that_does_not_answer_removes_the_record(master: Master, api: ClusterService) -> None:
    await created(api, pod())
    await bind(master, ready=False)
    await api.delete(deletion("web", grace_period_seconds=0))
    assert master.store.view.get("Pod", "default", "web") is None


@pytest.mark.parametrize(("how", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")])
async def test_propagation_holds_the_object_with_a_finalizer(
    master: Master, api: ClusterService, how: str, finalizer: str
) -> None:
    await created(api, deployment())
    await api.delete(deletion("web", "Deployment", propagation=how))
    found = master.store.view.get("Deployment", "default", "web")
    assert found is not None
    assert list(found.metadata.finalizers) == [finalizer]
    wish = deployment()
    [result] = (await api.update(sent(wish))).results
    assert result.action == "configured"
    assert master.store.view.get("Deployment", "default", "web") is None


async def test_finalizers_are_honoured(master: Master, api: ClusterService) -> None:
    wish = deployment()
    wish.metadata.finalizers.append("example.com/hold")
    await created(api, wish)
    await api.delete(deletion("web", "Deployment"))
    assert master.store.view.get("Deployment", "default", "web") is not None
    more = deployment()
    more.metadata.finalizers.extend(["example.com/hold", "example.com/late"])
    [late] = (await api.update(sent(more))).results
    assert late.failure.fields[0].path == "metadata.finalizers"
    await api.update(sent(deployment()))
    assert master.store.view.get("Deployment", "default", "web") is None


class Restless:
    """A store in which somebody changes every object just before it is deleted."""

    def __init__(self, store: Store) -> None:
        self._store, self._count = store, 0

    @property
    def view(self) -> View:
        return self._store.view

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> Sequence[Record | Fault | None]:
        for change in changes:
            if isinstance(change, Delete):
                await self._store.write([Modify(change.key, self._touch)])
        return await self._store.write(changes, low_priority=low_priority)

    def _touch(self, obj: Object) -> bool:
        self._count += 1
        obj.metadata.labels["count"] = str(self._count)
        return True

    def subscribe(self, kinds: Collection[str] | None) -> AsyncIterator[tuple[int, list[Event]]]:
        return self._store.subscribe(kinds)


async def test_an_object_that_others_change_all_the_time_can_be_deleted(master: Master, api: ClusterService) -> None:
    await created(api, deployment())
    writes = Writes(Restless(master.store), lambda: 1e9)
    [result] = (await writes.delete(deletion("web", "Deployment"))).results
    assert result.action == "deleted"
    found = master.store.view.get("Deployment", "default", "web")
    assert found is not None
    assert found.metadata.HasField("deletionTimestamp"), "the collector takes it away"
    assert not found.metadata.finalizers


async def test_deletion_checks_what_it_is_told(api: ClusterService) -> None:
    await created(api, pod())
    [other] = (await api.delete(deletion("web", uid="another"))).results
    assert other.failure.reason == "Conflict"
    [own] = (await api.delete(deletion("default", "Namespace"))).results
    assert own.failure.reason == "Forbidden"
    for bad in (deletion("web", propagation="Sideways"), deletion("web", grace_period_seconds=-1)):
        with pytest.raises(Invalid):
            await api.delete(bad)
    [dry] = (await api.delete(deletion("web", dry_run=True))).results
    assert dry.action == "deleted"
    assert (await api.get(c.GetRequest(key=c.Key(kind="Pod", name="web")))).body


# ---- reads ----
async def test_a_page_ends_before_it_is_too_large(api: ClusterService) -> None:
    large = o.ConfigMap(apiVersion="v1", kind="ConfigMap", data={"x": "x" * 900_000})
    for number in range(12):
        large.metadata.name = f"c{number:02}"
        await created(api, large, f"r{number}")
    names: list[str] = []
    token, pages = "", 0
    while not pages or token:
        page = await api.list(c.ListRequest(kind="ConfigMap", continue_token=token))
        assert sum(len(envelope.body) for envelope in page.objects) <= PAGE_BYTES
        names += [opened(envelope).metadata.name for envelope in page.objects]
        token, pages = page.continue_token, pages + 1
    assert names == [f"c{number:02}" for number in range(12)]
    assert pages == 2


async def test_lists_select_and_pass_stored_bytes_through(master: Master, api: ClusterService) -> None:
    await api.create(sent(pod("a", tier="x"), pod("b", tier="y"), pod("c", tier="x")))
    chosen = await api.list(c.ListRequest(kind="Pod", label_selector="tier=x"))
    assert [opened(obj).metadata.name for obj in chosen.objects] == ["a", "c"]
    record = master.store.view.record(Key("Pod", "default", "a"))
    assert record is not None
    assert chosen.objects[0].body is not None
    assert chosen.objects[0].body == record.body
    one = await api.list(c.ListRequest(kind="Pod", field_selector="metadata.name=b"))
    assert [opened(obj).metadata.name for obj in one.objects] == ["b"]
    page = await api.list(c.ListRequest(kind="Pod", limit=2))
    assert page.remaining == 1
    rest = await api.list(c.ListRequest(kind="Pod", limit=2, continue_token=page.continue_token))
    assert [opened(obj).metadata.name for obj in rest.objects] == ["c"]
    assert rest.revision == page.revision


@pytest.mark.parametrize(
    "request_",
    [
        c.ListRequest(kind="Gadget"),
        c.ListRequest(kind="Pod", label_selector="a in"),
        c.ListRequest(kind="Pod", field_selector="spec.colour=red"),
        c.ListRequest(kind="Pod", limit=-1),
        c.ListRequest(kind="Pod", continue_token="nonsense"),
    ],
)
async def test_bad_lists_are_refused(api: ClusterService, request_: c.ListRequest) -> None:
    with pytest.raises(Fault) as caught:
        await api.list(request_)
    assert caught.value.reason == "Invalid"


async def test_watch_tells_what_enters_and_leaves_the_selector(master: Master, api: ClusterService) -> None:
    start = master.store.view.revision
    watch = api.watch(c.WatchRequest(kinds=["Pod"], label_selector="tier=x", from_revision=start))
    await api.create(sent(pod("a", tier="x"), pod("b", tier="y")))

    def relabel(obj: Object) -> bool:
        obj.metadata.labels["tier"] = "y"
        return True

    await master.store.write([Modify(Key("Pod", "default", "a"), relabel)])
    told: list[tuple[str, str]] = []
    async for batch in watch:
        told += [(event.type, opened(event.object).metadata.name) for event in batch.events]
        if len(told) == 2:
            break
    assert told == [("ADDED", "a"), ("DELETED", "a")]
