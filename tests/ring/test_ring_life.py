"""Seals through the ring, on a real file system: what is promised, and what becomes of it."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, IoMode, State
from sealsvc.linux import native
from sealsvc.protocol.admin import Measures, MeasuresReport
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.history import History, SealHistory, SealRecord
from sealsvc.protocol.rings import Attach, Attached, Register
from sealsvc.protocol.seals import List, RecallSeals, Return
from tests.ring.conftest import BLOCK, SIZE, hears, intruder, truncating
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel]


def failing(number: int, call: object, *arguments: object, **named: object) -> OSError:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its errno is what matters)
        call(*arguments, **named)  # type: ignore[operator]
    assert caught.value.errno == number, caught.value
    return caught.value


def error_of(client: RingClient, file: int) -> int:
    try:
        client.grant(file, 0, BLOCK).give_back()
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_seal_is_valid_until_it_is_returned(client: RingClient, fd: int) -> None:
    file = client.register(fd)
    seal = client.grant(file, BLOCK, 2 * BLOCK)
    assert seal.valid
    assert seal.state is State.GRANTED
    assert (seal.offset, seal.length) == (BLOCK, 2 * BLOCK)
    seal.give_back()
    assert seal.state is State.RETURNED
    failing(errno.ENOENT, seal.give_back)


def test_a_slot_that_is_used_again_is_another_seal(client: RingClient, fd: int) -> None:
    file = client.register(fd)
    first = client.grant(file, 0, BLOCK)
    first.give_back()
    second = client.grant(file, 0, BLOCK)
    assert second.slot == first.slot
    assert second.valid
    assert not first.valid
    assert first.state is State.RETURNED


@pytest.mark.parametrize(
    ("offset", "length", "error"),
    [
        (0, 0, errno.EINVAL),
        (SIZE, BLOCK, errno.EINVAL),
        (0, SIZE + 1, errno.EINVAL),
        (2**64 - BLOCK, BLOCK, errno.EINVAL),
        (2**64 - 1, 2, errno.EINVAL),
    ],
)
def test_what_is_not_in_the_registered_range(
    client: RingClient, fd: int, offset: int, length: int, error: int
) -> None:
    failing(error, client.grant, client.register(fd), offset, length)


def test_a_file_that_is_not_registered(client: RingClient) -> None:
    failing(errno.EBADF, client.grant, 7, 0, BLOCK)


def test_a_read_registration_grants_no_writing(client: RingClient, fd: int) -> None:
    file = client.register(fd, iomode=IoMode.READ)
    failing(errno.EACCES, client.grant, file, 0, BLOCK, IoMode.RW)
    assert client.grant(file, 0, BLOCK, IoMode.READ).valid


def test_the_table_has_so_many_slots(running: Running, fd: int) -> None:
    with RingClient(str(running.socket), slots=3) as client:
        file = client.register(fd)
        seals = [client.grant(file, 0, BLOCK) for _ in range(3)]
        failing(errno.ENOSPC, client.grant, file, 0, BLOCK)
        seals[1].give_back()
        assert client.grant(file, 0, BLOCK).valid


def test_a_conflict_is_seen_in_the_table_and_heard_of_and_waits(
    client: RingClient, fd: int, file: Path
) -> None:
    seal = client.grant(client.register(fd), SIZE - BLOCK, BLOCK)
    before = native.read_extents(fd, ByteRange(0, SIZE))
    with truncating(file, BLOCK) as process:
        news = hears(client, lambda n: n.kind == "recall")
        assert news.slot == seal.slot
        assert news.state is State.RECALLED
        assert not seal.valid
        assert seal.state is State.RECALLED
        assert 0 < news.deadline - time.clock_gettime(time.CLOCK_BOOTTIME) <= 10
        assert process.poll() is None
        assert np.array_equal(before, native.read_extents(fd, ByteRange(0, SIZE)))
        seal.refresh()
        seal.give_back()
        process.wait(PATIENCE)
    assert os.fstat(fd).st_size == BLOCK


def test_what_conflicts_with_no_seal_passes_and_what_it_changed_is_read_anew(
    client: RingClient, fd: int, file: Path
) -> None:
    registered = client.register(fd)
    kept = client.grant(registered, 0, BLOCK)
    with truncating(file, SIZE // 2):
        pass
    assert kept.valid
    assert client.grant(registered, SIZE // 2 - BLOCK, BLOCK).valid
    failing(errno.EOPNOTSUPP, client.grant, registered, SIZE // 2, BLOCK)
    assert client.extents(registered, 0, SIZE)[-1][0] < SIZE // 2


def test_writing_in_place_does_not_disturb(client: RingClient, fd: int, file: Path) -> None:
    seal = client.grant(client.register(fd), 0, SIZE)
    with intruder("os.pwrite(os.open(sys.argv[1], os.O_RDWR), b'x' * 4096, 4096)", file):
        pass
    assert seal.valid


def test_seals_of_two_clients_are_recalled_together(
    running: Running, client: RingClient, fd: int, file: Path
) -> None:
    with RingClient(str(running.socket), timeout=PATIENCE) as other:
        seals = [(c, c.grant(c.register(fd), 0, SIZE)) for c in (client, other)]
        with truncating(file, 0) as process:
            for number, (who, seal) in enumerate(seals):
                hears(who, lambda n: n.kind == "recall")
                assert process.poll() is None, number
                seal.refresh()
                seal.give_back()
    assert os.fstat(fd).st_size == 0


def test_a_seal_that_refuses(client: RingClient, fd: int, file: Path) -> None:
    seal = client.grant(client.register(fd, conflict="refuse"), 0, SIZE)
    with intruder(
        "try: os.truncate(sys.argv[1], 0)\nexcept OSError as e: sys.exit(e.errno)", file
    ) as process:
        assert process.wait(PATIENCE) == errno.ETXTBSY
    assert seal.valid


def test_a_returned_seal_that_is_still_mapped_is_asked_for(
    client: RingClient, fd: int, file: Path
) -> None:
    """Given back natively, without a proof: whoever conflicts waits until there is one."""
    registered = client.register(fd)
    area = mmap.mmap(fd, BLOCK)
    client.grant(registered, 0, BLOCK).give_back()
    with truncating(file, 0) as process:
        news = hears(client, lambda n: n.kind == "file")
        assert news.file == registered
        assert news.state is State.RECALLED
        assert process.poll() is None
        failing(errno.EAGAIN, client.grant, registered, 0, BLOCK)
        area.close()
        process.wait(PATIENCE)
    # The registration is used again; what was truncated cannot be sealed.
    until(lambda: error_of(client, registered) == errno.EOPNOTSUPP)


def test_a_returned_seal_that_is_not_mapped_holds_nobody_up(
    client: RingClient, fd: int, file: Path
) -> None:
    registered = client.register(fd)
    client.grant(registered, 0, BLOCK).give_back()
    with truncating(file, 0):
        pass
    assert os.fstat(fd).st_size == 0
    assert client.dispatch() == [], "it was not asked for"


def test_a_recalled_seal_is_not_taken_back_while_it_is_mapped(
    client: RingClient, fd: int, file: Path
) -> None:
    seal = client.grant(client.register(fd), 0, BLOCK)
    area = mmap.mmap(fd, BLOCK)
    with truncating(file, 0) as process:
        hears(client, lambda n: n.kind == "recall")
        seal.refresh()
        failing(errno.EBUSY, seal.give_back)
        assert process.poll() is None
        area.close()
        seal.give_back()


def test_mapped_makes_it_active_and_quiet_again(client: RingClient, fd: int, file: Path) -> None:
    seal = client.grant(client.register(fd), 0, BLOCK)
    failing(errno.EFAULT, seal.mapped)
    assert seal.valid
    area = mmap.mmap(fd, BLOCK)
    seal.mapped()
    assert seal.state is State.ACTIVE
    assert seal.valid
    area.close()
    with truncating(file, 0):
        assert hears(client, lambda n: n.kind == "recall").slot == seal.slot
        seal.refresh()
        seal.give_back()


def test_parts_downgrades_and_renewals(client: RingClient, fd: int, file: Path) -> None:
    seal = client.grant(client.register(fd), 0, 4 * BLOCK)
    seal.give_back_part(0, 2 * BLOCK)
    assert (seal.offset, seal.length) == (2 * BLOCK, 2 * BLOCK)
    failing(errno.EINVAL, seal.give_back_part, 3 * BLOCK, 7)
    seal.downgrade()
    seal.renew(60.0)
    assert seal.valid
    seal.give_back()


def test_a_ttl_that_has_passed_gives_way(client: RingClient, fd: int, file: Path) -> None:
    registered = client.register(fd)
    seal, other = client.grant(registered, 0, BLOCK), client.grant(registered, 0, BLOCK)
    for one in (seal, other):
        one.renew(0.05)
    hears(client, lambda n: n.kind == "lapsed")
    until(lambda: other.state is State.COURTESY)
    other.refresh()
    other.renew(0.0)
    assert other.state is State.GRANTED
    other.give_back()
    with truncating(file, 0):
        pass
    assert seal.state is State.EXPIRED


def test_an_operator_recalls_a_registration(running: Running, client: RingClient, fd: int) -> None:
    registered = client.register(fd)
    seals = [client.grant(registered, n * BLOCK, BLOCK) for n in range(5)]
    with Client(str(running.socket)) as operator:
        (listed,) = operator.call(List).result.seals
        operator.call(RecallSeals, seal=listed.id)
        until(lambda: all(seal.state is State.RECALLED for seal in seals))
        failing(errno.EAGAIN, client.grant, registered, 0, BLOCK)
        for seal in seals:
            seal.refresh()
            seal.give_back()
        client.unregister(registered)
        assert operator.call(List).result.seals == []


def test_the_end_of_a_registration_ends_its_seals(client: RingClient, fd: int, file: Path) -> None:
    registered = client.register(fd)
    seal = client.grant(registered, 0, BLOCK)
    area = mmap.mmap(fd, BLOCK)
    failing(errno.EBUSY, client.unregister, registered)
    assert seal.valid
    area.close()
    client.unregister(registered)
    assert seal.state is State.RETURNED
    with truncating(file, 0):
        pass


def test_a_holder_that_ends_lets_go(running: Running, fd: int, file: Path) -> None:
    code = """
from sealsvc.client.ring import RingClient
client = RingClient(sys.argv[1])
fd = os.open(sys.argv[2], os.O_RDWR)
seal = client.grant(client.register(fd), 0, 4096)
print("granted", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""
    with intruder(code, running.socket, file) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "granted\n"
        with truncating(file, 0) as process:
            time.sleep(0.2)
            assert process.poll() is None
            holder.stdin.write("die\n")
            holder.stdin.flush()
            process.wait(PATIENCE)
    with Client(str(running.socket)) as operator:
        until(lambda: operator.call(List).result.seals == [])


def test_an_exclusive_registration_is_recalled_as_one(
    client: RingClient, fd: int, file: Path
) -> None:
    registered = client.register(fd, kind="exclusive")
    seal = client.grant(registered, 0, BLOCK)
    with intruder("os.open(sys.argv[1], os.O_RDONLY)", file) as process:
        hears(client, lambda n: n.kind == "file")
        until(lambda: seal.state is State.RECALLED)
        assert process.poll() is None
        seal.refresh()
        seal.give_back()
        client.unregister(registered)


def test_a_seal_of_the_control_socket_has_a_slot_too(running: Running, file: Path) -> None:
    """Asked for on the connection that the ring is attached to; here by hand."""
    with Client(str(running.socket)) as client:
        attached = client.call(Attach, slots=4)
        assert isinstance(attached.result, Attached)
        memory, table, *_ = attached.fds
        try:
            with mmap.mmap(table, 0, prot=mmap.PROT_READ) as slots:
                reply = client.grant(path=str(file), kind="shared")
                os.close(reply.fds[0])
                place = reply.seal.ring
                assert place is not None
                word = int.from_bytes(slots[place.slot * 64 :][:8], "little")
                assert word & 0xFF == 1, "granted"
                client.call(Return, seal=reply.seal.id)
                word = int.from_bytes(slots[place.slot * 64 :][:8], "little")
                assert word & 0xFF == 9, "returned"
            with pytest.raises(PermissionError):
                mmap.mmap(table, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(OSError, match="not permitted"):
                os.pwrite(table, b"x", 0)
            for fd in (memory, table):
                with pytest.raises(OSError, match="not permitted"):
                    os.ftruncate(fd, 0)
        finally:
            for fd in attached.fds:
                os.close(fd)


def test_more_than_policy_allows(running: Running) -> None:
    with pytest.raises(OSError, match="seal_open") as caught:
        RingClient(str(running.socket), slots=2**20)
    assert caught.value.errno == errno.EDQUOT


_LEAVER = """
import sys
from sealsvc.client.ring import RingClient

RingClient(sys.argv[1], slots=int(sys.argv[2]))
"""


def test_what_an_ended_client_leaves_is_in_nobodys_way(running: Running) -> None:
    """A second ring needs the slots of the first, which is kept for a while in case its client
    comes back: but its client has ended."""
    most = "60000"  # of policy.max_seals = 100000
    for _ in range(2):
        command = [sys.executable, "-c", _LEAVER, str(running.socket), most]
        subprocess.run(command, check=True, timeout=PATIENCE)


def test_a_client_that_may_come_back_keeps_its_slots(running: Running) -> None:
    RingClient(str(running.socket), slots=60_000).close()
    with Client(str(running.socket)) as client, pytest.raises(Refusal) as caught:
        client.call(Attach, slots=60_000)
    assert caught.value.code == "limit-reached"
    assert "60000 of rings whose client has left" in caught.value.message


def test_extents_are_those_of_the_file(client: RingClient, fd: int) -> None:
    registered = client.register(fd)
    found = client.extents(registered, 0, SIZE)
    expected = native.read_extents(fd, ByteRange(0, SIZE))
    assert np.array_equal(found[:, :2], expected[:, :2])
    failing(errno.EBADF, client.extents, registered + 1, 0, SIZE)


def test_a_forked_child_may_only_close(client: RingClient, fd: int) -> None:
    registered = client.register(fd)
    seal = client.grant(registered, 0, BLOCK)
    pid = os.fork()
    if not pid:
        status = 0
        with suppress(BaseException):
            try:
                client.grant(registered, 0, BLOCK)
            except OSError as error:
                status = error.errno
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EOWNERDEAD
    assert seal.valid
    seal.give_back()


def test_who_may_attach(running: Running, client: RingClient) -> None:
    ring, secret = client.identity
    wrong = f"{int(secret, 16) ^ 1:016x}"
    with pytest.raises(PermissionError):
        RingClient(str(running.socket), ring=ring, secret=wrong)
    with RingClient(str(running.socket), ring=ring, secret=secret) as again:
        assert again.identity == (ring, secret)


def test_a_ring_that_is_not_attached_registers_nothing(
    running: Running, client: RingClient, file: Path
) -> None:
    with Client(str(running.socket)) as other, pytest.raises(Refusal) as caught:
        other.call(Register, ring=client.identity[0], path=str(file))
    assert caught.value.code == "denied"


def test_a_conflict_is_told_before_what_its_holder_did_about_it(
    running: Running, client: RingClient, fd: int, file: Path
) -> None:
    """The holder hears of it first, and may be through before the service hears anything."""
    registered = client.register(fd)
    with Client(str(running.socket), timeout=PATIENCE) as watcher:
        watcher.call(Watch)
        for size in range(SIZE - BLOCK, SIZE // 2, -16 * BLOCK):
            seal = client.grant(registered, size - BLOCK, 2 * BLOCK)
            with truncating(file, size) as process:
                hears(client, lambda n: n.kind == "recall")
                seal.refresh()
                seal.give_back()
            told: list[Event] = []
            for push in watcher.pushes(PATIENCE):
                if isinstance(push, Event) and push.name in ("conflict", "recall", "state"):
                    told.append(push)
                    if push.data.get("to") == "returned":
                        break
            assert [event.name for event in told][:2] == ["conflict", "recall"], told
            assert told[0].data["operation"]["pid"] == process.pid, told[0]
            os.ftruncate(fd, SIZE)
            os.posix_fallocate(fd, 0, SIZE)
            os.pwrite(fd, b"x" * SIZE, 0)
            os.fsync(fd)


def test_what_the_registry_heard_of_it_hears_the_end_of(
    running: Running, client: RingClient, fd: int
) -> None:
    seal = client.grant(client.register(fd), 0, 4 * BLOCK)
    seal.give_back_part(0, BLOCK)
    with Client(str(running.socket), timeout=PATIENCE) as desk:

        def recorded() -> list[SealRecord]:
            try:
                found = desk.call(History).result
            except Refusal as refusal:
                if refusal.code != "try-later":
                    raise
                return []
            assert isinstance(found, SealHistory)
            return [record for record in found.seals if record.range.length < SIZE]

        until(lambda: len(recorded()) == 1)
        assert recorded()[0].ended_at is None
        seal.give_back()
        until(lambda: recorded()[0].ended_at is not None)
        assert recorded()[0].state == "returned"


def test_what_rings_do_is_counted(running: Running, client: RingClient, fd: int) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as desk:

        def measures() -> MeasuresReport:
            found = desk.call(Measures).result
            assert isinstance(found, MeasuresReport)
            return found

        before = measures()
        registered = client.register(fd)
        for _ in range(3):
            client.grant(registered, 0, BLOCK).give_back()
        kept = client.grant(registered, 0, 2 * BLOCK)
        kept.give_back_part(0, BLOCK)
        now = measures()

    def more(name: str, label: str) -> int:
        return now.counters[name][label] - before.counters[name][label]

    assert more("ring_commands", "grant") == 4
    assert more("ring_commands", "return") == 3
    assert more("ring_commands", "shrink") == 1
    assert more("ring_forwarded", "") == 1
    assert more("ring_bells", "rung") + more("ring_bells", "spared") >= 8
    assert now.counters["ring_troubles"] == {"broken": 0, "dropped": 0}
    assert before.gauges["rings"]["registrations"] == 0
    expected = {"rings": 1, "attached": 1, "registrations": 1, "slots": 1024, "slots_used": 1}
    assert now.gauges["rings"] == expected


def test_a_thread_that_looks_before_it_sleeps_serves_everybody(
    running: Running, fd: int, file: Path
) -> None:
    """As long as may be configured: others are served meanwhile, and who pauses is served, too."""
    running.stop()
    text = running.config.read_text()
    running.config.write_text(text.replace("[policy]", "ring_spin = 1000\n[policy]", 1))
    running.start()
    running.ready()
    path = str(running.socket)
    with RingClient(path, spin=1000) as eager, RingClient(path) as calm:
        files = [eager.register(fd), calm.register(fd)]
        kept = calm.grant(files[1], 0, BLOCK)
        for at in range(2000):
            eager.grant(files[0], 0, BLOCK).give_back()
            if at % 200 == 0:
                calm.grant(files[1], 0, BLOCK).give_back()
                time.sleep(0.002)
        with truncating(file, 0):
            assert hears(calm, lambda n: n.kind == "recall").slot == kept.slot
            kept.refresh()
            kept.give_back()
