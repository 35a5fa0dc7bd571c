"""Scrubs that read what is due: what they pass over is proven not to have been written."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.integrity.tracker import Tracker
from sealsvc.protocol.integrity import PiAttachments, PiBless, PiOpen, PiScrub, PiTag
from tests.integrity.conftest import BLOCK, MiB, attach, give_back, sealed, verify
from tests.integrity.test_travel import place_of, sealctl
from tests.support.waiting import until

pytestmark = pytest.mark.kernel
SIZE = 4 * MiB


def scrubbed(client: Any, attachment: Any, **asked: Any) -> Any:
    client.call(PiScrub, attachment=attachment.id, restart=True, **asked)

    def over() -> Any:
        (row,) = client.call(PiAttachments, attachment=attachment.id).result.attachments
        return None if row.scrub.running else row

    until(over, what="the scrub's end")
    return over()


def at_rest(ground: Any, client: Any, name: str, **more: Any) -> tuple[Path, Any]:
    path = ground.file(name, SIZE)
    seal, fd = sealed(client, path)
    made = attach(client, seal, **more)
    give_back(client, seal, fd)
    assert verify(client, made).verdict == "good"
    return path, made


def flip(ground: Any, path: Path, offset: int) -> None:
    """Behind the file system's back: no change time tells."""
    place = place_of(path, offset)
    with ground.image.open("rb") as image:
        image.seek(place)
        (byte,) = image.read(1)
    ground.corrupt(place, bytes([byte ^ 1]))


def test_what_was_compared_within_the_cycle_is_passed_over_and_then_not(ground, client):
    path, made = at_rest(ground, client, "cycle")
    row = scrubbed(client, made, cycle=3600)
    assert (row.scrub.skipped, row.scrub.done, row.scrub.errors) == (SIZE, SIZE, 0)
    flip(ground, path, 2 * MiB + 5)
    # Silent corruption of the medium: nothing but reading finds it.
    assert scrubbed(client, made, cycle=3600).scrub.errors == 0
    row = scrubbed(client, made, cycle=1e-6)  # the cycle is over
    assert (row.scrub.skipped, row.scrub.errors, row.blocks["suspect"]) == (0, 1, 1)


def test_sealctl_scrubs_by_a_cycle(ground, client):
    _, made = at_rest(ground, client, "by-cli")
    done = sealctl(ground.socket, "pi", "scrub", made.id, "--cycle", "7d", "-o", "json")
    assert done.returncode == 0, done.stderr

    def passed_over() -> bool:
        told = json.loads(sealctl(ground.socket, "pi", "ls", "-o", "json").stdout)
        (row,) = [row for row in told["attachments"] if row["id"] == made.id]
        return row["scrub"]["skipped"] == SIZE and not row["scrub"]["running"]

    until(passed_over, what="a scrub that reads nothing")


def test_only_the_stretch_that_was_tagged_since_is_read(ground, client):
    """And one with a suspect block, always."""
    path, made = at_rest(ground, client, "since")
    flip(ground, path, MiB)
    assert verify(client, made).verdict == "corrupt"
    assert scrubbed(client, made, cycle=3600).scrub.skipped == SIZE - MiB
    flip(ground, path, MiB)
    client.call(PiBless, attachment=made.id, range=ByteRange(MiB, BLOCK))
    flip(ground, path, MiB + 10 * BLOCK)  # in the stretch that is due
    flip(ground, path, 3 * MiB)  # in one that is not
    row = scrubbed(client, made, cycle=3600)
    assert (row.scrub.skipped, row.scrub.errors) == (SIZE - MiB, 1)
    assert verify(client, made).blocks["corrupt"] == 1  # the other, found by the full look


def test_a_write_by_anybody_makes_all_of_it_due(ground, client):
    path, made = at_rest(ground, client, "foreign")
    with path.open("r+b") as file:
        file.seek(9 * BLOCK)
        file.write(b"somebody else's")
    row = scrubbed(client, made, cycle=3600)
    assert (row.scrub.skipped, row.scrub.errors, row.blocks["suspect"]) == (0, 1, 1)


def test_a_store_through_a_mapping_makes_all_of_it_due(ground, client):
    """Through one that was writable, and dirty, before the tags were last compared."""
    path, made = at_rest(ground, client, "mapped")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as view:
        view[5] ^= 1
        view.flush()
        assert verify(client, made).blocks["changed"] == 1
        client.call(PiBless, attachment=made.id)
        view[MiB] ^= 1
        verify(client, made)
        view[MiB] ^= 1  # to the same page again: it was written back, and so faults
        row = scrubbed(client, made, cycle=3600)
        assert row.scrub.skipped == 0


def test_nothing_is_passed_over_while_a_holder_may_write(ground, client):
    path, made = at_rest(ground, client, "held", writes="declared", quiet=True)
    seal, fd = sealed(client, path)
    row = scrubbed(client, made, cycle=3600)
    assert row.scrub.skipped == 0
    give_back(client, seal, fd)
    assert scrubbed(client, made, cycle=3600).scrub.skipped == SIZE


def test_type_3_tags_of_a_large_file_are_true(ground, client):
    """Its reference tag is one value, wherever a look begins."""
    _, made = at_rest(ground, client, "type3", profile="t10-dif3-4096")
    assert verify(client, made, range=ByteRange(2 * MiB, MiB)).verdict == "good"


def test_a_tracker_tells_what_was_stored_to(ground):
    path = ground.file("tracked", SIZE)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as view, Tracker(view) as tracker:
        assert tracker.collect() == []
        assert view[3 * BLOCK] is not None  # reading is no store
        view[5 * BLOCK + 7] ^= 1
        view[6 * BLOCK : 8 * BLOCK] = bytes(2 * BLOCK)
        view[SIZE - 1] ^= 1
        found = [ByteRange(5 * BLOCK, 3 * BLOCK), ByteRange(SIZE - BLOCK, BLOCK)]
        assert tracker.collect() == found
        assert tracker.collect() == []  # armed again
        view[6 * BLOCK] = 1
        os.fsync(file.fileno())  # writing back is not forgetting
        assert tracker.collect() == [ByteRange(6 * BLOCK, BLOCK)]


def test_only_what_the_tracker_found_is_read_and_tagged(ground, client):
    path = ground.file("dirty", SIZE)
    seal, fd = sealed(client, path, kind="exclusive")
    made = attach(client, seal, "t10-dif1-4096", writes="declared", quiet=True)
    with mmap.mmap(fd, SIZE) as view, Tracker(view) as tracker:
        client.call(PiOpen, seal=seal.id)
        view[7 * BLOCK] ^= 1
        view[500 * BLOCK] ^= 1
        flip(ground, path, 900 * BLOCK)  # the medium, meanwhile
        report = client.call(PiTag, seal=seal.id, changed=tracker.collect()).result
        assert report.blocks == {"tagged": 2, "unchanged": SIZE // BLOCK - 2}
    # What was not stored to kept its true tag, and so what happened to it is found.
    client.call(PiOpen, seal=seal.id, range=ByteRange(0, BLOCK))
    client.call(PiTag, seal=seal.id, changed=[], range=ByteRange(0, BLOCK))
    give_back(client, seal, fd)
    report = verify(client, made)
    assert report.blocks == {"good": SIZE // BLOCK - 1, "suspect": 1}
    assert report.errors[0].block == 900


def test_who_is_not_alone_cannot_say_what_changed(ground, client):
    seal, fd = sealed(client, ground.file("not-alone"))
    made = attach(client, seal)  # tells nothing of its writes
    with pytest.raises(Refusal, match="declares its writes"):
        client.call(PiTag, attachment=made.id, changed=[])
    give_back(client, seal, fd)
