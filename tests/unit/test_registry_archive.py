"""The archive of maps: what was appended is found again, wherever its writer was cut off."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mmap_ninja.ragged import RaggedMmap
from registry_support import fill, map_of

from sealsvc.core.extents import ExtentMap
from sealsvc.registry.archive import Archive
from sealsvc.registry.place import Place


def name(number: int) -> str:
    return f"{number:024x}"


def maps(first: int, count: int) -> list[tuple[str, ExtentMap]]:
    return [(name(n), map_of(n)) for n in range(first, first + count)]


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    point = tmp_path / "tiny"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


def test_maps_come_back(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "maps")
    places = archive.append(maps(0, 100)) + archive.append(maps(100, 1))
    for n, place in enumerate(places):
        found = archive.read(place, name(n))
        assert found is not None
        assert found.dtype == np.uint64
        assert (found == map_of(n)).all()
    assert archive.read(places[3], name(4)) is None
    assert archive.read(Place(1, 1000), name(4)) is None
    assert archive.read(Place(1, -1), name(4)) is None
    assert archive.read(Place(9, 1), name(4)) is None
    assert not (tmp_path / "maps" / "000009").exists()
    # It is what it is said to be.
    assert len(RaggedMmap(tmp_path / "maps" / "000001", mode="r")) == 102


def test_maps_of_every_size(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    empty = np.empty((0, 4), np.uint64)
    large = np.arange(400_000, dtype=np.uint64).reshape(-1, 4)
    strange = np.full((1, 4), 2**64 - 1, np.uint64)
    fragments = np.asfortranarray(large)[::2]
    wanted = [empty, large, strange, empty, fragments]
    places = archive.append([(name(n), map) for n, map in enumerate(wanted)])
    again = Archive(tmp_path)
    again.verify()
    for n, (place, map) in enumerate(zip(places, wanted, strict=True)):
        found = again.read(place, name(n))
        assert found is not None
        assert found.shape == map.shape
        assert (found == map).all()


def test_segments_are_begun_and_deleted_whole(tmp_path: Path) -> None:
    archive = Archive(tmp_path, maps_per_segment=10)
    places = archive.append(maps(0, 25))
    assert [place.segment for place in places] == [1] * 9 + [2] * 9 + [3] * 7
    assert archive.segments() == [1, 2, 3]
    assert not archive.delete(3)
    assert archive.delete(1)
    assert archive.read(places[0], name(0)) is None
    assert archive.read(places[9], name(9)) is not None
    assert archive.segments() == [2, 3]
    assert archive.age(2, time.time()) < 60
    again = Archive(tmp_path, maps_per_segment=10)
    assert again.append(maps(25, 2)) == [Place(3, 8), Place(3, 9)]
    assert again.append(maps(27, 1)) == [Place(4, 1)]
    by_size = Archive(tmp_path / "b", bytes_per_segment=1000)
    assert [place.segment for place in by_size.append(maps(0, 25))] == [1] * 11 + [2] * 11 + [3] * 3


@pytest.mark.parametrize("seed", range(40))
def test_a_torn_archive_is_mended(tmp_path: Path, seed: int) -> None:
    """Its files as a writer leaves them that is killed in the midst, or a power cut."""
    chance = random.Random(seed)
    archive = Archive(tmp_path / "maps")
    kept = archive.append(maps(0, 20))
    before = tmp_path / "before"
    shutil.copytree(tmp_path / "maps" / "000001", before)
    archive.append(maps(20, 5))
    archive.close()
    files = sorted(p for p in (tmp_path / "maps" / "000001").rglob("*.ninja"))
    for path in chance.sample(files, chance.randint(1, len(files))):
        old = before / path.relative_to(tmp_path / "maps" / "000001")
        match chance.choice(["old", "cut", "empty", "gone"] if seed % 2 else ["old", "half"]):
            case "old":
                shutil.copy(old, path)
            case "half":  # what was there before is there still
                size = chance.randint(old.stat().st_size, path.stat().st_size)
                os.truncate(path, size)
            case "cut":
                os.truncate(path, chance.randint(0, path.stat().st_size))
            case "empty":
                os.truncate(path, 0)
            case "gone":
                path.unlink()
    again = Archive(tmp_path / "maps")
    again.verify()
    more = again.append(maps(50, 3))
    third = Archive(tmp_path / "maps")
    third.verify()
    for n, place in enumerate(more):
        found = third.read(place, name(50 + n))
        assert found is not None
        assert (found == map_of(50 + n)).all()
    for n, place in enumerate(kept):
        found = third.read(place, name(n))
        assert (found is None) if found is None else (found == map_of(n)).all()
        assert found is not None or seed % 2
    assert len([*(tmp_path / "maps").glob("torn-*")]) <= 1


def test_an_append_that_fails_midway_harms_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path)
    first = archive.append(maps(0, 5))
    from mmap_ninja import numpy as ninja

    real = ninja.extend_dir

    def fails(where: Path, what: object) -> None:
        if Path(where).name == "ends":
            raise OSError(28, "no space")
        real(where, what)

    monkeypatch.setattr(ninja, "extend_dir", fails)
    with pytest.raises(OSError, match="no space"):
        archive.append(maps(5, 5))
    assert all(archive.read(place, name(n)) is not None for n, place in enumerate(first))
    monkeypatch.undo()
    later = archive.append(maps(10, 5))
    for n, place in [*enumerate(first), *enumerate(later, 10)]:
        found = archive.read(place, name(n))
        assert found is not None
        assert (found == map_of(n)).all()


def test_a_full_disk_is_an_error_and_no_signal(tiny: Path) -> None:
    archive = Archive(tiny / "maps", maps_per_segment=50)
    places: list[Place] = []
    with suppress(OSError):
        while True:
            places += archive.append(maps(len(places), 20))
    fill(tiny / "ballast")
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            archive.append(maps(0, 2000))
    for n, place in enumerate(places):
        found = archive.read(place, name(n))
        assert found is not None
        assert (found == map_of(n)).all()
    (tiny / "ballast").unlink()
    for number in archive.segments()[:10]:
        archive.delete(number)
    [later] = archive.append(maps(7, 1))
    found = archive.read(later, name(7))
    assert found is not None
    assert (found == map_of(7)).all()
