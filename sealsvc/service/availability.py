"""The limits on what one user can take of the service: the table from which docs/limits.md is made.

Configured limits are read from the sections of config.py, fixed ones from the modules that enforce
them, so that the page cannot differ from the code.
"""

from __future__ import annotations

from dataclasses import dataclass

from sealsvc.control import connection, turns
from sealsvc.copies import jobs as copies
from sealsvc.copies.relocation import job as relocation
from sealsvc.integrity import channels, errors
from sealsvc.integrity import shares as integrity
from sealsvc.jobs import store
from sealsvc.lifecycle import seals
from sealsvc.protocol.base import MAX_FDS, MAX_MESSAGE
from sealsvc.registry import backlog
from sealsvc.runtime import log_queue, users, workers
from sealsvc.runtime.config import LimitsSection, PolicySection, ServiceSection
from sealsvc.service import alarms, idempotency, tickets

_SECTIONS = {
    "limits": LimitsSection(),
    "policy": PolicySection(),
    "service": ServiceSection(),
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One row of the table. `setting` is the key in sealsvc.toml, or empty; `most` the limit as
    text; `beyond` says what happens to a client at the limit, `others` what other clients
    notice."""

    resource: str
    setting: str
    most: str
    beyond: str
    others: str


def _limit(resource: str, setting: str, beyond: str, others: str = "nothing") -> Limit:
    section, _, key = setting.partition(".")
    value = getattr(_SECTIONS[section], key)
    unit = " s" if key.endswith("_grace") else ""
    number = f"{value:g}" if isinstance(value, float) else str(value)
    most = f"{number}{unit}" if value else "no limit"
    return Limit(resource, setting, most, beyond, others)


def _fixed(resource: str, most: str, beyond: str, others: str = "nothing") -> Limit:
    return Limit(resource, "", most, beyond, others)


_REFUSED = "`limit-reached`"

TABLE = (
    _limit(
        "connections of a user", "limits.connections_per_user", f"{_REFUSED}, then the end; alarm"
    ),
    _limit(
        "connections altogether (at most a quarter of RLIMIT_NOFILE)",
        "limits.connections",
        f"{_REFUSED}; alarm",
        "`limit-reached`, but for operators, who have 64 of them",
    ),
    _limit("requests of a user in flight", "limits.requests_per_user", f"{_REFUSED}; alarm"),
    _fixed(
        "requests of a connection in flight",
        f"{connection.MAX_IN_FLIGHT}; of an operator's {connection.MAX_IN_FLIGHT_OF_OPERATORS}",
        _REFUSED,
    ),
    _limit(
        "descriptors sent by a user and not closed yet",
        "limits.descriptors_per_user",
        f"{_REFUSED}, then the end of the connection; alarm",
    ),
    _fixed("descriptors with a message", str(MAX_FDS), "`too-large`; they are closed"),
    _fixed("bytes of a message", str(MAX_MESSAGE), "`too-large`"),
    _fixed(
        "messages of a user that are read in one turn of the event loop",
        f"{turns.MESSAGES}, or what takes {turns.TIME * 1e3:g} ms",
        "the rest waits in the sockets",
        "at most that much delay for each user at work",
    ),
    _fixed(
        "answers that a connection has not read",
        str(connection.MAX_UNREAD),
        "it is not read from until it reads",
    ),
    _fixed("messages and events for a connection", str(connection.MAX_QUEUED), "its end"),
    _fixed(
        "threads that look at what a user sent, and that close it",
        f"{users.THREADS} and 2",
        f"`try-later` after {users.PATIENCE:g} s",
    ),
    _fixed(
        "keys of the requests of a user, or of a principal of the REST API",
        str(idempotency.KEYS_PER_USER),
        "its own oldest key is forgotten",
    ),
    _fixed(
        "jobs that are over and remembered",
        str(store.REMEMBERED),
        "the oldest of the user, or principal of the REST API, who has most of them is forgotten",
    ),
    _fixed(
        "seals that are over and remembered without the registry",
        str(seals.REMEMBERED),
        "the oldest of the user who has most of them is forgotten",
    ),
    _fixed(
        "alarms that are kept",
        str(alarms.MOST),
        "the oldest that was acknowledged is forgotten, else the oldest of the user whose seals"
        " have most, which is counted",
    ),
    _fixed(
        "errors of protection information that are kept for who asks",
        str(errors.KEPT),
        "the oldest of the attachment that has most of them is forgotten, and counted as lost",
    ),
    _limit(
        "events that are kept for clients that ask for earlier ones",
        "service.event_history",
        "the oldest is forgotten; who asks for it is told of the gap",
        "the same: the list is one; the registry has them all",
    ),
    _fixed(
        "entries that wait for the registry, half of them for grants and ends",
        str(backlog.ROOM),
        "with as many as are left for others: lost, counted, and told in the audit trail",
    ),
    _fixed(
        "processes of a user at which a look has not come back, and of all users",
        f"{workers.LOST_BY_USER} and {workers.LOST}",
        "further looks at processes of that user are refused: what depends on one fails closed",
        "the same, when there are as many of all users",
    ),
    _fixed(
        "copies at a time; of a principal of the REST API as many as are left for others, of a user"
        f" {copies.RUNNING_EACH} of these",
        str(copies.RUNNING),
        _REFUSED,
    ),
    _fixed(
        "relocations at a time; of a principal of the REST API as many as are left for others",
        str(relocation.RUNNING),
        _REFUSED,
    ),
    _fixed(
        "attachments of protection information; of a user, or of a principal of the REST API, as"
        f" many as are left for others, and {integrity.MOST_EACH} at most",
        str(integrity.MOST),
        _REFUSED,
    ),
    _fixed("PI channels of a user", str(channels.MOST), _REFUSED),
    _limit("grants of a user in a second", "policy.grants_per_second", _REFUSED),
    _fixed(
        "open claims; of a user, or of a principal of the REST API, as many as are left for others",
        str(tickets.MOST),
        _REFUSED,
    ),
    _limit(
        "seals altogether; of a user that is no operator as many as are left for others",
        "policy.max_seals",
        _REFUSED,
        "`limit-reached`, when there are as many",
    ),
    _limit("seals of a process", "policy.max_seals_per_holder", _REFUSED),
    _limit(
        "seals on a file", "policy.max_seals_per_file", _REFUSED, "`limit-reached` on that file"
    ),
    _limit("bytes sealed by a user", "policy.max_bytes_per_user", _REFUSED),
    _limit("memory of a user's rings", "policy.max_ring_bytes_per_user", _REFUSED),
    _limit(
        "time for which a descriptor that cannot write keeps others waiting",
        "policy.max_reader_grace",
        "`denied` above it, and for conflict=refuse; fenced by `kill` at its end",
        "who writes waits for that long, and for the fence",
    ),
    _fixed(
        "bytes of log that nobody reads",
        str(log_queue.ROOM),
        "further records are dropped, counted, and told of later",
        "the same: the log is one",
    ),
)


def page() -> str:
    """The text of docs/limits.md."""
    lines = [
        "# Limits",
        "",
        "What one user can use up of the service, how much of it, what is met there, and what",
        "others notice. A user is a uid, as the kernel vouches for it; operators",
        "(`policy.operators`) are exempt from what is counted per user. Refusals name the limit in",
        "`details.limit`; they are counted in `sealsvc_limit_refusals_total{limit=...}`, and an",
        "alarm names the user once a minute. How late the event loop is, whoever keeps it busy, is",
        "`sealsvc_loop_lag_seconds`. Connections and descriptors of one user are at most a"
        f" {users.PART}th of RLIMIT_NOFILE,",
        "whatever is configured.",
        "",
        "| resource | key of sealsvc.toml | most | who is there meets | others notice |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in TABLE:
        setting = f"`{row.setting}`" if row.setting else "-"
        lines.append(f"| {row.resource} | {setting} | {row.most} | {row.beyond} | {row.others} |")
    return "\n".join(lines) + "\n"
