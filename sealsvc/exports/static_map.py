"""The static map: where a sealed file's bytes are, for programs that keep such a map themselves.

It is worth as much as the seal: whoever uses it has to stop when the seal is recalled, and to ask
again afterwards.
"""

from __future__ import annotations

import msgspec

from sealsvc.client import Client
from sealsvc.client.paging import every_seal
from sealsvc.core.errors import Refusal
from sealsvc.core.model import State
from sealsvc.exports.base import Map
from sealsvc.exports.blocks import Piece, pieces
from sealsvc.protocol.seals import ExtentPage, Extents

_IN_FORCE = (State.GRANTED, State.ACTIVE)


class StaticMap(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="static-map"):
    """Bytes. `pieces` cover `length` bytes of the file from `offset` on, as they were recorded when
    `seal` was granted; `seqid` is the seal's: another one tells that it has changed."""

    seal: str
    seqid: int
    path: str
    offset: int
    length: int
    pieces: list[Piece]


def static_map(client: Client, path: str) -> StaticMap:
    """Of the seal in force on `path` with the longest range. Refusal `no-such-seal` without one."""
    seals = [seal for seal in every_seal(client, path=path) if seal.state in _IN_FORCE]
    if not seals:
        raise Refusal(
            "no-such-seal", f"{path} is not sealed: nothing would keep its extents in place"
        )
    seal = max(seals, key=lambda seal: seal.range.length)
    found = pieces(recorded(client, seal.id), seal.file.device, seal.range.end)
    return StaticMap(
        seal=seal.id,
        seqid=seal.seqid,
        path=seal.path,
        offset=seal.range.offset,
        length=seal.range.length,
        pieces=found,
    )


def recorded(client: Client, seal: str) -> Map:
    """The map that was recorded at grant: `seal` itself, or an earlier one's."""
    found: Map = []
    start: int | None = 0
    while start is not None:
        page = client.call(Extents, seal=seal, start=start).result
        assert isinstance(page, ExtentPage)
        found += [(each.logical, each.physical, each.length) for each in page.extents]
        start = page.next
    return found


def as_c(map: StaticMap) -> str:
    """A C source file. Device numbers are pairs, since programs disagree on dev_t."""
    rows = "".join(
        f"\t{{{piece.logical}u, {piece.physical}u, {piece.length}u, "
        f"{piece.device.replace(':', ', ')}}},\n"
        for piece in map.pieces
    )
    return (
        "/* The static map of a sealed file: good for as long as the seal is in force. Bytes. */\n"
        "#include <stdint.h>\n\n"
        "struct sealsvc_static_extent {\n"
        "\tuint64_t logical, physical, length;\n"
        "\tuint32_t major, minor; /* of the block device */\n"
        "};\n\n"
        f'const char sealsvc_static_seal[] = "{map.seal}";\n'
        f"const uint32_t sealsvc_static_seqid = {map.seqid};\n"
        f"const uint64_t sealsvc_static_count = {len(map.pieces)};\n"
        f"const struct sealsvc_static_extent sealsvc_static_map[] = {{\n{rows}}};\n"
    )
