"""sealsvc: the daemon's command line."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from sealsvc import __version__
from sealsvc.core.errors import Refusal
from sealsvc.runtime import config
from sealsvc.runtime.ending import end, end_within
from sealsvc.runtime.journald import configure

_END = 20.0  # seconds for an orderly end


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """sealsvc grants revocable extent-map seals on files."""


@main.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="The configuration (TOML); deploy/sealsvc.toml documents every key.",
)
@click.option("--socket", help="Listen here, whatever the configuration says.")
@click.option("--root", "roots", multiple=True, help="Allow paths below DIR, too (repeatable).")
@click.option("--sim", is_flag=True, help="On a simulated system: needs no root, seals nothing.")
def serve(file: Path | None, socket: str | None, roots: tuple[str, ...], sim: bool) -> None:
    """Serve until stopped.

    \b
    Example:
      sealsvc serve --config /etc/sealsvc/sealsvc.toml
      sealsvc serve --socket /tmp/seal.sock --root /mnt/pmem
      sealsvc serve --socket /tmp/seal.sock --sim
    """
    try:
        override = functools.partial(_override, socket=socket, roots=roots)
        chosen = override(config.load(file))
        configure(chosen.service.log_level)
        _serve(chosen, sim, file, override)
    except (config.ConfigError, Refusal, ValueError) as error:
        click.echo(f"sealsvc: {error}", err=True)
        end(1)
    end(0)


@main.command("check-config")
@click.argument("file", type=click.Path(path_type=Path), default=Path("/etc/sealsvc/sealsvc.toml"))
def check_config(file: Path) -> None:
    """Check a configuration, against this machine too, without starting anything.

    Each finding has its file, line and key. The exit status is 1 when the service would not start
    with FILE (/etc/sealsvc/sealsvc.toml), or could not do what it says. What may still be put right
    while it runs, such as a root that is not mounted yet, is a warning.

    \b
    Example:
      sealsvc check-config
      sealsvc check-config ./sealsvc.toml
    """
    from sealsvc.service.config_check import check

    try:
        findings = check(file.read_bytes(), file)
    except (OSError, config.ConfigError) as error:
        why = f"{file}: {error.strerror}" if isinstance(error, OSError) else str(error)
        click.echo(f"sealsvc: {why}", err=True)
        sys.exit(1)
    for finding in findings:
        click.echo(f"sealsvc: {'' if finding.fatal else 'warning: '}{finding.text}", err=True)
    if any(finding.fatal for finding in findings):
        sys.exit(1)
    click.echo(f"{file}: good")


@main.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="The configuration of the service that died.",
)
@click.option("--keeper", help="The keeper's socket, whatever the configuration says.")
@click.option("--all", "everything", is_flag=True, required=True, help="There is no other scope.")
def release(file: Path | None, keeper: str | None, everything: bool) -> None:  # noqa: ARG001
    """Let go of every seal of a service that is dead.

    Seals outlive the service: what conflicts with them goes on waiting, or being refused, until it
    is started again. When that is not wanted, this ends them: what waits goes on, and the holders
    are not asked. While the service runs, use `sealctl recall --all`.

    \b
    Example:
      sealsvc release --all
    """
    from sealsvc.service.release import release as let_go

    try:
        section = config.load(file).service
        found = let_go(msgspec.structs.replace(section, keeper=keeper or section.keeper))
    except (OSError, config.ConfigError, Refusal) as error:
        busy = isinstance(error, OSError) and error.errno == errno.EBUSY
        why = "the service is running: use `sealctl recall --all`" if busy else error
        click.echo(f"sealsvc: {why}", err=True)
        sys.exit(1)
    told = "everything that waited goes on" if found else "no keeper is there, nothing is sealed"
    click.echo(f"released: {told}")


def _override(loaded: config.Config, socket: str | None, roots: tuple[str, ...]) -> config.Config:
    replace = msgspec.structs.replace
    if socket:
        loaded = replace(loaded, service=replace(loaded.service, socket=socket))
    if roots:
        wanted = [*loaded.policy.roots, *map(os.path.abspath, roots)]
        loaded = replace(loaded, policy=replace(loaded.policy, roots=wanted))
    return loaded


def _serve(
    chosen: config.Config,
    sim: bool,
    file: Path | None,
    override: Callable[[config.Config], config.Config],
) -> None:
    from sealsvc.service.systems import kernel_daemon, sim_daemon

    if os.geteuid() != 0 and not sim:
        raise Refusal("denied", "sealing files of the real system needs root: or try --sim")
    # Inherited by every thread: the gates of other services know us by it (native/gate/waiters.c).
    Path("/proc/self/comm").write_text("sealsvc")
    try:
        daemon = (sim_daemon if sim else kernel_daemon)(chosen, file, override)
        asyncio.run(daemon.run(functools.partial(end_within, _END)))
    except OSError as error:
        raise Refusal("io-error", f"the service cannot go on: {error}") from error


if __name__ == "__main__":
    main()
