"""Messages of exports. They need no native module."""

# Annotations are evaluated here, as in protocol.py.

from typing import Annotated

import msgspec
from msgspec import Meta

from sealsvc.protocol.base import Keyed, Name

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ExportName = Annotated[str, Meta(pattern=NAME_PATTERN)]


class StopExport(Keyed, frozen=True, tag="stop-export"):
    """End an export as `sealctl export stop` does, for operators: remove the device, return the
    seal. Refused while the device is known to be in use, unless by `force`, which fails requests.
    With `below`, its file lies below one of these directories. Answer: ExportStopped."""

    name: ExportName
    force: bool = False
    below: list[Name] | None = None


class ExportStopped(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="export-stopped"
):
    """The export as it was: there is none of this name any more. `driver` is its type."""

    name: str
    driver: str
    device: str
    file: str
