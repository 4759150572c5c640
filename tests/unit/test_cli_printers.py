"""What the command prints, from messages alone."""

import json
from typing import Any

import pytest
import yaml

from shoal.deploy.cli import main
from shoal.deploy.cli.apply import problem_lines
from shoal.deploy.cli.frames import copy_out
from shoal.deploy.cli.image_lines import document_of
from shoal.deploy.cli.options import DURATION
from shoal.deploy.cli.printers import reasons, status, text
from shoal.deploy.cli.printers.details import describe
from shoal.deploy.cli.printers.happenings import derived, with_derived
from shoal.deploy.cli.printers.images import Found, found_images, row
from shoal.deploy.cli.printers.tables import COLUMNS, headings, row_of
from shoal.deploy.cli.printers.whole import sort_value, whole_text
from shoal.deploy.cli.tamed import Tamer
from shoal.proto.kinds import CLASSES
from shoal.proto.manifest import parse
from shoal.proto.printing import to_json, to_yaml
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.unit.test_manifest_scheduling import GOOD

NOW = 1_800_000_000.0


def at(seconds_ago: float) -> o.Time:
    return o.Time(seconds=int(NOW - seconds_ago))


def pod(**status_fields: object) -> o.Pod:
    made = o.Pod(apiVersion="v1", kind="Pod")
    made.metadata.name, made.metadata.namespace = "web-1", "default"
    made.metadata.creationTimestamp.CopyFrom(at(200))
    made.spec.containers.add(name="nginx", image="nginx:1.27").ports.add(containerPort=80, protocol="TCP")
    made.spec.nodeName = "node-1"
    made.status.MergeFrom(o.PodStatus(**status_fields))  # type: ignore[arg-type]
    return made


def container(**fields: object) -> o.ContainerStatus:
    return o.ContainerStatus(name="nginx", **fields)  # type: ignore[arg-type]


WAITING = o.ContainerState(
    waiting=o.ContainerStateWaiting(reason="ErrImageNeverPull", message="node has no image nginx")
)
RUNNING = o.ContainerState(running=o.ContainerStateRunning(startedAt=at(100)))
KILLED = o.ContainerState(
    terminated=o.ContainerStateTerminated(
        exitCode=137, signal=9, reason="OOMKilled", startedAt=at(90), finishedAt=at(50)
    )
)
DONE = o.ContainerState(terminated=o.ContainerStateTerminated(reason="Completed", finishedAt=at(50)))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "<invalid>"),
        (-0.5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (200, "3m20s"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (5 * 3600 + 600, "5h10m"),
        (8 * 3600, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (51 * 3600, "2d3h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (731 * 86400, "2y1d"),
        (9 * 365 * 86400, "9y"),
    ],
)
def test_ages(seconds: float, shown: str) -> None:
    assert text.age(seconds) == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (12_345, "12.3kB"), (187_000_000, "187MB"), (2 * 10**12, "2TB")],
)
def test_sizes(amount: int, shown: str) -> None:
    assert text.size(amount) == shown


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("100ms", 0.1)]
)
def test_durations(written: str, seconds: float) -> None:
    assert DURATION.convert(written, None, None) == seconds


@pytest.mark.parametrize("written", ["", "x", "5 m", "-5s", "5y", "m5"])
def test_bad_durations(written: str) -> None:
    with pytest.raises(Exception, match="is not a duration"):
        DURATION.convert(written, None, None)


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert text.clean("a\x1b[31mb\nc") == "a\N{REPLACEMENT CHARACTER}[31mb c"
    hostile = pod(phase="Running", reason="\x1b]0;owned\x07")
    assert "\x1b" not in "".join(row_of(hostile, NOW)) + "".join(describe(hostile, NOW, []))


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_log_cannot_drive_the_terminal_but_may_be_coloured(cut: int) -> None:
    log = b"\x1b[1;31mred\x1b[0m \x1b]52;c;cm0gLXJmCg==\x07\x1b[2J \xc2\x9b31m \xc3\xa4\x7f\x1b[\r\n\tok\x1b"
    tamer = Tamer()
    shown = tamer.feed(log[:cut]) + tamer.feed(log[cut:]) + tamer.finish()
    assert shown == (b"\x1b[1;31mred\x1b[0m ^[]52;c;cm0gLXJmCg==^G^[[2J M-^[31m \xc3\xa4^?^[[\r\n\tok^[")


def test_errors_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    main._say("first\nsecond \x1b[2J")
    assert capsys.readouterr().err == "first\nsecond \N{REPLACEMENT CHARACTER}[2J\n"
    frames = [s.TunnelFrame(progress="\x1b]0;owned\x07"), s.TunnelFrame(end=s.TunnelEnd())]
    assert copy_out(iter(frames)) == 0
    assert "\x1b" not in capsys.readouterr().err


def test_json_and_yaml_cannot_drive_the_terminal_and_read_back_the_same() -> None:
    value = "a\x1b[2J\x7f\x9b31m\u202eb\U000e0001\u00e4"
    config = o.ConfigMap(kind="ConfigMap", data={"k": value})
    for written in (to_json(config), to_yaml(config)):
        assert written.replace("\n", "").isprintable()
    assert yaml.safe_load(to_yaml(config))["data"]["k"] == value
    assert json.loads(to_json(config))["data"]["k"] == value
    assert "\u00e4" in to_json(config)


@pytest.mark.parametrize("answer", ["[" * 100_000, "5", "{", ""])
def test_what_a_node_answers_may_be_nonsense(answer: str) -> None:
    assert document_of(c.LoadImageResponse(json=answer)) == {}


def test_tables_stay_aligned_over_several_calls() -> None:
    widths: list[int] = []
    assert list(text.table([["NAME", "X"], ["ab", "1"]], widths)) == ["NAME   X", "ab     1"]
    assert list(text.table([["c", "2"]], widths)) == ["c      2"]


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (pod(phase="Pending"), "Pending"),
        (pod(phase="Pending", containerStatuses=[container(state=WAITING)]), "ErrImageNeverPull"),
        (pod(phase="Running", containerStatuses=[container(state=RUNNING, ready=True)]), "Running"),
        (pod(phase="Running", containerStatuses=[container(state=KILLED)]), "OOMKilled"),
        (pod(phase="Succeeded", containerStatuses=[container(state=DONE)]), "Completed"),
        (
            pod(phase="Running", containerStatuses=[container(state=RUNNING, ready=True), container(state=DONE)]),
            "NotReady",
        ),
        (pod(phase="Failed", reason="Lost", containerStatuses=[container(state=RUNNING, ready=True)]), "Lost"),
        (pod(), "Unknown"),
    ],
)
def test_status_of_pods(made: o.Pod, shown: str) -> None:
    assert status.pod_status(made) == shown


def test_a_pod_that_is_deleted_is_terminating() -> None:
    made = pod(phase="Running", containerStatuses=[container(state=RUNNING, ready=True)])
    made.metadata.deletionTimestamp.CopyFrom(at(1))
    assert status.pod_status(made) == "Terminating"


def test_rows_of_pods() -> None:
    made = pod(phase="Running", podIP="10.244.1.2", containerStatuses=[
        container(state=RUNNING, ready=True, restartCount=2, lastState=KILLED)
    ])  # fmt: skip
    assert row_of(made, NOW) == ["web-1", "1/1", "Running", "2 (50s ago)", "3m20s"]
    wide = row_of(made, NOW, wide=True, namespace=True, labels=True, prefix="pod/")
    assert wide == ["default", "pod/web-1", "1/1", "Running", "2 (50s ago)", "3m20s", "10.244.1.2", "node-1", "<none>"]


@pytest.mark.parametrize("kind", sorted(CLASSES))
@pytest.mark.parametrize("wide", [False, True])
def test_every_kind_has_as_many_cells_as_headings_even_when_empty(kind: str, wide: bool) -> None:
    empty = CLASSES[kind](kind=kind)
    cells = row_of(empty, NOW, wide=wide, namespace=True, labels=True)
    assert len(cells) == len(headings(kind, wide=wide, namespace=True, labels=True))
    assert describe(empty, NOW, [])
    assert COLUMNS[kind].coloured in ("", *COLUMNS[kind].normal)


def test_rows_of_workloads_and_nodes() -> None:
    made = o.Deployment(kind="Deployment")
    made.metadata.name = "web"
    made.spec.replicas = 3
    made.spec.selector.matchLabels["app"] = "web"
    made.spec.selector.matchExpressions.add(key="tier", operator="In", values=["a", "b"])
    made.status.readyReplicas, made.status.updatedReplicas, made.status.availableReplicas = 2, 3, 2
    assert row_of(made, NOW, wide=True) == ["web", "2/3", "3", "2", "<unknown>", "", "", "app=web,tier in (a,b)"]
    node = o.Node(kind="Node")
    node.metadata.labels["node-role.kubernetes.io/worker"] = ""
    node.status.conditions.add(type="Ready", status="Unknown")
    assert row_of(node, NOW)[1:3] == ["NotReady", "worker"]


def test_rows_of_storage() -> None:
    volume = o.PersistentVolume(kind="PersistentVolume")
    volume.metadata.name = "pv-1"
    volume.spec.capacity["storage"].text = "5Gi"
    volume.spec.accessModes.extend(["ReadWriteOnce", "ReadOnlyMany"])
    volume.spec.claimRef.namespace, volume.spec.claimRef.name = "shop", "data"
    volume.spec.storageClassName = "local"
    term = volume.spec.nodeAffinity.required.nodeSelectorTerms.add()
    term.matchExpressions.add(key="kubernetes.io/hostname", operator="In", values=["node-2"])
    volume.status.phase = "Bound"
    cells = row_of(volume, NOW, wide=True)
    assert cells[:7] == ["pv-1", "5Gi", "RWO,ROX", "Retain", "Bound", "shop/data", "local"]
    assert cells[9:] == ["node-2", "Filesystem"]
    claim = o.PersistentVolumeClaim(kind="PersistentVolumeClaim")
    claim.metadata.name = "data"
    claim.spec.storageClassName = ""
    assert row_of(claim, NOW)[:6] == ["data", "Pending", "", "", "", ""]
    claim.spec.ClearField("storageClassName")
    claim.metadata.deletionTimestamp.CopyFrom(at(1))
    assert (row_of(claim, NOW)[1], row_of(claim, NOW)[5]) == ("Terminating", "<unset>")
    made = o.StorageClass(kind="StorageClass", provisioner="shoal.dev/local")
    made.metadata.name = "local"
    made.metadata.annotations["storageclass.kubernetes.io/is-default-class"] = "true"
    assert row_of(made, NOW)[:3] == ["local (default)", "shoal.dev/local", "Delete"]


def test_a_death_says_why() -> None:
    death = o.Death(kind="Death", container="app", node="node-1", reason="OOMKilled", exitCode=137, signal=9)
    death.cause, death.pod.name = "it used all of its 64 MiB", "web-1"
    death.finishedAt.CopyFrom(at(50))
    death.logTail.append("last\x1b[31m words")
    death.resources.peakMemoryBytes = 67_000_000
    assert row_of(death, NOW, wide=True)[1:] == [
        "web-1", "app", "OOMKilled", "signal 9", "50s", "node-1", "it used all of its 64 MiB"
    ]  # fmt: skip
    lines = describe(death, NOW, [])
    assert "Ended:           OOMKilled, signal 9" in lines
    assert "Peak Memory:     67MB" in lines
    assert "  last\N{REPLACEMENT CHARACTER}[31m words" in lines


def test_readiness_of_deployments() -> None:
    made = o.Deployment(kind="Deployment")
    made.metadata.generation, made.spec.replicas = 2, 2
    made.status.observedGeneration = 1
    made.status.replicas = made.status.readyReplicas = made.status.availableReplicas = made.status.updatedReplicas = 2
    assert status.ready_state(made) == (False, "waiting for the controller")
    made.status.observedGeneration = 2
    assert status.ready_state(made)[0]
    made.status.replicas = 3
    assert status.ready_state(made) == (False, "2 of 2 ready, 1 old to go")
    made.status.updatedReplicas = 1
    assert status.ready_state(made) == (False, "2 of 2 ready, 1 of 2 updated")


def test_why_a_pod_is_not_ready() -> None:
    unplaced = pod(conditions=[o.Condition(type="PodScheduled", status="False", message="0/3 nodes are available")])
    unplaced.spec.nodeName = ""
    assert reasons.why_not_ready(unplaced) == "0/3 nodes are available"
    waiting = pod(containerStatuses=[container(state=WAITING, lastState=KILLED)])
    assert reasons.why_not_ready(waiting) == (
        "container nginx: ErrImageNeverPull: node has no image nginx; container nginx: LastRun: its last run: "
        "OOMKilled: the kernel killed it for memory: it used more than its limit, or than its pod or node had; raise "
        "resources.limits.memory, or make it use less"
    )


def test_description_of_a_pod() -> None:
    made = pod(
        phase="Running",
        conditions=[o.Condition(type="PodScheduled", status="True", lastTransitionTime=at(195))],
        containerStatuses=[container(state=RUNNING, restartCount=1, lastState=KILLED)],
    )
    lines = describe(made, NOW, with_derived([], [made]))
    assert "    State:           Running, since 2027-01-15T07:58:20Z (100s ago)" in lines
    assert "    Last State:      Terminated: OOMKilled, signal 9" in lines
    events = lines[lines.index("Events:") + 1 :]
    assert [line.split()[1] for line in events] == ["Reason", "Scheduled", "Started", "Started", "Ended"]


def test_starts_are_derived_from_the_status() -> None:
    assert derived(pod(phase="Pending")) == []
    (event,) = derived(pod(containerStatuses=[container(state=RUNNING)]))
    assert (event.reason, event.lastTimestamp.seconds) == ("Started", int(NOW) - 100)


def test_secrets_are_never_shown() -> None:
    secret = o.Secret(kind="Secret", type="Opaque", data={"password": b"hunter2"})
    assert "hunter2" not in "\n".join(describe(secret, NOW, []))


def test_description_of_a_node_adds_up_requests() -> None:
    node = o.Node(kind="Node")
    node.status.allocatable["cpu"].text, node.status.allocatable["memory"].text = "2", "1Gi"
    one = pod(phase="Running")
    one.spec.containers[0].resources.requests["cpu"].text = "500m"
    one.spec.containers[0].resources.requests["memory"].text = "256Mi"
    ended = pod(phase="Succeeded")
    ended.spec.containers[0].resources.requests["cpu"].text = "1"
    lines = describe(node, NOW, [], [one, ended])
    assert "Asked For:       cpu 500m (25%), memory 256Mi (25%)" in lines


def test_images() -> None:
    nodes = [o.Node(), o.Node()]
    for index, node in enumerate(nodes):
        node.metadata.name = f"n{index}"
        digest = f"sha256:{'ab' * 32}"
        node.status.images.add(names=[*["nginx:1", "nginx:latest"][: index + 1], digest], sizeBytes=10**6)
    found = found_images(nodes)
    assert [row(image, 2) for image in found] == [
        ["nginx:1", "abababababab", "1MB", "all 2"],
        ["nginx:latest", "abababababab", "1MB", "n1"],
    ]
    assert row(found[0], 2, wide=True)[1] == digest
    assert found[1].document() == {"name": "nginx:latest", "digest": digest, "sizeBytes": 10**6, "nodes": ["n1"]}


def test_an_image_on_many_nodes_stays_on_one_line() -> None:
    image = Found("web:1", "", 10**6, tuple(f"n{number}" for number in range(6)))
    assert row(image, 9) == ["web:1", "<none>", "1MB", "n0,n1,n2 and 3 more"]
    assert row(image, 9, wide=True)[3] == "n0,n1,n2,n3,n4,n5" and row(image, 6)[3] == "all 6"


def test_one_name_for_two_images_has_two_rows() -> None:
    nodes = [o.Node(), o.Node()]
    for index, node in enumerate(nodes):
        node.metadata.name = f"n{index}"
        node.status.images.add(names=["web:1", f"sha256:{index}{'0' * 63}"], sizeBytes=10**6)
    assert [line[1][0] + line[3] for line in (row(image, 2) for image in found_images(nodes))] == ["0n0", "1n1"]


def test_one_object_is_itself_and_several_are_a_list() -> None:
    made = o.Namespace(apiVersion="v1", kind="Namespace")
    assert whole_text([made], "yaml") == "apiVersion: v1\nkind: Namespace"
    assert '"kind": "List"' in whole_text([made], "json", as_list=True)
    assert '"items": []' in whole_text([], "json", as_list=True)


def test_sorting() -> None:
    objects = [o.Deployment(), o.Deployment(), o.Deployment()]
    for obj, replicas in zip(objects, (10, 9, None), strict=True):
        if replicas is not None:
            obj.spec.replicas = replicas
    order = sorted(objects, key=lambda obj: sort_value(obj, "{.spec.replicas}"))
    assert [obj.spec.replicas for obj in order] == [9, 10, 0]


def test_description_of_a_pod_s_parts() -> None:
    made = pod(phase="Running", containerStatuses=[container(state=RUNNING)])
    made.spec.initContainers.add(name="prepare", image="busybox:1.35", restartPolicy="Always")
    app = made.spec.containers[0]
    app.livenessProbe.MergeFrom(o.Probe(initialDelaySeconds=3, timeoutSeconds=1, periodSeconds=5, successThreshold=1))
    app.livenessProbe.httpGet.port.text, app.livenessProbe.httpGet.path = "http", "/healthz"
    app.lifecycle.preStop.sleep.seconds = 4
    app.env.add(name="PASSWORD").valueFrom.secretKeyRef.MergeFrom(o.KeySelector(name="db", key="password"))
    app.envFrom.add(prefix="P_").configMapRef.MergeFrom(o.EnvSource(name="settings", optional=True))
    app.volumeMounts.add(name="data", mountPath="/data", readOnly=True, subPath="logs")
    made.spec.volumes.add(name="data").persistentVolumeClaim.claimName = "diary"
    made.spec.volumes.add(name="all").projected.sources.add().secret.name = "db"
    lines = describe(made, NOW, [])
    assert "  prepare: (sidecar)" in lines
    assert lines.index("Init Containers:") < lines.index("Containers:") < lines.index("Volumes:")
    for wanted in (
        "    Liveness:        http-get http://:http/healthz delay=3s timeout=1s period=5s #success=1 #failure=0",
        "    PreStop:         sleep 4s",
        "    Environment:     all of config map settings with prefix P_ (optional)",
        "                     PASSWORD: key password of secret db",
        "    Mounts:          /data from data/logs (ro)",
        "  data:            claim diary",
        "  all:             projected: secret db",
    ):
        assert wanted in lines


def test_ends_are_derived_of_init_containers_and_deletions_too() -> None:
    made = pod(initContainerStatuses=[o.ContainerStatus(name="prepare", state=KILLED)])
    made.metadata.deletionTimestamp.seconds, made.metadata.deletionGracePeriodSeconds = int(NOW), 30
    started, ended, killing = derived(made)
    assert (started.message, ended.reason) == ("Started container prepare", "Ended")
    assert (killing.reason, killing.lastTimestamp.seconds) == ("Killing", int(NOW) - 30)


def test_what_several_fields_have_in_common_is_said_once() -> None:
    why = 'the namespace\'s level is "restricted"; a label would allow this'
    fields = [
        c.FieldError(path="spec.a", message=f"must be false ({why})"),
        c.FieldError(path="spec.b", message="is 3 (at most 2)"),
        c.FieldError(path="", message="has no name"),
        c.FieldError(path="spec.c", message=f"must be true ({why})"),
    ]
    lines = [
        "spec.a: must be false",
        "spec.c: must be true",
        f"because {why}",
        "spec.b: is 3 (at most 2)",
        "has no name",
    ]
    assert problem_lines(fields) == lines


# ---- scheduling ----
def stamped(obj: Any) -> Any:
    obj.metadata.name, obj.metadata.creationTimestamp.seconds = "x", int(NOW) - 120
    return obj


def test_priority_classes() -> None:
    made = stamped(o.PriorityClass(kind="PriorityClass", value=1000, preemptionPolicy="Never", description="for us"))
    assert headings("PriorityClass") == ["NAME", "VALUE", "GLOBAL-DEFAULT", "AGE", "PREEMPTIONPOLICY"]
    assert row_of(made, NOW) == ["x", "1000", "false", "2m", "Never"]
    assert "Description:     for us" in describe(made, NOW, [])


def test_disruption_budgets() -> None:
    made = stamped(o.PodDisruptionBudget(kind="PodDisruptionBudget"))
    made.spec.minAvailable.text = "50%"
    made.spec.selector.matchExpressions.add(key="app", operator="In", values=["a", "b"])
    made.status.MergeFrom(o.PodDisruptionBudgetStatus(disruptionsAllowed=1, currentHealthy=3, desiredHealthy=2))
    assert row_of(made, NOW, wide=True) == ["x", "50%", "N/A", "1", "2m", "3", "2", "0", "app in (a,b)"]
    made.spec.ClearField("minAvailable")
    made.spec.maxUnavailable.number = 0
    made.spec.selector.Clear()
    made.spec.selector.SetInParent()
    assert row_of(made, NOW, wide=True)[1:3] == ["N/A", "0"] and row_of(made, NOW, wide=True)[-1] == "<all>"
    lines = describe(made, NOW, [])
    assert "Max Unavailable: 0" in lines and "Healthy:         3 of 0 pods, 2 desired" in lines


def test_pod_groups() -> None:
    made = stamped(o.PodGroup(kind="PodGroup"))
    made.spec.minMember = 4
    assert row_of(made, NOW) == ["x", "Pending", "4", "0", "0", "0", "2m"]
    made.status.MergeFrom(o.PodGroupStatus(phase="Running", running=4, scheduled=4, occupiedBy="ReplicaSet/web"))
    assert row_of(made, NOW, wide=True)[1:] == ["Running", "4", "4", "0", "0", "2m", "4", "<none>", "ReplicaSet/web"]
    assert "Members:         failed=0" in describe(made, NOW, [])


def test_a_cordoned_node_says_so() -> None:
    node = stamped(o.Node(kind="Node"))
    node.status.conditions.add(type="Ready", status="True")
    node.spec.unschedulable = True
    assert row_of(node, NOW)[1] == "Ready,SchedulingDisabled"


def test_a_pods_placement_is_described() -> None:
    (found,) = parse(GOOD, "f").objects
    assert isinstance(found.message, o.Pod)
    lines = [line.strip() for line in describe(found.message, NOW, [])]
    for wanted in (
        "Priority Class:  high",
        "Preemption:      Never",
        "Profile:         bin-packing",
        "Gates:           example.com/quota",
        "Overhead:        cpu=100m",
        "Affinity:        nodes: disk in (ssd) and cores gt (4) and metadata.name notin (n1)"
        " or a in (x) and a notin (x)",
        "nodes, weight 100: zone exists",
        "with pods app=db by topology.kubernetes.io/zone in namespaces data, <all>",
        "apart from pods, weight 1, app=web by kubernetes.io/hostname",
        "Spread:          topology.kubernetes.io/zone:DoNotSchedule when max skew 1 is exceeded for app in (web)",
        "kubernetes.io/hostname:ScheduleAnyway when max skew 2 is exceeded for <none>",
        "Host Ports:      10.0.0.1:8080/TCP, 8080/UDP",
    ):
        assert wanted in lines, wanted


def test_a_gated_pod_says_so_in_its_row() -> None:
    pod = stamped(o.Pod(kind="Pod"))
    pod.status.conditions.add(type="PodScheduled", status="False", reason="SchedulingGated")
    assert row_of(pod, NOW)[2] == "SchedulingGated"
