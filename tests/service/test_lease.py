"""The lease enforcer alone: what it can keep, and what it says of what it cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Recall, Return
from tests.support.service import RISKS, serving
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

OPENER = ["-c", "import os, sys; os.close(os.open(sys.argv[1], os.O_RDONLY))"]


@pytest.fixture(scope="module")
def leased(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    more = RISKS + '[enforcers]\nuse = ["lease"]\n'
    with serving(tmp_path_factory.mktemp("leases"), [root], more) as path:
        yield path


@pytest.fixture
def lessee(leased: str) -> Iterator[Client]:
    with Client(leased, timeout=PATIENCE) as made:
        yield made


def test_an_opener_waits_until_the_seal_is_returned(lessee: Client, file: Path) -> None:
    reply = lessee.grant(path=str(file), fence="kill", grace=20)
    assert reply.seal.enforcers == ["lease"]
    opener = subprocess.Popen([sys.executable, *OPENER, str(file)])
    recall = next(push for push in lessee.pushes(PATIENCE) if isinstance(push, Recall))
    assert recall.seal == reply.seal.id
    time.sleep(0.1)
    assert opener.poll() is None, "the opener did not wait"
    os.close(reply.fds[0])
    lessee.call(Return, seal=reply.seal.id)
    assert opener.wait(PATIENCE) == 0


def test_a_deaf_holder_is_killed_and_the_opener_goes_on(leased: str, file: Path) -> None:
    code = (
        "import mmap, signal, sys, time\nfrom sealsvc.client import Client\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "client = Client(sys.argv[1])\n"
        "reply = client.grant(path=sys.argv[2], fence='kill', grace=0.2)\n"
        "mapping = mmap.mmap(reply.fds[0], 0)\nprint(flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, leased, str(file)], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    opener = subprocess.Popen([sys.executable, *OPENER, str(file)])
    assert opener.wait(PATIENCE) == 0
    assert holder.wait(PATIENCE) == -signal.SIGKILL
    holder.stdout.close()


def test_a_file_that_others_have_open_is_refused_with_their_pids(
    lessee: Client, file: Path
) -> None:
    with file.open("rb"), pytest.raises(Refusal) as caught:
        lessee.grant(path=str(file), fence="kill")
    assert caught.value.code == "file-in-use"
    assert os.getpid() in caught.value.details["pids"]


@pytest.mark.parametrize(
    ("fields", "mentions"),
    [
        ({"kind": "shared", "fence": "kill"}, "exclusive"),
        ({"conflict": "refuse", "fence": "kill"}, "refuse"),
        ({"fence": "none"}, "fence"),
        ({"fence": "kill", "grace": 200}, "lease-break-time"),
    ],
)
def test_what_leases_cannot_keep_is_said(
    lessee: Client, file: Path, fields: dict[str, object], mentions: str
) -> None:
    with pytest.raises(Refusal) as caught:
        lessee.grant(path=str(file), **fields)
    assert caught.value.code == "enforcer-unavailable"
    assert mentions in caught.value.message
