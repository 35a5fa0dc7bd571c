"""The holder's side: seals that it maps and stores through, and what it sees of their blocks.

A look owes nothing to the service: FIEMAP by itself, and the bytes at the recorded places, read
from the image below the file system's device.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.client.ring import Seal as RingSeal
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Return, SealInfo
from tests.promise.attack import BLOCK
from tests.promise.layout import Plan
from tests.soak import fiemap

GRACE = 200.0
_LOOKS, _PAUSE = 4, 0.05  # at bytes that somebody else wrote in place, meanwhile
_UNKNOWN = 0x1 | 0x2 | 0x4 | 0x8 | 0x200 | 0x800 | 0x2000  # FIEMAP_EXTENT_* without a place


class Broken(Exception):
    """A block under a live seal moved, or does not hold what the holder wrote."""


class Bond(Protocol):
    """How the seal is known to the service, and given back. `risks`: that it was granted with."""

    seal_id: str
    risks: list[str]

    def end(self) -> None: ...


class Held:
    """A seal, its mapping, and the map that it was granted with. The holder's pages are written at
    random; each block tells who wrote it last."""

    def __init__(self, plan: Plan, fd: int, image: Path, seed: str, bond: Bond) -> None:
        self.plan, self.fd, self.bond = plan, fd, bond
        self.chance = random.Random(seed)
        # What goes past the page cache of a block device (DAX) must be read past it.
        direct = os.O_DIRECT if image.is_block_device() else 0
        self._image = os.open(image, os.O_RDONLY | os.O_CLOEXEC | direct)
        self.map = fiemap.read(fd, plan.start, plan.length)
        try:
            size = os.fstat(fd).st_size
            if size < plan.start + plan.length:
                raise Broken(f"{plan}: granted, and the size is {size}")
            self.mapping = mmap.mmap(fd, plan.length, mmap.MAP_SHARED, offset=plan.start)
        except BaseException:
            self._close()
            bond.end()
            raise
        self.stores = 0

    def look(self) -> None:
        """Is the map the one of the grant? Raises Broken."""
        now = fiemap.read(self.fd, self.plan.start, self.plan.length)
        size = os.fstat(self.fd).st_size
        if now != self.map:
            raise Broken(f"the map was {self.map}, and is {now}")
        if size < self.plan.start + self.plan.length:
            raise Broken(f"the size is {size}")

    def check(self, blocks: int) -> None:
        """Store into so many blocks, have them written, and look where they went."""
        self.look()
        chosen = self._choose(blocks)
        for attempt in range(_LOOKS):
            written = {block: self._store(block) for block in chosen}
            self._flush()
            self.look()
            wrong = [block for block, data in written.items() if self._on_device(block) != data]
            if not wrong:
                return
            time.sleep(_PAUSE * attempt)
        raise Broken(f"the recorded places of blocks {wrong[:16]} do not hold what was written")

    def _flush(self) -> None:
        """Direct writes of others that meet dirty pages leave EIO behind, once, for everybody who
        has the file open (mm/filemap.c, dio_warn_stale_pagecache); the pages are written all the
        same."""
        try:
            self.mapping.flush()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.mapping.flush()

    def _choose(self, blocks: int) -> list[int]:
        """The edges first: what comes from beside the range reaches these."""
        count = self.plan.length // BLOCK
        if blocks >= count:
            return list(range(count))
        return sorted({0, count - 1, *(self.chance.randrange(count) for _ in range(blocks))})

    def _store(self, block: int) -> bytes:
        self.stores += 1
        data = f"{self.plan.file} {self.stores} ".encode().ljust(64, b"h") * (BLOCK // 64)
        self.mapping[block * BLOCK : (block + 1) * BLOCK] = data
        return data

    def _on_device(self, block: int) -> bytes:
        at = self.plan.start + block * BLOCK
        for logical, physical, length, flags in self.map:
            if logical <= at < logical + length and not flags & _UNKNOWN:
                page = mmap.mmap(-1, BLOCK)
                os.preadv(self._image, [page], physical + at - logical)
                return page[:]
        return b""

    def drop(self) -> None:
        """Unmap and close: what a holder does before it gives a seal back."""
        if self.fd >= 0:
            self.mapping.close()
            self._close()

    def _close(self) -> None:
        os.close(self.fd)
        os.close(self._image)
        self.fd = -1

    def give_back(self) -> None:
        self.drop()
        self.bond.end()


class SocketBond:
    def __init__(self, client: Client, info: SealInfo) -> None:
        self.client, self.seal_id, self.risks = client, info.id, info.accepted_risks

    def end(self) -> None:
        deadline = time.monotonic() + GRACE
        while True:
            try:
                self.client.call(Return, seal=self.seal_id)
                return
            except Refusal as refusal:
                if refusal.code == "no-such-seal":
                    return
                if refusal.code != "still-mapped" or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


class NoBond:
    seal_id, risks = "", list[str]()

    def end(self) -> None:
        """Nothing was sealed."""


class RingBond:
    """A seal in a registered file; the registration stays."""

    def __init__(self, seal: RingSeal, risks: list[str]) -> None:
        self.seal, self.seal_id, self.risks = seal, "", risks

    def end(self) -> None:
        def give_back() -> None:
            self.seal.refresh()
            self.seal.give_back()

        until_over(give_back)


def until_over(act: Callable[[], None]) -> None:
    """A command of a ring that is tried again while the seal changes, or is looked after."""
    deadline = time.monotonic() + GRACE
    while True:
        try:
            act()
            return
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return
            if error.errno not in (errno.ESTALE, errno.EBUSY, errno.EAGAIN):
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def grant(client: Client, plan: Plan, path: Path, image: Path, seed: str) -> Held:
    """Raises Refusal."""
    terms = {
        "kind": plan.kind,
        "conflict": plan.conflict,
        "grace": GRACE,
        "offset": plan.start,
        "length": plan.length,
        "prepare": ["allocate", "unshare", "convert"],
    }
    if plan.by == "none":  # for tests of this very code
        return Held(plan, os.open(path, os.O_RDWR | os.O_CLOEXEC), image, seed, NoBond())
    if plan.by == "descriptor":
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            reply = client.grant(fds=[fd], **terms)
        except BaseException:
            os.close(fd)
            raise
    else:
        reply = client.grant(path=str(path), **terms)
        fd = reply.fds[0]
    return Held(plan, fd, image, seed, SocketBond(client, reply.seal))


class RingFiles:
    """A ring, and the files of the epoch that are registered with it."""

    def __init__(self, socket: str) -> None:
        self.ring = RingClient(socket, timeout=GRACE, slots=64)
        self.files: dict[int, int] = {}  # of a plan: of the ring

    def grant(self, plan: Plan, path: Path, image: Path, seed: str) -> Held:
        """Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if plan.file not in self.files:
                self.files[plan.file] = self.ring.register(fd, grace=GRACE, conflict=plan.conflict)
            seal = self.ring.grant(self.files[plan.file], plan.start, plan.length)
        except BaseException:
            os.close(fd)
            raise
        return Held(plan, fd, image, seed, RingBond(seal, []))

    def forget(self, file: int) -> None:
        """Nothing in it is sealed any more."""
        registered = self.files.pop(file, None)
        if registered is not None:
            until_over(lambda: self.ring.unregister(registered))

    def close(self) -> None:
        self.ring.close()
