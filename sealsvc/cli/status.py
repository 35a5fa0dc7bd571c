"""sealctl status: how the service is."""

from __future__ import annotations

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, fields
from sealsvc.cli.units import duration
from sealsvc.protocol.system import RegistryInfo, ServiceStatus, Status

EXAMPLES = """\b
Examples:
  sealctl status
  sealctl status -o json | jq .counters
  sealctl status >/dev/null || systemctl start sealsvc
"""


@click.command(epilog=EXAMPLES)
@shared_options
@pass_settings
def status(settings: Settings) -> None:
    """Show the service's version, enforcers and counters. Exit status 7: it does not answer."""
    with settings.connect() as client:
        answer = ask(client, Status, ServiceStatus)
    emit(settings, answer, lambda console: _print(console, answer))


def _print(console: Console, status: ServiceStatus) -> None:
    simulated = " (simulated)" if status.simulated else ""
    rows = [
        ("version", f"{status.version}, protocol {status.protocol}{simulated}"),
        ("pid", f"{status.pid}, up {duration(status.uptime)}"),
        ("kernel", status.kernel),
        ("roots", ", ".join(status.roots) or "-"),
        ("seals", _counts(status.seals)),
        ("conflicts waiting", str(status.conflicts_waiting)),
        ("connections", str(status.connections)),
        ("registry", _registry(status.registry)),
    ]
    for enforcer in status.enforcers:
        state = "available" if enforcer.available else f"absent: {enforcer.reason}"
        rows.append((f"enforcer {enforcer.name}", "; ".join([state, *enforcer.limits])))
    rows += [(name, str(value)) for name, value in sorted(status.counters.items())]
    console.print(fields(rows))


def _registry(registry: RegistryInfo) -> str:
    if not registry.enabled:
        return "off"
    told = f"{registry.lag} events wait, {registry.lost} lost"
    return "; ".join([*registry.troubles, told])


def _counts(seals: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in seals.items() if count) or "none"
