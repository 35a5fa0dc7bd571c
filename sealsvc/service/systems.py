"""Builds the daemon for the real system, or for a simulated one."""

from __future__ import annotations

import functools
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from sealsvc.enforce.base import Enforcer
from sealsvc.enforce.bpf import BpfEnforcer
from sealsvc.enforce.fanotify import FanotifyEnforcer
from sealsvc.enforce.keeper_start import own
from sealsvc.enforce.lease import LeaseEnforcer
from sealsvc.enforce.overlay_mounts import OverlayMounts
from sealsvc.enforce.pin import PinEnforcer
from sealsvc.linux.host.kernel import KernelHost
from sealsvc.linux.host.proofs import Prover
from sealsvc.runtime import priority
from sealsvc.runtime.config import Config
from sealsvc.service.capabilities import (
    simulation_answers,
)
from sealsvc.service.daemon import Daemon
from sealsvc.sim.enforcer import SimEnforcer, simulate
from sealsvc.sim.host import SimHost

Overrides = Callable[[Config], Config]


def kernel_daemon(config: Config, source: Path | None, overrides: Overrides) -> Daemon:
    """The daemon on the real system. `source` and `overrides`: see Daemon. Raises Refusal and
    OSError."""
    # Each held operation, sealed file and holder takes a descriptor.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # 0.5 ms: the event loop must not wait long for the GIL while another thread computes.
    sys.setswitchinterval(0.0005)
    priority.prefer()
    # A lease that breaks during a short probe sends SIGIO, which would end the process.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    keeper = own(config.service.keeper_path)
    drain = config.enforcers.drain_timeout
    overlays = OverlayMounts(keeper)
    known: dict[str, Callable[[], Enforcer]] = {
        "bpf": lambda: BpfEnforcer(keeper, Path(config.service.bpf_path), drain_timeout=drain),
        "fanotify": lambda: FanotifyEnforcer(keeper, overlays, config.enforcers.linger, drain),
        "lease": lambda: LeaseEnforcer(keeper, overlays),
        "pin": lambda: PinEnforcer(keeper),
    }
    enforcers = [known[name]() for name in config.enforcers.use]
    prover = Prover.load()
    if prover.mapped >= 0:
        keeper.prover(prover.mapped)
    host = KernelHost(prover)
    return Daemon(config, host, enforcers, keeper, overlays, source, overrides)


def sim_daemon(
    config: Config, source: Path | None = None, overrides: Overrides = lambda found: found
) -> Daemon:
    """The daemon on a simulated system, for development and tests. It needs no privilege. `source`
    and `overrides`: see Daemon."""
    host = SimHost()
    enforcer = SimEnforcer(host)
    daemon = Daemon(
        simulated(config),
        host,
        [enforcer],
        None,
        source=source,
        overrides=lambda found: simulated(overrides(found)),
    )
    act = functools.partial(simulate, host, enforcer, daemon.periodic.tick)
    daemon.router.add(simulation_answers(daemon.policy, act))
    return daemon


def simulated(config: Config) -> Config:
    """The configuration for a simulation: its user is an operator, the root is /sim unless others
    are configured, and the registry is off unless a directory is configured."""
    replace = msgspec.structs.replace
    policy = replace(
        config.policy,
        roots=config.policy.roots or ["/sim"],
        operators=[*config.policy.operators, os.getuid()],
    )
    registry = replace(config.registry, enabled=bool(config.registry.directory))
    return replace(config, policy=policy, registry=registry)
