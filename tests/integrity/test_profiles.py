"""Profiles as data: the table, the notation, the examples of the proposal, what is refused."""

import json

import pytest

from sealsvc.integrity import engine, profiles
from sealsvc.integrity.profiles import FIELDS, KEYS, Meaning, Order, ProfileError

# As they stand in the proposal of January 2014.
PROPOSED = """
{
  name: "NFS-FOO-NONSTANDARD",
  granularity: 0,
  alignment: 0,
  profile: "tag,checksum",
  tag-width: u32,
  checksum-alg: sha256,
  checksum-width: u8[32],
}
or
{
  name: "tag16-crc16-block32",
  granularity: 512,
  alignment: 512,
  profile: "tag,checksum,reftag",
  tag-width: u16,
  checksum-alg: crc16,
  checksum-width: u16,
  reftag-alg: blocknum,
  reftag-width: u32,
}
"""

GOOD = {
    "name": "mine",
    "granularity": 512,
    "alignment": 512,
    "profile": "checksum,tag",
    "checksum-alg": "crc32c",
    "checksum-width": "u32",
    "tag-width": "u16",
}


def test_the_two_examples_of_the_proposal_are_read_as_they_stand():
    foo, block = (profiles.parse(keys, "mail") for keys in profiles.read_notation(PROPOSED, "mail"))
    built_in = profiles.built_in()
    assert foo == built_in["NFS-FOO-NONSTANDARD"]
    assert block == built_in["tag16-crc16-block32"]
    assert (foo.granularity, foo.width, foo.checksum) == (0, 4 + 32, "sha256")
    assert [(f.name, f.offset, f.width) for f in block.fields] == [
        ("tag", 0, 16),
        ("checksum", 16, 16),
        ("reftag", 32, 32),
    ]


@pytest.mark.parametrize("profile", profiles.built_in().values(), ids=lambda p: p.name)
def test_a_built_in_profile_is_accepted_by_the_engine_and_described_by_its_keys(profile):
    assert engine.check(profile) == ""
    assert profiles.parse(profile.described(), "again") == profile


def test_nvme_fields_have_the_places_of_the_standard():
    """NVM Command Set 1.0c: guard, application tag, storage and reference space."""
    spaces = {"nvme16": (16, 32), "nvme32": (32, 80), "nvme64": (64, 48)}
    for name, profile in profiles.built_in().items():
        if not name.startswith("nvme"):
            continue
        guard, space = spaces[name[:6]]
        at = {field.name: (field.offset, field.width) for field in profile.fields}
        assert at["checksum"] == (0, guard)
        assert at["tag"] == (guard, 16)
        storage = at.get("storage", (guard + 16, 0))
        assert storage[0] == guard + 16
        assert at["reftag"] == (guard + 16 + storage[1], space - storage[1])


def test_meanings_are_the_native_ones():
    lib = engine.lib
    for meaning in Meaning:
        assert getattr(lib, f"SEAL_PI_{meaning.name}") == meaning
    for name, algorithm in profiles.CHECKSUMS.items():
        native = "SEAL_PI_" + name.upper().replace("-", "_")
        native = native if name != "ip" else "SEAL_PI_IP_CHECKSUM"
        assert getattr(lib, native) == algorithm.number
    for name, algorithm in profiles.REFTAGS.items():
        assert getattr(lib, f"SEAL_PI_{name.upper()}") == algorithm.number
    assert {kind.meaning for kind in FIELDS.values()} == set(Meaning)


def test_a_little_endian_profile_has_a_hash_as_it_is():
    keys = GOOD | {"checksum-alg": "sha256", "checksum-width": "u8[8]", "byte-order": "little"}
    orders = {field.name: field.order for field in profiles.parse(keys, "x").fields}
    assert orders == {"checksum": Order.BIG, "tag": Order.LITTLE}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 32}, "name"),
        ({"granularity": 4}, "granularity"),
        ({"granularity": "512"}, "granularity"),
        ({"granularity": True}, "granularity"),
        ({"alignment": -1}, "alignment"),
        ({"profile": "checksum,checksum"}, "profile"),
        ({"profile": "checksum,guard"}, "profile"),
        ({"profile": "checksum"}, "tag-width"),
        ({"checksum-alg": "crc31"}, "checksum-alg"),
        ({"checksum-width": "u16"}, "checksum-width"),
        ({"checksum-alg": "sha1", "checksum-width": "u8[21]"}, "checksum-width"),
        ({"checksum-alg": "ed25519", "checksum-width": "u8[32]"}, "checksum-width"),
        ({"tag-width": "u12"}, "tag-width"),
        ({"tag-width": "u65"}, "tag-width"),
        ({"tag-width": "16"}, "tag-width"),
        ({"profile": "tag,checksum", "tag-width": "u4"}, "checksum-width"),
        ({"reftag-alg": "blocknum"}, "reftag-alg"),
        ({"byte-order": "middle"}, "byte-order"),
        ({"escape": "tag,reftag"}, "escape"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_error_names_the_file_the_key_and_what_is_allowed(change, key):
    with pytest.raises(ProfileError) as caught:
        profiles.parse(GOOD | change, "mine.toml")
    assert caught.value.key == key
    assert str(caught.value).startswith("mine.toml")
    assert KEYS.get(key, "the keys are") in str(caught.value)


def test_profiles_of_a_directory(tmp_path):
    (tmp_path / "a.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in GOOD.items()))
    (tmp_path / "b.json").write_text(json.dumps({"profiles": [GOOD | {"name": "second"}]}))
    (tmp_path / "c.pi").write_text("# a comment\n" + PROPOSED.replace('"NFS-FOO', '"MY-FOO'))
    (tmp_path / "d.toml").write_text("name = ")
    (tmp_path / "e.json").write_text(json.dumps(GOOD | {"name": "third", "granularity": 3}))
    (tmp_path / "f.pi").write_text("{ name: x, granularity 5 }")
    (tmp_path / "notes.txt").write_text("not looked at")
    found, errors = profiles.load(tmp_path)
    assert {"mine", "second"} <= found.keys()
    assert "MY-FOO-NONSTANDARD" not in found  # its file takes a name that is there already
    told = {error.source.rsplit("/", 1)[1].split(":")[0]: str(error) for error in errors}
    assert told.keys() == {"c.pi", "d.toml", "e.json", "f.pi"}
    assert "tag16-crc16-block32" in told["c.pi"]
    assert KEYS["granularity"] in told["e.json"]
    assert "f.pi:1" in told["f.pi"]


def test_a_profile_that_the_engine_could_not_carry_out_is_refused_by_it():
    good = profiles.built_in()["t10-dif1-512"]
    import dataclasses

    twice = dataclasses.replace(good, fields=(good.fields[0], good.fields[0]))
    assert "twice" in engine.check(twice)
    outside = dataclasses.replace(good.fields[1], offset=200)
    assert engine.check(dataclasses.replace(good, fields=(outside,)))
