"""A certificate authority in a folder: ca.crt, ca.key, and NAME.crt with NAME.key for whoever it vouches for.

The subject's organization is the role that the master authorises by (RFC 5280 names, EC P-256 keys, PEM files):
shoal:admins for people, shoal:nodes for agents (the common name is the node's name), shoal:masters for masters,
shoal:etcd for etcd. etcd gets an authority of its own, so that a node's certificate opens no door there.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=365)
CLOCK_SKEW = timedelta(minutes=5)  # a certificate must already be valid on a machine whose clock is behind
PRIVATE = 0o600
FOLDER = 0o700
DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
COMMON_NAME_LIMIT = 64  # RFC 5280, ub-common-name
MASTER_DNS = "shoal-master"  # in every master's certificate, so that callers can check it whatever its address


class CertificateError(Exception):
    """What cannot be issued or read, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a certificate is for: its organization, and whether it is shown as a server, as a client or as both."""

    organization: str
    server: bool
    client: bool
    names: tuple[str, ...] = ()


PROFILES = {
    "admin": Profile("shoal:admins", server=False, client=True),
    "node": Profile("shoal:nodes", server=False, client=True),
    "master": Profile("shoal:masters", server=True, client=True, names=(MASTER_DNS, "localhost")),
    "etcd": Profile("shoal:etcd", server=True, client=True, names=("localhost",)),
    "etcd-client": Profile("shoal:masters", server=False, client=True),
}


@dataclass(frozen=True, slots=True)
class Issued:
    """Where a certificate and its key lie."""

    certificate: Path
    key: Path
    fresh: bool  # False: it was there and is still good


class Authority:
    """Issues certificates from the key in `folder`."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self._certificate = certificate
        self._key = key

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    @classmethod
    def ensure(cls, folder: Path, name: str = "shoal") -> Authority:
        """The authority in `folder`, made when there is none. Raises CertificateError."""
        if (folder / "ca.crt").exists() and (folder / "ca.key").exists():
            return cls.open(folder)
        if (folder / "ca.crt").exists() != (folder / "ca.key").exists():
            raise CertificateError(
                f"{folder} holds only one of ca.crt and ca.key: restore the other, or remove it to start anew"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(f"{name} certificate authority", key)
        _make_folder(folder)
        _write(folder / "ca.key", _pem(key))  # the key first: a certificate without one would be of no use
        _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder, certificate, key)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Reads ca.crt and ca.key. Raises CertificateError."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        except OSError as error:
            raise CertificateError(
                f"no certificate authority in {folder}: {error.strerror} ({error.filename}); make one with `init`"
            ) from None
        except (ValueError, TypeError) as error:
            raise CertificateError(f"the authority in {folder} is damaged: {error}; restore it from a copy") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise CertificateError(f"{folder}/ca.key does not belong to ca.crt: restore the pair from a copy")
        return cls(folder, certificate, key)

    def issue(self, profile: str, name: str, addresses: Sequence[str] = (), force: bool = False) -> Issued:
        """Writes FOLDER/NAME.crt and .key; keeps what is there while it fits and is good for another 30 days.
        `addresses` are IPs and DNS names that a server is reached by. Raises CertificateError."""
        if profile not in PROFILES:
            raise CertificateError(f"no profile {profile!r}: choose one of {', '.join(sorted(PROFILES))}")
        _check_name(name)
        if name == "ca":
            raise CertificateError("the name 'ca' is the authority's own: choose another")
        files = Issued(self.folder / f"{name}.crt", self.folder / f"{name}.key", fresh=False)
        names = _alternative_names([*PROFILES[profile].names, *addresses])
        if not force and self._fits(files, PROFILES[profile], name, names):
            return files
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(PROFILES[profile], name, names, key)
        _write(files.key, _pem(key))
        chain = certificate.public_bytes(serialization.Encoding.PEM)
        _write(files.certificate, chain)
        return Issued(files.certificate, files.key, fresh=True)

    def pair(self, profile: str, name: str) -> tuple[bytes, bytes]:
        """A certificate and its key as PEM, kept nowhere. Raises CertificateError."""
        _check_name(name)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(PROFILES[profile], name, _alternative_names(PROFILES[profile].names), key)
        return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)

    def _fits(self, files: Issued, profile: Profile, name: str, names: list[x509.GeneralName]) -> bool:
        try:
            found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
            found.verify_directly_issued_by(self._certificate)
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False
        present = _names_in(found)
        return (
            found.subject == _subject(profile.organization, name)
            and found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=30)
            and key.public_key() == found.public_key()
            and all(wanted in present for wanted in names)
        )

    def _sign(
        self, profile: Profile, name: str, names: list[x509.GeneralName], key: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] * profile.server + [ExtendedKeyUsageOID.CLIENT_AUTH] * profile.client
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(profile.organization, name))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(min(now + LEAF_LIFE, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _self_signed(name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _check_name(name: str) -> None:
    if not DNS_NAME.fullmatch(name) or len(name) > COMMON_NAME_LIMIT:
        raise CertificateError(
            f"the name {name!r} must be at most {COMMON_NAME_LIMIT} lower-case letters, digits, '-' and '.'"
        )


def _subject(organization: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _alternative_names(texts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for text in dict.fromkeys(texts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            if not DNS_NAME.fullmatch(text):
                raise CertificateError(f"{text!r} is neither an IP address nor a DNS name") from None
            names.append(x509.DNSName(text))
    return names


def _names_in(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise CertificateError(f"cannot make {folder}: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    """Replaces `path` as a whole, readable by its owner only."""
    part = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, PRIVATE)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except OSError as error:
        raise CertificateError(f"cannot write {path}: {error.strerror}") from None
