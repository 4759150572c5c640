"""Image names: what is understood, and what an error says."""

from __future__ import annotations

import pytest

from shoal.agent.images import names
from shoal.agent.images.port import ImageFault

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.25", "docker.io/library/nginx:1.25"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("quay.io/a/b/c:x", "quay.io/a/b/c:x"),
        ("Host/app", "Host/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("a__b/c--d.e", "docker.io/a__b/c--d.e:latest"),
        (f"nginx@sha256:{HEX}", f"docker.io/library/nginx@sha256:{HEX}"),
        (f"nginx:1@sha256:{HEX}", f"docker.io/library/nginx:1@sha256:{HEX}"),
        ("app:" + "t" * 128, "docker.io/library/app:" + "t" * 128),
    ],
)
def test_normalise(text: str, full: str) -> None:
    assert names.normalise(text) == full
    assert names.normalise(full) == full


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("Nginx", "lower case: write 'nginx'"),
        ("nginx:", "tag"),
        ("nginx:-x", "tag"),
        ("nginx:" + "t" * 129, "1 to 128"),
        ("a//b", "empty part"),
        ("a/b/", "empty part"),
        ("/a", "empty part"),
        ("a/../b", "'..'"),
        ("a b", "'a b'"),
        ("nginx@sha256:12", "64 lower-case"),
        ("nginx@", "64 lower-case"),
        (HEX, "image id: write sha256:"),
        ("quay.io/" + "a" * 250, "255 characters"),
        ("-host.io/app", "host name"),
        ("host:port/app", "host name"),
        ("nginx\n", "'nginx\\n'"),
        ("näx", "'näx'"),
    ],
)
def test_errors_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ImageFault) as caught:
        names.parse(text)
    assert caught.value.reason == "InvalidImageName"
    assert words in caught.value.message


def test_digests() -> None:
    assert names.is_digest(f"sha256:{HEX}") and names.is_digest(f"sha512:{HEX}{HEX}")
    assert not names.is_digest(HEX) and not names.is_digest(f"sha256:{HEX.upper()}")
