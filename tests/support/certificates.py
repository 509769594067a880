"""Certificates for tests of TLS: an authority, and a server's and a client's certificate for 127.0.0.1 that it signed."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: who signs, the server's and the client's certificates with their keys."""

    ca_file: Path
    server_cert_file: Path
    server_key_file: Path
    client_cert_file: Path
    client_key_file: Path


@dataclass(frozen=True, slots=True)
class _Identity:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make_tls_files(folder: Path) -> TlsFiles:
    """Write a new authority and what it signed into folder."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = _sign("test authority", None)
    server = _sign("test server", authority)
    client = _sign("test client", authority)
    _write(folder / "ca", authority)
    _write(folder / "server", server)
    _write(folder / "client", client)
    return TlsFiles(
        ca_file=folder / "ca.pem",
        server_cert_file=folder / "server.pem",
        server_key_file=folder / "server.key",
        client_cert_file=folder / "client.pem",
        client_key_file=folder / "client.key",
    )


def _sign(name: str, authority: _Identity | None) -> _Identity:
    """A certificate for 127.0.0.1 and localhost; without an authority, one that signs itself and others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(authority.key if authority else key, hashes.SHA256())
    )
    return _Identity(key, certificate)


def _write(stem: Path, identity: _Identity) -> None:
    pem = serialization.Encoding.PEM
    stem.with_suffix(".pem").write_bytes(identity.certificate.public_bytes(pem))
    key = identity.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    stem.with_suffix(".key").write_bytes(key)
