"""Finding, starting, replacing and ending the keeper's process."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sealsvc.core.errors import Refusal
from sealsvc.enforce.keeper import Keeper, KeeperOwned
from sealsvc.enforce.keeper_messages import (
    GREETS,
    VERSION,
    Greeting,
    KeeperError,
    KeeperGone,
    name_of,
)
from sealsvc.linux.native import lib

log = logging.getLogger(__name__)

_TRIES, _PAUSE = 100, 0.05  # _PAUSE: seconds between two tries
_HANGS_UP = 20  # tries after which a keeper that hangs up is taken to be older than GREETS
_ENDING = 10.0  # seconds in which a keeper must end


class KeeperUnlike(Refusal):
    """The keeper speaks another version of the protocol, and keeps seals."""

    def __init__(self, path: str, theirs: str) -> None:
        super().__init__(
            "io-error",
            f"the keeper at {path}, {theirs}, does not speak version {VERSION} of this"
            " sealsvc, and keeps seals: start the sealsvc that started it, or end them with the"
            " `sealsvc release --all` of that one",
        )


def connect(path: str) -> Keeper:
    """A connection to the keeper at `path`, which is started if there is none. Raises Refusal and
    OSError."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        return Keeper(path)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    command = [_program(), path, name_of(path)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise Refusal("io-error", f"the keeper does not start: {done.stderr.strip()}")
    return Keeper(path)


def own(path: str) -> Keeper:
    """Connect to the keeper at `path` and become its owner. Waits, up to _TRIES * _PAUSE seconds
    besides the calls, for a keeper that is about to end and for a service that is about to leave
    it. Replaces a keeper of another version that keeps nothing. Raises Refusal."""
    hung_up = 0
    last: Refusal = KeeperGone(path)
    for _ in range(_TRIES):
        keeper = connect(path)
        try:
            there = keeper.greet()
            if there is None:
                # A keeper that was about to end hangs up once or twice, an older one every time.
                hung_up += 1
                if hung_up > _HANGS_UP:
                    raise KeeperUnlike(path, f"of a version before {GREETS}")
            elif there.version != VERSION:
                _replace(keeper, there)
            else:
                keeper.own()
                return keeper
        except (KeeperGone, KeeperOwned) as refusal:
            last = refusal
        except BaseException:
            keeper.close()
            raise
        keeper.close()
        time.sleep(_PAUSE)
    raise last


def _replace(keeper: Keeper, there: Greeting) -> None:
    """End a keeper of another version. Raises KeeperUnlike when it keeps anything, KeeperOwned when
    a service owns it."""
    left = keeper.greet(lib.KEEPER_HELLO_LEAVE)
    if left is not None and left.result == -errno.EBUSY:
        raise KeeperOwned(keeper.path)
    if left is None or left.result != 1 or not keeper.has_ended(_ENDING):
        raise KeeperUnlike(keeper.path, f"process {there.pid} of version {there.version}")
    log.info("the keeper of version %d, which kept nothing, was ended", there.version)


def release_all(path: str) -> bool:
    """End the keeper at `path` with everything it holds. False when there is none. Raises
    KeeperError (EBUSY) while a service owns it, Refusal when it lives on."""
    for last in (False, True):
        try:
            keeper = Keeper(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return last
        try:
            there = keeper.greet(lib.KEEPER_HELLO_RELEASE)
            if there is None:
                # It may be older than the hello, or about to end: try the request of this version.
                keeper.close()
                keeper = Keeper(path)
                keeper.release()
            elif there.result < 0:
                raise KeeperError(-there.result, os.strerror(-there.result))
            if keeper.has_ended(_ENDING):
                return True
            raise Refusal("io-error", f"the keeper at {path} has not ended: nothing is certain")
        except (KeeperGone, FileNotFoundError, ConnectionRefusedError):
            time.sleep(_PAUSE)
        finally:
            keeper.close()
    raise Refusal(
        "io-error",
        f"the keeper at {path} does not understand: it is of another version of sealsvc, and"
        " nothing was released. Use the `sealsvc release --all` of that version, or kill the"
        " process, which lets everything go",
    )


def _program() -> str:
    beside = Path(sys.executable).with_name("sealsvc-keeper")
    found = str(beside) if beside.exists() else shutil.which("sealsvc-keeper")
    if not found:
        raise Refusal("io-error", "sealsvc-keeper is not installed")
    return found
