"""Pull and push against docker's own registry, with skopeo and umoci as peers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from shoal.agent.images.port import Credential, Image, ImageFault
from shoal.agent.images.settings import Patience, Registry, Settings
from shoal.agent.images.store import ImageStore
from shoal.deploy.certs.ca import Authority
from shoal.deploy.demo import oci_writer
from tests import images as make
from tests import registries
from tests.node.test_images_layers import ABOVE, BASE, look, merged, run
from tests.registries import PASSWORD, USER, Odd, Running, TokenSigner, serving, skopeo

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("skopeo") or not shutil.which("umoci"), reason="needs skopeo and umoci"),
]
QUICK = Patience(connect_s=5, stall_s=5, answer_s=10, attempts=3, backoff_s=0.01)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with registries.registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


async def opened(root: Path, settings: Settings | None = None, architecture: str = "amd64") -> ImageStore:
    return await ImageStore.open(root, architecture, settings=settings or Settings(patience=QUICK))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    made = await opened(tmp_path / "images")
    yield made
    await made.close()


def pushed(folder: Path, name: str, *options: str, image: oci_writer.ImageSpec | None = None) -> Path:
    """The archive of an image that skopeo pushed."""
    archive = make.write(folder, make.oci_archive(image or make.image(BASE, ABOVE)))
    skopeo("copy", "-q", "--dest-tls-verify=false", *options, f"oci-archive:{archive}", f"docker://{name}")
    return archive


@pytest.mark.parametrize("options", [(), ("--format", "v2s2"), ("--dest-compress-format", "zstd")], ids=str)
async def test_pulls_what_skopeo_pushed(
    plain: Running, store: ImageStore, tmp_path: Path, options: tuple[str, ...]
) -> None:
    name = plain.name(f"some/where{len(''.join(options))}:1")
    archive = pushed(tmp_path, name, *options)
    said: list[str] = []
    image = await store.pull(name, progress=said.append)
    assert image.names == (name,) and await store.find(name) == image
    assert any("layer 2 of 2" in line for line in said)
    assert image.digest == json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))["Digest"]
    direct = await opened(tmp_path / "direct")
    [loaded] = await direct.load(make.file_chunks(archive))
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
    with merged(image.layers, tmp_path / "1") as ours, merged(loaded.layers, tmp_path / "2") as theirs:
        assert look(ours) == look(theirs)
    assert image.config == loaded.config
    await direct.close()


async def test_pulls_what_umoci_made(plain: Running, store: ImageStore, tmp_path: Path) -> None:
    """Its manifest has no mediaType."""
    layout, bundle = tmp_path / "layout", tmp_path / "bundle"
    archive = make.write(tmp_path, make.oci_archive(make.image(BASE)))
    skopeo("copy", "-q", f"oci-archive:{archive}", f"oci:{layout}:t")
    run("umoci", "unpack", "--image", f"{layout}:t", str(bundle))
    (bundle / "rootfs/added").write_bytes(b"new")
    os.utime(bundle / "rootfs/added", (oci_writer.EPOCH, oci_writer.EPOCH))
    run("umoci", "repack", "--image", f"{layout}:u", str(bundle))
    run("umoci", "rm", "--image", f"{layout}:t")
    wanted = look(bundle / "rootfs")
    name = plain.name("made/by-umoci:2")
    skopeo("copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{layout}:u", f"docker://{name}")
    image = await store.pull(name)
    with merged(image.layers, tmp_path) as root:
        assert look(root) == wanted


async def test_a_push_is_what_skopeo_and_umoci_read(plain: Running, store: ImageStore, tmp_path: Path) -> None:
    [image] = await store.load(make.chunks(make.oci_archive(make.image(BASE, ABOVE, names=["a.io/x:1"]))))
    name = plain.name("ours/pushed:3")
    await store.tag("a.io/x:1", name)
    said: list[str] = []
    assert await store.push(name, progress=said.append) == image.digest
    assert sum("sent" in line for line in said) == 3
    skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/layout:t")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:t", f"{tmp_path}/bundle")
    with merged(image.layers, tmp_path) as root:
        assert look(root) == look(tmp_path / "bundle/rootfs")
    again: list[str] = []
    await store.push(name, progress=again.append)
    assert sum("is there already" in line for line in again) == 3
    other = plain.name("ours/mounted:1")
    await store.tag(name, other)
    assert await store.push(other) == image.digest
    fresh = await opened(tmp_path / "fresh")
    pulled = await fresh.pull(other)
    assert pulled.digest == image.digest and pulled.id == image.id
    await fresh.close()


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
async def test_what_save_wrote_reads_everywhere(store: ImageStore, tmp_path: Path, kind: str) -> None:
    """skopeo and umoci read it, and our own load gives the same image."""
    [image] = await store.load(make.chunks(make.oci_archive(make.image(BASE, ABOVE, names=["a.io/x:1"]))))
    await store.tag("a.io/x:1", "a.io/y:two")
    saved = tmp_path / "saved.tar"
    with saved.open("wb") as out:
        async for chunk in store.save(["a.io/x:1"]):
            out.write(chunk)
    source = f"{kind}:{saved}:{'1' if kind == 'oci-archive' else 'a.io/x:1'}"
    skopeo("copy", "-q", source, f"oci:{tmp_path}/layout:t")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:t", f"{tmp_path}/bundle")
    with merged(image.layers, tmp_path) as root:
        assert look(root) == look(tmp_path / "bundle/rootfs")
    other = await opened(tmp_path / "other")
    [loaded] = await other.load(make.file_chunks(saved))
    assert (loaded.digest, loaded.id, loaded.config) == (image.digest, image.id, image.config)
    assert sorted(loaded.names) == ["a.io/x:1", "a.io/y:two"]
    await other.close()


def put(running: Running, path: str, tag: str, document: dict[str, object], kind: str) -> str:
    """A manifest by hand; its digest."""
    data = json.dumps(document).encode()
    request = urllib.request.Request(
        f"http://{running.address}/v2/{path}/manifests/{tag}", data, {"Content-Type": kind}, method="PUT"
    )
    urllib.request.urlopen(request, timeout=60)
    return oci_writer.digest(data)


@pytest.mark.parametrize(
    "kind", ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"]
)
async def test_an_index_gives_this_nodes_architecture(
    plain: Running, tmp_path: Path, kind: str, store: ImageStore
) -> None:
    path = f"multi/{'oci' if 'oci' in kind else 'docker'}"
    items = []
    for architecture, variant in (("amd64", "v3"), ("arm", "v6"), ("arm", "v7"), ("amd64", ""), ("arm64", "v8")):
        layer = make.layer(make.member("who", f"{architecture}{variant}".encode()))
        spec = oci_writer.ImageSpec(["x"], [layer], {"Cmd": [architecture + variant]}, architecture)
        pushed(tmp_path, plain.name(f"{path}:{architecture}{variant}"), "--preserve-digests", image=spec)
        raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{plain.name(path)}:{architecture}{variant}")
        platform = {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}
        digest = oci_writer.digest(raw.encode())
        media_type = "application/vnd.oci.image.manifest.v1+json"
        items.append({"mediaType": media_type, "digest": digest, "size": len(raw), "platform": platform})
    index = put(plain, path, "all", {"schemaVersion": 2, "mediaType": kind, "manifests": items}, kind)
    image = await store.pull(plain.name(f"{path}:all"))
    assert image.config.cmd == ("amd64",)
    assert await store.find(f"{plain.name(path)}@{index}") == image
    for architecture, wanted in (("arm", "armv7"), ("arm/v6", "armv6"), ("arm64", "arm64v8")):
        other = await opened(tmp_path / architecture.replace("/", ""), architecture=architecture)
        assert (await other.pull(plain.name(f"{path}:all"))).config.cmd == (wanted,)
        await other.close()
    strange = await opened(tmp_path / "strange", architecture="riscv64")
    with pytest.raises(ImageFault) as caught:
        await strange.pull(plain.name(f"{path}:all"))
    for word in ("linux/riscv64", "linux/arm/v6", "linux/amd64"):
        assert word in caught.value.message
    await strange.close()


async def test_by_digest_and_by_tag_with_digest(plain: Running, store: ImageStore, tmp_path: Path) -> None:
    name = plain.name("by/digest")
    pushed(tmp_path, f"{name}:1")
    first = await store.pull(f"{name}:1")
    await store.remove(f"{name}:1")
    pushed(tmp_path, f"{name}:1", image=make.image(make.layer(make.member("newer"))))
    image = await store.pull(f"{name}:1@{first.digest}")
    assert image.digest == first.digest and image.names == (f"{name}@{first.digest}",)
    assert await store.find(f"{name}@{first.digest}") == image
    assert await store.find(f"{name}:1") is None
    newer = await store.pull(f"{name}:1")
    assert newer.digest != first.digest and len(await store.list()) == 2


async def test_a_missing_tag_names_those_that_there_are(plain: Running, store: ImageStore, tmp_path: Path) -> None:
    for tag in ("1.25", "1.26"):
        pushed(tmp_path, plain.name(f"with/tags:{tag}"))
    with pytest.raises(ImageFault) as caught:
        await store.pull(plain.name("with/tags:1.2"))
    assert caught.value.reason == "NotFound" and "manifest unknown" in caught.value.message
    assert "it has the tags 1.2" in caught.value.message
    with pytest.raises(ImageFault) as caught:
        await store.pull(plain.name("no/where:1"))
    assert caught.value.reason == "NotFound" and "tags" not in caught.value.message


async def test_tls_wants_the_registrys_authority(plain: Running, tmp_path: Path) -> None:
    with registries.registry(tmp_path / "registry", tls=True) as running:
        pushed(tmp_path, running.name("over/tls:1"))
        stranger = Authority.ensure(tmp_path / "stranger", "stranger").certificate
        missing = tmp_path / "missing.crt"
        for number, (ca, words) in enumerate(((stranger, "its certificate is not trusted"), (missing, "missing.crt"))):
            store = await opened(tmp_path / f"bad{number}", trusting(running, ca))
            with pytest.raises(ImageFault, match=words) as caught:
                await store.pull(running.name("over/tls:1"))
            assert caught.value.reason == "RegistryUnavailable"
            await store.close()
        store = await opened(tmp_path / "images", trusting(running, running.ca))
        image = await store.pull(running.name("over/tls:1"))
        await store.tag(image.id, running.name("over/pushed:1"))
        assert await store.push(running.name("over/pushed:1")) == image.digest
        await store.close()
    store = await opened(tmp_path / "http", trusting(plain, stranger))
    with pytest.raises(ImageFault, match="does not speak TLS"):
        await store.pull(plain.name("over/tls:1"))
    await store.close()


def trusting(running: Running, ca: Path | None) -> Settings:
    return Settings({running.address: Registry(ca=ca)}, patience=QUICK)


async def test_passwords(tmp_path: Path) -> None:
    """Given ones first, then the node's; the most precise; and who was refused is said, the password never."""
    with registries.registry(tmp_path / "registry", password=True) as running:
        name = running.name("team/app:1")
        pushed(tmp_path, name, f"--dest-creds={USER}:{PASSWORD}")
        store = await opened(tmp_path / "images")
        right, wrong = Credential(running.address, USER, PASSWORD), Credential(running.name("team"), "bob", "s3cret")
        for credentials, words in (
            ((), "without a credential"),
            ((wrong,), "the user 'bob'"),
            ((Credential("other.io", USER, PASSWORD),), "without a credential"),
        ):
            with pytest.raises(ImageFault) as caught:
                await store.pull(name, credentials)
            assert caught.value.reason == "Unauthorized" and words in caught.value.message
            assert "s3cret" not in caught.value.message and "s3cret" not in repr(caught.value)
        assert (await store.pull(name, (right,))).layers
        await store.login(right)
        with pytest.raises(ImageFault, match="the user 'bob'"):
            await store.login(Credential(running.address, "bob", "s3cret"))
        await store.remove(name)
        assert (await store.pull(name, (wrong, right))).layers, "the next credential is tried"
        other = running.name("team/other:1")
        await store.tag(name, other)
        with pytest.raises(ImageFault, match="without a credential"):
            await store.push(other)
        await store.push(other, (right,))
        await store.close()
        await _node_credentials(tmp_path, name)


async def _node_credentials(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.json"
    store = await opened(tmp_path / "node", Settings(credentials=file, patience=QUICK))
    with pytest.raises(ImageFault, match="without a credential"):
        await store.pull(name)
    secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    file.write_text(json.dumps({"auths": {f"http://{name.partition('/')[0]}/v2/": {"auth": secret}}}))
    file.chmod(0o644)
    with pytest.raises(ImageFault, match="chmod 600"):
        await store.pull(name)
    file.chmod(0o600)
    assert (await store.pull(name)).layers
    await store.close()


async def test_tokens(tmp_path: Path) -> None:
    """One token serves a whole pull; its service hears the password, the registry only the token."""
    signer = TokenSigner(tmp_path / "registry")

    async def issue(request: web.Request) -> web.StreamResponse:
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        scope = request.query.get("scope", "")
        if request.headers.get("Authorization") != wanted and not scope.startswith("repository:open/"):
            return registries.refusal(401, "UNAUTHORIZED", "who are you?")
        assert request.query["service"] == registries.SERVICE
        return web.json_response({"token": signer.token(scope), "expires_in": 300})

    async with serving(Odd(before=issue)) as service:
        realm = f"http://{service.address}/token"
        with registries.registry(tmp_path / "registry", token_realm=realm) as running:
            store = await opened(tmp_path / "images")
            [image] = await store.load(make.chunks(make.oci_archive(make.image(BASE, ABOVE, names=["a.io/x:1"]))))
            right = Credential(running.address, USER, PASSWORD)
            for path in ("team/app:1", "open/app:1"):
                await store.tag("a.io/x:1", running.name(path))
                await store.push(running.name(path), (right,))
                await store.remove(running.name(path))
            service.seen.clear()
            fresh = await opened(tmp_path / "fresh")
            assert (await fresh.pull(running.name("team/app:1"), (right,))).digest == image.digest
            assert service.seen == {"GET /token": 1}
            assert (await fresh.pull(running.name("open/app:1"))).digest == image.digest, "anonymous tokens"
            await fresh.login(right)
            for credentials in ((), (Credential(running.address, USER, "wrong"),)):
                with pytest.raises(ImageFault) as caught:
                    await fresh.pull(running.name("team/app:1"), credentials)
                assert caught.value.reason == "Unauthorized" and "wrong" not in caught.value.message
            await fresh.close()
            await store.close()


async def test_mirrors_come_first_and_the_registry_last(plain: Running, tmp_path: Path) -> None:
    """docker.io is never reached: the mirror has the image. A dead mirror is passed over."""
    pushed(tmp_path, plain.name("library/mirrored:1"))
    mirrors = ("http://127.0.0.1:1", f"http://{plain.address}")
    store = await opened(tmp_path / "images", Settings({"docker.io": Registry(mirrors)}, patience=QUICK))
    image = await store.pull("mirrored:1")
    assert image.names == ("docker.io/library/mirrored:1",)
    await store.close()
    table = {"127.0.0.1:1": Registry((f"http://{plain.address}",))}
    dead = await opened(tmp_path / "dead", Settings(table, patience=QUICK))
    with pytest.raises(ImageFault, match=r"127.0.0.1:1 cannot be reached.*its mirror: .*manifest unknown"):
        await dead.pull("127.0.0.1:1/library/mirrored:2")
    await dead.close()
    everybody = await opened(tmp_path / "any", Settings({"*": Registry(mirrors)}, patience=QUICK))
    assert (await everybody.pull("quay.example/library/mirrored:1")).digest == image.digest
    await everybody.close()


async def test_layers_that_are_here_are_not_fetched_again(plain: Running, tmp_path: Path) -> None:
    layout = oci_writer.layout([make.image(BASE, ABOVE, names=["1"])])
    other = oci_writer.layout([make.image(BASE, make.layer(make.member("more")), names=["1"])])
    odd = Odd()
    odd.publish(layout, "one")
    odd.publish(other, "two")
    async with serving(odd):
        store = await opened(tmp_path / "images")
        calls = [store.pull(f"{odd.address}/a/b:{tag}") for tag in ("one", "two", "one", "two", "one")]
        images: list[Image] = await asyncio.gather(*calls)
        assert len({image.digest for image in images}) == 2
        assert images[0].layers[0] == images[1].layers[0]
        fetched = {line: count for line, count in odd.seen.items() if "/blobs/" in line}
        assert set(fetched.values()) == {1} and len(fetched) == 5, fetched
        await store.pull(f"{odd.address}/a/b:one")
        assert {line: count for line, count in odd.seen.items() if "/blobs/" in line} == fetched
        await store.close()
