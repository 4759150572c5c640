"""Layers become one root; every run starts from them afresh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.launching import Host, needs_root

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def add_layers(host: Host, count: int) -> None:
    """Layers with names as long as digests, each with a file of its own and one that all share."""
    for number in range(count):
        layer = host.folder / "layers" / f"{number:064x}"
        (layer / "d").mkdir(parents=True)
        (layer / f"d/{number}").write_text("x")
        (layer / "top").write_text(str(number))
        host.layers.append(str(layer))


@pytest.mark.parametrize("count", [1, 100, 450])
def test_many_layers(host: Host, count: int) -> None:
    add_layers(host, count)
    assert host.shell("ls /d | wc -l; cat /top").split() == [str(count), str(count - 1)]


def test_too_many_and_missing_layers(host: Host) -> None:
    host.layers = []
    assert "layers" in host.refuse("true").message
    host.layers = [str(host.root)] * 501
    assert "500" in host.refuse("true").message
    host.layers = [str(host.root), str(host.folder / "gone")]
    error = host.refuse("true")
    assert error.reason == "CreateContainerError"
    assert "gone" in error.message


def test_every_run_is_fresh_and_layers_stay_untouched(host: Host) -> None:
    before = sorted(str(path) for path in host.root.rglob("*"))
    assert host.shell("test ! -e /made && touch /made && rm /bin/wc && echo ok", env={"PATH": "/bin"}) == "ok\n"
    assert host.shell("test ! -e /made && echo /bin/wc") == "/bin/wc\n"
    assert sorted(str(path) for path in host.root.rglob("*")) == before


def test_the_root_folder_keeps_the_images_mode(host: Host) -> None:
    host.root.chmod(0o751)
    os.chown(host.root, 3, 4)
    assert host.shell("stat -c '%a %u %g' /") == "751 3 4\n"


def test_names_with_separators(host: Host) -> None:
    layer = host.folder / "a:b,c\\d e"
    layer.mkdir()
    (layer / "mark").write_text("here")
    host.layers.append(str(layer))
    assert host.run("cat", "/mark").out == "here"
