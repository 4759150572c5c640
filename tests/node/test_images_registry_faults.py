"""Registries that fail, lie, stall and lead astray; disks that are full; processes that die while they pull."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from shoal.agent.images.port import Credential, ImageFault
from shoal.agent.images.settings import Patience, Registry, Settings
from shoal.agent.images.store import ImageStore
from shoal.deploy.demo import oci_writer
from tests import images as make
from tests.node.test_images_store import EMPTY, WAIT_S, tree
from tests.registries import Handler, Odd, refusal, serving

pytestmark = pytest.mark.root
QUICK = Patience(connect_s=2, stall_s=0.3, answer_s=1, attempts=3, backoff_s=0.01, longest_wait_s=1.0)
MIB = 1 << 20


@pytest.fixture
async def odd() -> AsyncIterator[Odd]:
    async with serving(Odd()) as made:
        yield made


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    made = await opened(tmp_path / "images")
    yield made
    await made.close()
    assert not list((tmp_path / "images/staging").iterdir())


async def opened(root: Path, **settings: object) -> ImageStore:
    return await ImageStore.open(root, "amd64", settings=Settings(**{"patience": QUICK, **settings}))  # type: ignore[arg-type]


def layout(*contents: bytes) -> dict[str, bytes]:
    layers = [make.layer(make.member(f"file{number}", data)) for number, data in enumerate(contents)]
    return oci_writer.layout([make.image(*layers, names=["1"])])


def on(part: str, handler: Handler) -> Handler:
    """Answers requests whose path has `part`."""

    async def before(request: web.Request) -> web.StreamResponse | None:
        return await handler(request) if part in request.path else None

    return before


def always(response: Callable[[], web.Response]) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return response()

    return answer


def largest(odd: Odd) -> str:
    return max(odd.blobs, key=lambda digest: len(odd.blobs[digest]))


async def fails(
    store: ImageStore, odd: Odd, *words: str, reason: str, credentials: tuple[Credential, ...] = ()
) -> None:
    before = await store.list()
    with pytest.raises(ImageFault) as caught:
        await store.pull(f"{odd.address}/a/b:1", credentials)
    assert caught.value.reason == reason, caught.value.message
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert await store.list() == before


async def test_refusals_carry_the_registrys_words(store: ImageStore, odd: Odd) -> None:
    odd.publish(layout(b"x"))
    credential = Credential(odd.address, "anna", "fish-and-chips")
    for status, code, message, reason in (
        (401, "UNAUTHORIZED", "authentication required", "Unauthorized"),
        (403, "DENIED", "requested access to the resource is denied", "Unauthorized"),
        (404, "NAME_UNKNOWN", "repository name not known to registry", "NotFound"),
        (418, "TEAPOT", "short\nand stout", "RegistryUnavailable"),
    ):
        odd.before = on("/manifests/", always(lambda s=status, c=code, m=message: refusal(s, c, m)))  # type: ignore[misc]
        await fails(store, odd, code, message.replace("\n", " "), reason=reason)
        await fails(store, odd, code, reason=reason, credentials=(credential,))
    odd.before = on("/manifests/", always(lambda: web.Response(status=403, text="<html>no</html>")))
    await fails(store, odd, "'anna'", "403", reason="Unauthorized", credentials=(credential,))


async def test_too_many_requests(store: ImageStore, odd: Odd) -> None:
    """A short wait is waited for, a long one is the caller's."""
    odd.publish(layout(b"x"))
    busy = [3]

    async def limited(_: web.Request) -> web.StreamResponse | None:
        busy[0] -= 1
        return refusal(429, "TOOMANYREQUESTS", "slow down", Retry_After="0") if busy[0] > 0 else None

    odd.before = on("/manifests/", limited)
    assert (await store.pull(f"{odd.address}/a/b:1")).layers
    assert odd.seen["GET /v2/a/b/manifests/1"] == 3
    odd.before = on("/manifests/", always(lambda: refusal(429, "TOOMANYREQUESTS", "slow down", Retry_After="77")))
    with pytest.raises(ImageFault) as caught:
        await store.pull(f"{odd.address}/a/b:2")
    assert caught.value.retry_after == 77 and "slow down" in caught.value.message
    assert odd.seen["GET /v2/a/b/manifests/2"] == 1


async def test_server_errors_are_tried_again(store: ImageStore, odd: Odd) -> None:
    odd.publish(layout(b"x"))
    failing: dict[str, int] = {}

    async def twice(request: web.Request) -> web.StreamResponse | None:
        failing[request.path] = failing.get(request.path, 0) + 1
        return web.Response(status=503) if failing[request.path] < 3 else None

    odd.before = twice
    assert (await store.pull(f"{odd.address}/a/b:1")).layers
    odd.before = always(lambda: refusal(500, "UNKNOWN", "disk of the registry is full"))
    with pytest.raises(ImageFault, match="disk of the registry is full"):
        await store.pull(f"{odd.address}/a/b:3")
    assert odd.seen["GET /v2/a/b/manifests/3"] == QUICK.attempts


async def test_nobody_there(store: ImageStore) -> None:
    with pytest.raises(ImageFault) as caught:
        await store.pull("127.0.0.1:1/a/b:1")
    assert caught.value.reason == "RegistryUnavailable" and "127.0.0.1:1 cannot be reached" in caught.value.message


async def test_an_unchanged_image_costs_one_question(store: ImageStore, odd: Odd, tmp_path: Path) -> None:
    odd.publish(layout(b"x"))
    image = await store.pull(f"{odd.address}/a/b:1")
    index = tmp_path / "images/index.json"
    odd.requests.clear()
    written = index.stat().st_ino
    assert await store.pull(f"{odd.address}/a/b:1") == image
    assert [line for line, _ in odd.requests] == ["GET /v2/a/b/manifests/1"] and index.stat().st_ino == written
    (tmp_path / "images/blobs" / image.id.replace(":", "/")).write_bytes(b"damaged")
    other = await store.pull(f"{odd.address}/c/d:1")
    assert other.config == image.config and sorted(other.names) == [f"{odd.address}/{n}:1" for n in ("a/b", "c/d")]


async def partial(request: web.Request, data: bytes, claimed: int) -> web.StreamResponse:
    """Some bytes of a body, then the connection breaks."""
    response = web.StreamResponse(headers={"Content-Length": str(claimed)})
    await response.prepare(request)
    await response.write(data)
    assert request.transport is not None
    request.transport.close()
    return response


async def test_a_broken_download_goes_on_where_it_was(store: ImageStore, odd: Odd) -> None:
    content = os.urandom(3 * MIB)
    odd.publish(layout(content))
    digest = largest(odd)
    asked: list[str] = []

    async def breaks(request: web.Request) -> web.StreamResponse | None:
        asked.append(request.headers.get("Range", ""))
        whole = odd.blobs[digest]
        if len(asked) < 5:
            start = int(request.headers.get("Range", "bytes=0-")[6:-1])
            if not start:
                return await partial(request, whole[: MIB // 2], len(whole))
            headers = {"Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"}
            response = web.StreamResponse(status=206, headers={**headers, "Content-Length": str(len(whole) - start)})
            await response.prepare(request)
            await response.write(whole[start : start + MIB // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        return None

    odd.before = on(digest, breaks)
    image = await store.pull(f"{odd.address}/a/b:1")
    assert (Path(image.layers[0]) / "file0").read_bytes() == content
    starts = [int(text[6:-1]) for text in asked[1:]]
    assert len(asked) >= 5 and starts == sorted(starts) and starts[0] > 0


async def test_a_server_without_ranges_begins_anew(store: ImageStore, odd: Odd) -> None:
    content = os.urandom(MIB)
    odd.publish(layout(content))
    digest, broken = largest(odd), [1]

    async def breaks(request: web.Request) -> web.StreamResponse | None:
        whole = odd.blobs[digest]
        if broken.pop() if broken else 0:
            return await partial(request, whole[: MIB // 2], len(whole))
        return web.Response(body=whole)

    odd.before = on(digest, breaks)
    image = await store.pull(f"{odd.address}/a/b:1")
    assert (Path(image.layers[0]) / "file0").read_bytes() == content


async def test_bad_bodies(store: ImageStore, odd: Odd, tmp_path: Path) -> None:
    """Truncated for good, corrupted, endless, silent: each is said, nothing stays, and then it works."""
    odd.publish(layout(os.urandom(MIB)))
    digest = largest(odd)
    whole = odd.blobs[digest]

    async def truncated(request: web.Request) -> web.StreamResponse:
        return (
            await partial(request, whole[:1000], len(whole)) if "Range" not in request.headers else refusal(416, "", "")
        )

    async def corrupted(_: web.Request) -> web.StreamResponse:
        return web.Response(body=whole[:-1] + bytes([whole[-1] ^ 1]))

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(whole)
        return response

    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
        await response.prepare(request)
        await response.write(whole[:100])
        await asyncio.sleep(WAIT_S)
        return response

    for handler, words, reason in (
        (truncated, "416", "RegistryUnavailable"),
        (corrupted, "it is damaged", "BadDigest"),
        (endless, "sends more than the", "BadDigest"),
        (silent, "does not answer in time", "RegistryUnavailable"),
    ):
        odd.before = on(digest, handler)
        await fails(store, odd, words, reason=reason)
        assert tree(tmp_path / "images") == EMPTY, handler.__name__
    odd.before = None
    assert (await store.pull(f"{odd.address}/a/b:1")).layers


async def test_bad_documents(store: ImageStore, odd: Odd) -> None:
    digest = odd.publish(layout(b"x"))
    manifest, kind = odd.manifests["1"]
    odd.before = on("/manifests/", always(lambda: web.Response(body=bytes(5 * MIB), content_type=kind)))
    await fails(store, odd, "4096 KiB", reason="TooLarge")
    odd.before = None
    odd.manifests[digest] = (manifest + b" ", kind)
    with pytest.raises(ImageFault, match=r"sent the image .* with the digest"):
        await store.pull(f"{odd.address}/a/b@{digest}")
    for body, words in (
        (b'{"schemaVersion": 1, "signatures": []}', "schema 1"),
        (b"<html>", "not valid JSON"),
        (manifest.replace(b"tar+gzip", b"tar+rot13"), "tar+rot13"),
        (manifest.replace(b'"layers"', b'"loyers"'), "neither" if b"mediaType" not in manifest else "0 layers"),
    ):
        odd.manifests["1"] = (body, "application/json")
        await fails(store, odd, words, reason="BadArchive")
    config = next(key for key, data in odd.blobs.items() if b'"rootfs"' in data)
    odd.manifests["1"] = (manifest, kind)
    good = odd.blobs[config]
    odd.blobs[config] = good + b" "
    await fails(store, odd, "it is damaged", reason="BadDigest")
    odd.blobs[config] = good
    other = oci_writer.layout([oci_writer.ImageSpec(["1"], [make.layer(make.member("a"))], {}, "s390x")])
    odd.publish(other)
    await fails(store, odd, "s390x", "this node is amd64", reason="BadArchive")


async def test_a_redirect_takes_no_credential_along(store: ImageStore, odd: Odd) -> None:
    async with serving(Odd()) as elsewhere:
        elsewhere.publish(layout(b"content"))
        odd.publish(layout(b"content"))

        async def away(request: web.Request) -> web.StreamResponse | None:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            if "/blobs/" in request.path:
                return web.Response(status=307, headers={"Location": f"http://{elsewhere.address}{request.path}"})
            return None

        odd.before = away
        image = await store.pull(f"{odd.address}/a/b:1", [Credential(odd.address, "anna", "fish")])
        assert (Path(image.layers[0]) / "file0").read_bytes() == b"content"
        assert len(elsewhere.requests) == 2
        assert all("Authorization" not in headers for _, headers in elsewhere.requests)
        assert [headers["Authorization"] for line, headers in odd.requests if "/blobs/" in line]
    odd.before = on("/manifests/", always(lambda: web.Response(status=302, headers={"Location": "1"})))
    await fails(store, odd, "redirects more than 5 times", reason="RegistryUnavailable")
    odd.before = on("/manifests/", always(lambda: web.Response(status=302, headers={"Location": "file:///etc/passwd"})))
    await fails(store, odd, "leads from http to file", reason="RegistryUnavailable")


async def test_odd_token_services(store: ImageStore, odd: Odd) -> None:
    odd.publish(layout(b"x"))

    def bearer(realm: str) -> Handler:
        async def before(request: web.Request) -> web.StreamResponse | None:
            if request.path == "/token":
                return web.Response(text="<html>")
            header = f'Bearer realm="{realm}",service="s"'
            return web.Response(status=401, headers={"WWW-Authenticate": header}) if "/v2/" in request.path else None

        return before

    odd.before = bearer(f"http://{odd.address}/token")
    await fails(store, odd, "something else than a token", reason="RegistryUnavailable")
    odd.before = bearer("ftp://x/token")
    await fails(store, odd, "as its token service", reason="RegistryUnavailable")
    odd.before = bearer("http://127.0.0.1:1/token")
    await fails(store, odd, "the token service 127.0.0.1:1", reason="RegistryUnavailable")


@pytest.mark.parametrize(
    "token",
    [
        b"[" * 60_000,
        b'{"token": "t", "expires_in": 1' + b"0" * 400 + b"}",
        b'{"token": {"a": 1}}',
        b"5",
        b'{"token": "a\\r\\nb"}',
    ],
)
async def test_a_token_service_cannot_make_the_agent_stumble(store: ImageStore, odd: Odd, token: bytes) -> None:
    async def before(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.Response(body=token)
        header = f'Bearer realm="http://{odd.address}/token"'
        return web.Response(status=401, headers={"WWW-Authenticate": header})

    odd.before = before
    await fails(store, odd, "something else than a token", reason="RegistryUnavailable")


async def test_half_an_address_leads_nowhere(store: ImageStore, odd: Odd) -> None:
    odd.before = on("/manifests/", always(lambda: web.Response(status=302, headers={"Location": "http://[::1"})))
    await fails(store, odd, "leads from http to nowhere", reason="RegistryUnavailable")
    header = {"WWW-Authenticate": 'Bearer realm="http://[::1/token"'}
    odd.before = on("/manifests/", always(lambda: web.Response(status=401, headers=header)))
    await fails(store, odd, "as its token service", reason="RegistryUnavailable")


@pytest.mark.parametrize("body", [b'{"tags": 5}', b"[" * 60_000, b'{"tags": ["\\ud800\\u001b[2J", 7]}'])
async def test_odd_lists_of_tags_are_no_hint(store: ImageStore, odd: Odd, body: bytes) -> None:
    odd.before = on("/tags/list", always(lambda: web.Response(body=body)))
    with pytest.raises(ImageFault) as caught:
        await store.pull(f"{odd.address}/a/b:1")
    assert caught.value.reason == "NotFound"
    assert caught.value.message.isprintable()


async def test_what_an_image_says_stays_short_and_printable_in_the_fault(store: ImageStore, odd: Odd) -> None:
    """It becomes the pod's status: one of several MiB would end the agent's session, again and again."""
    odd.publish(layout(b"x"))
    kind = "application/vnd.oci.image.index.v1+json"
    digest = "sha256:" + "0" * 64
    platform = {"os": "\ud800\x1b[2J" + "y" * MIB, "architecture": "s390x"}
    listed = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}
    body = json.dumps({"schemaVersion": 2, "manifests": [{**listed, "platform": platform}]}).encode()
    odd.manifests["1"] = (body, kind)
    with pytest.raises(ImageFault) as caught:
        await store.pull(f"{odd.address}/a/b:1")
    assert "there is no image for linux/amd64" in caught.value.message
    assert len(caught.value.message) <= 2000 and caught.value.message.isprintable()


async def test_headers_that_trickle_are_no_answer(store: ImageStore, odd: Odd) -> None:
    """Each byte comes in time, and the answer never."""

    async def trickle(request: web.Request) -> web.StreamResponse | None:
        assert request.transport is not None
        while not request.transport.is_closing():
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.05)
        return web.Response()

    odd.publish(layout(b"x"))
    layer = next(digest for digest, data in odd.blobs.items() if data.startswith(b"\x1f\x8b"))
    odd.before = on("/blobs/" + layer, trickle)
    async with asyncio.timeout(WAIT_S):
        await fails(store, odd, "does not answer in time", reason="RegistryUnavailable")


async def test_a_mirror_that_lies_or_lacks_a_layer_does_no_harm(odd: Odd, tmp_path: Path) -> None:
    async with serving(Odd()) as mirror:
        for one in (odd, mirror):
            one.publish(layout(b"lower", b"upper"))
        lying, lacking, *_ = sorted(mirror.blobs, key=lambda digest: len(mirror.blobs[digest]))
        mirror.blobs[lying] = bytes(len(mirror.blobs[lying]))
        del mirror.blobs[lacking]
        table = {odd.address: Registry(mirrors=(f"http://{mirror.address}",))}
        store = await opened(tmp_path / "images", registries=table)
        image = await store.pull(f"{odd.address}/a/b:1")
        assert (Path(image.layers[1]) / "file1").read_bytes() == b"upper"
        assert mirror.seen["GET /v2/a/b/manifests/1"] == 1 and not odd.seen["GET /v2/a/b/manifests/1"]
        await store.close()


async def test_a_push_that_breaks_off_is_sent_again(store: ImageStore, odd: Odd) -> None:
    """A lost connection, a failing server; and a refusal, which is not tried again."""
    received: dict[str, bytes] = {}
    troubles = ["lost", "503"]

    async def uploads(request: web.Request) -> web.StreamResponse | None:
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": f"{request.path}{len(odd.requests)}?state=x"})
        if request.method != "PUT":
            return None
        if "/manifests/" in request.path:
            received["manifest"] = await request.read()
            return web.Response(status=201)
        trouble = troubles.pop() if troubles else ""
        if trouble == "lost":
            assert request.transport is not None
            request.transport.close()
        if trouble in ("503", "403"):
            await request.read()
            return refusal(int(trouble), "ODD", "not now")
        assert request.query["state"] == "x"
        received[request.query["digest"]] = await request.read()
        return web.Response(status=201)

    odd.before = uploads
    archive = oci_writer.tar_files(layout(os.urandom(2 * MIB)))
    [image] = await store.load(make.chunks(archive), f"{odd.address}/a/b:1")
    assert await store.push(f"{odd.address}/a/b:1") == image.digest
    assert not troubles and all(oci_writer.digest(data) == digest for digest, data in received.items() if ":" in digest)
    assert len(received) == 3 and oci_writer.digest(received["manifest"]) == image.digest
    troubles.append("403")
    with pytest.raises(ImageFault, match="not now") as caught:
        await store.push(f"{odd.address}/a/b:1")
    assert caught.value.reason == "Unauthorized" and not troubles


# ---- giving up, dying, full disks ----
async def hanging(odd: Odd) -> asyncio.Event:
    """From now on the largest blob hangs half way; set when somebody waits for it."""
    reached = asyncio.Event()
    digest = largest(odd)

    async def hang(request: web.Request) -> web.StreamResponse:
        whole = odd.blobs[digest]
        response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
        await response.prepare(request)
        await response.write(whole[: len(whole) // 2])
        reached.set()
        await asyncio.sleep(WAIT_S)
        return response

    odd.before = on(digest, hang)
    return reached


async def test_a_pull_ends_with_its_last_caller(odd: Odd, tmp_path: Path) -> None:
    odd.publish(layout(b"small", os.urandom(MIB)))
    patience = Patience(stall_s=WAIT_S, backoff_s=0.01)
    store = await opened(tmp_path / "images", patience=patience)
    reached = await hanging(odd)
    calls = [asyncio.create_task(store.pull(f"{odd.address}/a/b:1")) for _ in range(2)]
    await reached.wait()
    calls[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    assert not calls[1].done() and odd.seen[f"GET /v2/a/b/blobs/{largest(odd)}"] == 1
    calls[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[1]
    assert tree(tmp_path / "images") == EMPTY
    odd.before = None
    assert len((await store.pull(f"{odd.address}/a/b:1")).layers) == 2
    await store.close()


async def test_a_pull_cancelled_at_any_moment_leaves_nothing(odd: Odd, tmp_path: Path) -> None:
    """Steps of the loop are counted, not time: each run gets a little further."""
    odd.publish(layout(b"one", b"two", os.urandom(100_000)))
    store = await opened(tmp_path / "images")
    done = steps = 0
    while not done:
        steps += 3
        call = asyncio.create_task(store.pull(f"{odd.address}/a/b:1"))
        for _ in range(steps):
            await asyncio.sleep(0)
        done = call.done()
        call.cancel()
        await asyncio.wait([call])
        if not await store.list():
            assert [path for path in tree(tmp_path / "images") if path != "index.json"] == EMPTY, steps
        else:
            done = 1
    assert len((await store.list())[0].layers) == 3
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 24 MiB."""
    disk, file = tmp_path / "disk", tmp_path / "disk.img"
    disk.mkdir()
    with file.open("wb") as made:
        made.truncate(24 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(file)], check=True)
    subprocess.run(["mount", "-o", "loop", str(file), str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)  # also when a failed test holds it open


async def test_a_full_disk(small_disk: Path, odd: Odd) -> None:
    """What cannot fit is refused before a byte is written; what fills it up on the way leaves nothing."""
    store = await opened(small_disk / "images")
    free = shutil.disk_usage(small_disk).free
    odd.publish(layout(os.urandom(free * 5 // 8)))
    await fails(store, odd, "remove images or enlarge it", reason="NoSpace")
    assert not odd.seen[f"GET /v2/a/b/blobs/{largest(odd)}"]
    odd.blobs.clear()
    odd.publish(layout(bytes(free * 3 // 2)))  # packs to little
    await fails(store, odd, "is full", reason="NoSpace")
    assert tree(small_disk / "images") == EMPTY
    odd.blobs.clear()
    odd.publish(layout(b"a", os.urandom(4 * MIB)))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 12 * MIB))
    digest = largest(odd)

    async def fill(_: web.Request) -> web.StreamResponse | None:
        with filler.open("ab") as more:
            more.write(bytes(shutil.disk_usage(small_disk).free - 2 * MIB))
        return None

    odd.before = on(digest, fill)
    await fails(store, odd, "is full", reason="NoSpace")
    assert tree(small_disk / "images") == EMPTY
    filler.unlink()
    odd.before = None
    assert len((await store.pull(f"{odd.address}/a/b:1")).layers) == 2
    await store.close()


async def test_a_layer_that_unpacks_to_more_than_there_is_leaves_others_their_room(small_disk: Path, odd: Odd) -> None:
    """What another writes meanwhile always finds room. (ext4's own count of free blocks dips while it writes back.)"""
    store = await opened(small_disk / "images")
    odd.publish(layout(bytes(shutil.disk_usage(small_disk).free * 2)))
    least = shutil.disk_usage(small_disk).free
    refused: list[OSError] = []

    async def write() -> None:
        nonlocal least
        while True:
            least = min(least, shutil.disk_usage(small_disk).free)
            try:
                (small_disk / "neighbour").write_bytes(bytes(MIB // 2))
            except OSError as fault:
                refused.append(fault)
            (small_disk / "neighbour").unlink(missing_ok=True)
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    try:
        await fails(store, odd, "is full", reason="NoSpace")
    finally:
        writing.cancel()
        await store.close()
    assert least < 4 * MIB, "the layer never came near the disk's end"
    assert refused == []


PULLER = """
import asyncio, sys
from pathlib import Path
from shoal.agent.images.store import ImageStore

async def main():
    store = await ImageStore.open(Path(sys.argv[1]), "amd64")
    image = await store.pull(sys.argv[2], progress=lambda text: print(text, flush=True))
    print("pulled", image.digest, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_kill_while_pulling_leaves_the_last_state(odd: Odd, tmp_path: Path) -> None:
    root, name = tmp_path / "images", f"{odd.address}/a/b:1"
    odd.publish(layout(b"first", os.urandom(MIB)))
    store = await opened(root)
    kept = await store.pull(name)
    await store.close()
    odd.publish(layout(b"first", b"second", os.urandom(4 * MIB)))
    before = tree(root)
    reached = await hanging(odd)
    for hangs in (True, False):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PULLER, str(root), name, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        if hangs:
            await asyncio.wait_for(reached.wait(), WAIT_S)
            await asyncio.wait_for(process.stdout.readline(), WAIT_S)
        else:
            while b"pulled" not in await asyncio.wait_for(process.stdout.readline(), WAIT_S):
                pass
        process.send_signal(signal.SIGKILL)
        await process.wait()
        store = await opened(root)
        found = await store.find(name)
        assert found is not None and (found == kept) == hangs
        assert (Path(found.layers[0]) / "file0").read_bytes() == b"first"
        if hangs:
            assert tree(root) == before
        odd.before = None
        await store.close()
    assert found is not None and len(found.layers) == 3 and not list((root / "staging").iterdir())


# ---- taking away ----
async def test_b98_collecting_images_never_takes_what_a_container_uses(odd: Odd, tmp_path: Path) -> None:
    """Nor what is being pulled; the longest unused goes first, packed layers before images."""
    now = [1000.0]
    store = await ImageStore.open(tmp_path / "images", "amd64", settings=Settings(patience=QUICK), clock=lambda: now[0])
    names = []
    for number in range(4):
        odd.publish(layout(os.urandom(100_000) + bytes([number])), f"t{number}")
        names.append(f"{odd.address}/a/b:t{number}")
        now[0] += 10
        await store.pull(names[-1])
    await store.hold("pod/uses", names[0])
    await store.hold("pod/used", names[1])
    now[0] += 100
    await store.release("pod/used")
    now[0] += 50
    none = await store.collect(1 << 40, 1000)
    assert (none.names, none.freed) == ([], 0) and len(await store.list()) == 4
    few = await store.collect(50_000, 60)
    assert few.names == [] and few.freed >= 50_000, "a packed layer is enough"
    some = await store.collect(600_000, 60)
    assert some.names == [names[2], names[3]], "the first is held, the second was used lately"
    assert (await store.collect(1 << 40, 0)).names == [names[1]]
    held = await store.find(names[0])
    assert held is not None and (Path(held.layers[0]) / "file0").stat().st_size == 100_001
    assert (await store.prune(all=True)).names == []
    assert [path.name for path in (tmp_path / "images/l").iterdir()] == [Path(held.layers[0]).name]
    with pytest.raises(ImageFault, match="pull or load it again"):
        async for _ in store.save([names[0]]):
            pass
    now[0] = 0.0  # the clock is set back
    await store.release("pod/uses")
    assert (await store.collect(1 << 40, 60)).names == [] and await store.find(names[0])
    await store.close()


async def test_collecting_while_pulling(odd: Odd, tmp_path: Path) -> None:
    odd.publish(layout(b"base", b"old"), "old")
    odd.publish(layout(b"base", os.urandom(MIB)), "new")
    store = await opened(tmp_path / "images", patience=Patience(stall_s=WAIT_S))
    await store.pull(f"{odd.address}/a/b:old")
    released = asyncio.Event()
    digest = largest(odd)
    reached = asyncio.Event()

    async def wait(_: web.Request) -> web.StreamResponse | None:
        reached.set()
        await released.wait()
        return None

    odd.before = on(digest, wait)
    pull = asyncio.create_task(store.pull(f"{odd.address}/a/b:new"))
    await reached.wait()
    gone = await store.prune(all=True, dry_run=True)
    assert gone.names == [f"{odd.address}/a/b:old"] and len(await store.list()) == 1
    assert (await store.prune(all=True)).names == gone.names and not await store.list()
    released.set()
    image = await pull
    assert (Path(image.layers[0]) / "file0").read_bytes() == b"base"
    assert odd.seen["GET /v2/a/b/manifests/new"] == 1
    await store.close()
