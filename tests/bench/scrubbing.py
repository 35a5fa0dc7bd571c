"""Scrubs beside a plain read of the same file, and what they cost a writer in front of them."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sealsvc.client import Client
from sealsvc.integrity.tracker import Tracker
from sealsvc.protocol.integrity import PiAttach, PiAttachments, PiOpen, PiScrub, PiTag
from sealsvc.protocol.seals import Return
from tests.bench.figures import Bench, Figure, alternate

SIZE = 256 << 20
PART, PAGE = 1 << 20, 4096
DIRTY = SIZE // 100 // PAGE * PAGE  # bytes
UNBOUND = 1 << 50  # bytes a second
WRITES = 2000


def scrub(bench: Bench, rounds: int) -> list[Figure]:
    path = _large(bench.root / "scrubbed")
    with Client(bench.socket, timeout=600) as client:
        reply = client.grant(path=str(path), iomode="read")
        made = client.call(PiAttach, seal=reply.seal.id, profile="crc32c-4k").result
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)

        def scrubbed(cycle: float, dirty: int = 0) -> list[float]:
            """With a cycle, all but the stretches of `dirty` bytes is passed over."""
            begun = time.perf_counter()
            client.call(PiScrub, attachment=made.id, restart=True, rate=UNBOUND, cycle=cycle)
            while True:
                (row,) = client.call(PiAttachments, attachment=made.id).result.attachments
                if not row.scrub.running:
                    break
                time.sleep(0.001)
            taken = [(time.perf_counter() - begun) * 1e3]
            least = (SIZE - dirty) // PART - 1 if dirty else SIZE // PART
            most = (SIZE - dirty) // PART
            assert least <= row.scrub.skipped // PART <= most if cycle else not row.scrub.skipped
            assert row.scrub.errors == 0
            return taken

        def written() -> list[float]:
            """Through a seal of 1 % of the file: tagged at its return, and not compared yet."""
            reply = client.grant(path=str(path), kind="exclusive", offset=(SIZE // 2), length=DIRTY)
            os.pwrite(reply.fds[0], os.urandom(DIRTY), SIZE // 2)
            os.close(reply.fds[0])
            client.call(Return, seal=reply.seal.id)
            return scrubbed(3600, DIRTY)

        return [
            alternate(
                "scrub-full", "O_DIRECT reads of the file", 1.25,
                lambda: scrubbed(0), lambda: _read(path), rounds, unit="ms",
            ),
            alternate(
                "scrub-nothing-due", "a full scrub", 0.03,
                lambda: scrubbed(3600), lambda: scrubbed(0), rounds, unit="ms",
            ),
            alternate(
                "scrub-1-percent-dirty", "a full scrub", 0.03,
                written, lambda: scrubbed(0), rounds, unit="ms",
            ),
            _beside(bench, lambda stop: _scrub_on(bench, made.id, stop), rounds),
        ]  # fmt: skip


def dirty(bench: Bench, rounds: int) -> Figure:
    """1 % of the pages were stored to: tags of them, and of everything."""
    path = _large(bench.root / "tracked")
    with Client(bench.socket, timeout=600) as client:
        reply = client.grant(path=str(path), kind="exclusive")
        seal, fd = reply.seal.id, reply.fds[0]
        client.call(PiAttach, seal=seal, profile="crc32c-4k", writes="declared", quiet=True)
        with mmap.mmap(fd, SIZE) as view, Tracker(view) as tracker:

            def tagged(*, all_of_it: bool) -> list[float]:
                client.call(PiOpen, seal=seal)
                for page in range(0, SIZE // PAGE, 10 * 100):
                    at = page * PAGE
                    view[at : at + 10 * PAGE] = bytes(10 * PAGE)
                os.fsync(fd)
                begun = time.perf_counter()
                changed = tracker.collect()
                report = client.call(
                    PiTag, seal=seal, **({} if all_of_it else {"changed": changed})
                ).result
                if not all_of_it:
                    assert report.blocks["tagged"] == sum(part.length for part in changed) // PAGE
                return [(time.perf_counter() - begun) * 1e3]

            figure = alternate(
                "tag-1-percent-dirty", "tagging all of it", 0.03,
                lambda: tagged(all_of_it=False), lambda: tagged(all_of_it=True), rounds, unit="ms",
            )  # fmt: skip
        os.close(fd)
        client.call(Return, seal=seal)
    return figure


def _large(path: Path) -> Path:
    data = os.urandom(PART)
    with path.open("wb") as made:
        for number in range(SIZE // PART):
            made.write(number.to_bytes(8, "little") + data[8:])
        os.fsync(made.fileno())
    return path


def _read(path: Path) -> list[float]:
    room = mmap.mmap(-1, PART)
    begun = time.perf_counter()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    for at in range(0, SIZE, PART):
        assert os.preadv(fd, [room], at) == PART
    os.close(fd)
    return [(time.perf_counter() - begun) * 1e3]


def _scrub_on(bench: Bench, attachment: str, stop: threading.Event) -> None:
    """At the rate of the configuration, again and again."""
    with Client(bench.socket, timeout=600) as client:
        while not stop.is_set():
            client.call(PiScrub, attachment=attachment, restart=True)
            while not stop.wait(0.05):
                (row,) = client.call(PiAttachments, attachment=attachment).result.attachments
                if not row.scrub.running:
                    break
        client.call(PiScrub, attachment=attachment, stop=True)


def _beside(bench: Bench, load: Callable[[threading.Event], None], rounds: int) -> Figure:
    """A process that writes and flushes 4 KiB of another file of the file system."""
    other = bench.file("in-front", 16 << 20)

    def writes() -> list[float]:
        data = os.urandom(PAGE)
        fd = os.open(other, os.O_WRONLY | os.O_DSYNC)
        samples = []
        for number in range(WRITES):
            begun = time.perf_counter()
            os.pwrite(fd, data, number * PAGE % (16 << 20))
            samples.append((time.perf_counter() - begun) * 1e6)
        os.close(fd)
        return [sum(samples) / len(samples)]

    def disturbed() -> list[float]:
        stop = threading.Event()
        thread = threading.Thread(target=load, args=(stop,))
        thread.start()
        try:
            return writes()
        finally:
            stop.set()
            thread.join()

    return alternate(
        "writer-beside-scrub", "the same writes without", 1.01, disturbed, writes, rounds
    )


SCRUB_BENCHMARKS = {"scrub": scrub, "dirty": dirty}
