"""The passwords that the command keeps: which file, which registry, and that nobody else sees them."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

from shoal.deploy.cli import credentials
from shoal.deploy.cli.credentials import Credential, covers, for_image, registry_of, repository_of
from shoal.deploy.cli.failures import CommandError


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:1.22", "docker.io/library/nginx"),
        ("team/web@sha256:00", "docker.io/team/web"),
        ("index.docker.io/nginx", "docker.io/library/nginx"),
        ("localhost/a:1", "localhost/a"),
        ("10.89.0.1:5000/a/b:1", "10.89.0.1:5000/a/b"),
        ("reg.example:5000/a", "reg.example:5000/a"),
    ],
)
def test_the_repository_in_an_images_name(image: str, repository: str) -> None:
    assert repository_of(image) == repository


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("Reg.Example:5000", "reg.example:5000"),
        ("http://reg.example/v2/", "reg.example"),
        ("quay.io/team", "quay.io/team"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_registries_as_people_write_them(text: str, registry: str) -> None:
    assert registry_of(text) == registry


@pytest.mark.parametrize("text", ["", "a b", "ftp://x", "-a", "x" * 5000, "a\nb", "a:999999"])
def test_what_is_no_registry(text: str) -> None:
    with pytest.raises(CommandError, match="is not a registry"):
        registry_of(text)


def test_a_credential_covers_whole_parts() -> None:
    assert covers("reg.example", "reg.example/a/b") and covers("reg.example/a", "reg.example/a/b")
    assert not covers("reg.example/a", "reg.example/ab") and not covers("reg.example", "reg.example.evil/a")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "docker").mkdir()
    return {"SHOAL_CONFIG": str(tmp_path / "config"), "DOCKER_CONFIG": str(tmp_path / "docker")}


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_only_what_is_for_the_image_is_taken_and_ours_first(home: dict[str, str]) -> None:
    path = credentials.own_path(home)
    for registry in ("reg.example", "reg.example/team", "other.example"):
        credentials.keep(Credential(registry, "anna", f"at {registry}"), path)
    auths = {"https://reg.example/v2/": auth("dora", "x:y"), "https://index.docker.io/v1/": auth("dora", "hub")}
    credentials.docker_path(home).write_text(json.dumps({"auths": auths}))
    found, warning = for_image("reg.example/team/web:1", home)
    assert [(one.registry, one.username, one.password) for one in found] == [
        ("reg.example/team", "anna", "at reg.example/team"),
        ("reg.example", "anna", "at reg.example"),
        ("reg.example", "dora", "x:y"),
    ]
    assert warning == "" and for_image("nginx", home)[0] == [Credential("docker.io", "dora", "hub")]
    assert for_image("reg.example:5000/web", home) == ([], "")


def test_the_file_is_its_owners_alone(home: dict[str, str]) -> None:
    path = credentials.own_path(home)
    credentials.keep(Credential("reg.example", "anna", "fish"), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [one.name for one in path.parent.glob(".*")] == []
    assert credentials.forget("reg.example", path) and not credentials.forget("reg.example", path)
    assert "fish" not in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    for use in (lambda: credentials.read(path, own=True), lambda: for_image("reg.example/a", home)):
        with pytest.raises(CommandError, match="chmod 600"):
            use()


def test_a_link_in_the_way_is_not_followed(home: dict[str, str], tmp_path: Path) -> None:
    """The file's new content goes beside it and takes its place."""
    path, target = credentials.own_path(home), tmp_path / "elsewhere"
    target.write_text("{}")
    target.chmod(0o600)
    path.symlink_to(target)
    credentials.keep(Credential("reg.example", "anna", "fish"), path)
    assert target.read_text() == "{}" and not path.is_symlink()


@pytest.mark.parametrize("text", ["[]", "{", '{"auths": []}', '{"auths": {"a.example": 1}}', "[" * 10**5])
def test_a_file_that_cannot_be_read_says_so_and_repeats_nothing(text: str, home: dict[str, str]) -> None:
    path = credentials.own_path(home)
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(CommandError) as refused:
        for_image("a.example/x", home)
    assert str(path) in str(refused.value)
    path.unlink()
    credentials.docker_path(home).write_text(text)  # not ours to mend: only a warning
    found, warning = for_image("a.example/x", home)
    assert found == [] and str(credentials.docker_path(home)) in warning


def test_a_damaged_password_is_not_shown(home: dict[str, str]) -> None:
    path = credentials.own_path(home)
    credentials.write(path, {"auths": {"a.example": {"auth": "c2VjcmV0"}, "b.example": {"auth": "?secret?"}}})
    with pytest.raises(CommandError, match=r"auth of 'b.example' is not base64") as refused:
        for_image("b.example/x", home)
    assert "secret" not in str(refused.value)


def test_docker_helpers_are_named_not_run(home: dict[str, str]) -> None:
    document = {"auths": {"a.example": {}}, "credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud"}}
    credentials.docker_path(home).write_text(json.dumps(document))
    found, warning = for_image("a.example/x", home)
    assert found == [] and "helper desktop, which shoal does not run: `shoal login a.example`" in warning
    assert "helper gcloud" in for_image("gcr.io/x/y", home)[1]
    assert for_image("b.example/x", home) == ([], "")
    credentials.keep(Credential("a.example", "anna", "fish"), credentials.own_path(home))
    assert for_image("a.example/x", home) == ([Credential("a.example", "anna", "fish")], "")


def test_a_password_is_in_no_representation() -> None:
    assert "fish" not in repr(Credential("a.example", "anna", "fish"))
