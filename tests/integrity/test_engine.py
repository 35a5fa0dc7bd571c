"""The engine against the standards' vectors and other implementations of each algorithm."""

import hashlib
import itertools
import subprocess
import zlib

import numpy as np
import pytest
from awscrt import checksums
from crcmod import mkCrcFun
from hypothesis import given, settings
from hypothesis import strategies as st

from sealsvc.core.errors import Refusal
from sealsvc.integrity import engine, keys, profiles
from sealsvc.integrity.engine import Values

BUILT_IN = profiles.built_in()
CRC16 = mkCrcFun(0x18BB7, initCrc=0, rev=False)
CRC64 = mkCrcFun(0x1AD93D23594C93659, initCrc=0, rev=True, xorOut=0xFFFFFFFFFFFFFFFF)


def single(algorithm: str, **more) -> profiles.Profile:
    """A byte stream with this checksum alone."""
    bits = profiles.CHECKSUMS[algorithm].bits
    width = f"u8[{bits // 8}]" if profiles.CHECKSUMS[algorithm].text else f"u{bits}"
    keys = {
        "name": algorithm,
        "granularity": 0,
        "alignment": 0,
        "profile": "checksum",
        "checksum-alg": algorithm,
        "checksum-width": width,
    }
    return profiles.parse(keys | more, "test")


def checksum(algorithm: str, data, key: bytes = b"") -> bytes:
    return bytes(engine.generate(single(algorithm), data, Values(key=key))[0])


def rfc1071(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


OTHERS = {
    "crc16-t10dif": lambda data: CRC16(data).to_bytes(2, "big"),
    "ip": lambda data: rfc1071(data).to_bytes(2, "big"),
    "crc32c": lambda data: checksums.crc32c(data).to_bytes(4, "big"),
    "crc64-nvme": lambda data: checksums.crc64nvme(data).to_bytes(8, "big"),
    "sha1": lambda data: hashlib.sha1(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


@pytest.mark.parametrize(
    ("algorithm", "data", "expected"),
    [
        # SBC-4 4.22.4.4: test cases of the logical block guard CRC, 32 bytes each.
        ("crc16-t10dif", bytes(32), "0000"),
        ("crc16-t10dif", b"\xff" * 32, "a293"),
        ("crc16-t10dif", bytes(range(32)), "0224"),
        ("crc16-t10dif", b"\xff" * 2 + bytes(30), "21b8"),
        ("crc16-t10dif", bytes(range(255, 223, -1)), "a0b7"),
        # RFC 3720 B.4; its values are in the order of bytes on the wire (least first).
        ("crc32c", bytes(32), "8a9136aa"),
        ("crc32c", b"\xff" * 32, "62a8ab43"),
        ("crc32c", bytes(range(32)), "46dd794e"),
        ("crc32c", bytes(range(31, -1, -1)), "113fdb5c"),
        # NVM Command Set 1.0c 5.2.1.3.4: its examples, 4 KiB each.
        ("crc64-nvme", bytes(4096), "6482d367eb22b64e"),
        ("crc64-nvme", b"\xff" * 4096, "c0ddba7302eca3ac"),
        ("crc64-nvme", bytes(range(256)) * 16, "3e729f5f6750449c"),
        ("crc64-nvme", bytes(range(255, -1, -1)) * 16, "9a2df64b8e9e517e"),
        ("crc64-nvme", b"123456789", "ae8b14860a799888"),
        # RFC 1071 section 3.
        ("ip", bytes.fromhex("0001f203f4f5f6f7"), "220d"),
        ("sha1", b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("sha256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    ],
)
def test_vectors_of_the_standards(algorithm, data, expected):
    assert checksum(algorithm, data).hex() == expected


@pytest.mark.parametrize(
    ("key", "data", "expected"),
    [  # RFC 4231, cases 1 and 6 (a key longer than a block)
        (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b"),
        (
            b"\xaa" * 131,
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f",
        ),
    ],
)
def test_hmac_vectors(key, data, expected):
    assert checksum("hmac-sha256", data, key).hex()[:32] == expected


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("algorithm", OTHERS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=1500), cuts=st.lists(st.integers(0, 2000), max_size=5))
def test_another_implementation_agrees_on_any_length_and_any_split(algorithm, data, cuts):
    expected = OTHERS[algorithm](data)
    assert checksum(algorithm, data) == expected
    assert checksum(algorithm, split(data, cuts)) == expected


def test_crc64_has_a_third_implementation_that_agrees():
    data = np.random.default_rng(1).bytes(70_001)
    for length in (0, 1, 127, 128, 129, 143, 144, 255, 256, 4096, 70_001):
        assert checksum("crc64-nvme", data[:length]) == CRC64(data[:length]).to_bytes(8, "big")


@pytest.mark.parametrize("profile", BUILT_IN.values(), ids=lambda p: p.name)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(0, 20_000), max_size=6),
    block=st.integers(0, 2**63),
)
def test_tags_do_not_depend_on_the_split_and_verify(profile, seed, cuts, block):
    key = b"k" * 32
    data = np.random.default_rng(seed).bytes((profile.granularity or 1000) * 3)
    have = {field.name: field.width for field in profile.fields}
    values = Values(
        block=block,
        reftag=block,
        tag=0x1234 if "tag" in have else 0,
        storage=5 if "storage" in have else 0,
        key=key,
    )
    tags = engine.generate(profile, data, values)
    pieces = split(data, cuts)
    assert np.array_equal(engine.generate(profile, pieces, values), tags)
    if profile.checksum == "ed25519":
        return  # verified with the public key below
    assert engine.verify(profile, pieces, tags, values) == (0, [])
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0x10
    count, errors = engine.verify(profile, damaged, tags, values)
    assert count == 1
    assert (errors[0].block, errors[0].field) == (1 if profile.granularity else 0, "checksum")
    assert errors[0].expected != errors[0].found


def test_t10_tuples_are_as_the_kernel_writes_them():
    """Guard, application tag, reference tag, each big endian (struct t10_pi_tuple)."""
    data = np.random.default_rng(2).bytes(512 * 3)
    tags = engine.generate(BUILT_IN["t10-dif1-512"], data, Values(block=0x1_0000_0005, tag=0xBEEF))
    for i in range(3):
        guard = CRC16(data[512 * i : 512 * (i + 1)])
        expected = guard.to_bytes(2, "big") + b"\xbe\xef" + (5 + i).to_bytes(4, "big")
        assert bytes(tags[i]) == expected
    fixed = engine.generate(BUILT_IN["t10-dif3-512"], data, Values(block=9, reftag=7))
    assert [int.from_bytes(bytes(tag[4:]), "big") for tag in fixed] == [7, 7, 7]
    counted = engine.generate(BUILT_IN["t10-dif2-512"], data, Values(block=9, reftag=2**32 - 1))
    assert [int.from_bytes(bytes(tag[4:]), "big") for tag in counted] == [2**32 - 1, 0, 1]


def test_fields_that_share_a_byte():
    profile = BUILT_IN["nvme16-sts12-4096"]
    tags = engine.generate(profile, bytes(4096), Values(block=0xABCDE, storage=0x123, tag=0))
    assert bytes(tags[0][4:]).hex() == "123abcde"
    count, errors = engine.verify(profile, bytes(4096), tags, Values(block=0xABCDE, storage=0x124))
    assert count == 1
    assert (errors[0].field, errors[0].expected.hex(), errors[0].found.hex()) == (
        "storage",
        "0124",
        "0123",
    )


@settings(max_examples=200, deadline=None)
@given(
    offset=st.integers(0, 100),
    width=st.integers(1, 64),
    value=st.integers(0, 2**64 - 1),
    rest=st.binary(min_size=24, max_size=24),
)
def test_a_field_is_put_where_it_belongs_and_nowhere_else(offset, width, value, rest):
    value &= (1 << width) - 1
    row = engine.ffi.new("struct seal_pi_field *", [0, offset, width, 0])
    tag = bytearray(rest)
    engine.lib.seal_pi_put(engine.ffi.from_buffer(tag), row, value)
    shift = 24 * 8 - offset - width
    mask = ((1 << width) - 1) << shift
    assert int.from_bytes(tag, "big") == int.from_bytes(rest, "big") & ~mask | value << shift
    assert engine.lib.seal_pi_get(engine.ffi.from_buffer(tag), row) == value


def test_what_the_caller_provides_stays():
    profile = BUILT_IN["t10-dif1-512"]
    tags = np.full((2, 8), 0xAA, np.uint8)
    engine.generate(profile, bytes(1024), fields=profile.mask_of(["checksum"]), tags=tags)
    assert bytes(tags[0]).hex() == "0000aaaaaaaaaaaa"
    only = profile.mask_of(["reftag"])
    count, errors = engine.verify(profile, bytes(1024), tags, Values(block=4), fields=only)
    assert count == 2
    assert [(e.field, e.expected.hex()) for e in errors] == [
        ("reftag", "00000004"),
        ("reftag", "00000005"),
    ]


def test_escapes_are_not_checked():
    one, three = BUILT_IN["t10-dif1-512"], BUILT_IN["t10-dif3-512"]
    tags = np.full((1, 8), 0xFF, np.uint8)
    assert engine.verify(one, bytes(512), tags, Values(block=1))[0] == 0
    assert engine.verify(three, bytes(512), tags)[0] == 0
    tags[0][7] = 0
    assert engine.verify(one, bytes(512), tags, Values(block=1))[0] == 0
    assert engine.verify(three, bytes(512), tags)[0] == 3


def test_a_signature_is_made_and_checked_with_the_two_halves_of_a_key(tmp_path):
    """The other implementation is openssl(1): it makes the keys, and checks our signature."""
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key"], check=True
    )
    private, public = (
        subprocess.run(
            ["openssl", "pkey", "-in", tmp_path / "key", "-outform", "DER", *more],
            check=True,
            capture_output=True,
        ).stdout[-32:]
        for more in ([], ["-pubout"])
    )
    assert keys.read(str(tmp_path), "key", BUILT_IN["ed25519-stream"]) == (private, public)
    profile, data = BUILT_IN["ed25519-stream"], b"what was agreed"
    tags = engine.generate(profile, data, Values(key=private))
    (tmp_path / "digest").write_bytes(hashlib.sha512(data).digest())
    (tmp_path / "signature").write_bytes(bytes(tags[0]))
    subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-rawin", "-inkey", tmp_path / "key"]  # noqa: RUF005
        + ["-sigfile", tmp_path / "signature", "-in", tmp_path / "digest"],
        check=True,
        capture_output=True,
    )
    assert engine.verify(profile, data, tags, Values(key=public)) == (0, [])
    count, errors = engine.verify(profile, data + b".", tags, Values(key=public))
    assert (count, errors[0].expected) == (1, b"")
    tags[0][3] ^= 1
    assert engine.verify(profile, data, tags, Values(key=public))[0] == 1


@pytest.mark.parametrize(
    ("profile", "data", "values"),
    [
        ("t10-dif1-512", bytes(513), Values()),
        ("t10-dif1-512", bytes(512), Values(tag=1 << 16)),
        ("nvme16-sts8-512", bytes(512), Values(storage=256)),
        ("hmac-sha256-stream", b"", Values()),
        ("ed25519-stream", b"", Values(key=b"short")),
    ],
)
def test_what_cannot_be_done_is_refused(profile, data, values):
    with pytest.raises(OSError, match="Invalid argument"):
        engine.generate(BUILT_IN[profile], data, values)


def test_tags_without_room_are_refused():
    with pytest.raises(OSError, match="No space"):
        engine.generate(BUILT_IN["t10-dif1-512"], bytes(1024), tags=np.zeros((1, 8), np.uint8))


def test_errors_beyond_the_room_are_counted():
    tags = np.zeros((8, 4), np.uint8)
    count, errors = engine.verify(BUILT_IN["crc32c-4k"], bytes(8 * 4096), tags, most=3)
    assert (count, [error.block for error in errors]) == (8, [0, 1, 2])


def test_a_field_the_profile_has_not_is_refused():
    profile = BUILT_IN["crc32c-4k"]
    with pytest.raises(ValueError, match="only checksum"):
        profile.mask_of(["reftag"])
    with pytest.raises(OSError, match="Invalid argument"):
        engine.generate(profile, bytes(4096), fields=1 << profiles.Meaning.REFTAG)


def test_the_tables_agree_with_the_variants_in_use():
    """The fallback is what runs where there is neither ISA-L nor PCLMUL."""
    data = np.random.default_rng(3).bytes(9_999)
    assert zlib.crc32(data)  # another polynomial: the test's own data is no constant
    for name, call in (
        ("crc16-t10dif", engine.lib.seal_crc16_t10dif_table),
        ("crc32c", engine.lib.seal_crc32c_table),
        ("crc64-nvme", engine.lib.seal_crc64_nvme_table),
    ):
        for length in (0, 1, 7, 8, 9, 255, 9_999):
            expected = int.from_bytes(checksum(name, data[:length]), "big")
            assert call(0, data[:length], length) == expected
    assert engine.variants().keys() == profiles.CHECKSUMS.keys()


@pytest.mark.parametrize("algorithm", ["crc16-t10dif", "crc32c"])
@pytest.mark.parametrize("size", [64, 192, 256, 320, 512, 520, 576, 1024, 4032, 4096, 4160, 8192])
def test_blocks_in_a_row_are_summed_as_each_by_itself(algorithm, size):
    """Several at once, where the processor can: from any address, and of any number."""
    keys = {"granularity": size, "alignment": 0}
    profile = single(algorithm, **keys)
    generator = np.random.default_rng(size)
    for count, start in ((1, 0), (2, 1), (31, 3), (32, 8), (33, 63), (65, 7)):
        room = bytearray(generator.bytes(start + size * count))
        data = memoryview(room)[start:]
        tags = engine.generate(profile, data)
        blocks = [bytes(data[at : at + size]) for at in range(0, size * count, size)]
        assert [bytes(tag) for tag in tags] == [OTHERS[algorithm](block) for block in blocks]
        assert engine.verify(profile, data, tags)[0] == 0
        bad = int(generator.integers(count))
        room[start + bad * size + int(generator.integers(size))] ^= 1 << int(generator.integers(8))
        found, errors = engine.verify(profile, data, tags)
        assert (found, errors[0].block) == (1, bad)


@pytest.mark.parametrize("content", [b"", b"secret", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key_is_refused(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(Refusal) as caught:
        keys.read(str(tmp_path), "key", BUILT_IN["ed25519-stream"])
    assert str(tmp_path / "key") in str(caught.value)


def test_each_of_several_bad_blocks_is_named_among_good_ones():
    """Tags of 8 bytes are compared as words, and field by field where a word differs."""
    profile, values = BUILT_IN["t10-dif1-512"], Values(block=2**32 - 3, tag=0xABCD)
    data = bytearray(np.random.default_rng(4).bytes(512 * 9))
    tags = engine.generate(profile, data, values)
    data[512 * 2] ^= 1
    tags[3][3] ^= 1  # the application tag
    tags[5][7] ^= 1  # the reference tag
    tags[6][2:4] = 0xFF  # escapes: nothing of it is checked
    data[512 * 6] ^= 1
    data[512 * 8 + 511] ^= 1
    for pieces in (data, split(bytes(data), [700, 1024, 1500, 4000])):
        count, errors = engine.verify(profile, pieces, tags, values)
        assert [(error.block, error.field) for error in errors] == [
            (2, "checksum"),
            (3, "tag"),
            (5, "reftag"),
            (8, "checksum"),
        ]
        assert count == 4
    assert errors[2].expected.hex() == "00000002"
