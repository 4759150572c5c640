"""Cold pulls, ours against `skopeo copy` and `umoci unpack`: the same image from the same registry on this machine.

`bench/node.py` prints it; `python -m bench.node_pull` shows each run. 100 MB in 10 gzip layers of programs' own files.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import images as make
from tests import registries

from shoal.agent.images.store import ImageStore
from shoal.deploy.demo import oci_writer

LAYERS = 10
PACKED_BYTES = 100_000_000
RUNS = 3
SEED = 7
FILE_SIZES = (200, 2_000, 8_000, 30_000, 120_000, 900_000)  # bytes; as Debian's packages have them, roughly
SIZE_WEIGHTS = (25, 30, 22, 15, 7, 1)
SAMPLE = "/usr/bin/skopeo"  # machine code and strings, to be about as compressible as an image's files are


def pull_vs_skopeo_umoci() -> float:
    """Median of ours over median of theirs; 1.0 or less is the aim."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        with registries.registry(folder / "registry") as running:
            image = running.name("bench/image:1")
            archive = make.write(folder, make.oci_archive(make.image(*_layers(), names=["1"])))
            print(f"image: {archive.stat().st_size / 1e6:.0f} MB packed, {LAYERS} layers")
            registries.skopeo("copy", "-q", "--dest-tls-verify=false", f"oci-archive:{archive}", f"docker://{image}")
            archive.unlink()
            for number in range(RUNS):
                ours.append(_ours(image, folder / f"ours{number}"))
                theirs.append(_theirs(image, folder / f"theirs{number}"))
    print(f"pull: ours {_shown(ours)} s, skopeo and umoci {_shown(theirs)} s")
    return statistics.median(ours) / statistics.median(theirs)


def _ours(image: str, folder: Path) -> float:
    async def pull() -> float:
        store = await ImageStore.open(folder, "amd64")
        start = time.monotonic()
        await store.pull(image)
        took = time.monotonic() - start
        await store.close()
        return took

    try:
        return asyncio.run(pull())
    finally:
        shutil.rmtree(folder)


def _theirs(image: str, folder: Path) -> float:
    folder.mkdir()
    layout, bundle = f"{folder}/layout:1", f"{folder}/bundle"
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{image}", f"oci:{layout}"]
    start = time.monotonic()
    subprocess.run(copy, check=True, capture_output=True)
    subprocess.run(["umoci", "unpack", "--image", layout, bundle], check=True, capture_output=True)
    took = time.monotonic() - start
    shutil.rmtree(folder)
    return took


def _layers() -> Iterator[oci_writer.Layer]:
    """Each of about a tenth of the bytes, packed."""
    rng = random.Random(SEED)
    sample = Path(SAMPLE).read_bytes()
    for number in range(LAYERS):
        yield _layer(rng, sample, number)


def _layer(rng: random.Random, sample: bytes, number: int) -> oci_writer.Layer:
    members, packed = [make.folder("usr"), make.folder(f"usr/lib{number}")], 0
    count = 0
    while packed < PACKED_BYTES // LAYERS:
        size = rng.choices(FILE_SIZES, SIZE_WEIGHTS)[0]
        start = rng.randrange(len(sample) - size)
        data = sample[start : start + size]
        where = f"usr/lib{number}/part{count // 200}"
        if count % 200 == 0:
            members.append(make.folder(where))
        members.append(make.member(f"{where}/file{count}", data, mode=0o755 if count % 5 == 0 else 0o644))
        packed += size * 2 // 5
        count += 1
    return make.layer(*members)


def _shown(seconds: list[float]) -> str:
    return " ".join(f"{one:.2f}" for one in seconds)


if __name__ == "__main__":
    print(f"pull_vs_skopeo_umoci {pull_vs_skopeo_umoci():.2f}")
