"""sealctl trail: who asked for what, and what came of it, in a chain that shows tampering."""

from __future__ import annotations

import time

import click
import msgspec
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.parameters import DURATION
from sealsvc.cli.seals import complete_seal, find_seal
from sealsvc.cli.units import moment
from sealsvc.core.display import printable
from sealsvc.protocol.history import AuditEntry, AuditTrail, Trail, Verification, VerifyTrail

EXAMPLES = """\b
Examples:
  sealctl trail --since 1h
  sealctl trail --kind refused
  sealctl trail --verify
"""

BROKEN = 1


@click.command(epilog=EXAMPLES)
@click.option("--kind", help="Only entries of this kind (granted, refused, asked, state, ...).")
@click.option("--seal", shell_complete=complete_seal, help="Only entries about this seal.")
@click.option("--since", type=DURATION, help="Only entries less than so long ago.")
@click.option("--limit", type=click.IntRange(1), default=40, help="So many at most (40).")
@click.option("--verify", is_flag=True, help="Instead, check that the whole trail hangs together.")
@shared_options
@pass_settings
def trail(
    settings: Settings,
    kind: str | None,
    seal: str | None,
    since: float | None,
    limit: int,
    verify: bool,
) -> int:
    """Show the audit trail, the newest first; for operators. The exit status is 1 when --verify
    finds it broken."""
    with settings.connect(patient=verify) as client:
        if verify:
            proof = ask(client, VerifyTrail, Verification)
            emit(settings, proof, lambda console: _print_proof(console, proof))
            return 0 if proof.intact else BROKEN
        wanted = find_seal(client, seal, past=True) if seal else None
        start = None if since is None else time.time() - since
        entries: list[AuditEntry] = []
        after: str | None = None
        while len(entries) < limit:
            left = limit - len(entries)
            page = ask(
                client,
                Trail,
                AuditTrail,
                kind=kind,
                seal=wanted,
                since=start,
                after=after,
                limit=min(left, 1000),
            )
            entries += page.entries
            if page.next is None:
                break
            after = page.next
    emit(settings, AuditTrail(entries=entries), lambda console: _print(console, entries))
    return 0


def _print(console: Console, entries: list[AuditEntry]) -> None:
    made = Listing("SEQ", "TIME", "KIND", "SEAL", "NOTE", right=["SEQ"])
    for entry in entries:
        told = msgspec.json.encode(_brief(entry)).decode()
        made.add_row(
            str(entry.seq), moment(entry.time), entry.kind, entry.seal or "-", printable(told)
        )
    console.print(made)


def _brief(entry: AuditEntry) -> object:
    """Without what is long; `-o json` has all of it."""
    if not isinstance(entry.data, dict):
        return entry.data
    return {name: value for name, value in entry.data.items() if name not in ("seal", "config")}


def _print_proof(console: Console, proof: Verification) -> None:
    if proof.intact:
        console.print(f"entries {proof.first} to {proof.last} hang together; head {proof.head}")
    else:
        console.print(f"broken at entry {proof.first_bad}: {proof.why}", style="bold red")
