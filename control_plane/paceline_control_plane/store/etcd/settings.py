"""Where an etcd cluster is and how to show oneself to it; parsed once, so that a client that exists has usable endpoints."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from paceline_services.errors import ConfigurationError

DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """endpoints are URLs, http or https; files are PEM and apply to https. Without ca_file gRPC's own root certificates count."""

    endpoints: tuple[str, ...]
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member: the URL as it was given, and what gRPC calls it. credentials is None for plain http."""

    url: str
    target: str
    credentials: grpc.ChannelCredentials | None


def parse_endpoints(settings: EtcdSettings) -> tuple[Endpoint, ...]:
    """Every endpoint with its credentials. Raises ConfigurationError for an unusable URL or file."""
    if not settings.endpoints:
        raise ConfigurationError("no address of etcd is known: give --etcd http://host:2379")
    credentials = read_credentials(settings)
    return tuple(_parse_endpoint(url, credentials) for url in settings.endpoints)


def _parse_endpoint(url: str, credentials: grpc.ChannelCredentials) -> Endpoint:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    else:
        if parts.scheme not in {"http", "https"} or parts.username or parts.path.strip("/") or parts.query:
            host = None
    if not host:
        raise ConfigurationError(f"etcd endpoint {url!r} must look like http://host:2379 or https://host:2379")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Endpoint(url, target, credentials if parts.scheme == "https" else None)


def read_credentials(settings: EtcdSettings) -> grpc.ChannelCredentials:
    """Credentials for https. Raises ConfigurationError when a file cannot be read, or certificate and key do not come together."""
    if (settings.cert_file is None) != (settings.key_file is None):
        raise ConfigurationError("a client certificate for etcd needs both its certificate file and its key file")
    return grpc.ssl_channel_credentials(
        root_certificates=_read(settings.ca_file),
        private_key=_read(settings.key_file),
        certificate_chain=_read(settings.cert_file),
    )


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}, which TLS to etcd needs: {error.strerror}") from error
