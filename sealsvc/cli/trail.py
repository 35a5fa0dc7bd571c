"""sealctl trail: who asked for what, and what came of it, in a chain that shows tampering."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import click
import msgspec
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.event_lines import told
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.parameters import DURATION
from sealsvc.cli.seals import complete_seal, find_seal, shown_ids
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
    ids = shown_ids(console, [entry.seal for entry in entries if entry.seal])
    made = Listing("SEQ", "TIME", "KIND", "SEAL", "WHAT", right=["SEQ"], sparse=["SEAL"])
    for entry in entries:
        made.add_row(
            str(entry.seq),
            moment(entry.time),
            entry.kind,
            ids[entry.seal] if entry.seal else "-",
            printable(_sentence(entry.kind, entry.data)),
        )
    console.print(made)


def _sentence(kind: str, data: dict[str, Any]) -> str:
    """What the entry tells, and who asked for it; `-o json` has all of it."""
    asker = data.get("asker")
    by = f", asked for by process {asker['pid']}, uid {asker['uid']}" if asker else ""
    return _TELL.get(kind, functools.partial(told, kind))(data) + by


def _asked(data: dict[str, Any]) -> str:
    terms = {k: v for k, v in data.items() if k not in ("operation", "outcome", "asker", "trace")}
    scope = "".join(f" {name}={_value(value)}" for name, value in terms.items())
    outcome = f": {data['outcome']}" if data.get("outcome") else ""
    return f"{data['operation']}{scope}{outcome}"


def _value(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _started(data: dict[str, Any]) -> str:
    able = [name for name, why in data["enforcers"].items() if not why]
    return f"in boot {data['boot']}, with {', '.join(able) or 'no enforcer'}"


def _lost(data: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in data["kinds"].items())
    return f"{data['lost']} entries from {moment(data['from'])} to {moment(data['to'])}: {kinds}"


_TELL: dict[str, Callable[[dict[str, Any]], str]] = {
    "asked": _asked,
    "started": _started,
    "present": lambda data: f"{data['seals']} seals live in boot {data['boot']}",
    "lost": _lost,
}


def _print_proof(console: Console, proof: Verification) -> None:
    if proof.intact:
        console.print(f"entries {proof.first} to {proof.last} hang together; head {proof.head}")
    else:
        console.print(f"broken at entry {proof.first_bad}: {proof.why}", style="bold red")
