"""Unpacked layers as a real overlay shows them, against umoci and skopeo, and with entries that mean harm."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.agent.images import layers, tar
from shoal.agent.images.port import Image, ImageFault
from shoal.agent.images.store import ImageStore
from shoal.agent.images.streams import DEFAULT_BOUNDS
from shoal.deploy.demo import oci_writer
from shoal.deploy.demo.oci_writer import Layer
from tests import images as make
from tests.images import Member

pytestmark = pytest.mark.root
TOOL_TIMEOUT_S = 150
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # net_bind_service, effective


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = await ImageStore.open(tmp_path / "images", "amd64")
    yield opened
    await opened.close()


async def load(store: ImageStore, *parts: Layer) -> Image:
    [image] = await store.load(make.chunks(make.oci_archive(make.image(*parts))))
    return image


@contextmanager
def merged(folders: Sequence[str], at: Path) -> Iterator[Path]:
    """The layers as overlayfs merges them."""
    for name in ("merged", "upper", "work"):
        (at / name).mkdir()
    options = f"lowerdir={':'.join(reversed(folders))},upperdir={at}/upper,workdir={at}/work"
    subprocess.run(["mount", "-t", "overlay", "shoal-test", "-o", options, str(at / "merged")], check=True)
    try:
        yield at / "merged"
    finally:
        subprocess.run(["umount", str(at / "merged")], check=True)
        for name in ("merged", "upper", "work"):
            shutil.rmtree(at / name)


Look = tuple[object, ...]


def look(root: Path) -> dict[str, Look]:
    """Everything that a container could see of a tree: kind, mode, owner, time, content, links, capabilities."""
    seen: dict[str, Look] = {}
    inodes: dict[tuple[int, int], str] = {}
    for folder, folders, files in os.walk(root):
        for name in sorted((*folders, *files)):
            path = Path(folder) / name
            state = path.lstat()
            content: object = None
            if stat.S_ISREG(state.st_mode):
                content = (
                    path.read_bytes(),
                    inodes.setdefault((state.st_dev, state.st_ino), str(path.relative_to(root))),
                )
            elif stat.S_ISLNK(state.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(state.st_mode) or stat.S_ISBLK(state.st_mode):
                content = state.st_rdev
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            kept = {key: value for key, value in xattrs.items() if not key.startswith("trusted.overlay.")}
            time = 0 if stat.S_ISDIR(state.st_mode) else int(state.st_mtime)
            seen[str(path.relative_to(root))] = (
                oct(state.st_mode),
                state.st_uid,
                state.st_gid,
                time,
                content,
                str(kept),
            )
    return seen


def paths(root: Path) -> set[str]:
    return set(look(root))


BASE = make.layer(
    make.folder("etc"),
    make.member("etc/passwd", b"root"),
    make.member("etc/gone", b"1"),
    make.folder("dir", mode=0o2750, uid=5, gid=6),
    make.member("dir/old", b"old"),
    make.folder("dir/sub"),
    make.member("dir/sub/deep", b"deep"),
    make.folder("usr"),
    make.folder("usr/lib"),
    make.member("usr/lib/a", b"a"),
    make.symlink("lib", "usr/lib"),
    make.folder("run"),
    make.folder("var"),
    make.symlink("var/run", "/run"),
    make.member("bin/su", b"su", mode=0o4755),
    make.member(
        "bin/ping", b"p", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}
    ),
    make.hardlink("bin/su2", "bin/su"),
    make.device("dev/tty", 5, 0, mode=0o666),
    make.fifo("pipe"),
    make.member("owned", b"x", mode=0o640, uid=1000, gid=1001, mtime=1_234_567_890),
    make.symlink("dangling", "/nowhere"),
)


async def test_kinds_owners_modes_times(store: ImageStore) -> None:
    image = await load(store, BASE)
    root = Path(image.layers[0])
    owned = (root / "owned").stat()
    assert (oct(owned.st_mode), owned.st_uid, owned.st_gid, owned.st_mtime) == ("0o100640", 1000, 1001, 1_234_567_890)
    assert (root / "dir").stat().st_mode == 0o42750 and (root / "dir").stat().st_mtime == oci_writer.EPOCH
    assert (root / "bin/su").stat().st_mode == 0o104755
    assert (root / "bin/su").stat().st_ino == (root / "bin/su2").stat().st_ino
    assert os.getxattr(root / "bin/ping", "security.capability") == CAPABILITY
    assert stat.S_ISCHR((root / "dev/tty").stat().st_mode) and (root / "dev/tty").stat().st_rdev == os.makedev(5, 0)
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert os.readlink(root / "dangling") == "/nowhere"
    assert (root / "bin").stat().st_mode == 0o40755  # only passed through


async def test_whiteouts_and_opaque_folders(store: ImageStore, tmp_path: Path) -> None:
    above = make.layer(
        make.member("etc/.wh.gone"),
        make.member("dir/new", b"new"),
        make.member("dir/.wh..wh..opq"),
        make.member(".wh.pipe"),
        make.member(".wh.never-was"),
        make.member(".wh..wh.plnk/1", b"aufs"),
        make.member("bin/.wh.su", b""),
        make.member("bin/su", b"same layer wins"),
    )
    image = await load(store, BASE, above)
    with merged(image.layers, tmp_path) as root:
        seen = paths(root)
        assert {"etc/passwd", "dir/new", "bin/su", "usr/lib/a"} <= seen
        assert not {"etc/gone", "dir/old", "dir/sub", "pipe", "never-was"} & seen
        assert not [path for path in seen if ".wh." in path]
        assert (root / "bin/su").read_bytes() == b"same layer wins"
    assert not (Path(image.layers[1]) / "never-was").exists()


async def test_a_folder_after_its_whiteout_is_opaque(store: ImageStore, tmp_path: Path) -> None:
    for members in (
        [make.member(".wh.dir"), make.folder("dir"), make.member("dir/new")],
        [make.folder("dir"), make.member("dir/new"), make.member(".wh.dir")],
        [make.member(".wh.dir"), make.member("dir/new")],
    ):
        image = await load(store, BASE, make.layer(*members))
        with merged(image.layers, tmp_path) as root:
            assert sorted(os.listdir(root / "dir")) == ["new"]


async def test_folders_passed_through_keep_what_lies_below(store: ImageStore, tmp_path: Path) -> None:
    """A layer without entries for its parents: attributes and links of the layers below hold."""
    above = make.layer(
        make.member("dir/new", b"n"),
        make.member("lib/b", b"b"),
        make.member("var/run/pid", b"1"),
        make.member("fresh/x"),
    )
    image = await load(store, BASE, above)
    with merged(image.layers, tmp_path) as root:
        state = (root / "dir").stat()
        assert (oct(state.st_mode), state.st_uid, state.st_gid) == ("0o42750", 5, 6)
        assert (root / "lib").is_symlink() and sorted(os.listdir(root / "usr/lib")) == ["a", "b"]
        assert (root / "run/pid").read_bytes() == b"1" and (root / "var/run").is_symlink()
        assert (root / "fresh").stat().st_mode == 0o40755


async def test_the_last_entry_wins(store: ImageStore) -> None:
    image = await load(
        store,
        make.layer(
            make.member("a", b"1"),
            make.member("a", b"2"),
            make.folder("b"),
            make.member("b/x"),
            make.member("b", b"file"),
            make.member("c", b"file"),
            make.folder("c"),
            make.member("c/y"),
            make.symlink("d", "c"),
            make.folder("d"),
            make.member("d/z"),
        ),
    )
    root = Path(image.layers[0])
    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"2", b"file")
    assert os.listdir(root / "c") == ["y"] and os.listdir(root / "d") == ["z"]


async def test_sparse_files_stay_sparse(store: ImageStore, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.write(b"start")
        file.seek(50_000_000)
        file.write(b"end")
    for form in ("gnu", "posix"):
        command = ["tar", "--format", form, "-S", "-C", str(tmp_path), "-cf", "-", "sparse"]
        data = subprocess.run(command, check=True, capture_output=True).stdout
        assert len(data) < 1_000_000
        image = await load(store, oci_writer.pack_layer(data))
        made = Path(image.layers[0]) / "sparse"
        assert made.read_bytes() == source.read_bytes()
        assert made.stat().st_blocks * 512 < 1_000_000


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([make.symlink("out", "../../.."), make.member("out/x")], "climbs out through a link"),
        ([make.symlink("a", "b"), make.symlink("b", "a"), make.member("a/x")], "over 40 links"),
        ([make.member("f"), make.member("f/x")], "no folder"),
        ([make.hardlink("h", "../x")], "climbs out"),
        ([make.hardlink("h", "/etc/passwd")], "absolute"),
        ([make.symlink("out", "../.."), make.hardlink("h", "out/etc/passwd")], "climbs out through a link"),
        ([make.member("x/../../y")], "climbs out"),
        ([make.member(".wh..")], "whiteout of nothing"),
        ([make.member(".wh.x/y")], "below a whiteout"),
        ([make.member("/".join("d" * 300))], "folders deep"),
    ],
)
async def test_paths_that_lead_out_are_refused(
    store: ImageStore, tmp_path: Path, members: list[Member], words: str
) -> None:
    with pytest.raises(ImageFault, match=words) as caught:
        await load(store, make.layer(*members))
    assert caught.value.reason == "BadPath"
    assert not list((tmp_path / "images/l").iterdir()) and not list((tmp_path / "images/staging").iterdir())


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([make.hardlink("h", "missing")], "no file of this layer"),
        ([make.folder("d"), make.hardlink("h", "d")], "no file of this layer"),
        ([make.member("n" * 300)], "File name too long"),
        ([make.symlink("s", "")], "No such file"),
    ],
)
async def test_impossible_entries_are_refused(store: ImageStore, members: list[Member], words: str) -> None:
    with pytest.raises(ImageFault, match=words) as caught:
        await load(store, make.layer(*members))
    assert caught.value.reason == "BadArchive"


async def test_absolute_links_stay_in_the_root(store: ImageStore) -> None:
    image = await load(store, make.layer(make.symlink("etc", "/shoal-nowhere"), make.member("etc/x", b"inside")))
    assert (Path(image.layers[0]) / "shoal-nowhere/x").read_bytes() == b"inside"
    assert not Path("/shoal-nowhere").exists()


async def test_overlayfs_own_xattrs_do_not_come_from_outside(store: ImageStore) -> None:
    headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.mine": "kept",
    }
    image = await load(store, make.layer(make.folder("d", pax_headers=headers)))
    assert os.listxattr(Path(image.layers[0]) / "d") == ["user.mine"]


NAMES = st.sampled_from(["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", "canary"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
TARGETS = st.one_of(PATHS, PATHS.map(lambda path: "/" + path), PATHS.map(lambda path: "../" * 6 + path))
ENTRIES = st.one_of(
    st.builds(make.member, PATHS, st.just(b"data")),
    st.builds(make.folder, PATHS),
    st.builds(make.symlink, PATHS, TARGETS),
    st.builds(make.hardlink, PATHS, TARGETS),
    st.builds(make.fifo, PATHS),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lower=st.lists(ENTRIES, max_size=6), upper=st.lists(ENTRIES, max_size=12))
def test_no_entries_whatever_reach_outside(tmp_path: Path, lower: list[Member], upper: list[Member]) -> None:
    base = tmp_path / "deep/er"
    shutil.rmtree(tmp_path / "deep", ignore_errors=True)
    base.mkdir(parents=True)
    for folder in (base, tmp_path / "deep"):
        (folder / "canary").write_bytes(b"alive")
    done: list[str] = []
    for name, members in (("0", lower), ("1", upper)):
        (base / name).mkdir()
        data = io.BytesIO(make.tar(members, tarfile.GNU_FORMAT))
        unpacker = layers.Unpacker(str(base / name), done, DEFAULT_BOUNDS, "it")
        below = [look(Path(path)) for path in done]
        try:
            unpacker.unpack(tar.Tar(data.read, "it"))
        except ImageFault as fault:
            assert fault.reason in ("BadPath", "BadArchive"), fault.message
        finally:
            unpacker.close()
        assert [look(Path(path)) for path in done] == below
        done.append(str(base / name))
    assert sorted(os.listdir(base)) == ["0", "1", "canary"]
    assert sorted(os.listdir(tmp_path / "deep")) == ["canary", "er"]
    for folder in (base, tmp_path / "deep"):
        assert (folder / "canary").read_bytes() == b"alive"
        assert (folder / "canary").stat().st_nlink == 1


def test_a_layer_may_not_replace_its_own_folders_for_ever(tmp_path: Path) -> None:
    """Each time all folders so far are looked at."""
    members = [one for _ in range(1002) for one in (make.folder("d"), make.member("d"))]
    data = io.BytesIO(make.tar(members))
    unpacker = layers.Unpacker(str(tmp_path), [], DEFAULT_BOUNDS, "it")
    try:
        with pytest.raises(ImageFault, match="replaces over 1000 of its own folders") as caught:
            unpacker.unpack(tar.Tar(data.read, "it"))
    finally:
        unpacker.close()
    assert caught.value.reason == "TooLarge"


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


needs_peers = pytest.mark.skipif(
    not (shutil.which("umoci") and shutil.which("skopeo")), reason="needs Debian's packages umoci and skopeo"
)
ABOVE = make.layer(
    make.folder("etc"),
    make.member("etc/.wh.gone"),
    make.member("etc/added", b"added", uid=9),
    make.folder("dir", mode=0o700),
    make.member("dir/.wh..wh..opq"),
    make.member("dir/only", b"only"),
    make.folder("bin"),
    make.member("bin/one", b"one"),
    make.hardlink("bin/two", "bin/one"),
    make.member("usr/lib/a", b"changed"),
)


@needs_peers
async def test_umoci_unpacks_the_same(store: ImageStore, tmp_path: Path) -> None:
    archive = make.write(tmp_path, make.oci_archive(make.image(BASE, ABOVE)))
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{archive}", f"oci:{tmp_path}/layout:t")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:t", f"{tmp_path}/bundle")
    [image] = await store.load(make.file_chunks(archive))
    with merged(image.layers, tmp_path) as root:
        ours, theirs = look(root), look(tmp_path / "bundle/rootfs")
    assert ours == theirs


@needs_peers
@pytest.mark.parametrize("target", ["docker-archive:{}:a.io/test:1", "oci-archive:{}:a.io/test:1"])
@pytest.mark.parametrize("pack", [(), ("--dest-compress-format", "zstd")])
async def test_reads_what_skopeo_writes(store: ImageStore, tmp_path: Path, target: str, pack: tuple[str, ...]) -> None:
    archive = make.write(tmp_path, make.oci_archive(make.image(BASE, ABOVE)))
    out = tmp_path / "out.tar"
    run("skopeo", "--insecure-policy", "copy", "-q", *pack, f"oci-archive:{archive}", target.format(out))
    [direct] = await store.load(make.file_chunks(archive))
    [image] = await store.load(make.file_chunks(out))
    assert "a.io/test:1" in image.names
    assert image.layers == direct.layers and image.config == direct.config


@needs_peers
async def test_reads_what_umoci_writes(store: ImageStore, tmp_path: Path) -> None:
    """umoci leaves mediaType out and writes whiteouts for what was deleted."""
    layout, bundle = tmp_path / "layout", tmp_path / "bundle"
    archive = make.write(tmp_path, make.oci_archive(make.image(BASE)))
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{archive}", f"oci:{layout}:t")
    run("umoci", "unpack", "--image", f"{layout}:t", str(bundle))
    (bundle / "rootfs/etc/gone").unlink()
    shutil.rmtree(bundle / "rootfs/dir")
    (bundle / "rootfs/added").write_bytes(b"new")
    os.utime(bundle / "rootfs/added", (oci_writer.EPOCH, oci_writer.EPOCH))
    os.link(bundle / "rootfs/added", bundle / "rootfs/linked")
    run("umoci", "repack", "--image", f"{layout}:u", str(bundle))
    run("umoci", "config", "--image", f"{layout}:u", "--config.cmd", "/added", "--config.user", "3:4")
    run("umoci", "rm", "--image", f"{layout}:t")
    wanted = look(bundle / "rootfs")
    packed = tmp_path / "packed.tar"
    run("tar", "-C", str(layout), "-cf", str(packed), ".")
    [image] = await store.load(make.file_chunks(packed), "mine:1")
    assert (image.config.cmd, image.config.user) == (("/added",), "3:4")
    with merged(image.layers, tmp_path) as root:
        assert look(root) == wanted
