"""Tags of sealed files: what is found, by whom, and what is never said."""

from __future__ import annotations

import mmap
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.protocol.admin import Redeem
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.history import Trail, VerifyTrail
from sealsvc.protocol.integrity import (
    PiAttach,
    PiAttachments,
    PiBless,
    PiDetach,
    PiErrors,
    PiOpen,
    PiProfiles,
    PiQuery,
    PiScrub,
    PiTag,
)
from sealsvc.protocol.seals import IssueClaim, Return
from tests.integrity.conftest import BLOCK, MiB, attach, give_back, sealed, verify
from tests.support.refusals import refusal
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


def errors_after(client, number, wait=0.0):
    return client.call(PiErrors, after=number, wait=wait, limit=20).result.errors


def last(client):
    """The number of the newest error."""
    number, page = 0, client.call(PiErrors).result
    while page.errors:
        number, page = page.next, client.call(PiErrors, after=page.next).result
    return number


def test_corruption_behind_the_service_is_found_at_the_return(ground, client):
    """The headline: a holder that declares its writes maps the file; somebody writes to the disk
    below it; the return names the block, the field and the place."""
    path = ground.file("headline")
    seal, fd = sealed(client, path)
    profile = "t10-dif1-4096"
    attachment = attach(client, seal, profile, writes="declared", quiet=True, tag=7)
    assert attachment.blocks["clean"] == MiB // BLOCK
    view = mmap.mmap(fd, MiB, mmap.MAP_SHARED)
    client.call(PiOpen, seal=seal.id, range=ByteRange(0, 3 * BLOCK))
    view[100:110] = b"0123456789"
    view.flush()
    client.call(PiTag, seal=seal.id, range=ByteRange(0, 3 * BLOCK))
    place = ground.place(client, seal.id, 20 * BLOCK + 300)
    before = last(client)
    ground.corrupt(place, b"not what was written")
    view.close()
    give_back(client, seal, fd)
    (error,) = errors_after(client, before)
    assert (error.kind, error.at, error.field) == ("corrupt", "return", "checksum")
    assert (error.block, error.offset, error.length) == (20, 20 * BLOCK, BLOCK)
    assert error.physical == place - 300
    assert (error.seal, error.path, error.holder) == (seal.id, str(path), os.getpid())
    assert error.expected != error.found
    assert error.first_good <= error.last_good < error.time
    assert verify(client, attachment).verdict == "suspect"  # never taken for good by itself


def test_what_is_corrupted_between_seals_is_found_and_told_in_every_way(ground, client):
    seal, fd = sealed(client, ground.file("between"))
    attachment = attach(client, seal)
    place = ground.place(client, seal.id, 5 * BLOCK)
    give_back(client, seal, fd)
    assert verify(client, attachment).blocks == {"good": MiB // BLOCK}
    before = last(client)
    with ground.client() as watcher:
        watcher.call(Watch)
        waiting: list[object] = []
        waiter = threading.Thread(
            target=lambda: waiting.extend(errors_after(watcher, before, wait=100))
        )
        waiter.start()
        ground.corrupt(place + 17, b"\xff\x00\xff\x00")
        report = verify(client, attachment)
        waiter.join(PATIENCE)
        assert report.verdict == "corrupt"
        assert report.read == "direct"
        (error,) = report.errors
        assert (error.block, error.field, error.seal) == (5, "checksum", None)
        assert [e.seq for e in waiting] == [error.seq]  # it waited until there was one
        events: list[Event] = []

        def alarmed():
            events.extend(p for p in watcher.pushes(0.1) if isinstance(p, Event))
            alarms = [e.data["reason"] for e in events if e.name == "alarm"]
            return any("1 corrupt" in alarm and "between" in alarm for alarm in alarms)

        def blocks():
            return [e.data["error"]["block"] for e in events if e.name == "integrity"]

        until(lambda: alarmed() and blocks())
        assert blocks() == [5]

    def trail():
        with suppress(Refusal):  # the registry is being started
            return client.call(Trail, kind="integrity", limit=1).result.entries
        return []

    # The newest entry may be of an error before it for a moment.
    until(lambda: [e.data["error"]["expected"] for e in trail()] == [error.expected])
    assert client.call(VerifyTrail).result.intact


def test_a_write_between_seals_is_no_corruption(ground, client):
    """Nobody had it sealed: whoever wrote may have been right. So it is told as changed, and the
    block is suspect until somebody blesses it."""
    path = ground.file("written")
    seal, fd = sealed(client, path)
    attachment = attach(client, seal)
    give_back(client, seal, fd)
    with path.open("r+b") as file:
        file.seek(9 * BLOCK)
        file.write(b"somebody else's")
    report = verify(client, attachment)
    assert (report.verdict, report.blocks["changed"]) == ("changed", 1)
    assert verify(client, attachment).blocks == {"good": MiB // BLOCK - 1, "suspect": 1}
    report = client.call(
        PiBless, attachment=attachment.id, range=ByteRange(9 * BLOCK, BLOCK)
    ).result
    assert report.blocks == {"tagged": 1}
    assert verify(client, attachment).verdict == "good"


def test_a_write_before_a_seal_is_changed_under_it_too(ground, client):
    path = ground.file("before")
    seal, fd = sealed(client, path)
    attachment = attach(client, seal, writes="declared", quiet=True)
    give_back(client, seal, fd)
    with path.open("r+b") as file:
        file.write(b"somebody else's")
    seal, fd = sealed(client, path)
    assert verify(client, attachment, quiet=True).verdict == "changed"
    give_back(client, seal, fd)


def test_a_grant_that_wants_it_waits_for_a_verification(ground, client):
    path = ground.file("granted")
    seal, fd = sealed(client, path)
    attach(client, seal, at_grant=True)
    place = ground.place(client, seal.id, BLOCK)
    give_back(client, seal, fd)
    before = last(client)
    ground.corrupt(place, b"?")
    seal, fd = sealed(client, path)
    (error,) = errors_after(client, before)
    assert (error.at, error.kind, error.block, error.seal) == ("grant", "corrupt", 1, seal.id)
    give_back(client, seal, fd)


def test_a_live_seal_that_is_not_quiet_is_unstable_never_corrupt(ground, client):
    seal, fd = sealed(client, ground.file("noisy"))
    attachment = attach(client, seal, writes="declared", quiet=True)
    ground.corrupt(ground.place(client, seal.id, 0), b"???")
    before = last(client)
    report = verify(client, attachment)
    assert (report.verdict, report.blocks["unstable"], report.errors) == ("unstable", 1, [])
    assert errors_after(client, before) == []
    assert verify(client, attachment, quiet=True).verdict == "corrupt"
    give_back(client, seal, fd)


def test_a_writer_that_tells_nothing_leaves_open_blocks_that_are_tagged_at_its_return(
    ground, client
):
    seal, fd = sealed(client, ground.file("open"))
    attachment = attach(client, seal)
    assert attachment.blocks["open"] == MiB // BLOCK
    assert verify(client, attachment, quiet=True).verdict == "open"
    os.pwrite(fd, b"anything", 12345)
    give_back(client, seal, fd)
    assert verify(client, attachment).blocks == {"good": MiB // BLOCK}


def test_who_redeems_a_claim_is_a_writer_like_any_other(ground, client):
    path = ground.file("claimed")
    seal, fd = sealed(client, path)
    attachment = attach(client, seal)
    give_back(client, seal, fd)
    claim = client.call(IssueClaim, path=str(path), kind="exclusive").result.claim
    reply = client.call(Redeem, claim=claim)
    os.pwrite(reply.fds[0], b"anything", 12345)
    [now] = client.call(PiAttachments, attachment=attachment.id).result.attachments
    assert now.blocks["open"] == MiB // BLOCK
    give_back(client, reply.seal, reply.fds[0])
    assert verify(client, attachment).blocks == {"good": MiB // BLOCK}


def test_a_part_that_is_returned_is_settled(ground, client):
    seal, fd = sealed(client, ground.file("part"))
    attachment = attach(client, seal)
    client.call(Return, seal=seal.id, range=ByteRange(MiB // 2, MiB // 2))
    report = verify(client, attachment, range=ByteRange(MiB // 2, MiB // 2))
    assert report.blocks == {"good": MiB // BLOCK // 2}
    give_back(client, seal, fd)


def test_a_holder_that_vanishes_leaves_suspect_blocks(ground, client):
    path = ground.file("vanished")
    with ground.client() as other:
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
        seal = other.grant(path=str(path), holder={"pid": child}, fence="kill").seal
        attachment = attach(client, seal)
        before = last(client)
        os.kill(child, 9)
        os.waitpid(child, 0)
    until(lambda: errors_after(client, before))
    (error,) = errors_after(client, before)
    assert (error.kind, error.at, error.more) == ("suspect", "return", MiB // BLOCK - 1)
    assert verify(client, attachment).blocks == {"suspect": MiB // BLOCK}


def test_a_scrub_is_slow_stops_and_goes_on(ground, client):
    seal, fd = sealed(client, ground.file("scrubbed", 8 * MiB))
    attachment = attach(client, seal)
    place = ground.place(client, seal.id, 7 * MiB)
    give_back(client, seal, fd)
    ground.corrupt(place, b"?")
    before = last(client)

    def scrub(**more):
        return client.call(PiScrub, attachment=attachment.id, **more).result.scrub

    began = time.monotonic()

    def progress():
        return client.call(PiAttachments, path=attachment.path).result.attachments[0].scrub

    assert scrub(rate=MiB, restart=True).running
    until(lambda: progress().done >= MiB)
    stopped = scrub(stop=True)
    assert not stopped.running
    assert MiB <= stopped.done < 8 * MiB
    assert errors_after(client, before) == []
    scrub(rate=4 * MiB)

    def done():
        found = progress()
        return not found.running and found.done == 8 * MiB

    until(done)
    assert time.monotonic() - began > 1.0
    (error,) = errors_after(client, before)
    assert (error.at, error.offset, error.kind) == ("scrub", 7 * MiB, "corrupt")


def test_a_byte_stream_of_overlapping_ranges(ground, client):
    seal, fd = sealed(client, ground.file("stream"))
    profile = "NFS-FOO-NONSTANDARD"
    attachment = attach(client, seal, profile, writes="declared", quiet=True, tag=0xBEEF)

    def tag(start, end):
        client.call(PiTag, seal=seal.id, range=ByteRange(start, end - start))

    tag(0, 5000)
    tag(100, 200)  # inside the first, which is superseded in part
    tag(10_000, 10_001)
    found = client.call(PiAttachments, path=attachment.path).result.attachments[0]
    assert (found.blocks["clean"], found.blocks["superseded"]) == (2, 1)
    assert verify(client, attachment, quiet=True).blocks == {"good": 2}
    ground.corrupt(ground.place(client, seal.id, 150), b"?")
    (error,) = verify(client, attachment, quiet=True).errors
    assert (error.offset, error.length, error.field) == (100, 100, "checksum")
    tag(0, 9000)  # covers both of the first page: they are gone
    found = client.call(PiAttachments, path=attachment.path).result.attachments[0]
    assert (found.blocks["clean"], found.blocks["superseded"], found.blocks["suspect"]) == (2, 0, 0)
    give_back(client, seal, fd)


@pytest.mark.parametrize(
    ("profile", "more"),
    [
        ("t10-dif3-512-ip", {}),
        ("nvme64-sts16-4096", {"storage": 0xABCD}),
        ("sha1-4k", {}),
        ("keyed", {"secret": "mine"}),
        ("signed", {"secret": "signer"}),
    ],
)
def test_other_profiles_go_the_same_way(ground, client, profile, more):
    directory = ground.running.directory / "profiles"
    directory.mkdir(exist_ok=True)
    (directory / "keyed.toml").write_text(
        'name = "keyed"\ngranularity = 1000\nalignment = 0\nprofile = "checksum"\n'
        'checksum-alg = "hmac-sha256"\nchecksum-width = "u8[16]"\n'
    )
    (directory / "signed.pi").write_text(
        "{ name: signed, granularity: 4096, alignment: 0, profile: checksum,"
        " checksum-alg: ed25519, checksum-width: u8[64] }"
    )
    size = 1000 if profile == "keyed" else 0
    seal, fd = sealed(client, ground.file(f"other-{profile}", 100_000))
    attachment = attach(client, seal, profile, **more)
    place = ground.place(client, seal.id, 50_000)
    give_back(client, seal, fd)
    assert verify(client, attachment).verdict == "good"
    ground.corrupt(place, bytes(16))
    (error,) = verify(client, attachment).errors
    assert error.offset <= 50_000 < error.offset + error.length
    assert error.field == "checksum"
    assert not size or error.length == size


def test_a_tail_that_is_no_whole_block_is_told(ground, client):
    seal, fd = sealed(client, ground.file("tail", 3 * BLOCK + 77))
    attachment = attach(client, seal)
    assert (attachment.range.length, attachment.uncovered) == (3 * BLOCK, 77)
    give_back(client, seal, fd)


def test_detached_tags_are_gone(ground, client):
    seal, fd = sealed(client, ground.file("detached"))
    attachment = attach(client, seal)
    assert refusal(lambda: attach(client, seal)).code == "already-attached"
    client.call(PiDetach, attachment=attachment.id)
    assert refusal(lambda: verify(client, attachment)).code == "no-such-attachment"
    assert attach(client, seal).id != attachment.id
    give_back(client, seal, fd)


def test_refusals(ground, client):
    seal, fd = sealed(client, ground.file("refused", 2000))

    def code(**more):
        return refusal(lambda: client.call(PiAttach, seal=seal.id, **more)).code

    assert code(profile="none-such") == "no-such-profile"
    assert code(profile="crc32c-4k") == "bad-request"  # not one whole block
    assert code(profile="t10-dif1-512", tag=1 << 16) == "bad-request"
    assert code(profile="hmac-sha256-stream") == "bad-request"  # no key
    assert code(profile="hmac-sha256-stream", secret="../mine") == "bad-request"
    assert code(profile="t10-dif1-512", writes="declared") == "bad-request"  # not quiet
    give_back(client, seal, fd)


def test_profiles_and_abilities_are_told(ground, client):
    told = client.call(PiProfiles).result
    by_name = {profile.name: profile for profile in told.profiles}
    assert by_name["tag16-crc16-block32"].fields == [
        ("tag", 0, 16, "big"),
        ("checksum", 16, 16, "big"),
        ("reftag", 32, 32, "big"),
    ]
    path = ground.file("asked")
    ability = client.call(PiQuery, path=str(path)).result
    assert ability.checkers == ["client", "service"]  # a loop device keeps no metadata
    assert ability.device is None
    assert "is a loop device" in ability.device_path.reason
    with path.open("rb") as file:
        by_fd = client.call(PiQuery, fds=[file.fileno()]).result
    assert by_fd.checkers == ability.checkers
    device = next(
        line.split()[0]
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.split()[1] == str(ground.point)
    )
    by_device = client.call(PiQuery, path=device).result
    assert (by_device.checkers, by_device.device_path) == (["client"], None)


def test_a_return_that_is_refused_leaves_the_writer_inside(ground, client):
    """Its holder still maps the range, and writes on: that is no corruption."""
    seal, fd = sealed(client, ground.file("refused-return"))
    attachment = attach(client, seal)
    view = mmap.mmap(fd, MiB, mmap.MAP_SHARED)
    os.close(fd)
    before = last(client)
    assert refusal(lambda: client.call(Return, seal=seal.id)).code == "still-mapped"
    view[0:3] = b"new"
    assert verify(client, attachment, quiet=True).verdict == "open"
    view.close()
    client.call(Return, seal=seal.id)
    assert verify(client, attachment).blocks == {"good": MiB // BLOCK}
    assert errors_after(client, before) == []
