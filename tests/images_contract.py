"""What every adapter of the image store's port must do; run on the one in memory and on the one on disk."""

from __future__ import annotations

import gzip
import json
import random
from typing import Any

import pytest
import zstandard

from shoal.agent.images.port import ImageFault, Images
from shoal.deploy.demo import oci_writer
from tests import images as make

NAME = "docker.io/library/test:latest"


async def refused(store: Images, archive: bytes, reason: str, *words: str, name: str = "") -> str:
    """Loads a bad archive, checks the error and that nothing of it is there."""
    before = await store.list()
    with pytest.raises(ImageFault) as caught:
        await store.load(make.chunks(archive), name)
    assert caught.value.reason == reason, caught.value.message
    for word in words:
        assert word in caught.value.message
    assert await store.list() == before
    return caught.value.message


def patched(path: str, change: dict[str, Any]) -> bytes:
    """An OCI archive in which one document is changed and everything above it fits again."""
    spec = make.image(make.layer(make.member("file", b"x")))
    files = oci_writer.layout([spec])
    manifest_path = "blobs/" + json.loads(files["index.json"])["manifests"][0]["digest"].replace(":", "/")
    manifest = json.loads(files[manifest_path])
    config = json.loads(files["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    {"config": config, "manifest": manifest}[path].update(change)
    config_data = json.dumps(config).encode()
    if path == "config":
        manifest["config"].update(digest=oci_writer.digest(config_data), size=len(config_data))
    manifest_data = json.dumps(manifest).encode()
    index = json.loads(files["index.json"])
    index["manifests"][0].update(digest=oci_writer.digest(manifest_data), size=len(manifest_data))
    files["blobs/" + oci_writer.digest(config_data).replace(":", "/")] = config_data
    files["blobs/" + oci_writer.digest(manifest_data).replace(":", "/")] = manifest_data
    files["index.json"] = json.dumps(index).encode()
    return oci_writer.tar_files(files)


class ImagesContract:
    """Subclasses give the fixture `store`."""

    async def test_load_and_find_by_every_spelling(self, store: Images) -> None:
        said: list[str] = []
        config = {"Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=1=2"], "User": "7:8", "WorkingDir": "/w"}
        [image] = await store.load(make.chunks(make.small(config=config), 100), progress=said.append)
        assert image.names == (NAME,)
        assert (image.config.entrypoint, image.config.cmd, image.config.env) == (("/e",), ("c",), {"A": "1=2"})
        assert (image.config.user, image.config.working_dir) == ("7:8", "/w")
        assert said and len(image.layers) == 1
        for name in ("test", "test:latest", "library/test", NAME, image.id, image.digest, f"test@{image.digest}"):
            assert await store.find(name) == image
        assert await store.find("test:other") is None
        assert await store.list() == [image]

    async def test_a_bad_name_is_an_error_everywhere(self, store: Images) -> None:
        for call in (
            store.find("No/../x"),
            store.hold("h", "A b"),
            store.remove(""),
            store.load(make.chunks(b""), "X"),
        ):
            with pytest.raises(ImageFault) as caught:
                await call
            assert caught.value.reason == "InvalidImageName"

    async def test_docker_archive(self, store: Images) -> None:
        layers = [make.layer(make.member("a", b"1")), make.layer(make.member("b", b"2"))]
        [image] = await store.load(make.chunks(make.docker_archive(*layers, tags=["test:1", "other:2"])))
        assert image.names == ("docker.io/library/test:1", "docker.io/library/other:2")
        assert len(image.layers) == 2 and await store.find("other:2") == image
        [again] = await store.load(make.chunks(make.docker_archive(*layers, tags=["test:1"])))
        assert again.digest == image.digest

    async def test_docker_save_of_today_writes_both_lists(self, store: Images) -> None:
        files = oci_writer.layout([make.image(make.layer(make.member("a")), names=["1"])])
        digest = json.loads(files["index.json"])["manifests"][0]["digest"]
        manifest = json.loads(files["blobs/" + digest.replace(":", "/")])
        blobs = ["blobs/" + one["digest"].replace(":", "/") for one in (manifest["config"], *manifest["layers"])]
        both = [{"Config": blobs[0], "RepoTags": ["mine:1"], "Layers": blobs[1:]}]
        files["manifest.json"] = json.dumps(both).encode()
        [image] = await store.load(make.chunks(oci_writer.tar_files(files)))
        assert image.names == ("docker.io/library/mine:1",) and image.digest == digest

    async def test_docker_save_names_by_repositories(self, store: Images) -> None:
        files = make.docker_files(make.layer(make.member("a")), tags=())
        files["repositories"] = json.dumps({"old": {"v1": "0"}}).encode()
        [image] = await store.load(make.chunks(oci_writer.tar_files(files)))
        assert image.names == ("docker.io/library/old:v1",)

    async def test_several_images_and_packed_archives(self, store: Images) -> None:
        base = make.layer(make.member("base", b"b"))
        one = make.image(base, names=["docker.io/library/one:1"])
        two = make.image(base, make.layer(make.member("x", b"x")), names=["quay.io/a/two:2"])
        archive = make.oci_archive(one, two)
        assert len(await store.load(make.chunks(gzip.compress(archive)))) == 2
        first, second = await store.find("one:1"), await store.find("quay.io/a/two:2")
        assert first is not None and second is not None and first.layers[0] == second.layers[0]
        assert len(await store.load(make.chunks(zstandard.compress(archive)))) == 2
        assert len(await store.list()) == 2

    async def test_the_given_name_wins_and_must_be_possible(self, store: Images) -> None:
        [image] = await store.load(make.chunks(make.small()), "mine/app:v1")
        assert image.names == ("docker.io/mine/app:v1",)
        two = make.oci_archive(
            make.image(make.layer(make.member("1")), names=["a.io/x:1"]),
            make.image(make.layer(make.member("2")), names=["a.io/y:1"]),
        )
        await refused(store, two, "BadArchive", "2 images", name="one:1")
        nameless = make.oci_archive(make.image(make.layer(make.member("3")), names=["latest"]))
        await refused(store, nameless, "BadArchive", "give it a name")

    async def test_names_move_to_the_newest(self, store: Images) -> None:
        [old] = await store.load(make.chunks(make.small(b"old")))
        [new] = await store.load(make.chunks(make.small(b"new")))
        assert await store.find("test") == new and await store.find(old.digest) is None
        assert await store.list() == [new]

    async def test_remove(self, store: Images) -> None:
        [image] = await store.load(make.chunks(make.docker_archive(make.layer(make.member("a")), tags=["a:1", "b:1"])))
        await store.remove("a:1")
        assert await store.find("a:1") is None
        left = await store.find("b:1")
        assert left is not None and left.digest == image.digest
        with pytest.raises(ImageFault) as caught:
            await store.remove("a:1")
        assert caught.value.reason == "NotFound"
        await store.remove(image.digest)
        assert await store.list() == []

    async def test_holders_keep_images(self, store: Images) -> None:
        assert await store.hold("pod", "test") is None
        [image] = await store.load(make.chunks(make.small()))
        assert await store.hold("pod", "test") == image == await store.hold("pod", "test")
        await store.hold("other", image.digest)
        with pytest.raises(ImageFault) as caught:
            await store.remove("test")
        assert caught.value.reason == "InUse" and "pod" in caught.value.message
        await store.load(make.chunks(make.small(b"newer")))
        held = await store.find(image.digest)
        assert held is not None and held.names == ()
        await store.release("pod")
        assert await store.find(image.digest) is not None
        await store.release("other")
        await store.release("other")
        assert await store.find(image.digest) is None
        assert await store.find("test") is not None

    async def test_the_platform_is_chosen(self, store: Images) -> None:
        specs = [
            oci_writer.ImageSpec(["x"], [make.layer(make.member("f", a.encode()))], {"Cmd": [a]}, a)
            for a in ("arm64", "amd64")
        ]
        files = oci_writer.layout(specs)
        items = json.loads(files["index.json"])["manifests"]
        for item, architecture in zip(items, ("arm64", "amd64"), strict=True):
            item["platform"] = {"architecture": architecture, "os": "linux"}
        inner = json.dumps({"schemaVersion": 2, "manifests": items}).encode()
        digest = oci_writer.digest(inner)
        files["blobs/" + digest.replace(":", "/")] = inner
        name = {"org.opencontainers.image.ref.name": "a.io/multi:1"}
        files["index.json"] = json.dumps(
            {"manifests": [{"digest": digest, "size": len(inner), "annotations": name}]}
        ).encode()
        [image] = await store.load(make.chunks(oci_writer.tar_files(files)))
        assert image.config.cmd == ("amd64",)
        assert await store.find(f"a.io/multi@{digest}") == image
        only = [item for item in items if item["platform"]["architecture"] == "arm64"]
        files["index.json"] = json.dumps({"manifests": only}).encode()
        await refused(store, oci_writer.tar_files(files), "BadArchive", "linux/amd64", "arm64")

    async def test_bad_archives(self, store: Images) -> None:
        good = make.small(random.Random(1).randbytes(20_000))
        await refused(store, b"", "BadArchive", "empty")
        await refused(store, b"<html>not found</html>" * 100, "BadArchive", "not a tar archive")
        await refused(store, good[: len(good) // 2 // 512 * 512], "BadArchive")
        await refused(store, good[:1200], "BadArchive", "cut off")
        await refused(store, gzip.compress(good)[:-100], "BadArchive", "gzip")
        await refused(store, b"BZh9" + good, "BadArchive", "bzip2")
        await refused(store, oci_writer.tar_files({"readme": b"hi"}), "BadArchive", "holds no image")
        await refused(store, oci_writer.tar_files({"repositories": b"{}"}), "BadArchive", "older than 1.10")
        await refused(store, oci_writer.tar_files({"index.json": b"["}), "BadArchive", "not valid JSON")
        await refused(store, oci_writer.tar_files({"index.json": b"[" * 200_000}), "BadArchive", "index.json")
        await refused(store, oci_writer.tar_files({"index.json": b"{}"}), "BadArchive", "no image")
        await refused(store, oci_writer.tar_files({"index.json": b" " * 5_000_000}), "TooLarge", "index.json")
        await refused(store, oci_writer.tar_files({"../index.json": b"{}"}), "BadPath", "climbs out")
        await refused(store, make.tar([make.symlink("manifest.json", "../../etc/passwd")]), "BadPath", "climbs out")
        await refused(store, make.tar([make.fifo("manifest.json")]), "BadArchive", "fifo")
        loop = make.tar([make.symlink("index.json", "b"), make.symlink("b", "index.json")])
        await refused(store, loop, "BadArchive", "holds no image")

    async def test_bad_content(self, store: Images) -> None:
        await refused(store, make.bad_digest(), "BadDigest", "damaged")
        for path in ("../../outside", "/etc/passwd", "a/../../b"):
            await refused(store, make.climbing(path), "BadPath", path.split("/")[-1])
        link = make.oci_archive(make.image(make.layer(make.hardlink("a", "../../etc/passwd"))))
        await refused(store, link, "BadPath", "passwd")
        lying = make.layer(make.member("a"))
        wrong = oci_writer.Layer(lying.blob, oci_writer.digest(b"other"))
        await refused(store, make.oci_archive(make.image(wrong)), "BadDigest", "unpacks to")
        await refused(store, make.docker_archive(wrong), "BadDigest", "unpacks to")
        cut = lying.blob[:-12]
        await refused(store, make.oci_archive(make.image(oci_writer.Layer(cut, lying.diff_id))), "BadArchive", "gzip")

    async def test_a_bomb_is_refused_by_its_ratio(self, store: Images) -> None:
        zeros = make.tar([make.member("zeros", bytes(80 * 1024 * 1024))])
        kind = "application/vnd.oci.image.layer.v1.tar+zstd"
        bomb = oci_writer.Layer(zstandard.compress(zeros), oci_writer.digest(zeros), kind)
        await refused(store, make.oci_archive(make.image(bomb)), "TooLarge", "times its size")

    async def test_bad_documents(self, store: Images) -> None:
        await refused(store, patched("config", {"architecture": "s390x"}), "BadArchive", "s390x", "amd64")
        await refused(store, patched("config", {"os": "windows"}), "BadArchive", "windows")
        await refused(store, patched("config", {"config": {"Env": ["=x"]}}), "BadArchive", "NAME=value")
        await refused(store, patched("config", {"config": {"Cmd": "sh"}}), "BadArchive", "'Cmd' must be a list")
        await refused(store, patched("config", {"config": {"Cmd": [1]}}), "BadArchive", "every entry of 'Cmd'")
        await refused(store, patched("config", {"config": {"Cmd": ["a\0b"]}}), "BadArchive", "NUL")
        await refused(store, patched("config", {"rootfs": {"diff_ids": []}}), "BadArchive", "1 layers")
        await refused(store, patched("config", {"rootfs": {"diff_ids": ["sha1:x"]}}), "BadDigest", "sha1:x")
        await refused(store, patched("manifest", {"layers": []}), "BadArchive", "0 layers")
        await refused(store, patched("manifest", {"config": {"digest": "../x"}}), "BadDigest", "../x")
        await refused(store, patched("manifest", {"mediaType": "text/plain"}), "BadArchive", "text/plain")
        await refused(store, patched("manifest", {"manifests": []}), "BadArchive", "both")
        helm = {"digest": "sha256:" + "0" * 64, "mediaType": "application/vnd.cncf.helm.config.v1+json"}
        await refused(store, patched("manifest", {"config": helm}), "BadArchive", "no container image", "helm")
        [image] = await store.load(make.chunks(patched("manifest", {"mediaType": None})))
        assert image.names == (NAME,)

    async def test_a_stream_that_breaks_leaves_nothing(self, store: Images) -> None:
        async def broken() -> Any:
            yield make.small()[:3000]
            raise ConnectionError("gone")

        with pytest.raises(ConnectionError):
            await store.load(broken())
        assert await store.list() == []
        assert len(await store.load(make.chunks(make.small()))) == 1

    async def test_a_tag_is_another_name(self, store: Images) -> None:
        [image] = await store.load(make.chunks(make.small()))
        await store.tag("test", "mine.io/app:v1")
        found = await store.find("mine.io/app:v1")
        assert found is not None and found.digest == image.digest
        assert sorted(found.names) == [NAME, "mine.io/app:v1"]
        await store.load(make.chunks(make.small(b"other", "other:1")))
        await store.tag("other:1", "mine.io/app:v1")
        moved = await store.find("mine.io/app:v1")
        assert moved is not None and moved.digest != image.digest
        for source, target, reason in (
            ("none:1", "a:1", "NotFound"),
            ("test", "A:1", "InvalidImageName"),
            ("test", f"a@{image.digest}", "InvalidImageName"),
        ):
            with pytest.raises(ImageFault) as caught:
                await store.tag(source, target)
            assert caught.value.reason == reason

    async def test_inspect_says_what_there_is(self, store: Images) -> None:
        [image] = await store.load(make.chunks(make.small(config={"Entrypoint": ["/e"], "Cmd": ["c"]})))
        told = json.loads(json.dumps(await store.inspect("test")))
        assert (told["id"], told["digest"], told["names"]) == (image.id, image.digest, [NAME])
        assert told["size"] == image.size and told["config"]["Entrypoint"] == ["/e"]
        assert [one["digest"][:7] for one in told["layers"]] == ["sha256:"]
        with pytest.raises(ImageFault) as caught:
            await store.inspect("none")
        assert caught.value.reason == "NotFound"

    async def test_what_was_saved_loads_again(self, store: Images) -> None:
        layers = [make.layer(make.member("base")), make.layer(make.member("top", b"t" * 5000))]
        [one] = await store.load(make.chunks(make.docker_archive(*layers, tags=["one:1"])))
        [two] = await store.load(make.chunks(make.oci_archive(make.image(layers[0], names=["a.io/two:2"]))))
        saved = b"".join([chunk async for chunk in store.save(["one:1", "a.io/two:2"])])
        for image in (one, two):
            await store.remove(image.digest)
        assert await store.list() == []
        again = await store.load(make.chunks(saved))
        assert {image.digest: image.config for image in again} == {one.digest: one.config, two.digest: two.config}
        assert [image.names for image in again] == [one.names, two.names]
        with pytest.raises(ImageFault) as caught:
            [chunk async for chunk in store.save(["none:1"])]
        assert caught.value.reason == "NotFound"

    async def test_prune_takes_what_nobody_holds(self, store: Images) -> None:
        await store.load(make.chunks(make.small()))
        await store.load(make.chunks(make.small(b"other", "other:1")))
        await store.hold("pod", "test")
        assert (await store.prune()).names == []
        planned = await store.prune(all=True, dry_run=True)
        assert planned.names == ["docker.io/library/other:1"] and planned.freed > 0
        assert len(await store.list()) == 2
        assert await store.prune(all=True) == planned
        assert [image.names for image in await store.list()] == [(NAME,)]

    async def test_collect_leaves_what_is_held(self, store: Images) -> None:
        await store.load(make.chunks(make.small()))
        await store.load(make.chunks(make.small(b"other", "other:1")))
        await store.hold("pod", "test")
        assert (await store.collect(0, 0)).names == []
        assert (await store.collect(1 << 40, 0)).names == ["docker.io/library/other:1"]
        assert [image.names for image in await store.list()] == [(NAME,)]
