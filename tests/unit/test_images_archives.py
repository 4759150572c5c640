"""What `shoal image load` sends for files and folders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.agent.images.fake import FakeImages
from shoal.deploy import archives
from shoal.deploy.demo import oci_writer
from tests import images as make


async def sent(path: Path) -> AsyncIterator[bytes]:
    for chunk in archives.chunks(path):
        assert len(chunk) <= archives.CHUNK
        yield chunk


async def test_a_file_and_a_folder_give_the_same_image(tmp_path: Path) -> None:
    spec = make.image(make.layer(make.member("f", bytes(range(256)) * 1000)))
    for name, data in oci_writer.layout([spec]).items():
        (tmp_path / "layout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "layout" / name).write_bytes(data)
    file = make.write(tmp_path, make.oci_archive(spec))
    assert await FakeImages().load(sent(file)) == await FakeImages().load(sent(tmp_path / "layout"))


def test_errors_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(archives.CannotRead, match=r"missing\.tar cannot be read: No such file"):
        list(archives.chunks(tmp_path / "missing.tar"))
    with pytest.raises(archives.CannotRead, match="no OCI layout: oci-layout is missing"):
        list(archives.chunks(tmp_path))
