"""Logs, exec and images over tunnels, on in-memory streams."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile

import pytest

from shoal.agent.images.port import Image
from shoal.agent.runtime.port import ContainerID
from shoal.agent.tunnel_streams import FRAME_BYTES
from shoal.agent.tunnels import MAX_TUNNELS
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import Pipe, World, scenario, until
from tests.agents import UID, make_pod
from tests.images import small

T0 = "2026-01-02T03:04:05Z"


def is_running(report: s.PodReport) -> bool:
    return report.status.phase == "Running"


async def begin(world: World) -> Pipe:
    pipe = await world.master.welcomed(-1, make_pod())
    await world.reports(pipe, UID, is_running)
    return pipe


async def ask(world: World, pipe: Pipe, **request: object) -> Pipe:
    """Sends an Open and gives the tunnel that the agent makes for it."""
    number = len(world.master.tunnels)
    pipe.put(s.Down(open=s.Open(id=f"t{number}", **request)))  # type: ignore[arg-type]
    await until(lambda: len(world.master.tunnels) > number, "a tunnel")
    tunnel = world.master.tunnels[number]
    hello = await tunnel.wait("hello")
    assert hello.id == f"t{number}"
    return tunnel


async def answer(tunnel: Pipe) -> tuple[bytes, s.TunnelEnd]:
    end = await tunnel.wait("end")
    await until(lambda: tunnel.closed, "the tunnel's end")
    assert tunnel.got[-1].HasField("end"), "nothing comes after the end"
    assert all(len(data) <= FRAME_BYTES for data in tunnel.of("data"))
    return b"".join(tunnel.of("data")), end


def write(world: World, attempt: int, *lines: str) -> None:
    data = "".join(f"{T0} stdout F {line}\n" for line in lines)
    world.logs.append(f"/logs/{UID}/app/{attempt}.log", data.encode())


@scenario
async def test_b14_logs_of_this_run_and_of_the_one_before(world: World) -> None:
    async with world.running() as agent:
        pipe = await begin(world)
        write(world, 0, "first", "run")
        facts = agent.worker.machines[UID].container("app")
        assert facts is not None
        data, end = await answer(await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, container="app")))
        assert (data, end.exit_code, end.error) == (b"first\nrun\n", 0, "")
        _, end = await answer(await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, previous=True)))
        assert "has no previous run" in end.error
        world.runtime.crash(ContainerID(UID, "app", 0))
        await until(lambda: facts.live and facts.restarts == 1)
        write(world, 1, "second")
        data, _ = await answer(await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID)))
        assert data == b"second\n"
        data, _ = await answer(await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, previous=True, tail_lines=1)))
        assert data == b"run\n"


@scenario
async def test_followed_logs_go_on_over_restarts_and_end_with_the_pod(world: World) -> None:
    async with world.running() as agent:
        pipe = await begin(world)
        write(world, 0, "one")
        tunnel = await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, follow=True, tail_lines=1))
        await until(lambda: b"".join(tunnel.of("data")) == b"one\n")
        write(world, 0, "two", "last")
        facts = agent.worker.machines[UID].container("app")
        assert facts is not None
        for attempt in (1, 2):
            world.runtime.crash(ContainerID(UID, "app", attempt - 1))
            await until(lambda n=attempt: facts.live and facts.restarts == n)  # type: ignore[misc]
            write(world, attempt, f"begin {attempt}", f"end {attempt}")
        await until(lambda: b"end 2" in b"".join(tunnel.of("data")))
        assert not tunnel.of("end")
        pipe.put(world.master.change(remove=(UID,)))
        data, end = await answer(tunnel)
        assert data == b"one\ntwo\nlast\nbegin 1\nend 1\nbegin 2\nend 2\n"
        assert end.error == ""


@scenario
async def test_followed_logs_end_with_a_container_that_is_not_restarted(world: World) -> None:
    async with world.running():
        pipe = await world.master.welcomed(-1, make_pod(policy="Never", containers=("app", "other")))
        await world.reports(pipe, UID, is_running)
        write(world, 0, "one")
        tunnel = await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, container="app", follow=True))
        await tunnel.wait("data")
        world.runtime.crash(ContainerID(UID, "app", 0))
        data, _ = await answer(tunnel)
        assert data == b"one\n"


@scenario
async def test_a_follower_that_was_cut_off_goes_on_where_it_was(world: World) -> None:
    """Across a restart of the container meanwhile, from the position that came last."""
    async with world.running() as agent:
        pipe = await begin(world)
        write(world, 0, *(str(number) for number in range(5)))
        first = await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, follow=True, tail_lines=2))
        await until(lambda: b"".join(first.of("data")) == b"3\n4\n")
        place = first.got[-1].position
        first.cut()
        write(world, 0, "5")
        facts = agent.worker.machines[UID].container("app")
        assert facts is not None
        world.runtime.crash(ContainerID(UID, "app", 0))
        await until(lambda: facts.live and facts.restarts == 1)
        write(world, 1, "6")
        request = s.LogsOpen(pod_uid=UID, follow=True, tail_lines=2, resume=place)
        second = await ask(world, pipe, logs=request)
        await until(lambda: b"6" in b"".join(second.of("data")))
        assert b"".join(second.of("data")) == b"5\n6\n"


@scenario
async def test_a_log_that_was_rotated_away_is_said_to_have_gaps(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        write(world, 0, "here")
        place = s.LogPosition(file="gone", head=b"x", offset=7)
        tunnel = await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, resume=place))
        data, _ = await answer(tunnel)
        assert data == b"here\n" and "may be missing" in tunnel.of("progress")[0]


@scenario
async def test_limit_bytes_ends_a_log(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        write(world, 0, "abcdef", "ghi")
        for limit, text in ((3, b"abc"), (7, b"abcdef\n"), (100, b"abcdef\nghi\n")):
            data, _ = await answer(await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, limit_bytes=limit)))
            assert data == text


@scenario
async def test_usage_is_a_rate_between_two_samples(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        data, _ = await answer(await ask(world, pipe, usage=s.UsageOpen()))
        report = s.UsageReport.FromString(data)
        assert abs(report.node_cpu_cores - 0.5) < 0.01 and report.node_memory_bytes == 1 << 30
        assert [(each.pod_uid, each.container) for each in report.containers] == [(UID, "app")]


@scenario
async def test_a_reader_who_leaves_ends_the_tunnel(world: World) -> None:
    async with world.running() as agent:
        pipe = await begin(world)
        for way in ("close", "end", "cut"):
            tunnel = await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, follow=True))
            if way == "cut":
                tunnel.cut()
            else:
                tunnel.put(None if way == "close" else s.TunnelFrame(end=s.TunnelEnd()))
            await until(lambda t=tunnel: t.closed)  # type: ignore[misc]
        assert agent.tunnels.count == 0


@scenario
async def test_exec_takes_input_and_gives_output_and_code(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        run = s.ExecOpen(pod_uid=UID, container="app", command=["cat"], stdin=True)
        tunnel = await ask(world, pipe, exec=run)
        big = bytes(range(256)) * 1000
        tunnel.put(s.TunnelFrame(data=big))
        await until(lambda: b"".join(tunnel.of("data")) == big)
        tunnel.put(s.TunnelFrame(resize=s.TerminalSize(rows=1, columns=2)))
        tunnel.put(s.TunnelFrame(close_input=True))
        _, end = await answer(tunnel)
        assert (end.exit_code, end.error) == (0, "")
        _, end = await answer(await ask(world, pipe, exec=s.ExecOpen(pod_uid=UID, command=["exit", "7"])))
        assert end.exit_code == 7
        _, end = await answer(await ask(world, pipe, exec=s.ExecOpen(pod_uid=UID, command=["nope"])))
        assert end.exit_code == 127 and "not found" in end.error


@scenario
async def test_a_process_whose_person_leaves_is_ended(world: World) -> None:
    async with world.running() as agent:
        pipe = await begin(world)
        tunnel = await ask(world, pipe, exec=s.ExecOpen(pod_uid=UID, command=["sleep", "100000"]))
        tunnel.cut()
        await until(lambda: tunnel.closed and agent.tunnels.count == 0)


@scenario
async def test_attach_shows_output_gives_input_and_ends_with_the_container(world: World) -> None:
    async with world.running():
        pod = make_pod(policy="Never")
        pod.spec.containers[0].stdin = True
        pipe = await world.master.welcomed(-1, pod)
        await world.reports(pipe, UID, is_running)
        tunnel = await ask(world, pipe, attach=s.AttachOpen(pod_uid=UID, stdin=True))
        tunnel.put(s.TunnelFrame(data=b"hello"))
        await until(lambda: b"".join(tunnel.of("data")) == b"hello")
        world.runtime.crash(ContainerID(UID, "app", 0))
        _, end = await answer(tunnel)
        assert end.error == "" and end.exit_code


@scenario
async def test_attach_without_input_says_so(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        _, end = await answer(await ask(world, pipe, attach=s.AttachOpen(pod_uid=UID, stdin=True)))
        assert "takes no input" in end.error and "stdin: true" in end.error


REFUSALS: list[tuple[dict[str, object], str]] = [
    ({"logs": s.LogsOpen(pod_uid="nope")}, "pod nope is not on this node"),
    ({"logs": s.LogsOpen(pod_uid=UID, container="nope")}, "has no container 'nope': choose one of app"),
    ({"exec": s.ExecOpen(pod_uid="nope", command=["x"])}, "is not on this node"),
    ({"attach": s.AttachOpen(pod_uid="nope")}, "is not on this node"),
    ({"copy": s.CopyOpen(pod_uid=UID, path="/x", out=True)}, "this node cannot copy files"),
    ({}, "does not know the request None"),
]


@pytest.mark.parametrize(("request_", "text"), REFUSALS)
def test_what_cannot_be_answered_says_why(request_: dict[str, object], text: str) -> None:
    @scenario
    async def refused(world: World) -> None:
        async with world.running():
            pipe = await begin(world)
            _, end = await answer(await ask(world, pipe, **request_))
            assert text in end.error and end.exit_code == 1

    refused()


@scenario
async def test_a_pod_of_two_must_be_asked_by_container(world: World) -> None:
    async with world.running():
        pod = make_pod(containers=("a", "b"))
        pipe = await world.master.welcomed(-1, pod)
        await world.reports(pipe, UID, is_running)
        _, end = await answer(await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID)))
        assert "has several containers: choose one of a, b" in end.error


@scenario
async def test_tunnels_are_bounded(world: World) -> None:
    async with world.running() as agent:
        pipe = await begin(world)
        for _ in range(MAX_TUNNELS):
            await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID, follow=True))
        _, end = await answer(await ask(world, pipe, logs=s.LogsOpen(pod_uid=UID)))
        assert f"serves {MAX_TUNNELS} streams already" in end.error
        assert agent.tunnels.count == MAX_TUNNELS


@scenario
async def test_an_image_that_is_loaded_lets_waiting_pods_start(world: World) -> None:
    async with world.running():
        pod = make_pod()
        pod.spec.containers[0].image = "extra:1"
        pipe = await world.master.welcomed(-1, pod)
        report = await world.reports(
            pipe, UID, lambda r: r.status.containerStatuses[0].state.waiting.reason == "ErrImagePull"
        )
        assert report.status.phase == "Pending"
        tunnel = await ask(world, pipe, image_load=s.ImageLoadOpen(name=""))
        data = small(name="extra:1", config={"Entrypoint": ["/run"]})
        for at in range(0, len(data), FRAME_BYTES):
            tunnel.put(s.TunnelFrame(data=data[at : at + FRAME_BYTES]))
        tunnel.put(s.TunnelFrame(close_input=True))
        _, end = await answer(tunnel)
        assert end.error == "" and list(end.images) == ["docker.io/library/extra:1"]
        await world.reports(pipe, UID, is_running)
        await until(lambda: any("extra:1" in name for n in pipe.of("node") for i in n.images for name in i.names))


@scenario
async def test_a_broken_archive_is_refused_and_a_cut_stream_loads_nothing(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        tunnel = await ask(world, pipe, image_load=s.ImageLoadOpen())
        tunnel.put(s.TunnelFrame(data=b"this is no archive" * 100))
        tunnel.put(s.TunnelFrame(close_input=True))
        _, end = await answer(tunnel)
        assert end.exit_code == 1 and end.error
        tunnel = await ask(world, pipe, image_load=s.ImageLoadOpen())
        tunnel.put(s.TunnelFrame(data=b"\0" * 512))
        tunnel.put(None)
        _, end = await answer(tunnel)
        assert "broke off" in end.error
        assert len(await world.images.list()) == 1


@scenario
async def test_an_image_is_pulled_with_the_credentials_that_came(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        world.images.publish("reg.example/web:1", size=7)
        world.images.passwords["reg.example"] = ("anna", "fish")
        _, end = await answer(await ask(world, pipe, image_pull=s.ImagePullOpen(name="reg.example/web:1")))
        assert end.exit_code == 1 and end.error.startswith("Unauthorized: reg.example refuses")
        right = s.RegistryCredential(registry="reg.example", username="anna", password="fish")
        request = s.ImagePullOpen(name="reg.example/web:1", credentials=[right])
        tunnel = await ask(world, pipe, image_pull=request)
        data, end = await answer(tunnel)
        found = await world.images.find("reg.example/web:1")
        assert found is not None and json.loads(data) == {"digest": found.digest, "size": 7}
        assert list(end.images) == ["reg.example/web:1"] and tunnel.of("progress") == ["unpacked layer 1 of 1"]
        await until(lambda: any("web:1" in name for n in pipe.of("node") for i in n.images for name in i.names))


@scenario
async def test_a_pull_ends_when_the_person_goes(world: World) -> None:
    async with world.running() as agent:
        pipe = await begin(world)
        began, gone = asyncio.Event(), asyncio.Event()

        async def endless(*_: object) -> Image:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()
            raise AssertionError

        world.images.pull = endless  # type: ignore[method-assign,assignment]
        tunnel = await ask(world, pipe, image_pull=s.ImagePullOpen(name="a:1"))
        await began.wait()
        tunnel.cut()
        await gone.wait()
        await until(lambda: agent.tunnels.count == 0)


@scenario
async def test_images_are_tagged_pushed_inspected_and_pruned(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        image = world.images.add("spare:1", size=9)
        request = s.ImageTagOpen(source="spare:1", target="reg.example/spare:2")
        _, end = await answer(await ask(world, pipe, image_tag=request))
        assert end.error == "" and await world.images.find("reg.example/spare:2") is not None
        data, end = await answer(await ask(world, pipe, image_push=s.ImagePushOpen(name="reg.example/spare:2")))
        assert json.loads(data) == {"digest": image.digest} and "reg.example/spare:2" in world.images.remote
        data, _ = await answer(await ask(world, pipe, image_inspect=s.ImageInspectOpen(name="spare:1")))
        assert json.loads(data)["names"] == ["docker.io/library/spare:1", "reg.example/spare:2"]
        for dry_run in (True, False):
            assert await world.images.find("spare:1") is not None
            request_ = s.ImagePruneOpen(all=True, dry_run=dry_run)
            data, _ = await answer(await ask(world, pipe, image_prune=request_))
            assert json.loads(data)["freed"] == 9
        assert await world.images.find("spare:1") is None and await world.images.find("app:1") is not None


@scenario
async def test_images_are_saved_as_they_were_loaded(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        tunnel = await ask(world, pipe, image_load=s.ImageLoadOpen())
        for start in range(0, len(small(name="extra:1")), FRAME_BYTES):
            tunnel.put(s.TunnelFrame(data=small(name="extra:1")[start : start + FRAME_BYTES]))
        tunnel.put(s.TunnelFrame(close_input=True))
        await answer(tunnel)
        data, end = await answer(await ask(world, pipe, image_save=s.ImageSaveOpen(names=["extra:1"])))
        assert end.error == ""
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert json.load(archive.extractfile("manifest.json"))[0]["RepoTags"] == [  # type: ignore[arg-type]
                "docker.io/library/extra:1"
            ]
        for names, why in ((["nosuch:1"], "NotFound"), ([], "1 to 100 images"), (["a"] * 101, "not 101")):
            _, end = await answer(await ask(world, pipe, image_save=s.ImageSaveOpen(names=names)))
            assert why in end.error


@scenario
async def test_a_login_is_tried_and_its_password_is_never_repeated(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        world.images.passwords["reg.example"] = ("anna", "fish")
        for credential, why in (
            (s.RegistryCredential(registry="reg.example", username="anna", password="fish"), ""),
            (s.RegistryCredential(registry="reg.example", username="anna", password="wrong"), "Unauthorized"),
            (s.RegistryCredential(registry="reg.example", username="anna", password="wrong" * 999), "4096"),
            (s.RegistryCredential(username="anna", password="wrong"), "needs a registry"),
        ):
            _, end = await answer(await ask(world, pipe, login=s.LoginOpen(credential=credential)))
            assert why in end.error and bool(why) == bool(end.error) and "wrong" not in end.error


@scenario
async def test_images_are_removed_but_not_under_a_container(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        _, end = await answer(await ask(world, pipe, image_remove=s.ImageRemoveOpen(name="app:1")))
        assert end.error.startswith("InUse") and end.exit_code == 1
        world.images.add("spare:1")
        _, end = await answer(await ask(world, pipe, image_remove=s.ImageRemoveOpen(name="spare:1")))
        assert end.error == ""
        assert await world.images.find("spare:1") is None


@scenario
async def test_a_slow_reader_holds_the_sender_back(world: World) -> None:
    async with world.running():
        pipe = await begin(world)
        write(world, 0, *("x" * 1000 for _ in range(500)))
        world.master.stalling = True
        pipe.put(s.Down(open=s.Open(id="slow", logs=s.LogsOpen(pod_uid=UID))))
        await until(lambda: bool(world.master.tunnels))
        [tunnel] = world.master.tunnels
        await asyncio.sleep(5)
        assert tunnel.got == []
        tunnel.stalled = False
        data, _ = await answer(tunnel)
        assert len(data) == 500 * 1001
