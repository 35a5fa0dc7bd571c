"""What the service tells the process that copies, and what that tells the service."""

from __future__ import annotations

from typing import Any

import msgspec


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Fields as of StartCopy. `socket`: where seals are asked for; `uid`: the asker's;
    `unsealable`: why it may have none (empty: it may); `seals_of_...`: those that others hold;
    `measured`: the file of rates and self-tests."""

    socket: str
    uid: int
    measured: str
    seals_of_source: tuple[str, ...] = ()
    seals_of_destination: tuple[str, ...] = ()
    unsealable: str = ""
    offset: int = 0
    length: int | None = None
    to: int | None = None
    whole: bool = False
    throttle: int | None = None
    durable: bool = True
    verify: bool = False
    in_place: bool = False
    recall: bool = False
    seals: bool = True
    only: tuple[str, ...] = ()
    resume: str = ""
    dry_run: bool = False


class Update(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Progress (`done` of `total` bytes, by `step`), a result, or a refusal (`code`)."""

    done: int = 0
    total: int = 0
    step: str = ""
    result: dict[str, Any] | None = None
    code: str = ""
    error: str = ""
