"""Puts OCI archives into a registry over plain http (distribution-spec, pushing): what the demo's registry begins with.

On a cluster images are pushed by `shoal image push`, from a node that has them; here no node shall have them yet.
"""

from __future__ import annotations

import http.client
import json
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

NAME = "org.opencontainers.image.ref.name"
DOMAIN = "docker.io/"
TIMEOUT_S = 30.0
START_S = 20.0  # for a registry that has just been started
PAUSE_S = 0.1


class CannotPush(Exception):
    """The message says what the registry did not take."""


def push(archive: Path, address: str) -> list[str]:
    """The names that the registry at host:port now has, docker.io's without it. Raises CannotPush, OSError."""
    files = _files(archive)
    pushed = []
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        _wait(connection)
        for item in json.loads(files["index.json"])["manifests"]:
            name = item["annotations"][NAME].removeprefix(DOMAIN)
            repository, _, tag = name.rpartition(":")
            manifest = files[_path(item["digest"])]
            document = json.loads(manifest)
            for blob in (*document["layers"], document["config"]):
                _blob(connection, repository, blob["digest"], files[_path(blob["digest"])])
            headers = {"Content-Type": item["mediaType"]}
            _ask(connection, "PUT", f"/v2/{repository}/manifests/{tag}", manifest, headers, 201)
            pushed.append(name.removeprefix("library/"))
    except http.client.HTTPException as error:
        raise CannotPush(f"the registry {address} broke off: {error or type(error).__name__}") from error
    finally:
        connection.close()
    return pushed


def _files(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def _wait(connection: http.client.HTTPConnection) -> None:
    """Until it answers. Raises OSError, CannotPush."""
    end = time.monotonic() + START_S
    while True:
        try:
            _ask(connection, "GET", "/v2/", b"", {}, 200)
            return
        except ConnectionError:
            connection.close()
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE_S)


def _blob(connection: http.client.HTTPConnection, repository: str, digest: str, data: bytes) -> None:
    connection.request("HEAD", f"/v2/{repository}/blobs/{digest}")
    answer = connection.getresponse()
    answer.read()
    if answer.status == 200:
        return
    where = urlsplit(_ask(connection, "POST", f"/v2/{repository}/blobs/uploads/", b"", {}, 202)["Location"])
    query = f"{where.query}&digest={digest}" if where.query else f"digest={digest}"
    headers = {"Content-Type": "application/octet-stream"}
    _ask(connection, "PUT", f"{where.path}?{query}", data, headers, 201)


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str, data: bytes, headers: Mapping[str, str], wanted: int
) -> http.client.HTTPMessage:
    """The answer's headers. Raises CannotPush with the registry's words."""
    connection.request(method, path, data, dict(headers))
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != wanted:
        said = text.decode(errors="replace").strip()[:500]
        raise CannotPush(f"{connection.host}: {method} {path.partition('?')[0]} gave {answer.status}, {said}")
    return answer.headers


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)
