"""What the ublk library promises to those who embed it, as far as no kernel with ublk is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.ring.test_ring_native import NATIVE, compiler, run
from tests.support.waiting import PATIENCE

UBLK = NATIVE / "exports" / "ublk"
LIBRARY = [UBLK / name for name in ("control.c", "queue.c", "uring.c")]
STRICT = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1"]
# What would take the program over that embeds it.
FOREIGN = {"fork", "vfork", "clone", "daemon", "system", "pthread_create", "signal", "sigaction"}
FOREIGN |= {"sigprocmask", "exit", "_exit", "abort", "printf", "puts", "fprintf", "syslog"}


def _objects(directory: Path) -> list[Path]:
    gcc = compiler("gcc")
    objects = []
    for source in LIBRARY:
        objects.append(directory / f"{source.stem}.o")
        run(gcc, *STRICT, "-c", source, "-o", objects[-1])
    return objects


def test_it_forks_nothing_and_starts_no_thread(tmp_path: Path) -> None:
    needed = set(run("nm", "-u", "--format=posix", *_objects(tmp_path)).split())
    assert "mmap" in needed, "nm tells nothing"
    assert not needed & FOREIGN


def test_it_exports_only_its_own_names(tmp_path: Path) -> None:
    lines = run("nm", "-g", "--defined-only", "--format=posix", *_objects(tmp_path)).splitlines()
    names = [line.split()[0] for line in lines if " T " in line]
    assert "ublk_reap" in names
    assert [name for name in names if not name.startswith(("ublk_", "uring_"))] == []


@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_stands_alone(language: str, tmp_path: Path) -> None:
    compiler("g++" if language == "c++" else "gcc")
    source = tmp_path / "embed.c"
    source.write_text(
        '#include "ublk.h"\nint main(void) { return sizeof(struct ublk_config) == 0; }\n'
    )
    run(
        "g++" if language == "c++" else "gcc", "-Wall", "-Wextra", "-Werror", "-x", language,
        f"-I{UBLK}", source, "-o", tmp_path / "embed",
    )  # fmt: skip
    run(tmp_path / "embed")


def test_without_the_driver_it_says_so(tmp_path: Path) -> None:
    if Path("/dev/ublk-control").exists():
        pytest.skip("this kernel has ublk")
    program = tmp_path / "null"
    run(compiler("gcc"), *STRICT, "-o", program, UBLK / "examples" / "null.c", *LIBRARY)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert "/dev/ublk-control" in done.stderr


def test_the_example_is_one_page() -> None:
    assert len((UBLK / "examples" / "null.c").read_text().splitlines()) < 110
