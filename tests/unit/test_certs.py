"""The certificate authority: what it writes, keeps and refuses."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from shoal.deploy.certs.__main__ import main
from shoal.deploy.certs.ca import Authority, CertificateError
from shoal.master.api.auth import Identity
from shoal.master.api.grpc_server import parse_identity


def test_it_is_made_once_and_its_keys_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    first = Authority.ensure(folder).certificate.read_bytes()
    issued = Authority.ensure(folder).issue("node", "n1")
    assert Authority.ensure(folder).certificate.read_bytes() == first
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert parse_identity(issued.certificate.read_bytes()) == Identity("shoal:nodes", "n1")


@pytest.mark.parametrize(
    ("profile", "organization", "server", "client"),
    [
        ("admin", "shoal:admins", False, True),
        ("node", "shoal:nodes", False, True),
        ("master", "shoal:masters", True, True),
        ("etcd", "shoal:etcd", True, True),
    ],
)
def test_profiles(tmp_path: Path, profile: str, organization: str, server: bool, client: bool) -> None:
    authority = Authority.ensure(tmp_path)
    issued = authority.issue(profile, "x", ["10.1.2.3", "x.example.com"])
    pem = issued.certificate.read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    assert parse_identity(pem).organization == organization
    usage = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usage, ExtendedKeyUsageOID.CLIENT_AUTH in usage) == (server, client)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "10.1.2.3" in [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    assert ("shoal-master" in names.get_values_for_type(x509.DNSName)) == (profile == "master")
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_good_certificate_is_kept_and_a_misfit_replaced(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path)
    assert authority.issue("master", "m", ["10.0.0.1"]).fresh
    assert not authority.issue("master", "m", ["10.0.0.1"]).fresh
    assert authority.issue("master", "m", ["10.0.0.2"]).fresh
    assert authority.issue("node", "m").fresh
    assert authority.issue("node", "m", force=True).fresh
    (tmp_path / "m.key").write_bytes(b"nonsense")
    assert authority.issue("node", "m").fresh


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority.ensure(tmp_path / "ca")
    for profile, name, addresses, words in (
        ("king", "x", [], "choose one of"),
        ("node", "../x", [], "lower-case"),
        ("node", "x" * 65, [], "at most 64"),
        ("node", "ca", [], "authority's own"),
        ("master", "m", ["not an address"], "neither"),
    ):
        with pytest.raises(CertificateError, match=words):
            authority.issue(profile, name, addresses)
    (tmp_path / "ca/ca.key").unlink()
    with pytest.raises(CertificateError, match="only one of"):
        Authority.ensure(tmp_path / "ca")
    (tmp_path / "ca/ca.key").write_text("broken")
    with pytest.raises(CertificateError, match="damaged"):
        Authority.open(tmp_path / "ca")
    assert main(["issue", str(tmp_path / "none"), "node", "n1"]) == 1
    assert "make one with `init`" in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "ca")
    assert main(["init", folder]) == 0
    assert main(["issue", folder, "node", "n1"]) == 0
    assert main(["issue", folder, "node", "n1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["certificate", "wrote", "kept"]
