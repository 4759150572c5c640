"""The image store on disk: the contract, crashes, full disks, sharing; needs root for owners and devices."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from shoal.agent.images import layers
from shoal.agent.images.port import Image, ImageFault
from shoal.agent.images.store import ImageStore
from tests import images as make
from tests.images_contract import ImagesContract

pytestmark = pytest.mark.root
ARCHITECTURE = "amd64"
WAIT_S = 90


def tree(root: Path) -> list[str]:
    """Everything in a store's folder, save its lock and reserve."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name not in ("lock", "reserve"))


EMPTY = ["blobs", "blobs/sha256", "blobs/sha512", "holders", "l", "staging", "trash"]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = await ImageStore.open(tmp_path / "images", ARCHITECTURE)
    yield opened
    await opened.close()


class TestImageStore(ImagesContract):
    @pytest.fixture(autouse=True)
    async def clean(self, store: ImageStore, tmp_path: Path) -> AsyncIterator[None]:
        """After every test of the contract nothing but what is listed lies in the folder."""
        yield
        images = await store.list()
        folders = {folder for image in images for folder in image.layers}
        assert {str(path) for path in (tmp_path / "images/l").iterdir()} == folders
        assert not list((tmp_path / "images/staging").iterdir())
        assert not list((tmp_path / "images/trash").iterdir())
        blobs = {"sha256:" + path.name for path in (tmp_path / "images/blobs/sha256").iterdir()}
        needed = set()
        for image in images:
            layers = cast(list[dict[str, Any]], (await store.inspect(image.digest))["layers"])
            needed |= {image.id, image.digest, *(one["digest"] for one in layers if one["kept"])}
        assert blobs == needed


async def load(store: ImageStore, archive: bytes) -> Image:
    [image] = await store.load(make.chunks(archive))
    return image


async def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    root = tmp_path / "images"
    store = await ImageStore.open(root, ARCHITECTURE)
    image = await load(store, make.small())
    await store.hold("a/b/c", "test")
    await load(store, make.small(b"other", "second:1"))
    await store.close()
    again = await ImageStore.open(root, ARCHITECTURE)
    assert [one.names[0] for one in await again.list()] == [
        "docker.io/library/second:1",
        "docker.io/library/test:latest",
    ]
    assert await again.find("test") == image
    assert (Path(image.layers[0]) / "file").read_bytes() == b"hello"
    with pytest.raises(ImageFault, match="a/b/c"):
        await again.remove("test")
    await again.release("a/b/c")
    await again.remove("test")
    await again.remove("second:1")
    assert tree(root) == [*EMPTY[:4], "index.json", *EMPTY[4:]]
    await again.close()


async def test_the_folder_has_one_owner(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageFault) as caught:
        await ImageStore.open(tmp_path / "images", ARCHITECTURE)
    assert caught.value.reason == "InUse" and "another agent" in caught.value.message
    await load(store, make.small())


async def test_a_damaged_index_is_named_and_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "images"
    store = await ImageStore.open(root, ARCHITECTURE)
    await load(store, make.small())
    await store.close()
    before = tree(root)
    for damage in ("{", "[]", '{"version": 2}', '{"version": 1}'):
        (root / "index.json").write_text(damage)
        with pytest.raises(ImageFault, match=r"index\.json is damaged"):
            await ImageStore.open(root, ARCHITECTURE)
    assert tree(root) == before


async def test_a_damaged_image_is_named_and_repaired_by_loading(tmp_path: Path) -> None:
    root = tmp_path / "images"
    store = await ImageStore.open(root, ARCHITECTURE)
    image = await load(store, make.small())
    await store.close()
    for path in (root / "blobs" / image.id.replace(":", "/"), Path(image.layers[0]) / "file"):
        path.write_bytes(b"{}") if "blobs" in str(path) else os.rename(path.parent, root / "elsewhere")
        store = await ImageStore.open(root, ARCHITECTURE)
        with pytest.raises(ImageFault, match="load it again"):
            await store.find("test")
        repaired = await load(store, make.small())
        assert await store.find("test") == repaired
        assert (Path(repaired.layers[0]) / "file").read_bytes() == b"hello"
        await store.close()


async def test_loads_at_once_unpack_once(store: ImageStore) -> None:
    said: list[str] = []
    archive = make.small(b"x" * 100_000)
    results = await asyncio.gather(*(store.load(make.chunks(archive), progress=said.append) for _ in range(5)))
    assert len({tuple(image.layers) for [image] in results}) == 1
    assert sum("unpacked" in line for line in said) == 1


async def test_a_load_keeps_the_layers_it_counts_on(store: ImageStore) -> None:
    """The only other user of a shared layer goes while a load that needs it is under way."""
    base = make.layer(make.member("base", b"base"))
    await load(store, make.oci_archive(make.image(base, names=["a.io/old:1"])))
    middle = make.layer(make.member("middle", b"m"))
    big = make.layer(make.member("big", os.urandom(20_000_000)))
    new = make.oci_archive(make.image(base, middle, big, names=["a.io/new:1"]))
    for step in ("received", "unpacked layer 2"):
        await load(store, make.oci_archive(make.image(base, names=["a.io/old:1"])))
        reached = asyncio.Event()

        def said(text: str, event: asyncio.Event = reached, wanted: str = step) -> None:
            if text.startswith(wanted):
                event.set()

        task = asyncio.create_task(store.load(make.chunks(new), progress=said))
        await reached.wait()
        await store.remove("a.io/old:1")
        [image] = await task
        assert (Path(image.layers[0]) / "base").read_bytes() == b"base"
        await store.remove("a.io/new:1")


async def _endless(archive: bytes, sent: asyncio.Event) -> AsyncIterator[bytes]:
    async for chunk in make.chunks(archive):
        yield chunk
    sent.set()
    await asyncio.Event().wait()


async def test_a_cancelled_load_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    archive = make.small(os.urandom(30_000_000))
    for endless in (False, True):
        reached = asyncio.Event()
        stream = _endless(archive, reached) if endless else make.chunks(archive)

        def said(_: str, event: asyncio.Event = reached) -> None:
            event.set()

        task = asyncio.create_task(store.load(stream, progress=said))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tree(tmp_path / "images") == EMPTY
    assert (await load(store, archive)).size > 30_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "shoal-test", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)  # also when a failed test holds it open


@pytest.fixture
async def small_store(small_disk: Path) -> AsyncIterator[ImageStore]:
    """Closed before its disk goes."""
    store = await ImageStore.open(small_disk / "images", ARCHITECTURE)
    yield store
    await store.close()


async def test_a_full_disk(small_disk: Path, small_store: ImageStore) -> None:
    root, store = small_disk / "images", small_store
    kept = await load(store, make.small(b"kept", "kept:1"))
    for archive in (
        make.small(os.urandom(9_000_000)),  # does not fit as an archive
        make.small(os.urandom(5_000_000)),  # fits, but not with its layer
        make.small(bytes(20_000_000)),  # small, but unpacks to more than fits
    ):
        with pytest.raises(ImageFault) as caught:
            await store.load(make.chunks(archive))
        assert caught.value.reason == "NoSpace" and "full" in caught.value.message
        assert [image.names for image in await store.list()] == [kept.names]
        assert not list((root / "staging").iterdir())
    assert (await load(store, make.small(b"fits"))).names
    with (small_disk / "filler").open("wb") as filler:
        with pytest.raises(OSError):
            while True:
                filler.write(bytes(65536))
                filler.flush()
        with pytest.raises(ImageFault, match="full"):
            await store.hold("pod", "kept:1")
        await store.remove("kept:1")  # the reserve pays for the index
        assert await store.find("kept:1") is None
    await store.close()
    store = await ImageStore.open(root, ARCHITECTURE)
    assert [image.names[0] for image in await store.list()] == ["docker.io/library/test:latest"]
    await store.close()


LOADER = """
import asyncio, sys
from pathlib import Path
from shoal.agent.images.store import ImageStore
from tests.images import file_chunks

async def main():
    store = await ImageStore.open(Path(sys.argv[1]), "amd64")
    print("open", flush=True)
    while True:
        for path in sys.argv[2:]:
            for image in await store.load(file_chunks(Path(path)), progress=lambda text: print(text, flush=True)):
                print("loaded", image.digest, flush=True)
        for image in await store.list():
            await store.remove(image.digest)
            print("removed", image.digest, flush=True)

asyncio.run(main())
"""


async def test_a_kill_at_any_moment_leaves_the_last_state(tmp_path: Path) -> None:
    """Kills a process that loads and removes, after a growing number of its lines, and looks at what is there."""
    root = tmp_path / "images"
    base = make.layer(*[make.member(f"f{n}", os.urandom(50_000)) for n in range(40)])
    paths = []
    for number in range(2):
        top = make.layer(make.member("top", bytes([number]) * 3_000_000))
        archive = make.oci_archive(make.image(base, top, names=[f"a.io/i{number}:1"]))
        paths.append(str(make.write(tmp_path, archive, f"{number}.tar")))
    for lines in range(1, 14):
        process = subprocess.Popen(
            [sys.executable, "-c", LOADER, str(root), *paths], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
        )
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(lines)]
        assert all(seen), seen
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
        process.stdout.close()
        store = await ImageStore.open(root, ARCHITECTURE)
        await _check_whole(store, root)
        await store.close()


async def _check_whole(store: ImageStore, root: Path) -> None:
    images = await store.list()
    folders = {folder for image in images for folder in image.layers}
    assert {str(path) for path in (root / "l").iterdir()} == folders
    assert not list((root / "staging").iterdir()) and not list((root / "trash").iterdir())
    for image in images:
        assert len(list(Path(image.layers[0]).iterdir())) == 40
        assert (Path(image.layers[1]) / "top").stat().st_size == 3_000_000


async def test_layer_folders_have_short_names(store: ImageStore) -> None:
    image = await load(store, make.oci_archive(make.image(*[make.layer(make.member(f"{n}")) for n in range(120)])))
    assert len(image.layers) == 120
    assert all(len(os.path.basename(folder)) <= 2 for folder in image.layers)
    many = [make.layer(make.member(f"{n}")) for n in range(257)]
    with pytest.raises(ImageFault, match="1 to 256"):
        await load(store, make.oci_archive(make.image(*many)))


def test_marks_are_overlayfs_own() -> None:
    assert layers.OPAQUE_XATTR == "trusted.overlay.opaque"
