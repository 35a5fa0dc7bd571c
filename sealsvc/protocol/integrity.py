"""Messages about protection information. Part of the control protocol (messages.py).

An *attachment* is a profile bound to a range of one file, with its tags. Times are seconds of the
Unix epoch; offsets and lengths are bytes of the file unless said otherwise.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from sealsvc.core.model import ByteRange, FileId
from sealsvc.protocol import pi_device
from sealsvc.protocol.base import Keyed, Limit, Name, Request, SealId

AttachmentId = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
ProfileName = Annotated[str, Meta(pattern=r"^[\w.-]{1,31}$")]
Value = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Writes(StrEnum):
    """How the holder of a writable seal tells what it writes. any: it does not: every block is open
    while the seal lives, and is tagged anew at the return. declared: before it writes a range it
    opens it (pi-open), and afterwards has it tagged (pi-tag): all else is checked at the return."""

    ANY = "any"
    DECLARED = "declared"


class PiProfiles(Request, frozen=True, tag="pi-profiles"):
    """The profiles there are. Answer: PiProfileList."""


class PiQuery(Request, frozen=True, tag="pi-query"):
    """What can check protection information of the file or block device at `path`, of the file of
    `seal`, or of the descriptor that is sent with the request. With `below`, `path` must lie below
    one of these directories and below a root of policy, and be of a regular file. Answer:
    PiAbility."""

    path: Name | None = None
    seal: SealId | None = None
    below: list[Name] | None = None


class PiAttach(Keyed, frozen=True, kw_only=True, tag="pi-attach"):
    """Generate tags of the sealed range and keep them from now on. `tag` and `storage` are what
    those fields have; `secret` names a file in integrity.keys. `quiet`: the holder does not write
    while they are generated, which declared writes need. `at_grant`: a later grant waits for a
    verification of the range. Answer: PiAttachment."""

    seal: SealId
    profile: ProfileName
    tag: Value = 0
    storage: Value = 0
    secret: Annotated[str, Meta(pattern=r"^[\w.-]{0,64}$")] = ""
    writes: Writes = Writes.ANY
    at_grant: bool = False
    quiet: bool = False


class PiDetach(Keyed, frozen=True, kw_only=True, tag="pi-detach"):
    """Forget an attachment and its tags. Answer: PiAttachment, as it was."""

    attachment: AttachmentId


class PiAttachments(Request, frozen=True, tag="pi-attachments"):
    """Attachments that the asker may see, in order of id, after `after`; of `path`, or the one
    named, alone, if given. Answer: PiAttachmentList."""

    path: Name | None = None
    attachment: AttachmentId | None = None
    after: AttachmentId | None = None


class _OfRange(Keyed, frozen=True, kw_only=True):
    """Of the attachment, or those of the seal's file; of `range` alone, rounded out to blocks."""

    attachment: AttachmentId | None = None
    seal: SealId | None = None
    range: ByteRange | None = None


class PiVerify(_OfRange, frozen=True, kw_only=True, tag="pi-verify"):
    """Compare the data with its tags. On a live seal whose holder may be writing, `quiet` says that
    it does not; otherwise a block that differs is `unstable`. Answer: PiReport."""

    quiet: bool = False


class PiScrub(_OfRange, frozen=True, kw_only=True, tag="pi-scrub"):
    """Verify in the background, at most `rate` bytes in a second (0: that of the configuration),
    from where an earlier scrub stopped unless `restart`; with `stop`, end one that runs. With
    `cycle` (seconds), blocks that were compared less than that ago are skipped if the file's ctime
    and its seals prove that nobody wrote to it since. Answer: PiAttachment, with its progress."""

    rate: Annotated[int, Meta(ge=0)] = 0
    cycle: Annotated[float, Meta(ge=0, le=10**9)] = 0.0
    restart: bool = False
    stop: bool = False


class PiOpen(_OfRange, frozen=True, kw_only=True, tag="pi-open"):
    """The holder is about to write the range: its tags count no more. Answer: PiReport."""


class PiTag(_OfRange, frozen=True, kw_only=True, tag="pi-tag"):
    """The holder has written the range and is quiet: generate tags of what was opened. Suspect
    blocks stay so. With a byte-stream profile: make a new PI of exactly this range.

    With `changed`, the holder of an exclusive seal with declared writes knows that it has written
    these parts of the range alone since it opened it (sealsvc.integrity.tracker tells it for a
    mapping): only they are read and tagged; what else was opened has its true tag still, and is
    clean again unread. A holder that is wrong about that has true data called corrupt later; one
    that got no answer sends the same parts again. Answer: PiReport, with `unchanged` blocks."""

    changed: Annotated[list[ByteRange], Meta(max_length=1000)] | None = None


class PiBless(_OfRange, frozen=True, kw_only=True, tag="pi-bless"):
    """Take what suspect blocks hold now for good, and tag it. Answer: PiReport."""


class PiErrors(Request, frozen=True, tag="pi-errors"):
    """Errors after number `after`, the oldest first. When there is none, the answer waits up to
    `wait` seconds until there is. Answer: PiErrorPage."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    limit: Limit = 20
    wait: Annotated[float, Meta(ge=0, le=300)] = 0.0


AnyRequest = (
    PiProfiles
    | PiQuery
    | PiAttach
    | PiDetach
    | PiAttachments
    | PiVerify
    | PiScrub
    | PiOpen
    | PiTag
    | PiBless
    | PiErrors
    | pi_device.AnyRequest
)


class PiProfile(msgspec.Struct, frozen=True, kw_only=True):
    """`keys` are those that describe it, `fields` the layout: name, offset and width in bits, byte
    order. `bytes` are those of a tag; `variant` is the code that computes its checksum here."""

    name: str
    keys: dict[str, int | str]
    fields: list[tuple[str, int, int, str]]
    bytes: int
    variant: str
    source: str


class PiProfileList(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pi-profile-list"
):
    """`errors` are of files in integrity.profiles that add nothing for this reason."""

    profiles: list[PiProfile]
    errors: list[str]


class PiDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What a block device can do, by FS_IOC_GETLBMD_CAP (Linux 6.17) and sysfs. `interval` bytes of
    data have `metadata` bytes, of which the tuple of `guard` takes `tuple`; `profile` is the one
    that fits it ("": none does, or it keeps none)."""

    name: str
    format: str
    interval: int
    metadata: int
    tuple: int
    guard: str
    reftag: bool
    profile: str
    source: str


class PiAbility(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pi-ability"):
    """Who may check: `checkers` is a set of client, service, device. `profiles` are those that
    software here can generate and verify on this file. `device_path` says whether an exclusive
    holder may hand PI to the device (null: it is no file). `notes` say what is not known."""

    path: str
    checkers: list[str]
    profiles: list[str]
    device: PiDevice | None
    notes: list[str]
    device_path: pi_device.PiPathInfo | None = None


class PiProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Of a scrub: `done` of `total` bytes; `running` at this moment. `skipped` bytes were passed
    over: they were compared within its cycle and not written since. Each stretch of 1 MiB (each PI
    of a byte stream) was last compared at `oldest` or later."""

    done: int
    total: int
    running: bool
    started: float
    errors: int
    skipped: int = 0
    oldest: float = 0.0


class PiAttachment(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pi-attachment"
):
    """`range` is what the tags cover; `uncovered` are the bytes of the seal's range after it that
    are no whole block. `blocks` counts them by state: clean, open, suspect; of a byte stream:
    ranges by whether they are whole or superseded in part."""

    id: str
    file: FileId
    path: str
    profile: str
    range: ByteRange
    uncovered: int
    writes: Writes
    at_grant: bool
    owner: int
    blocks: dict[str, int]
    scrub: PiProgress | None = None


class PiAttachmentList(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pi-attachment-list"
):
    """`next` is the `after` of the next page; null on the last."""

    attachments: list[PiAttachment]
    next: str | None = None


class PiSense(msgspec.Struct, frozen=True, kw_only=True):
    """Sense data of a SCSI disk (SPC-5 4.4): sense key, additional sense code and its qualifier.
    Of protection information: 0Bh with 10h/01h guard, 10h/02h application tag, 10h/03h reference
    tag."""

    key: int
    asc: int
    ascq: int


class PiError(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found. `kind`: corrupt (the data is not what was tagged, and nobody can
    have written it), changed (the same, but the file was changed while nobody had sealed it),
    suspect (a writer, or the service, ended in the middle), unreadable, refused (a request of a PI
    channel: the device, or the service, found its PI wrong; `checker` says who), filesystem (the
    kernel reports an error of the file, `errno`, or of its file system as a whole: then the inode
    of `file` is 0), unknown (errors of the file system that nobody heard). `more` came with it,
    `detail` is what is known beyond the fields; `sense` is what a SCSI disk says. `field` with
    `expected` and `found` in hex as they stand in a tag ("": not known); `block` of the attachment,
    its `offset` and `length` in the file, and its `physical` place on the file system's device
    (null: not known). `first_good` and `last_good` are when the stretch around it was last found
    right. `at` is what was being done: attach, grant, return, verify, scrub, copy,
    relocate, read, write, kernel."""

    seq: int
    time: float
    kind: str
    at: str
    attachment: str
    path: str
    file: FileId
    profile: str
    block: int
    offset: int
    length: int
    field: str
    expected: str
    found: str
    physical: int | None
    seal: str | None
    holder: int | None
    cookie: int
    first_good: float | None
    last_good: float | None
    errno: int = 0
    more: int = 0
    checker: str = ""
    detail: str = ""
    sense: PiSense | None = None


class PiErrorPage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pi-error-page"):
    """`next` is the `after` of the next request. `lost` errors between `after` and `next` were
    dropped from the queue; the registry's trail has them."""

    errors: list[PiError]
    next: int
    lost: int = 0


class PiReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pi-report"):
    """What was done to a range: `blocks` by outcome (good, corrupt, changed, suspect, open,
    unstable, unreadable, tagged, unchanged), `errors` the first of what was found. `read` is the
    way the data took: direct (from the device) or cached. `verdict` is the worst of: good, open,
    unstable, suspect, changed, corrupt."""

    attachment: str
    range: ByteRange
    verdict: str
    blocks: dict[str, int]
    read: str
    errors: list[PiError]
    more: int = 0


Result = (
    PiProfileList
    | PiAbility
    | PiAttachment
    | PiAttachmentList
    | PiErrorPage
    | PiReport
    | pi_device.Result
)
