"""libseal's messages (native/abi/seal_control.h): one layout for both sides, and refusals."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sealsvc.core import errors
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Fence, IoMode, Kind, Preparation
from sealsvc.protocol import fixed
from sealsvc.protocol.base import MAX_MESSAGE
from sealsvc.protocol.messages import Answer, Done, Failure
from sealsvc.protocol.pi_device import PiChannel
from sealsvc.protocol.rings import Attach, Attached, Register
from sealsvc.protocol.seals import Return
from tests.support.service import serving

NATIVE = Path(__file__).parents[2] / "native"
SEAL = "0123456789abcdef01234567"


def _message(op: int, *values: object, text: bytes = b"", version: int = fixed.VERSION) -> bytes:
    head = fixed.HEAD.pack(fixed.MAGIC, version, op, 7)
    return head + fixed.REQUESTS[op].pack(*values) + text


def test_layouts_are_those_of_the_header(tmp_path: Path) -> None:
    """Offsets and sizes, as a C compiler sees them."""
    fields = {
        "seal_control_head": ("magic", "version", "op", "request"),
        "seal_control_attach": (
            "slots", "commands", "events", "data", "secret", "ring", "reserved",
        ),
        "seal_control_register": (
            "offset", "length", "grace", "ring", "iomode", "kind", "conflict", "fence", "prepare",
        ),
        "seal_control_return": ("seal",),
        "seal_control_pi_channel": ("seal", "bytes", "ring", "reserved"),
        "seal_control_answer": ("error", "reserved"),
        "seal_control_attached": ("secret", "ring", "reserved", "files"),
        "seal_control_registered": ("file", "reserved", "seal"),
        "seal_control_pi_opened": ("facts",),
    }  # fmt: skip
    prints = "".join(
        f'printf("%zu", sizeof(struct {name}));'
        + "".join(f'printf(" %zu", offsetof(struct {name}, {field}));' for field in names)
        + 'printf("\\n");'
        for name, names in fields.items()
    )
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "abi/seal_control.h"\n'
        f"int main(void) {{ {prints} return 0; }}\n"
    )
    subprocess.run(["gcc", f"-I{NATIVE}", "-o", program, source], check=True)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    ours = [
        _offsets(fixed.HEAD, 0),
        *(_offsets(layout, fixed.HEAD.size) for layout in fixed.REQUESTS.values()),
        _offsets(fixed.ERROR, fixed.HEAD.size),
        *(
            _offsets(fixed.ANSWERS[op], fixed.HEAD.size + fixed.ERROR.size)
            for op in (fixed.ATTACH, fixed.REGISTER, fixed.PI_CHANNEL)
        ),
    ]
    theirs = [[int(number) for number in line.split()] for line in said.splitlines()]
    theirs[-1][1:] = [theirs[-1][1] + 4 * n for n in range(6)]  # an array
    assert ours == theirs


def _offsets(layout: struct.Struct, start: int) -> list[int]:
    """The size of what begins so, and the offset of each value of `layout`."""
    found = [start]
    for code in _codes(layout.format.lstrip("=")):
        found.append(found[-1] + struct.calcsize(f"={code}"))
    return [start + layout.size, *found[:-1]]


def _codes(text: str) -> Iterator[str]:
    count = ""
    for letter in text:
        if letter.isdigit():
            count += letter
        elif letter == "s":
            yield f"{count}s"
            count = ""
        else:
            yield from letter * int(count or 1)
            count = ""


def test_what_is_not_said_is_the_services_default() -> None:
    assert fixed.request(_message(fixed.ATTACH, 16, 192, 8, 0, 0, 0, 0)) == Attach(
        id=7, slots=16, commands=192, events=8, data=0
    )
    plain = fixed.request(_message(fixed.REGISTER, 0, 0, 0, 3, 0, 0, 0, 0, 0))
    assert plain == Register(id=7, ring=3, kind=Kind.SHARED)


def test_every_field_arrives() -> None:
    attach = _message(fixed.ATTACH, 16, 192, 8, 4096, 0xABC, 5, 0)
    assert fixed.request(attach) == Attach(
        id=7, slots=16, commands=192, events=8, data=4096, ring=5, secret="0000000000000abc"
    )
    register = _message(
        fixed.REGISTER, 4096, 8192, 2_500_000_000, 3, 1, 2, 2, 3, 0b1111, text="täg".encode()
    )
    assert fixed.request(register) == Register(
        id=7, ring=3, offset=4096, length=8192, grace=2.5, iomode=IoMode.READ, kind=Kind.EXCLUSIVE,
        conflict=Conflict.REFUSE, fence=Fence.KILL, prepare=list(Preparation), tag="täg",
    )  # fmt: skip
    assert fixed.request(_message(fixed.RETURN, SEAL.encode())) == Return(id=7, seal=SEAL)
    channel = _message(fixed.PI_CHANNEL, SEAL.encode(), 8192, 1, 0, text=b"t10-dif-1")
    assert fixed.request(channel) == PiChannel(
        id=7, seal=SEAL, bytes=8192, profile="t10-dif-1", ring=True
    )


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (fixed.HEAD.pack(fixed.MAGIC, 1, 1, 7)[:-1], "bad-request", "16 bytes"),
        (_message(fixed.RETURN, SEAL.encode(), version=2), "unsupported-version", "version 2"),
        (fixed.HEAD.pack(fixed.MAGIC, 1, 9, 7), "unknown-operation", "operation 9"),
        (_message(fixed.RETURN, SEAL.encode())[:-1], "bad-request", "40 bytes"),
        (_message(fixed.RETURN, SEAL.encode(), text=b"x"), "bad-request", "40 bytes"),
        (_message(fixed.RETURN, b"\xff" * 24), "bad-request", "seal"),
        (_message(fixed.ATTACH, 0, 192, 8, 0, 0, 0, 0), "bad-request", "slots"),
        (_message(fixed.REGISTER, 2**63, 0, 0, 0, 0, 0, 0, 0, 0), "bad-request", "offset"),
        (_message(fixed.REGISTER, 0, 0, 0, 0, 3, 0, 0, 0, 0), "bad-request", "iomode 3"),
        (_message(fixed.REGISTER, 0, 0, 0, 0, 0, 3, 0, 0, 0), "bad-request", "kind 3"),
        (_message(fixed.REGISTER, 0, 0, 0, 0, 0, 0, 3, 0, 0), "bad-request", "conflict 3"),
        (_message(fixed.REGISTER, 0, 0, 0, 0, 0, 0, 0, 4, 0), "bad-request", "fence 4"),
        (_message(fixed.REGISTER, 0, 0, 0, 0, 0, 0, 0, 0, 16), "bad-request", "prepare 0x10"),
        (_message(fixed.REGISTER, *[0] * 9, text=b"a\0b"), "bad-request", "NUL"),
        (_message(fixed.REGISTER, *[0] * 9, text=b"\xff"), "bad-request", "UTF-8"),
        (_message(fixed.REGISTER, *[0] * 9, text=b"x" * 257), "bad-request", "tag"),
    ],
)
def test_what_cannot_be_meant_is_refused(message: bytes, code: str, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        fixed.request(message)
    assert refused.value.code == code
    assert words in refused.value.message


def test_random_bytes_are_refused_or_read() -> None:
    chance, codes = random.Random(5), set[str]()
    for _ in range(20_000):
        op = chance.randrange(6)
        version = chance.choice([1, 1, 1, 2])
        head = fixed.HEAD.pack(fixed.MAGIC, version, op, chance.getrandbits(53))
        codes.add(_code_of(head + chance.randbytes(chance.randrange(80))))
    assert codes <= {"", "bad-request", "unsupported-version", "unknown-operation"}
    assert len(codes) > 2, codes


def _code_of(message: bytes) -> str:
    """Of the refusal; "" when it is understood."""
    try:
        fixed.request(message)
    except Refusal as refused:
        return refused.code
    return ""


def test_answers() -> None:
    whole = fixed.encoded(
        Answer(id=9, result=Attached(ring=4, secret="00000000000000ff", files={2: SEAL}))
    )
    assert fixed.HEAD.unpack_from(whole) == (fixed.MAGIC, fixed.VERSION, fixed.ATTACH, 9)
    body = fixed.ANSWERS[fixed.ATTACH].unpack_from(whole, fixed.HEAD.size + fixed.ERROR.size)
    assert body[:2] == (0xFF, 4)
    assert body[3][48:72] == SEAL.encode()
    assert set(body[3][:48] + body[3][72:]) == {0}
    assert len(fixed.encoded(Answer(id=9, result=Done()))) == fixed.HEAD.size + fixed.ERROR.size
    for code in errors.TABLE:
        told = fixed.encoded(Failure(id=None, code=code, message="why"))
        assert fixed.HEAD.unpack_from(told)[3] == 0
        error, _ = fixed.ERROR.unpack_from(told, fixed.HEAD.size)
        assert error == errors.TABLE[code].errno > 0
        assert told[fixed.HEAD.size + fixed.ERROR.size :].decode() == f"{code}: why"


def test_a_connection_has_one_form(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a real service needs root")
    text = msgspec.json.encode({"op": "status", "id": 3})
    structs = _message(fixed.RETURN, SEAL.encode())
    with serving(tmp_path, [tmp_path]) as path:
        with _connected(path) as sock:
            assert fixed.is_fixed(said := _told(sock, structs))
            assert b"no-such-seal" in said
            assert b"of the other form" in _told(sock, text)
            assert b"bad-request" in _told(sock, structs[:8])
        with _connected(path) as sock:
            assert json.loads(_told(sock, text))["reply"] == "answer"
            answer = json.loads(_told(sock, structs))
            assert answer["code"] == "bad-request"


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(60)
    sock.connect(path)
    return sock


def _told(sock: socket.socket, request: bytes) -> bytes:
    sock.sendall(request)
    return sock.recv(MAX_MESSAGE)
