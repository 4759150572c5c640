"""The image verbs and logins on two nodes, with docker's own registry; skopeo sees what goes there and comes back.

Then pods whose registry misbehaves in every way that it can: each says how, and runs once the fault has ended.
"""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shoal.deploy.demo import oci_writer
from shoal.deploy.devcluster.plan import load
from tests import images, leaks, registries
from tests.cluster import bad_input
from tests.cluster.bad_input import Shoal, busybox, pod
from tests.devcluster import until
from tests.etcd import free_port
from tests.registries import PASSWORD, USER, Odd, Running, refusal, skopeo

NODE_DISK = "128Mi"
TOO_LARGE = 160 << 20  # bytes of a file that packs to a thousandth, so that it is noticed in the midst of the pull
POD_SECONDS = 240.0  # the second try comes after ten seconds, the third after twenty more


# For the module as a whole: its cluster outlives the single test.
clean_machine = pytest.fixture(scope="module", autouse=True)(leaks.clean_machine)


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """Of a registry with passwords, and of one that misbehaves."""
    return free_port(), free_port()


@pytest.fixture(scope="module")
def cluster(
    clean_machine: None, ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shoal, str]]:
    """With its gateway's address."""
    folder = tmp_path_factory.mktemp("verbs")
    flags = [word for port in ports for word in ("--insecure-registry", f"gateway:{port}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", str(folder / "docker"))
        with bad_input.cluster(
            folder, *flags, "--registry", "--node-disk", NODE_DISK, name=f"verbs{os.getpid()}"
        ) as made:
            plan = load(folder / "data")
            assert plan is not None
            yield made, plan.gateway


@pytest.fixture(scope="module")
def private(
    cluster: tuple[Shoal, str], ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("private")
    with registries.registry(folder, host=cluster[1], port=ports[0], password=True) as running:
        yield running


@pytest.fixture
def shoal(cluster: tuple[Shoal, str]) -> Iterator[Shoal]:
    """Nobody is logged in, and only base:1 is there."""
    made = cluster[0]
    yield made
    made.clear()
    for name in made("image", "ls", "-q").split():
        if name != "docker.io/library/base:1":
            made("image", "rm", name)
    own_file(made).unlink(missing_ok=True)


def own_file(shoal: Shoal) -> Path:
    return shoal.config.with_name("config-registries.json")


def log_in(shoal: Shoal, registry: Running) -> None:
    shoal("login", registry.address, "-u", USER, "--password-stdin", stdin=f"{PASSWORD}\n")


def listed(shoal: Shoal, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shoal("image", "ls", "-o", "json"))
    return [one for one in found if one["name"] == name]


# ---- logins ----
def test_a_login_is_kept_once_a_node_has_tried_it(shoal: Shoal, private: Running) -> None:
    shoal("login", private.address, "-u", USER, "--password-stdin", stdin="wrong", code=1)
    assert "Unauthorized" in shoal.err and "nothing is kept" in shoal.err and "wrong" not in shoal.err
    assert not own_file(shoal).exists()
    log_in(shoal, private)
    assert stat.S_IMODE(own_file(shoal).stat().st_mode) == 0o600
    shoal("logout", private.address)
    assert private.address not in own_file(shoal).read_text()
    shoal("logout", private.address, code=1)
    shoal("login", "127.0.0.1:1", "-u", USER, "--password-stdin", stdin="x", code=1)
    assert "127.0.0.1:1 cannot be reached" in shoal.err and "Connection refused" in shoal.err
    shoal("login", private.address, "-u", USER, "-p", PASSWORD, code=2)
    assert "seen by everybody" in shoal.err


def test_a_password_is_asked_for_without_an_echo(shoal: Shoal, private: Running) -> None:
    """On a terminal: nothing of it is shown, and it is the one that is kept."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shoal.deploy.cli.main", "login", private.address]
    env = os.environ | {"SHOAL_CONFIG": str(shoal.config)}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    said = b""
    try:
        for question, answer in ((b"User at", USER), (b"Password of", PASSWORD)):
            while question not in said:
                said += os.read(ours, 1024)
            os.write(ours, f"{answer}\n".encode())
        while b"is kept in" not in said:
            said += os.read(ours, 1024)
        assert process.wait(timeout=bad_input.COMMAND_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert PASSWORD.encode() not in said and private.address in own_file(shoal).read_text()


def test_a_login_becomes_a_secret_that_pods_pull_with(shoal: Shoal, private: Running) -> None:
    name = private.name("team/forpods:1")
    archive = shoal.file(busybox("forpods:1"), "forpods.tar")
    skopeo(
        "copy",
        "-q",
        "--dest-tls-verify=false",
        f"--dest-creds={USER}:{PASSWORD}",
        f"oci-archive:{archive}",
        f"docker://{name}",
    )
    log_in_as = ("-u", USER, "--password-stdin", "--secret", "pull")
    assert "secret/pull created" in shoal("login", private.address, *log_in_as, stdin=PASSWORD)
    assert not own_file(shoal).exists()
    text = pod("p", image=name).replace("{terminationGrace", "{imagePullSecrets: [{name: pull}], terminationGrace")
    shoal.apply(text)
    shoal.running("p")
    kept = json.loads(shoal("get", "secret", "pull", "-o", "json"))
    assert kept["type"] == "kubernetes.io/dockerconfigjson"
    assert "unchanged" in shoal("login", private.address, *log_in_as, stdin=PASSWORD)
    shoal.apply("{apiVersion: v1, kind: Secret, metadata: {name: other}, stringData: {a: b}}")
    shoal("login", private.address, "-u", USER, "--password-stdin", "--secret", "other", stdin=PASSWORD, code=1)
    assert "has the type Opaque" in shoal.err


# ---- pull, push, save ----
def test_what_is_pushed_skopeo_copies_and_nodes_pull_again(shoal: Shoal, private: Running, tmp_path: Path) -> None:
    name = private.name("team/base:2")
    shoal("image", "tag", "base:1", name, "--node", "node-2")
    assert [one["nodes"] for one in listed(shoal, name)] == [["node-2"]]
    shoal("image", "push", name, code=1)
    assert "without a credential" in shoal.err and "401" in shoal.err
    log_in(shoal, private)
    pushed = shoal("image", "push", name)  # from the node that has it
    [digest] = {one["digest"] for one in listed(shoal, name)}
    assert pushed.startswith(f"node-2: pushed {name}") and digest in pushed
    creds = ("--src-tls-verify=false", f"--src-creds={USER}:{PASSWORD}")
    skopeo("copy", "-q", *creds, f"docker://{name}", f"oci:{tmp_path / 'layout'}:2")
    [entry] = json.loads((tmp_path / "layout/index.json").read_text())["manifests"]
    assert entry["digest"] == digest
    shoal("image", "rm", name)
    assert listed(shoal, name) == []
    told = shoal("image", "pull", name)
    assert {line.split(":")[0] for line in told.splitlines()} == {"node-1", "node-2"} and told.count(digest) == 2
    assert [one["nodes"] for one in listed(shoal, name)] == [["node-1", "node-2"]]


def test_a_password_goes_only_to_its_own_registry(
    shoal: Shoal, cluster: tuple[Shoal, str], ports: tuple[int, int]
) -> None:
    """One for another registry, or for another path of this one, stays at home."""
    odd = Odd()
    odd.publish(oci_writer.layout([images.image(images.layer(images.member("x")), names=["1"])]))

    async def locked(request: web.Request) -> web.StreamResponse | None:
        if "Authorization" in request.headers:
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    with registries.serving_apart(odd, cluster[1], ports[1]):
        odd.before = locked
        auths = {
            f"{odd.address}/other": "b3RoZXI6YQ==",
            "elsewhere.example": "ZWxzZTph",
            f"{odd.address}/mine": "bWluZTph",
        }
        own_file(shoal).write_text(json.dumps({"auths": {name: {"auth": auth} for name, auth in auths.items()}}))
        own_file(shoal).chmod(0o600)
        shoal("image", "pull", f"{odd.address}/a/b:1", "--node", "node-1", code=1)
        shoal("image", "pull", f"{odd.address}/mine/b:1", "--node", "node-1")
    sent = {headers["Authorization"] for _, headers in odd.requests if "Authorization" in headers}
    assert sent == {"Basic bWluZTph"}


def test_no_password_is_left_anywhere_on_the_way(shoal: Shoal, private: Running) -> None:
    """In no log, nor what etcd and the nodes keep; a Secret of another test may hold it there already."""
    secrets = (f"{USER}:{PASSWORD}".encode(), b"YW5uYTpmaXNo")  # the same in base64, as it is kept at home
    folder = shoal.folder / "data"

    def found() -> dict[Path, int]:
        paths = [*folder.glob("logs/*"), *folder.glob("etcd/member/wal/*"), *folder.rglob("images/*.json")]
        counts = {path: sum(path.read_bytes().count(secret) for secret in secrets) for path in paths}
        return {path: count for path, count in counts.items() if count}

    before = found()
    log_in(shoal, private)
    shoal("image", "tag", "base:1", private.name("team/quiet:1"), "--node", "node-1")
    shoal("image", "push", private.name("team/quiet:1"))
    shoal("image", "pull", private.name("team/quiet:1"))
    assert secrets[1] in own_file(shoal).read_bytes() and found() == before


def test_what_is_saved_skopeo_reads_and_load_takes(shoal: Shoal, tmp_path: Path) -> None:
    shoal("image", "tag", "base:1", "copy:2")
    out = tmp_path / "out.tar"
    assert f"wrote {out}" in shoal("image", "save", "base:1", "-o", str(out))
    read = json.loads(skopeo("inspect", "--config", f"docker-archive:{out}:base:1"))
    assert read["os"] == "linux" and len(read["rootfs"]["diff_ids"]) == 1
    skopeo("copy", "-q", f"oci-archive:{out}:1", f"docker-archive:{tmp_path / 'theirs.tar'}:theirs:3")
    shoal("image", "load", str(tmp_path / "theirs.tar"), "--node", "node-1")
    assert [one["nodes"] for one in listed(shoal, "docker.io/library/theirs:3")] == [["node-1"]]
    shoal.apply(pod("p", image="theirs:3").replace("{terminationGrace", "{nodeName: node-1, terminationGrace"))
    shoal.running("p")
    shoal("image", "save", "theirs:3", "nosuch:1", "-o", str(tmp_path / "not.tar"), code=1)
    assert "no ready node has all of theirs:3, nosuch:1" in shoal.err
    shoal("image", "save", "base:1", "-o", str(tmp_path / "nowhere/x.tar"), code=1)
    assert "nowhere" in shoal.err and sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "theirs.tar"]


def test_an_archive_on_standard_output_is_the_same(shoal: Shoal, tmp_path: Path) -> None:
    shoal("image", "save", "base:1", "-o", str(tmp_path / "one.tar"))
    command = [sys.executable, "-m", "shoal.deploy.cli.main", "image", "save", "base:1"]
    env = os.environ | {"SHOAL_CONFIG": str(shoal.config)}
    out = subprocess.run(command, env=env, capture_output=True, check=True).stdout
    assert out == (tmp_path / "one.tar").read_bytes()


def test_the_clusters_own_registry_stands_in_for_docker_io(shoal: Shoal, cluster: tuple[Shoal, str]) -> None:
    plan = load(shoal.folder / "data")
    assert plan is not None and plan.registry_address.startswith(f"{cluster[1]}:")
    shoal("image", "tag", "base:1", f"{plan.registry_address}/library/plain:1")
    shoal("image", "push", f"{plan.registry_address}/library/plain:1")
    shoal.apply(pod("p", image="plain:1"))
    shoal.running("p")


# ---- what is there ----
def test_ls_inspect_rm_and_prune(shoal: Shoal) -> None:
    shoal("image", "tag", "base:1", "second:1")
    assert shoal("image", "ls", "-q", "second") == "docker.io/library/second:1\n"
    [row] = [line for line in shoal("image", "ls", "-o", "wide").splitlines() if "second" in line]
    [told] = json.loads(shoal("image", "inspect", "second:1"))
    assert told["digest"] in row and told["config"] == {"Cmd": ["/bin/sh"]} and len(told["layers"]) == 1
    assert told["names"] == ["docker.io/library/base:1", "docker.io/library/second:1"]
    shoal.apply(pod("p", image="base:1"))
    shoal.running("p")
    [node] = [one["spec"]["nodeName"] for one in shoal.items("pods")]
    shoal("image", "rm", "second:1")  # base:1 keeps what the pod runs
    shoal("image", "rm", "base:1", "--node", node, code=1)
    assert "is used by pod default/p: delete its pods first" in shoal.err
    shoal("image", "load", shoal.file(images.small(name="spare:1"), "spare.tar"))
    dry = shoal("image", "prune", "--all", "--dry-run")
    assert f"{node}: would remove docker.io/library/spare:1 (" in dry and "base:1" in dry  # the other node's base:1
    assert [one["nodes"] for one in listed(shoal, "docker.io/library/spare:1")] == [["node-1", "node-2"]]
    assert "freed 0B" in shoal("image", "prune", "-y")  # all have names
    assert f"{node}: removed docker.io/library/spare:1 (" in shoal("image", "prune", "-a", "-y", "--node", node)
    [spare] = listed(shoal, "docker.io/library/spare:1")
    assert len(spare["nodes"]) == 1 and node not in spare["nodes"]
    assert node in listed(shoal, "docker.io/library/base:1")[0]["nodes"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pull", "nosuch.invalid/a:1"), ("node-1: ", "node-2: ", "nosuch.invalid cannot be reached")),
        (("pull", "UPPER"), ("a repository name is lower case",)),
        (("pull", "base:1", "--node", "node-9"), ("no such node: node-9; there are node-1, node-2",)),
        (("push", "nosuch:1"), ("no ready node has nosuch:1",)),
        (("push", "nosuch:1", "--node", "node-1"), ("node-1: NotFound: there is no image nosuch:1 here",)),
        (("tag", "nosuch:1", "a:1"), ("none of 2 node(s) can: there is no image nosuch:1",)),
        (("tag", "base:1", "a b"), ("'a b' is not valid",)),
        (("inspect", "nosuch:1"), ("no ready node has nosuch:1",)),
        (("inspect", "x" * 5000), ("at most 4096",)),
        (("save", "nosuch:1"), ("no ready node has nosuch:1",)),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_says_why(shoal: Shoal, words: tuple[str, ...], told: tuple[str, ...]) -> None:
    assert shoal("image", *words, code=1) == ""
    for text in told:
        assert text in shoal.err, shoal.err


# ---- registries that misbehave ----
Fault = Callable[[web.Request, bytes], Any]  # the request for a blob, its bytes


async def truncated(request: web.Request, data: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(data))})
    await response.prepare(request)
    await response.write(data[:500])
    assert request.transport is not None
    request.transport.close()
    return response


async def corrupted(_: web.Request, data: bytes) -> web.StreamResponse:
    return web.Response(body=data[:-1] + bytes([data[-1] ^ 1]))


async def endless(request: web.Request, data: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(1000):
        await response.write(data)
    return response


BLOBS: dict[str, tuple[Fault, str]] = {
    "truncated": (truncated, "broke off"),
    "corrupted": (corrupted, "damaged"),
    "endless": (endless, "sends more than"),
}
ANSWERS = {
    "401": ("UNAUTHORIZED", "authentication required"),
    "403": ("DENIED", "requested access to the resource is denied"),
    "404": ("MANIFEST_UNKNOWN", "manifest unknown to this registry"),
    "429": ("TOOMANYREQUESTS", "you have reached your pull rate limit"),
    "500": ("UNKNOWN", "the registry's own disk is full"),
}


def made_for(tag: str, architecture: str = "amd64") -> dict[str, bytes]:
    """An image that shares no layer with another one's."""
    applets = [images.symlink(f"bin/{applet}", "busybox") for applet in bad_input.APPLETS]
    members = [images.folder("bin"), images.member("bin/busybox", bad_input.BUSYBOX.read_bytes(), 0o755), *applets]
    layer = images.layer(*members, images.member("own", f"{tag} {architecture}".encode()))
    return oci_writer.layout([oci_writer.ImageSpec([tag], [layer], {}, architecture)])


def misbehaving(odd: Odd) -> dict[str, str]:
    """A tag for each fault, with what is to be said of it."""
    told = {tag: words for tag, (_, words) in BLOBS.items()} | {tag: words for tag, (_, words) in ANSWERS.items()}
    blobs = {}
    for tag in told:
        odd.publish(made_for(tag), tag)
        manifest = json.loads(odd.manifests[tag][0])
        blobs[manifest["layers"][0]["digest"]] = tag

    async def before(request: web.Request) -> web.StreamResponse | None:
        last = request.path.rpartition("/")[2]
        if "/manifests/" in request.path and last in ANSWERS:
            more = {"Retry_After": "9"} if last == "429" else {}
            return refusal(int(last), *ANSWERS[last], **more)
        if blobs.get(last) in BLOBS:
            fault: web.StreamResponse = await BLOBS[blobs[last]][0](request, odd.blobs[last])
            return fault
        return None

    odd.before = before
    odd.publish(made_for("other", "s390x"), "other")
    return told | {"other": "this node is amd64"}


def test_registry_faults_are_said_in_its_words_and_the_next_try_succeeds(
    shoal: Shoal, cluster: tuple[Shoal, str], ports: tuple[int, int]
) -> None:
    odd = Odd()
    with registries.serving_apart(odd, cluster[1], ports[1]):
        told = misbehaving(odd)
        shoal.apply("---\n".join(pod(f"p-{tag}", image=f"{odd.address}/bad/{tag}:{tag}") for tag in told))
        seen: dict[str, set[str]] = {tag: set() for tag in told}

        def silent() -> str:
            """Which pods do not say yet what is wrong, and that they try again."""
            for found in shoal.items("pods"):
                tag = found["metadata"]["name"].removeprefix("p-")
                for status in found.get("status", {}).get("containerStatuses", []):
                    waiting = status["state"].get("waiting", {})
                    if told[tag] in waiting.get("message", ""):
                        seen[tag].add(waiting["reason"])
            missing = {tag: reasons for tag, reasons in seen.items() if "ImagePullBackOff" not in reasons}
            return f"{missing}" if missing else ""

        until(silent, POD_SECONDS)
        odd.before = None
        odd.publish(made_for("other"), "other")
        for tag in told:
            shoal.running(f"p-{tag}")


def test_a_registry_that_nobody_runs_is_named(shoal: Shoal, cluster: tuple[Shoal, str]) -> None:
    address = f"{cluster[1]}:{free_port()}"
    shoal.apply(pod("refused", image=f"{address}/a:1") + "---\n" + pod("unknown", image="nosuch.invalid/a:1"))
    for name, words in (("refused", f"{address} cannot be reached"), ("unknown", "nosuch.invalid cannot be reached")):
        state = shoal.until(name, lambda state: state.get("waiting", {}).get("reason") == "ImagePullBackOff")
        assert words in state["waiting"]["message"]


def test_a_disk_that_fills_up_in_mid_pull_is_told_and_given_back(
    shoal: Shoal, cluster: tuple[Shoal, str], ports: tuple[int, int]
) -> None:
    odd = Odd()
    large = images.layer(images.member("large", bytes(TOO_LARGE)))
    odd.publish(oci_writer.layout([oci_writer.ImageSpec(["1"], [large], {})]))
    with registries.serving_apart(odd, cluster[1], ports[1]):
        text = pod("p", image=f"{odd.address}/large:1").replace(
            "{terminationGrace", "{nodeName: node-2, terminationGrace"
        )
        shoal.apply(text)
        state = shoal.until("p", lambda state: state.get("waiting", {}).get("reason") == "ImagePullBackOff")
        assert "is full" in state["waiting"]["message"]
        odd.publish(made_for("1"))
        shoal.running("p")
