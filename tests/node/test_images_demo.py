"""The demo's images: made from Debian packages, loaded, and really run in a chroot."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.agent.images.port import Image
from shoal.agent.images.store import ImageStore
from shoal.deploy.demo import images as demo
from shoal.deploy.demo.push import CannotPush, push
from tests import images as make
from tests import registries
from tests.node.test_images_layers import merged

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("apt-get"), reason="the demo's images are made from Debian packages"),
]
RUN_TIMEOUT_S = 150

SERVE = """
set -e
mount --bind /dev {root}/dev
mount -t proc proc {root}/proc
hostname pod-1
exec chroot {root} sh -c '
    ifconfig lo 127.0.0.1 up
    {command} &
    server=$!
    tries=0
    until {probe}; do
        tries=$((tries + 1))
        [ $tries -lt 200 ] && kill -0 $server || exit 9
        usleep 50000
    done
    kill $server
    wait $server || true
'
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("demo")
    return {path.stem: path for path in demo.make(out, lambda _: None)}


@pytest.fixture
async def images(archives: dict[str, Path], tmp_path: Path) -> AsyncIterator[dict[str, Image]]:
    store = await ImageStore.open(tmp_path / "images", "amd64")
    yield {name: (await store.load(make.file_chunks(path)))[0] for name, path in archives.items()}
    await store.close()


def serve(root: Path, command: str, probe: str) -> str:
    script = SERVE.format(root=root, command=command, probe=probe)
    done = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_nginx_serves_the_pods_name(images: dict[str, Image], tmp_path: Path) -> None:
    image = images["nginx"]
    assert image.names == ("docker.io/library/nginx:latest", "docker.io/library/nginx:1.22")
    with merged(image.layers, tmp_path) as root:
        out = serve(root, " ".join(image.config.cmd), "wget -q -O - 127.0.0.1:80")
    assert "Served by pod-1" in out
    assert '"GET / HTTP/1.1" 200' in out  # the access log


def test_redis_answers(images: dict[str, Image], tmp_path: Path) -> None:
    image = images["redis"]
    assert image.config.user == "redis" and image.config.working_dir == "/data"
    assert image.layers[0] == images["nginx"].layers[0]
    with merged(image.layers, tmp_path) as root:
        assert (root / "data").stat().st_uid == demo.REDIS_ID
        out = serve(root, " ".join(image.config.cmd), "redis-cli ping | grep PONG")
    assert "PONG" in out and "Ready to accept connections" in out


def test_busybox_has_its_applets(images: dict[str, Image], tmp_path: Path) -> None:
    with merged(images["busybox"].layers, tmp_path) as root:
        done = subprocess.run(
            ["chroot", str(root), "sh", "-c", "echo a | sed s/a/b/; id -un"], capture_output=True, text=True, check=True
        )
    assert done.stdout == "b\nroot\n"


def test_made_once_and_always_the_same(archives: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in archives.values()}
    demo.make(archives["nginx"].parent, said.append)
    assert "already made" in said[0] and before == {path: path.stat().st_mtime_ns for path in archives.values()}
    again = demo.make(tmp_path / "again", said.append)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in archives.values()]


def test_the_archives_go_into_a_registry(archives: dict[str, Path], tmp_path: Path) -> None:
    """As the demo puts them there; a second time changes nothing. skopeo finds what the archive holds."""
    with registries.registry(tmp_path / "registry") as running:
        for _ in range(2):
            assert push(archives["nginx"], running.address) == ["nginx:latest", "nginx:1.22"]
        for tag in ("latest", "1.22"):
            found = registries.skopeo(
                "inspect", "--raw", "--tls-verify=false", f"docker://{running.name('library/nginx')}:{tag}"
            )
            kept = registries.skopeo(
                "inspect", "--raw", f"oci-archive:{archives['nginx']}:docker.io/library/nginx:{tag}"
            )
            assert found == kept
    wanted = pytest.raises(CannotPush, match=r"GET /v2/ gave 401, .*authentication required")
    with registries.registry(tmp_path / "locked", password=True) as running, wanted:
        push(archives["nginx"], running.address)


def test_the_program_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shoal.deploy.demo.images", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        env={"PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "apt-get is missing" in done.stderr and "Traceback" not in done.stderr
