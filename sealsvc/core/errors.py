"""The errors that a user can get: one table for the wire, HTTP status, exit codes and docs.

`Refusal` is the only exception that crosses a boundary (socket, REST, CLI). The socket's connection
turns an OSError that was not converted into `io-error`; any other exception is a bug, and is
reported as `internal`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """One row of the table. `status` is the HTTP status, `exit` the exit code of sealctl, `nfs` the
    corresponding status of RFC 8881 (empty: none)."""

    code: str
    errno: int
    status: int
    exit: int
    retryable: bool
    title: str
    advice: str
    nfs: str = ""


_ROWS = (
    # Requests that cannot be understood: exit 2.
    ErrorClass(
        "bad-request", errno.EINVAL, 400, 2, False,
        "The request is malformed",
        "Correct the field that the message names.",
        "NFS4ERR_INVAL",
    ),
    ErrorClass(
        "unknown-operation", errno.ENOSYS, 400, 2, False,
        "The service does not know this operation",
        "Compare the protocol versions of client and service.",
        "NFS4ERR_OP_ILLEGAL",
    ),
    ErrorClass(
        "unsupported-version", errno.EPROTONOSUPPORT, 400, 2, False,
        "The protocol version is not supported",
        "Upgrade the older side; the message names the versions the service speaks.",
        "NFS4ERR_MINOR_VERS_MISMATCH",
    ),
    ErrorClass(
        "too-large", errno.EMSGSIZE, 413, 2, False,
        "The message is larger than the service accepts",
        "Send less in one message; page through long answers.",
        "NFS4ERR_REQ_TOO_BIG",
    ),
    # Requests that policy does not allow: exit 3.
    ErrorClass(
        "unauthenticated", errno.EACCES, 401, 3, False,
        "Nobody known asks",
        "Send `Authorization: Bearer TOKEN` with a token of the API's principals file, or show a"
        " client certificate that it names.",
        "NFS4ERR_WRONGSEC",
    ),
    ErrorClass(
        "denied", errno.EACCES, 403, 3, False,
        "Policy does not allow this request",
        "Ask the operator to extend [policy] in sealsvc.toml, or run as a user it allows.",
        "NFS4ERR_ACCESS",
    ),
    ErrorClass(
        "outside-roots", errno.EACCES, 403, 3, False,
        "The path is not below an allowed root, or is reached through a symbolic link",
        "Use a path without symbolic links below one of policy.roots, or pass an open descriptor.",
        "NFS4ERR_ACCESS",
    ),
    ErrorClass(
        "risk-not-accepted", errno.EOPNOTSUPP, 403, 3, False,
        "The seal would rely on coverage that the enforcers do not have",
        "Ask for an exclusive seal, or have the operator add the named risks to"
        " policy.accept_risks.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    # Things that are not there: exit 4.
    ErrorClass(
        "no-such-file", errno.ENOENT, 404, 4, False,
        "The file does not exist",
        "Check the path.",
        "NFS4ERR_NOENT",
    ),
    ErrorClass(
        "no-such-seal", errno.ENOENT, 404, 4, False,
        "There is no such seal",
        "It was returned, revoked or never granted; list seals with `sealctl ls`.",
        "NFS4ERR_BAD_STATEID",
    ),
    ErrorClass(
        "no-such-holder", errno.ESRCH, 404, 4, False,
        "The holder process does not exist",
        "Name a running process.",
        "NFS4ERR_STALE_CLIENTID",
    ),
    ErrorClass(
        "no-such-job", errno.ENOENT, 404, 4, False,
        "There is no such job",
        "Only the newest jobs since the machine was booted are kept; list them.",
    ),
    ErrorClass(
        "no-such-alarm", errno.ENOENT, 404, 4, False,
        "There is no such alarm",
        "Alarms are kept until they are acknowledged and others need their room; list them.",
    ),
    ErrorClass(
        "no-such-profile", errno.ENOENT, 404, 4, False,
        "There is no such profile of protection information",
        "List them with `sealctl pi profiles`; what is wrong in files of your own is told there.",
    ),
    ErrorClass(
        "no-such-attachment", errno.ENOENT, 404, 4, False,
        "There is no such attachment of protection information",
        "List them with `sealctl pi ls`; attach a profile to a seal with `sealctl pi attach`.",
    ),
    ErrorClass(
        "no-such-export", errno.ENOENT, 404, 4, False,
        "There is no such export",
        "List them with `sealctl export ls`.",
    ),
    # Files and file systems a seal cannot be kept on: exit 5.
    ErrorClass(
        "not-a-regular-file", errno.EINVAL, 422, 5, False,
        "Only regular files have an extent map",
        "Name a regular file.",
        "NFS4ERR_WRONG_TYPE",
    ),
    ErrorClass(
        "filesystem-unsupported", errno.EOPNOTSUPP, 422, 5, False,
        "The file system cannot keep an extent map still",
        "Move the file to XFS or ext4.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    ErrorClass(
        "enforcer-unavailable", errno.EOPNOTSUPP, 422, 5, False,
        "No enforcer on this kernel can keep such a seal",
        "Run `sealctl doctor` on the file system to see what can be kept there.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    ErrorClass(
        "beyond-eof", errno.EINVAL, 422, 5, False,
        "The range reaches beyond the end of the file",
        "Seal a range inside the file, or extend the file first.",
        "NFS4ERR_INVAL",
    ),
    ErrorClass(
        "extent-unsuitable", errno.EOPNOTSUPP, 422, 5, False,
        "Part of the range has no stable place on the device",
        "Ask for the preparation that the message names.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    ErrorClass(
        "not-dax", errno.EOPNOTSUPP, 422, 5, False,
        "The file is mapped through the page cache, so its mapping cannot be synchronous or direct",
        "Mount the file system with dax=always on persistent memory (or give the file the DAX"
        " attribute), or do not require map_sync and pmd.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    ErrorClass(
        "device-path-unavailable", errno.EOPNOTSUPP, 422, 5, False,
        "Protection information cannot be handed to the device under this file",
        "Do what the message names, or use the software path; docs/integrity-device.md lists the"
        " preconditions.",
    ),
    ErrorClass(
        "reflink-neighbours", errno.EOPNOTSUPP, 422, 5, False,
        "The file shares blocks outside the range; on reflink XFS its neighbours can still move",
        "Ask for prepare=unshare, which unshares the whole file.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    ErrorClass(
        "backs-loop-device", errno.EBUSY, 422, 5, False,
        "The file backs a loop device, which can discard its blocks unseen",
        "Detach the loop device that the message names.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    ErrorClass(
        "overlay-upper", errno.EBUSY, 422, 5, False,
        "The file lies in the upper directory of an overlay, which can truncate it unseen",
        "Unmount the overlay that the message names, or seal a file elsewhere.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    # Conflicts with others that pass with time: exit 6.
    ErrorClass(
        "file-in-use", errno.EBUSY, 409, 6, True,
        "Other processes have the file open from before it was watched",
        "Close it in the processes that the message names.",
        "NFS4ERR_SHARE_DENIED",
    ),
    ErrorClass(
        "seal-conflict", errno.EBUSY, 409, 6, True,
        "Another holder's seal excludes this one",
        "Wait for its return, or recall it.",
        "NFS4ERR_LAYOUTUNAVAILABLE",
    ),
    ErrorClass(
        "try-later", errno.EAGAIN, 409, 6, True,
        "The file's seals are being recalled, or it has not come to rest",
        "Try again after the time that retry_after names.",
        "NFS4ERR_LAYOUTTRYLATER",
    ),
    ErrorClass(
        "limit-reached", errno.EDQUOT, 429, 6, True,
        "A limit of the service is reached",
        "Return seals you no longer need, or have the operator raise the limit.",
        "NFS4ERR_DELAY",
    ),
    ErrorClass(
        "out-of-descriptors", errno.EMFILE, 503, 6, True,
        "A process has no number left for a descriptor",
        "Close some in the process that the message names, or raise its RLIMIT_NOFILE (ulimit -n),"
        " then ask again: nothing stays sealed.",
        "NFS4ERR_RESOURCE",
    ),
    ErrorClass(
        "still-mapped", errno.EBUSY, 409, 6, True,
        "The seal cannot be returned while its range is mapped, or its pages are referenced",
        "Unmap the range (and close the sealed descriptor) in the processes that the message"
        " names, then return it again.",
        "NFS4ERR_LOCKS_HELD",
    ),
    ErrorClass(
        "mapping-invalid", errno.EFAULT, 409, 6, False,
        "The holder's mapping is not what the seal requires",
        "Map (or populate) the range anew as `check` asks for, then have it validated again.",
    ),
    ErrorClass(
        "stale-seqid", errno.ESTALE, 412, 6, False,
        "The seal has changed since",
        "Read the seal again and repeat with its present seqid.",
        "NFS4ERR_OLD_STATEID",
    ),
    ErrorClass(
        "already-attached", errno.EEXIST, 409, 6, False,
        "The range has protection information already",
        "Use the attachment that the message names, or detach it first.",
    ),
    ErrorClass(
        "cancelled", errno.ECANCELED, 409, 6, False,
        "The request was cancelled",
        "Ask again if you still want it; nothing is left armed.",
    ),
    # The service or the system under it failed: exit 1 and 7.
    ErrorClass(
        "export-failed", errno.ENODEV, 503, 1, False,
        "The export cannot be served, or stopped",
        "The message has what its process said; docs/exports.md tells what each type needs.",
    ),
    ErrorClass(
        "io-error", errno.EIO, 500, 1, False,
        "The system refused an operation that the grant needs",
        "The message names the call and its errno; see the service's log.",
        "NFS4ERR_IO",
    ),
    ErrorClass(
        "internal", errno.EIO, 500, 1, False,
        "The service met a defect of its own",
        "Report it with the service's log; nothing was left half granted.",
        "NFS4ERR_SERVERFAULT",
    ),
    ErrorClass(
        "service-unavailable", errno.ECONNREFUSED, 503, 7, True,
        "The service does not answer on its control socket",
        "Start it (`sealsvc serve`), or point SEALSVC_SOCKET at its socket.",
    ),
)  # fmt: skip

TABLE: dict[str, ErrorClass] = {row.code: row for row in _ROWS}


@dataclass(eq=False)
class Refusal(Exception):
    """A request is refused, for a reason that its requester can act on.

    `code` names a row of TABLE. `details` can be encoded as JSON, and has the same keys for one
    code (docs/errors.md): byte ranges, extent flags, pids, paths. `retry_after` is in seconds.
    """

    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    retry_after: float | None = None

    def __post_init__(self) -> None:
        if self.code not in TABLE:
            raise ValueError(f"error code {self.code!r} has no row in sealsvc.core.errors.TABLE")
        super().__init__(self.message)

    @property
    def row(self) -> ErrorClass:
        """The row of TABLE for this code."""
        return TABLE[self.code]

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def of_kin(refusal: Refusal) -> Refusal:
    """The refusal, changed to `try-later` if it comes from EBUSY of a system call: the gate of
    another sealsvc answers so while it makes a seal on the same file (is_kin() in
    native/gate/waiters.c)."""
    if refusal.code == "io-error" and refusal.details.get("errno") == errno.EBUSY:
        return Refusal("try-later", "another sealsvc makes a seal on the file", retry_after=0.1)
    return refusal
