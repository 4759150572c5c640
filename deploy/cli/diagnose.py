"""Why no master answers, in words: gRPC says no more than UNAVAILABLE, for a refused certificate too."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from shoal.deploy.cli.contexts import Context

PROBE_SECONDS = 2.0


class CertificateRefused(Exception):
    """One side does not accept the other's certificate: asking again cannot help."""


def why_unreachable(context: Context) -> str:
    """One sentence about every server of the context, and what to do."""
    reasons = [f"{server}: {_tried(server, context)}" for server in context.servers]
    return f"no master of context {context.name} answers ({'; '.join(reasons)})"


def certificate_problem(context: Context) -> str | None:
    """What is wrong with our certificate, or with a server's; None when that is not why."""
    own = _own_certificates(context)
    if own is not None:
        return own
    for server in context.servers:
        try:
            _probe(server, context)
        except CertificateRefused as refused:
            return f"{server}: {refused}"
    return None


def _tried(server: str, context: Context) -> str:
    try:
        return _probe(server, context)
    except CertificateRefused as refused:
        return str(refused)


def _own_certificates(context: Context) -> str | None:
    """What is wrong with the certificate that we show, or the one that we trust, by themselves."""
    from cryptography import x509  # slow to import, and needed in trouble only

    for what in ("certificate", "ca"):
        try:
            parsed = x509.load_pem_x509_certificate(context.pem(what))
        except ValueError:
            return f"the {what} of context {context.name} is not a PEM certificate: make it anew"
        now = datetime.now(UTC)
        if parsed.not_valid_after_utc < now:
            when = parsed.not_valid_after_utc.date()
            return (
                f"the {what} of context {context.name} expired on {when}: make a new one (python -m shoal.deploy.certs)"
            )
        if parsed.not_valid_before_utc > now:
            since = parsed.not_valid_before_utc
            return f"the {what} of context {context.name} is valid only from {since} on: check the clock"
    return None


def _probe(server: str, context: Context) -> str:
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS) as raw:
            return _handshake(raw, host.strip("[]"), context)
    except ValueError:
        return "is not host:port"
    except ConnectionResetError:
        return "it closes the connection at once; is it a Shoal master?"
    except ConnectionRefusedError:
        return "nothing listens there; is the master running?"
    except TimeoutError:
        return f"no answer within {PROBE_SECONDS:g} s; is the machine up, and the address right?"
    except OSError as error:
        return error.strerror or str(error)


def _handshake(raw: socket.socket, host: str, context: Context) -> str:
    """Raises CertificateRefused."""
    with _files(context) as (ca, certificate, key):
        try:
            tls = ssl.create_default_context(cafile=ca)
            tls.load_cert_chain(certificate, key)
            tls.set_alpn_protocols(["h2"])
            with tls.wrap_socket(raw, server_hostname=host) as connection:
                # In TLS 1.3 the server's verdict on our certificate comes with the first read: an alert, or the end.
                if connection.recv(1):
                    return "it takes the connection but does not answer; is a leader elected?"
                raise CertificateRefused("it does not accept our certificate; is it from this cluster's CA?")
        except ssl.SSLCertVerificationError as error:
            why = f"its certificate is not from this context's CA ({error.verify_message}); is it another cluster?"
            raise CertificateRefused(why) from None
        except ssl.SSLError as error:
            why = f"it does not accept our certificate ({error.reason or error}); is it from this cluster's CA?"
            raise CertificateRefused(why) from None


@contextmanager
def _files(context: Context) -> Iterator[tuple[str, str, str]]:
    """The PEMs as files, which is all that ssl takes; inline ones lie in a private folder meanwhile."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        paths = []
        for what in ("ca", "certificate", "key"):
            path = os.path.join(folder, what)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(context.pem(what))
            paths.append(path)
        yield paths[0], paths[1], paths[2]
