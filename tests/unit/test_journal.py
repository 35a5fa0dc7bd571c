"""The journal: what was recorded is found again, wherever its writer was cut off."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealsvc.core.model import ByteRange, FileId, Holder, Mark, State
from sealsvc.core.states import Step
from sealsvc.lifecycle import journal
from sealsvc.lifecycle.journal import Journal
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.native import TOKEN_BASE
from sealsvc.linux.processes import Process
from sealsvc.protocol.seals import Grant

FS = Filesystem("/m", "xfs", "/dev/pmem0", "dax=always", 66, 4096, True)


class NoHold:
    anchor = -1

    def change(self, verdict: object) -> None: ...

    def release(self) -> None: ...


def seal(token: int, extents: int = 1) -> Seal:
    made = Seal(
        token=token,
        request=Grant(id=1, path="/m/f", tag="t"),
        file=FileId(66, token, 3),
        path="/m/f",
        filesystem=FS,
        range=ByteRange(0, 4096),
        effective=ByteRange(0, 4096),
        map=np.arange(extents * 4, dtype=np.uint64).reshape(-1, 4),
        enforcers=["fanotify"],
        hold=NoHold(),
        process=Process(Holder(pid=1, start_time=2, uid=0, comm="c"), -1),
        accepted_risks=["r"],
        client=None,
        mark=Mark(5, 6, 0),
    )
    made.move(Step.GRANT)
    return made


class Kept:
    """What the keeper has: its own duplicate of the last published descriptor."""

    fd = -1

    def __call__(self, fd: int) -> None:
        self.close()
        self.fd = os.dup(fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self) -> dict[int, journal.Granted]:
        return {record.token: record for record in journal.read(self.fd)}


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.close()


def test_a_seal_comes_back_as_it_was(kept: Kept) -> None:
    book = Journal(kept)
    one = seal(7, extents=3)
    book.granted(one)
    one.deadline = 12.5
    one.move(Step.RECALL, "conflict")
    book.progressed(one)
    found = kept.read()[7]
    assert (found.id, found.request, found.file) == (one.id, one.request, one.file)
    assert found.filesystem == FS
    assert (found.progress.state, found.progress.seqid) == (State.RECALLED, one.seqid)
    assert (found.progress.deadline, found.progress.reason) == (12.5, "conflict")
    assert (journal.map_of(found) == one.map).all()
    book.close()


def test_what_is_over_is_forgotten(kept: Kept) -> None:
    book = Journal(kept)
    one, two = seal(1), seal(2)
    for each in (one, two):
        book.granted(each)
    one.move(Step.RETURN)
    book.progressed(one)
    assert set(kept.read()) == {2}
    book.close()


def test_a_record_cut_off_in_the_middle_was_never_there(kept: Kept) -> None:
    book = Journal(kept)
    book.granted(seal(1))
    (tail,) = struct.unpack("=Q", os.pread(kept.fd, 8, 8))
    os.pwrite(kept.fd, struct.pack("=I", 500) + b"half a rec", tail)  # the tail did not move
    assert set(kept.read()) == {1}
    book.granted(seal(2))  # and the next writer is not led astray by it
    assert set(kept.read()) == {1, 2}
    book.close()


def test_a_large_journal_is_written_anew(kept: Kept) -> None:
    book = Journal(kept)
    live = seal(1)
    book.granted(live)
    for token in range(2, 4000):
        passing = seal(token, extents=8)
        book.granted(passing)
        passing.move(Step.RETURN)
        book.progressed(passing)
    before = os.fstat(kept.fd).st_size
    book.rewrite_if_large([live])
    assert os.fstat(kept.fd).st_size < before
    assert set(kept.read()) == {1}
    book.granted(seal(5000))
    assert set(kept.read()) == {1, 5000}
    book.close()


def test_another_version_is_told(kept: Kept) -> None:
    book = Journal(kept)
    os.pwrite(kept.fd, b"SOMEELSE", 0)
    with pytest.raises(ValueError, match="another version"):
        kept.read()
    book.close()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from(["grant", "recall", "return"]))))
def test_it_agrees_with_a_dictionary(script: list[tuple[int, str]]) -> None:
    kept, model = Kept(), dict[int, Seal]()
    book = Journal(kept)
    for token, what in script:
        if what == "grant" and token not in model:
            model[token] = seal(token)
            book.granted(model[token])
        elif what == "recall" and token in model and model[token].state is State.GRANTED:
            model[token].move(Step.RECALL, "r")
            book.progressed(model[token])
        elif what == "return" and token in model:
            model[token].move(Step.RETURN)
            book.progressed(model.pop(token))
        found = kept.read()
        assert {t: (r.progress.state, r.progress.seqid) for t, r in found.items()} == {
            t: (s.state, s.seqid) for t, s in model.items()
        }
    book.close()
    kept.close()


def test_marks_of_services_before_this_one() -> None:
    """They named a byte by the seal's token, or by that of the registration it was granted in."""
    made = journal._granted(seal(7))
    assert made.known_by == Mark(5, 6, 0)
    old = msgspec.structs.replace(made, marked=True, mark=0, description=Mark())
    assert old.known_by == Mark(byte=TOKEN_BASE + 7)
    assert msgspec.structs.replace(old, mark=9).known_by == Mark(byte=TOKEN_BASE + 9)
    assert msgspec.structs.replace(old, marked=False).known_by == Mark()


def test_journals_of_the_versions_before_and_after_are_read(kept: Kept) -> None:
    """What a version adds it adds at the end of a record: the next does without what an older one
    did not write, and an older one reads over what it does not know."""
    book = Journal(kept)
    book.granted(seal(7))
    start = 64
    (size,) = struct.unpack("=I", os.pread(kept.fd, 4, start))
    record = msgspec.msgpack.decode(os.pread(kept.fd, size, start + 4))
    assert record[0] == "granted"
    for number, other in ((8, [*record[:-3]]), (9, [*record, "of the future", 5])):
        other[1], other[15] = number, ["progress", number, *other[15][2:]]
        framed = struct.pack("=I", len(body := msgspec.msgpack.encode(other))) + body
        (tail,) = struct.unpack("=Q", os.pread(kept.fd, 8, 8))
        os.pwrite(kept.fd, framed, tail)
        os.pwrite(kept.fd, struct.pack("=Q", tail + len(framed)), 8)
    found = kept.read()
    assert set(found) == {7, 8, 9}
    assert (found[8].asker_uid, found[8].digest) == (-1, b"")
    book.close()
