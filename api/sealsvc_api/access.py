"""Who may do what: actions, and the roles that have them. Data, and free of I/O.

A route names its action; auth.py lets nobody through to a route that names none. docs/security.md
is this table, rendered and checked against the running service by a test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sealsvc.core.paths import is_plain, lies_below


class Role(StrEnum):
    """In order: each may do what the one before may."""

    VIEWER = "viewer"
    SEALER = "sealer"
    OPERATOR = "operator"
    ADMIN = "admin"


class Action(StrEnum):
    """`own` in a name's end: of seals that were asked for under the same name."""

    SESSION = "session"
    STATUS = "status"
    METRICS = "metrics"
    SEALS_READ = "seals.read"
    EVENTS = "events"
    FILESYSTEMS = "filesystems"
    JOBS_READ = "jobs.read"
    SEALS_GRANT = "seals.grant"
    SEALS_CHANGE_OWN = "seals.change-own"
    SEALS_CHANGE = "seals.change"
    ALARMS_ACKNOWLEDGE = "alarms.acknowledge"
    RECALL = "recall"
    RECALL_WIDE = "recall.wide"
    JOBS_RUN = "jobs.run"
    COPY = "copies"
    EXPORTS_STOP = "exports.stop"
    POLICY_READ = "policy.read"
    POLICY_CHANGE = "policy.change"
    TRAIL = "trail"


MEANS = {
    Action.SESSION: "see and end one's own session",
    Action.STATUS: "see the service's state",
    Action.METRICS: "collect metrics of the whole service (needs the scope /)",
    Action.SEALS_READ: "see seals, extents, files, holders and conflicts in scope",
    Action.EVENTS: "follow the events of what is in scope",
    Action.FILESYSTEMS: "see file systems in scope, and their coverage",
    Action.JOBS_READ: "see jobs (needs the scope /)",
    Action.SEALS_GRANT: "ask for seals and claims in scope",
    Action.SEALS_CHANGE_OWN: "renew, validate, downgrade and return seals of one's own",
    Action.SEALS_CHANGE: "the same with the seals of others in scope",
    Action.ALARMS_ACKNOWLEDGE: "acknowledge alarms that concern files in scope",
    Action.RECALL: "recall a seal or a file's seals in scope",
    Action.RECALL_WIDE: "recall by holder, file system or altogether (needs the scope /)",
    Action.JOBS_RUN: "audit everything and run the doctor (needs the scope /)",
    Action.COPY: "copy between files in scope, and follow such copies of one's own",
    Action.EXPORTS_STOP: "stop exports of files in scope",
    Action.POLICY_READ: "read and check the policy",
    Action.POLICY_CHANGE: "have the policy read again",
    Action.TRAIL: "read the history and the audit trail",
}

_VIEWER = frozenset(
    {
        Action.SESSION,
        Action.STATUS,
        Action.METRICS,
        Action.SEALS_READ,
        Action.EVENTS,
        Action.FILESYSTEMS,
        Action.JOBS_READ,
    }
)
_SEALER = _VIEWER | {Action.SEALS_GRANT, Action.SEALS_CHANGE_OWN}
_OPERATOR = _SEALER | {
    Action.SEALS_CHANGE,
    Action.ALARMS_ACKNOWLEDGE,
    Action.RECALL,
    Action.RECALL_WIDE,
    Action.JOBS_RUN,
    Action.COPY,
    Action.EXPORTS_STOP,
    Action.POLICY_READ,
    Action.TRAIL,
}

ALLOWED: dict[Role, frozenset[Action]] = {
    Role.VIEWER: _VIEWER,
    Role.SEALER: _SEALER,
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: frozenset(Action),
}

# What concerns, or tells of, more than a list of directories can name.
UNSCOPED = frozenset(
    {
        Action.METRICS,
        Action.RECALL_WIDE,
        Action.JOBS_READ,
        Action.JOBS_RUN,
        Action.POLICY_READ,
        Action.POLICY_CHANGE,
        Action.TRAIL,
    }
)


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal as it shows itself in one request. `below` None: everything is in scope.
    `holders` are the users whose processes it may name (None: anybody's). `proof` is the digest of
    what it showed, `how` what that was."""

    name: str
    role: Role
    below: tuple[str, ...] | None
    holders: tuple[int, ...] | None
    rate: float
    how: str
    proof: bytes = b""

    def may(self, action: Action) -> bool:
        if action in UNSCOPED and self.below is not None:
            return False
        return action in ALLOWED[self.role]

    def sees(self, path: str | None) -> bool:
        return self.below is None or (path is not None and is_within(path, self.below))

    @property
    def directories(self) -> list[str] | None:
        """The scopes as the control protocol takes them; None for the scope /."""
        return None if self.below is None else list(self.below)

    @property
    def confined(self) -> list[str]:
        """The directories below which a path that this caller sends is looked up. Also with the
        scope / a path is never followed outside the service's roots or through a symbolic link:
        what the rest of the machine holds is no caller's to ask."""
        return ["/"] if self.below is None else list(self.below)


def is_within(path: str, directories: Iterable[str]) -> bool:
    """Whether the path, which must be plain (core/paths.py), is one of the directories or in one of
    them. That none of its parts is a symbolic link is checked by the service."""
    return is_plain(path) and lies_below(path, directories)
