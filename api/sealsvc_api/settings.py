"""What an operator may choose, checked once at start."""

from __future__ import annotations

import ipaddress
import resource
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sealsvc.client import socket_path

_BACKLOG = 1024  # connections that wait to be accepted
_DESCRIPTORS = 16384


class SettingsError(Exception):
    """The API cannot start as it was asked to; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times are seconds. `events_queue` is how many events, and `events_bytes` how much of them,
    one listener may lag behind before it is dropped; `max_listeners` how many may listen at once,
    and `listeners_each` of one principal; `requests_each` is how many requests of one principal are
    served at a time. After `stream_life` a listener must come again, and show itself again; every
    `recheck` seconds it is seen whether it may listen still. `unix` is the path of a listener on
    which the kernel vouches for who asks. With `tls_cert` and `tls_key` the network listener speaks
    TLS, with `client_ca` clients may show certificates. `probes` is the address of a listener that
    serves /healthz and /readyz alone."""

    host: str = "127.0.0.1"
    port: int = 8377
    unix: Path | None = None
    unix_mode: str = "0666"
    socket: str = ""
    principals: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    allow_remote: bool = False
    max_connections: int = 512
    max_listeners: int = 256
    listeners_each: int = 64
    requests_each: int = 128
    recheck: float = 0.25
    probes: str = ""
    events_queue: int = 2048
    events_bytes: int = 1 << 20
    stream_life: float = 3600.0
    heartbeat: float = 15.0
    send_timeout: float = 10.0
    shortest_backoff: float = 0.1
    longest_backoff: float = 5.0

    @property
    def control_socket(self) -> str:
        return self.socket or socket_path()


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address literal, or the name localhost. Other names are not
    looked up: what they mean is in somebody else's hands."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(settings: Settings) -> None:
    """Refuse to listen where others can reach it, unless that was meant, or TLS protects it."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingsError("--tls-cert and --tls-key belong together")
    if settings.client_ca and not settings.tls_cert:
        raise SettingsError("--client-ca needs --tls-cert and --tls-key")
    if is_loopback(settings.host) or settings.tls_cert or settings.allow_remote:
        return
    raise SettingsError(
        f"{settings.host} is not a loopback address, and without --tls-cert this API speaks plain"
        " HTTP: bearer tokens would cross the network in the clear. Give it a certificate, put a"
        " TLS proxy in front of a loopback address, or say --allow-remote if the network is"
        " trusted."
    )


def listen(host: str, port: int) -> socket.socket:
    """The bound socket. It is bound here so that a port in use is one line, not a traceback."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"{host} port {port}"
        raise SettingsError(f"cannot listen on {where}: {error.strerror or error}") from None


def listen_for_probes(settings: Settings) -> socket.socket:
    """The listener of /healthz and /readyz. They tell nothing, so any address may be used."""
    host, colon, port = settings.probes.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SettingsError(f"--probes {settings.probes!r} is not HOST:PORT")
    return listen(host.strip("[]") or "127.0.0.1", int(port))


def raise_descriptor_limit() -> None:
    """Sockets in a TLS handshake count in no limit of ours: there must be room for them, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen_unix(path: Path, mode: str) -> socket.socket:
    """A stale socket is replaced, a live one is an error."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise SettingsError(f"another server answers on {path}")
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(int(mode, 8))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise SettingsError(f"cannot listen on {path}: {error.strerror or error}") from None
    except SettingsError:
        sock.close()
        raise
    return sock


def traced(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables of OpenTelemetry ask for traces. That needs a word: without
    one of them nothing is traced, wherever a collector may be."""
    told = {name: value.strip().lower() for name, value in environment.items() if value.strip()}
    if told.get("OTEL_SDK_DISABLED") == "true":
        return False
    kind = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    default = "otlp" if any(name in told for name in endpoints) else "none"
    exporter = told.get("OTEL_TRACES_EXPORTER", default)
    if exporter == "none":
        return False
    protocol = told.get(kind) or told.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if exporter != "otlp" or protocol != "http/protobuf":
        raise SettingsError(
            f"traces by {exporter} over {protocol} are not to be had: OTEL_TRACES_EXPORTER is otlp"
            f" or none, and {kind} is http/protobuf"
        )
    return True
