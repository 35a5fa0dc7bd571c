"""Is a range mapped as its holder says? The question put to the kernel, its answer put in words."""

from __future__ import annotations

import errno
import os

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId
from sealsvc.linux import native
from sealsvc.linux.host import MappingFacts, MappingQuestion, pmem

PAGE = os.sysconf("SC_PAGE_SIZE")
HUGE = 2 << 20
STATX_ATTR_DAX = 0x00200000  # include/uapi/linux/stat.h
FS_XFLAG_REALTIME = 0x1  # include/uapi/linux/fs.h

# Of each check what was expected, and what was found instead.
_WORDS = {
    "shared": ("a shared mapping (MAP_SHARED)", "a private one"),
    "coverage": ("a shared mapping of the file", "none"),
    "map-sync": ("a synchronous mapping (MAP_SYNC)", "one without it"),
    "present": ("a page that is present", "none"),
    "huge": ("a page of 2 MiB", "smaller pages or none"),
}


def has_dax(fd: int) -> bool:
    return bool(native.statx_attributes(fd) & STATX_ATTR_DAX)


def validate(question: MappingQuestion) -> MappingFacts:
    """Raises Refusal: mapping-invalid, bad-request for an address that cannot be, try-later for a
    process that keeps changing its mappings, io-error."""
    q, notes = question, list[str]()
    span = q.range.rounded(PAGE)
    dax = q.anchor >= 0 and has_dax(q.anchor)
    base = (
        base_of(q.anchor, q.file)
        if dax
        else "the file is not DAX: its pages are those of the page cache"
    )
    if isinstance(base, str):
        notes.append(f"PFN proof not available: {base}")
    found = _ask(q, span, base if isinstance(base, int) else None)
    if found.failed:
        raise _refusal(q, found, base if isinstance(base, int) else 0)
    if found.hidden:
        notes.append("PFN proof not available: the service has no CAP_SYS_ADMIN")
    if not found.scanned:
        notes.append("huge pages cannot be told before Linux 6.7 (PAGEMAP_SCAN)")
    if q.require.pmd and not _holds_a_huge_page(span):
        notes.append("the range holds no whole aligned 2 MiB")
    return MappingFacts(
        vmas=found.areas,
        pages=found.pages,
        present=found.present,
        huge_pages=found.huge,
        pfn_checked=found.placed,
        method="pagemap-scan" if found.scanned else "pagemap",
        dax=dax,
        notes=notes,
    )


def _ask(q: MappingQuestion, span: ByteRange, base: int | None) -> native.Validation:
    address = None if q.address is None else q.address - (q.range.offset - span.offset)
    if address is not None and (address % PAGE or address <= 0):
        raise Refusal(
            "bad-request",
            f"byte {q.range.offset} of a file cannot be mapped at {q.address:#x}",
            {"address": q.address, "offset": q.range.offset},
        )
    try:
        return native.validate_mapping(
            q.pid,
            q.file.device,
            q.file.inode,
            span,
            address=address,
            sync=q.require.map_sync,
            present=q.require.populate,
            huge=q.require.pmd,
            map=None if base is None else q.map,
            base=base or 0,
        )
    except BlockingIOError:
        raise Refusal(
            "try-later", f"process {q.pid} keeps changing its mappings", {"pid": q.pid}, 0.1
        ) from None
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise Refusal(
                "limit-reached", f"process {q.pid} maps the file too often to be looked through"
            ) from None
        raise Refusal(
            "io-error", f"{error.filename}: {error.strerror}", {"errno": error.errno}
        ) from error


def base_of(fd: int, file: FileId) -> int | str:
    """The physical address that the extents of the file count from, or why there is none."""
    try:
        if native.fsxattr(fd).xflags & FS_XFLAG_REALTIME:
            return "the file lies on a realtime device"
        return pmem.base_of(file.device)
    except (pmem.Unknown, OSError) as error:
        return str(error)


def _holds_a_huge_page(span: ByteRange) -> bool:
    return -(-span.offset // HUGE) * HUGE + HUGE <= span.end


def _refusal(q: MappingQuestion, answer: native.Validation, base: int) -> Refusal:
    failed = answer.failed
    assert failed is not None
    expected, found = _expected_and_found(q, failed, base, scanned=answer.scanned)
    where = f"byte {failed.offset} of the file" + (
        f" at {failed.address:#x}" if failed.address else ""
    )
    return Refusal(
        "mapping-invalid",
        f"in process {q.pid}, {where}: expected {expected}, found {found}",
        {
            "check": failed.check,
            "offset": failed.offset,
            "address": failed.address or None,
            "expected": expected,
            "found": found,
        },
    )


def _expected_and_found(
    q: MappingQuestion, failed: native.Failed, base: int, *, scanned: bool
) -> tuple[str, str]:
    match failed.check:
        case "inode":
            return _inode(q.file.device, q.file.inode), _inode(failed.found_device, failed.found)
        case "offset":
            return f"byte {failed.expected} of the file", f"byte {failed.found}"
        case "pfn":
            return _place(failed.expected, base), _place(failed.found, base)
        case "huge" if not scanned:
            return _WORDS["huge"][0], "what Linux before 6.7 does not tell (PAGEMAP_SCAN)"
    return _WORDS[failed.check]


def _place(physical: int, base: int) -> str:
    """As extents count. Physical addresses are not for those who may not read them themselves."""
    if not physical:
        return "no page: no extent holds it"
    return f"device byte {physical - base}" if physical >= base else "a page of another device"


def _inode(device: int, inode: int) -> str:
    return f"inode {os.major(device)}:{os.minor(device)}/{inode}"
