"""Programs that import modules by their former names go on working."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

from sealsvc.linux import native
from sealsvc.linux.host import pmem
from sealsvc.moved import MOVED
from sealsvc.protocol.seals import Grant, HolderSpec
from sealsvc.protocol.system import Status


@pytest.mark.filterwarnings("ignore:sealsvc.host has moved")  # on the way to host.kernel
@pytest.mark.parametrize("name", MOVED)
def test_each_former_name_says_where_it_is(name: str) -> None:
    sys.modules.pop(f"sealsvc.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"sealsvc.{name} has moved"):
        importlib.import_module(f"sealsvc.{name}")
    assert importlib.util.find_spec(f"sealsvc.{MOVED[name][0]}") is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_the_same_module_or_has_the_same_classes() -> None:
    messages = importlib.import_module("sealsvc.messages")
    assert (messages.Grant, messages.HolderSpec, messages.Status) == (Grant, HolderSpec, Status)
    assert importlib.import_module("sealsvc.native") is native
    assert importlib.import_module("sealsvc.host.pmem") is pmem


def test_a_program_of_before() -> None:
    program = (
        "from sealsvc import native, extents as ex\n"
        "from sealsvc.messages import Grant, HolderSpec, Mapped, Requirements, Return, Status\n"
        "from sealsvc.messages import VERSION, Audit, List, Recall, RecallSeals, Reclaim\n"
        "from sealsvc.overview import Redeem, Name\n"
        "from sealsvc.records import History\n"
        "from sealsvc.model import ByteRange\n"
        "from sealsvc.errors import Refusal, TABLE\n"
        "from sealsvc.ring_client import RingClient\n"
        "from sealsvc.host.pmem import base_of\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_never_was_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"sealsvc\.nothing"):
        importlib.import_module("sealsvc.nothing")
