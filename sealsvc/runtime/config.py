"""Reads sealsvc.toml. Every key is documented in deploy/sealsvc.toml; unknown keys are errors."""

from __future__ import annotations

import hashlib
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sealsvc.protocol.base import DEFAULT_SOCKET
from sealsvc.runtime.toml_places import explained, placed

# The names that enforcers.use may have. pin has hazards: docs/pin.md.
ENFORCERS = ("bpf", "fanotify", "lease", "pin")

# The names that policy.accept_risks may have: risks of gaps that enforcers and the host report.
RISKS = frozenset(
    {
        *("all", "ext4-move-ext", "ext4-swap-boot", "ext4-inode-flags", "xfs-swapext"),
        *("overlay-truncate", "loop-device", "nfs-truncate", "holder-operations"),
        "page-references",
    }
)

Seconds = Annotated[float, Meta(gt=0)]
Days = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ServiceSection(Section, frozen=True):
    socket: str = DEFAULT_SOCKET
    keeper: str = ""
    socket_mode: Annotated[str, Meta(pattern="^0[0-7]{3}$")] = "0666"
    audit_interval: Annotated[float, Meta(ge=0)] = 60.0
    event_history: Count = 4096
    idempotency: Seconds = 600.0
    workers: Count = 8
    ring_spin: Annotated[int, Meta(ge=0, le=1000)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def keeper_path(self) -> str:
        """The path of the keeper's socket: `keeper`, or else beside the control socket."""
        return self.keeper or os.path.join(os.path.dirname(self.socket), "keeper.sock")

    @property
    def bpf_path(self) -> str:
        """The directory where BPF programs and maps are pinned, another one for each keeper."""
        path = self.keeper_path
        usual = os.path.join(os.path.dirname(DEFAULT_SOCKET), "keeper.sock")
        mark = "" if path == usual else "-" + hashlib.sha256(path.encode()).hexdigest()[:12]
        return f"/sys/fs/bpf/sealsvc{mark}"


class PolicySection(Section, frozen=True):
    roots: list[str] = []
    operators: list[int | str] = msgspec.field(default_factory=lambda: [0])
    accept_risks: list[str] = []
    max_grace: Seconds = 300.0
    max_recall: Seconds = 600.0
    max_reader_grace: Seconds = 30.0
    courtesy: Annotated[float, Meta(ge=0)] = 86400.0
    max_seals: Count = 100_000
    max_seals_per_file: Count = 4096
    max_seals_per_holder: Count = 100_000
    max_seals_per_filesystem: Count = 100_000
    max_bytes_per_user: Annotated[int, Meta(ge=0)] = 0
    max_ring_bytes_per_user: Annotated[int, Meta(ge=0)] = 64 << 20
    grants_per_second: Annotated[float, Meta(ge=0)] = 0.0
    grants_burst: Count = 100
    pressure: Annotated[float, Meta(gt=0, le=1)] = 0.9


class EnforcersSection(Section, frozen=True):
    use: list[str] = msgspec.field(default_factory=lambda: ["fanotify", "bpf", "lease"])
    linger: Annotated[float, Meta(ge=0)] = 2.0
    drain_timeout: Seconds = 0.5


class FenceSection(Section, frozen=True):
    signal_grace: Seconds = 5.0
    proof_timeout: Seconds = 5.0


class LimitsSection(Section, frozen=True):
    connections: Count = 16384
    connections_per_user: Count = 512
    requests_per_user: Count = 512
    descriptors_per_user: Count = 512


class RegistrySection(Section, frozen=True):
    enabled: bool = True
    directory: str = ""
    retention_days: Days = 90.0
    max_bytes: Annotated[int, Meta(ge=1 << 20)] = 1 << 30


class IntegritySection(Section, frozen=True):
    profiles: str = "/etc/sealsvc/profiles.d"
    keys: str = "/etc/sealsvc/keys.d"
    return_seconds: Seconds = 10.0
    scrub_rate: Annotated[int, Meta(ge=0)] = 100 << 20
    health_monitor: bool = True


class Config(Section, frozen=True):
    service: ServiceSection = ServiceSection()
    policy: PolicySection = PolicySection()
    enforcers: EnforcersSection = EnforcersSection()
    fence: FenceSection = FenceSection()
    registry: RegistrySection = RegistrySection()
    limits: LimitsSection = LimitsSection()
    integrity: IntegritySection = IntegritySection()

    @property
    def registry_path(self) -> Path:
        """The registry's directory: `registry.directory`, or else one for each control socket."""
        if self.registry.directory:
            return Path(self.registry.directory)
        if self.service.socket == DEFAULT_SOCKET:
            return Path("/var/lib/sealsvc")
        return Path(self.service.socket).with_name("registry")


class ConfigError(Exception):
    """The configuration cannot be used; the text names file, line and key."""


def load(path: Path | None) -> Config:
    """Read the file `path` (None: the defaults). SEALSVC_SOCKET overrides service.socket. Raises
    ConfigError."""
    try:
        data = path.read_bytes() if path else b""
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return parse(data, path)


def parse(data: bytes, path: Path | None) -> Config:
    """Parse a configuration (TOML, UTF-8) as load() does; errors name `path`. Raises
    ConfigError."""
    file = path or "the configuration"
    try:
        text = data.decode()
        config = msgspec.toml.decode(data, type=Config)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(explained(error, file, text, Config)) from error

    def wrong(key: str, what: str) -> ConfigError:
        return ConfigError(placed(file, text, key.split("."), what))

    config = _numbered(config, wrong)
    for root in config.policy.roots:
        if not os.path.isabs(root):
            raise wrong("policy.roots", f"{root!r} is not an absolute path")
    directory = config.registry.directory
    if directory and not os.path.isabs(directory):
        raise wrong("registry.directory", f"{directory!r} is not an absolute path")
    if unknown := set(config.enforcers.use) - set(ENFORCERS):
        told = f"unknown {', '.join(sorted(unknown))}; choose from {', '.join(ENFORCERS)}"
        raise wrong("enforcers.use", told)
    if unknown := set(config.policy.accept_risks) - RISKS:
        told = f"unknown {', '.join(sorted(unknown))}; choose from {', '.join(sorted(RISKS))}"
        raise wrong("policy.accept_risks", told)
    if override := os.environ.get("SEALSVC_SOCKET"):
        config = msgspec.structs.replace(
            config, service=msgspec.structs.replace(config.service, socket=override)
        )
    return config


def _numbered(config: Config, wrong: Callable[[str, str], ConfigError]) -> Config:
    """The configuration with the names of operators replaced by their uids."""
    numbers: list[int | str] = []
    for user in config.policy.operators:
        try:
            numbers.append(user if isinstance(user, int) else pwd.getpwnam(user).pw_uid)
        except KeyError:
            raise wrong("policy.operators", f"there is no user {user!r}") from None
    policy = msgspec.structs.replace(config.policy, operators=numbers)
    return msgspec.structs.replace(config, policy=policy)
