"""Images: names, tar and archives under arbitrary input."""

from __future__ import annotations

import asyncio
import io
import tarfile

from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.agent.images import names
from shoal.agent.images.catalog import Catalog, Record
from shoal.agent.images.fake import FakeImages
from shoal.agent.images.port import ImageFault
from shoal.agent.images.tar import Tar
from tests import images as make

LETTERS = st.sampled_from("abcXYZ019._-:/@[] \n\u00e4")
COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,2}", fullmatch=True)
DOMAIN = st.from_regex(r"([a-z0-9]{1,5}\.[a-z0-9]{1,5}|localhost)(:[0-9]{1,5})?", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
GOOD = [
    make.small(b"content" * 200),
    make.docker_archive(make.layer(make.member("a", b"1"), make.symlink("b", "a")), tags=["t:1"]),
]


@settings(max_examples=300)
@given(st.text(LETTERS, max_size=30) | st.text(max_size=30))
def test_normalising_twice_changes_nothing_and_errors_are_ours(text: str) -> None:
    try:
        full = names.normalise(text)
    except ImageFault as fault:
        assert fault.reason == "InvalidImageName" and fault.message
        return
    assert names.normalise(full) == full
    assert names.parse(full).tag or names.parse(full).digest


@given(DOMAIN, st.lists(COMPONENT, min_size=1, max_size=3), TAG)
def test_whole_names_stand_for_themselves(domain: str, path: list[str], tag: str) -> None:
    reference = names.parse(f"{domain}/{'/'.join(path)}:{tag}")
    assert (reference.domain, reference.path, reference.tag) == (domain, "/".join(path), tag)


PATHS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300
)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(PATHS, st.binary(max_size=1500), st.integers(0, 2**31), st.floats(0, 4e9)), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 2000),
)
def test_tar_reads_what_tarfile_writes(files: list[tuple[str, bytes, int, float]], format: int, step: int) -> None:
    members = [make.member(path, data, uid=uid, mtime=mtime) for path, data, uid, mtime in files]
    data = make.tar(members, format)
    source = io.BytesIO(data)
    ours = Tar(lambda n: source.read(min(n, step)), "it")
    read = [(entry, b"".join(ours.chunks())) for entry in ours]
    with tarfile.open(fileobj=io.BytesIO(data)) as theirs:
        wanted = theirs.getmembers()
    assert [entry.name.decode().rstrip("/") for entry, _ in read] == [info.name for info in wanted]
    for (entry, content), info, (_, written, _, _) in zip(read, wanted, files, strict=True):
        assert entry.uid == info.uid and abs(entry.mtime_ns / 1e9 - info.mtime) < 1e-3
        if entry.kind == "file":
            assert content == written


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
)
@example(GOOD[0], [], 1.0)
def test_a_damaged_archive_loads_whole_or_is_refused(good: bytes, flips: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(good)
    for place, value in flips:
        data[int(place * len(data))] = value
    store = FakeImages()

    async def load() -> None:
        try:
            await store.load(make.chunks(bytes(data[: int(keep * len(data)) or 1])), "mine:1")
        except ImageFault as fault:
            assert fault.message and await store.list() == []
        else:
            assert len(await store.list()) == 1

    asyncio.run(load())


NAMES = [f"docker.io/library/{letter}:1" for letter in "abc"]
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "hold", "release"]), st.integers(0, 3), st.integers(0, 2)), max_size=30
)


@settings(max_examples=200)
@given(OPERATIONS)
def test_what_is_held_or_named_is_there_and_nothing_else(operations: list[tuple[str, int, int]]) -> None:
    catalog = Catalog()
    for operation, content, place in operations:
        before = catalog
        digest = "sha256:" + f"{content:064x}"
        try:
            if operation == "add":
                catalog = catalog.add([Record(digest, (digest,), (NAMES[place],), 1, (f"layer-{content}",))])
            elif operation == "remove":
                catalog = catalog.remove(NAMES[place])
            elif operation == "hold" and (record := catalog.find(NAMES[place])) is not None:
                catalog = catalog.hold(f"h{content}", record)
            elif operation == "release":
                catalog = catalog.release(f"h{content}")
        except ImageFault as fault:
            assert fault.reason in ("NotFound", "InUse") and catalog is before
        held = {one for images in catalog.holders.values() for one in images}
        assert held <= set(catalog.images)
        every = [name for image in catalog.images.values() for name in image.names]
        assert len(every) == len(set(every))
        assert all(image.names or image.digest in held for image in catalog.images.values())
