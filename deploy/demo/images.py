"""Makes the demo's images from Debian packages: busybox, nginx and redis, the latter two over one base layer.

`python -m shoal.deploy.demo.images --out DIR`. What is already made from the same recipe is left as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.deploy.demo import oci_writer
from shoal.deploy.demo.oci_writer import ImageSpec, Layer

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
COMMAND_TIMEOUT_S = 300
MERGED = ("bin", "sbin", "lib", "lib64")  # links into usr/, as Debian has them
PRUNED = ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/locale", "usr/share/bug")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REDIS_ID = 999

BASE_PACKAGES = ("base-files", "base-passwd", "busybox-static", "libc6", "libgcc-s1", "libcrypt1", "libssl3", "zlib1g")
NGINX_PACKAGES = ("nginx", "nginx-common", "libpcre2-8-0")
REDIS_PACKAGES = (
    *("redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1", "libstdc++6", "libsystemd0"),
    *("libcap2", "libgcrypt20", "libgpg-error0", "liblz4-1", "liblzma5", "libzstd1"),
)

NGINX_CONF = """\
user www-data;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log stderr notice;
events { worker_connections 256; }
http {
    access_log /dev/stdout;
    default_type text/html;
    server {
        listen 80;
        location /healthz { access_log off; return 200 "ok\\n"; }
        location / {
            return 200 "<html><body><h1>Guestbook</h1><p>Served by $hostname</p></body></html>\\n";
        }
    }
}
"""
REDIS_CONF = """\
bind 0.0.0.0
protected-mode no
port 6379
dir /data
daemonize no
logfile ""
"""
PASSWD_MORE = f"redis:x:{REDIS_ID}:{REDIS_ID}::/data:/usr/sbin/nologin\n"
GROUP_MORE = f"redis:x:{REDIS_ID}:\n"


class CannotMake(Exception):
    """An image could not be made; the message says what failed and what to do."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image: what its own layer holds above the base (busybox has no base), and how it runs."""

    name: str
    tags: Sequence[str]
    packages: Sequence[str]
    files: Mapping[str, str]
    config: Mapping[str, object]
    folders: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    on_base: bool = True


RECIPES = (
    Recipe("busybox", ("latest", "1.35"), ("busybox-static",), {}, {"Cmd": ["sh"], "Env": [PATH]}, on_base=False),
    Recipe(
        "nginx",
        ("latest", "1.22"),
        NGINX_PACKAGES,
        {"etc/nginx/nginx.conf": NGINX_CONF},
        {"Cmd": ["nginx"], "Env": [PATH], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"},
        {"var/log/nginx": (0, 0), "run": (0, 0)},
    ),
    Recipe(
        "redis",
        ("latest", "7.0"),
        REDIS_PACKAGES,
        {"etc/redis/redis.conf": REDIS_CONF},
        {
            "Cmd": ["redis-server", "/etc/redis/redis.conf"],
            "Env": [PATH],
            "ExposedPorts": {"6379/tcp": {}},
            "User": "redis",
            "WorkingDir": "/data",
        },
        {"data": (REDIS_ID, REDIS_ID)},
    ),
)


def make(out: Path, say: Callable[[str], None] = print) -> list[Path]:
    """The archives of all demo images, made where they are missing or older than the recipe. Raises CannotMake."""
    out.mkdir(parents=True, exist_ok=True)
    archives = [out / f"{recipe.name}.tar" for recipe in RECIPES]
    stamp = out / ".recipe"
    if stamp.exists() and stamp.read_text() == _stamp() and all(path.exists() for path in archives):
        say(f"images: already made in {out}")
        return archives
    with tempfile.TemporaryDirectory(prefix="shoal-images-") as work, _umask(0o022):
        kitchen = _Kitchen(Path(work))
        kitchen.fetch([*BASE_PACKAGES, *NGINX_PACKAGES, *REDIS_PACKAGES])
        base = kitchen.base()
        for recipe, path in zip(RECIPES, archives, strict=True):
            oci_writer.write_archive(path, [kitchen.image(recipe, base)])
            say(f"images: made {path} ({path.stat().st_size // 1024} KiB)")
    stamp.write_text(_stamp())
    return archives


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    """Modes go into the images: they must not depend on who makes them."""
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


class _Kitchen:
    """A work folder with the packages, in which trees are put together."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._debs = work / "debs"
        self._debs.mkdir()

    def fetch(self, packages: Sequence[str]) -> None:
        wanted = sorted(set(packages))
        command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *wanted]
        try:
            _run(command, self._debs)
        except CannotMake:
            _run(["apt-get", "-qq", "update"], self._debs)
            _run(command, self._debs)

    def base(self) -> Layer:
        with self._tree(BASE_PACKAGES) as root:
            _applets(root)
            _accounts(root)
            for folder, mode in (("proc", 0o755), ("sys", 0o755), ("dev", 0o755), ("tmp", 0o1777), ("root", 0o700)):
                (root / folder).mkdir(exist_ok=True)
                (root / folder).chmod(mode)
            return oci_writer.pack_layer(oci_writer.tar_tree(root))

    def image(self, recipe: Recipe, base: Layer) -> ImageSpec:
        with self._tree(recipe.packages) as root:
            if not recipe.on_base:
                _applets(root)
                _few_accounts(root)
            for path, text in recipe.files.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
            for path in recipe.folders:
                (root / path).mkdir(parents=True, exist_ok=True)
            if recipe.on_base:
                _leave_to_base(root)
            own = oci_writer.pack_layer(oci_writer.tar_tree(root, recipe.folders))
        layers = [base, own] if recipe.on_base else [own]
        names = [f"docker.io/library/{recipe.name}:{tag}" for tag in recipe.tags]
        return ImageSpec(names, layers, recipe.config, _architecture())

    @contextlib.contextmanager
    def _tree(self, packages: Sequence[str]) -> Iterator[Path]:
        root = Path(tempfile.mkdtemp(dir=self._work))
        try:
            for name in MERGED:
                (root / "usr" / name).mkdir(parents=True)
                (root / name).symlink_to(f"usr/{name}")
            for package in packages:
                self._unpack(package, root)
            for path in PRUNED:
                shutil.rmtree(root / path, ignore_errors=True)
            yield root
        finally:
            shutil.rmtree(root)

    def _unpack(self, package: str, root: Path) -> None:
        [deb] = self._debs.glob(f"{package}_*.deb")
        with tempfile.TemporaryDirectory(dir=self._work) as apart:
            _run(["dpkg-deb", "-x", str(deb), apart], self._work)
            for name in MERGED:  # packages of Debian 12 still hold /lib beside /usr/lib
                old = Path(apart) / name
                if old.is_dir() and not old.is_symlink():
                    shutil.copytree(old, Path(apart) / "usr" / name, symlinks=True, dirs_exist_ok=True)
                    shutil.rmtree(old)
            shutil.copytree(apart, root, symlinks=True, dirs_exist_ok=True)


def _applets(root: Path) -> None:
    """A link per busybox applet, as `busybox --install` makes them."""
    busybox = root / "usr/bin/busybox"
    names = _run([str(busybox), "--list"], root).split()
    for name in names:
        link = root / "usr/bin" / name
        if not link.exists() and not link.is_symlink():
            link.symlink_to("busybox")


def _accounts(root: Path) -> None:
    share = root / "usr/share/base-passwd"
    (root / "etc").mkdir(exist_ok=True)
    passwd = (share / "passwd.master").read_text().replace(":*:", ":x:")
    group = (share / "group.master").read_text().replace(":*:", ":x:")
    (root / "etc/passwd").write_text(passwd + PASSWD_MORE)
    (root / "etc/group").write_text(group + GROUP_MORE)


def _few_accounts(root: Path) -> None:
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    for folder, mode in (("tmp", 0o1777), ("root", 0o700), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(mode)


def _leave_to_base(root: Path) -> None:
    """The merged folders' links belong to the base; an upper layer that repeats them only grows."""
    for name in MERGED:
        (root / name).unlink()
        folder = root / "usr" / name
        if not any(folder.iterdir()):
            folder.rmdir()


def _run(command: Sequence[str], cwd: Path) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise CannotMake(f"{command[0]} is missing: the demo's images are made on Debian with apt and dpkg") from error
    except subprocess.TimeoutExpired as error:
        raise CannotMake(f"{' '.join(command[:4])} took over {COMMAND_TIMEOUT_S} s") from error
    if done.returncode:
        raise CannotMake(f"{' '.join(command[:6])} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return done.stdout


def _architecture() -> str:
    return ARCHITECTURES.get(os.uname().machine, os.uname().machine)


def _stamp() -> str:
    """Changes with the recipe, the writer and the architecture."""
    sources = b"".join(path.read_bytes() for path in (Path(__file__), Path(oci_writer.__file__)))
    return hashlib.sha256(sources).hexdigest() + " " + _architecture()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes the demo's images from Debian packages, as OCI archives.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the archives")
    options = parser.parse_args(arguments)
    try:
        make(options.out)
    except (CannotMake, OSError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
