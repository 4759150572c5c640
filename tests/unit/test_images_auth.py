"""Credentials: docker's files, pull secrets, which one fits, and challenges."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from shoal.agent.images import auth
from shoal.agent.images.auth import Challenge, NodeCredentials, challenges, credentials_of, matching, registry_of
from shoal.agent.images.caller import retry_after, words_of
from shoal.agent.images.port import Credential, ImageFault
from shoal.proto.v1.objects_pb2 import ObjectMeta, Secret

JSON, OLD = "kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"


def secret(document: Any, kind: str = JSON, key: str = ".dockerconfigjson") -> Secret:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Secret(metadata=ObjectMeta(namespace="shop", name="pull"), type=kind, data={key: data})


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_pull_secrets_of_both_kinds() -> None:
    auths = {
        "https://index.docker.io/v1/": {"auth": encoded("anna:fi:sh")},
        "quay.io/team": {"username": "bob", "password": "chips", "email": "b@c"},
        "empty.io": {},
    }
    wanted = [Credential("docker.io", "anna", "fi:sh"), Credential("quay.io/team", "bob", "chips")]
    assert credentials_of(secret({"auths": auths, "credsStore": "x"})) == wanted
    assert credentials_of(secret(auths, OLD, ".dockercfg")) == wanted
    assert "fi:sh" not in repr(wanted)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ([], "it must be"),
        ({"auths": []}, "it must be"),
        ({"auths": {"a.io": "hunter2"}}, "'a.io' must be an object"),
        ({"auths": {"a.io": {"auth": "hunter2!"}}}, "not base64"),
        ({"auths": {"a.io": {"auth": encoded("hunter2")}}}, "no colon"),
        ({"auths": {"a.io": {"username": 7}}}, "username of 'a.io' must be a string"),
        ({"auths": {"a.io": {"identitytoken": "hunter2"}}}, "identitytoken, which is not supported"),
        ({"auths": {"a.io": {"username": "a\nb", "password": "hunter2"}}}, "not printable"),
        ({"auths": {f"a{n}.io": {} for n in range(1001)}}, "at most 1000"),
        (b" " * (1 << 20) + b"{}", "at most"),
    ],
)
def test_a_bad_secret_is_named_and_never_shown(document: Any, words: str) -> None:
    with pytest.raises(ImageFault) as caught:
        credentials_of(secret(document))
    assert caught.value.reason == "Unauthorized" and "shop/pull" in caught.value.message
    assert words in caught.value.message and "hunter2" not in caught.value.message


def test_a_secret_of_another_kind() -> None:
    with pytest.raises(ImageFault, match="has the type 'Opaque'"):
        credentials_of(secret({}, kind="Opaque"))
    with pytest.raises(ImageFault, match=r"has no \.dockerconfigjson"):
        credentials_of(secret({}, key="config"))


def test_the_longest_prefix_comes_first_and_parts_are_whole() -> None:
    names = ["quay.io", "quay.io/team/app", "quay.io/team", "quay.io/te", "*.io", "other.io", "quay.io/team/app/deeper"]
    credentials = [Credential(name, "u", "p") for name in names]
    found = [one.registry for one in matching(credentials, "quay.io", "team/app")]
    assert found == ["quay.io/team/app", "quay.io/team", "quay.io", "*.io"]
    assert matching([Credential("*.io", "u", "p")], "a.quay.io", "x") == []
    assert matching([Credential("10.0.0.1:5000", "u", "p")], "10.0.0.1", "x") == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("http://10.0.0.1:5000", "10.0.0.1:5000"),
        ("GHCR.io/Team/", "ghcr.io/Team"),
        ("quay.io/v2/", "quay.io"),
    ],
)
def test_names_of_registries(name: str, wanted: str) -> None:
    assert registry_of(name) == wanted


def test_challenges() -> None:
    text = 'Bearer realm="https://auth.a.io/token",service="a, b",scope="repository:x/y:pull", Basic realm="q\\"uote"'
    assert challenges([text, "Negotiate", "basic realm=plain"]) == [
        Challenge("bearer", {"realm": "https://auth.a.io/token", "service": "a, b", "scope": "repository:x/y:pull"}),
        Challenge("basic", {"realm": 'q"uote'}),
        Challenge("negotiate", {}),
        Challenge("basic", {"realm": "plain"}),
    ]
    assert challenges(["", ",,,", '="x"', "Bearer " + "a" * 100_000]) == []
    assert auth.basic(Credential("a", "Aladdin", "open sesame")) == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


def test_the_nodes_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    node = NodeCredentials(path)
    assert node.read() == [] == NodeCredentials(None).read()
    path.write_text(json.dumps({"auths": {"a.io": {"username": "u", "password": "one"}}}))
    path.chmod(0o600)
    assert node.read() == [Credential("a.io", "u", "one")]
    new = tmp_path / "new"
    new.write_text(json.dumps({"auths": {"a.io": {"username": "u", "password": "two"}}}))
    new.chmod(0o604)
    os.replace(new, path)
    with pytest.raises(ImageFault, match="chmod 600"):
        node.read()
    path.chmod(0o640)
    assert node.read() == [Credential("a.io", "u", "two")]
    path.write_text("{")
    with pytest.raises(ImageFault, match=r"config\.json: it is not valid JSON"):
        node.read()
    path.unlink()
    assert node.read() == []


def test_what_registries_say() -> None:
    body = json.dumps({"errors": [{"code": "A", "message": "one\x1b[2J"}, {"code": "B"}]}).encode()
    assert words_of(body) == "one [2J (A); (B)"
    for odd in (b"", b"<html>", b"[]", b'{"errors": 7}', b'{"errors": ["x"]}', b"[" * 100_000):
        assert words_of(odd) == ""
    assert len(words_of(json.dumps({"errors": [{"message": "x" * 9999}]}).encode())) == 300
    assert [retry_after(text) for text in ("", "7", "-1", "Wed, 21 Oct", "9" * 30, "999999")] == [0, 7, 0, 0, 0, 86_400]
