"""The ring and the command table of the TCMU handler, against a model of the kernel's side and a
disk in memory, under sanitizers; and fuzzed for a bounded time (native/exports/tcmu/fuzz/fuzz-long
gives them as many inputs as one likes)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.ring.test_ring_native import FLAGS, NATIVE, SANITIZERS, compiler, run

pytestmark = pytest.mark.timeout(600)  # it compiles

TCMU = NATIVE / "exports" / "tcmu"
FUZZ_SECONDS = int(os.environ.get("SEALSVC_FUZZ_SECONDS", "5"))
SCSI = ["scsi.c", "task.c", "inquiry.c", "naa.c", "opcodes.c", "parameters.c", "blocks.c"]
SCSI += ["provisioning.c", "xcopy.c", "copy_results.c"]
SOURCES = {"ring": ["ring.c", "layout.c"], "scsi": SCSI, "scsi_copy": SCSI, "names": ["discover.c"]}


@pytest.mark.parametrize("sanitizer", ["plain", "address-undefined"])
@pytest.mark.parametrize("name", SOURCES)
def test_by_itself(name: str, sanitizer: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    gcc, program = compiler("gcc", *flags), tmp_path / "test"
    sources = [TCMU / "tests" / f"test_{name}.c", *(TCMU / source for source in SOURCES[name])]
    run(gcc, *FLAGS, *flags, f"-I{NATIVE}", "-o", program, *sources, "-lpthread")
    run(program)


@pytest.mark.kernel
@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_copies_of_files(filesystem: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """EXTENDED COPY shares blocks where the file system can, and copies where it cannot."""
    root: Path = request.getfixturevalue(filesystem)
    directory = root / "extended-copy"
    directory.mkdir()
    flags = SANITIZERS["address-undefined"]
    gcc, program = compiler("gcc", *flags), tmp_path / "test"
    sources = [TCMU / "tests" / "test_copy.c", NATIVE / "copy" / "loops.c"]
    sources += [TCMU / name for name in ("file.c", *SCSI)]
    run(
        gcc,
        *FLAGS,
        *flags,
        f"-I{NATIVE}",
        f"-I{NATIVE / 'include'}",
        "-o",
        program,
        *sources,
        "-lpthread",
    )
    try:
        said = run(program, directory)
    finally:
        shutil.rmtree(directory)
    assert said == f"shared {1 << 20 if filesystem == 'xfs' else 0}\n"


@pytest.mark.parametrize("sanitizer", ["address-undefined", "thread"])
def test_threads_and_restarts(sanitizer: str, tmp_path: Path) -> None:
    """The handler as a whole, with a socket in the place of /dev/uioN."""
    flags = [*SANITIZERS[sanitizer], "-Wl,--wrap=open,--wrap=mmap,--wrap=munmap"]
    gcc, program = compiler("gcc", *SANITIZERS[sanitizer]), tmp_path / "test"
    names = ["handler.c", "discover.c", *SOURCES["ring"], *SCSI]
    sources = [TCMU / "tests" / "test_handler.c", *(TCMU / name for name in names)]
    run(gcc, *FLAGS, *flags, f"-I{NATIVE}", "-o", program, *sources, "-lpthread")
    run(program, tmp_path)


@pytest.mark.parametrize("name", ["ring", "scsi"])
def test_fuzz(name: str) -> None:
    compiler("clang", "-fsanitize=fuzzer,address,undefined")
    bounded = ["env", f"SEALSVC_FUZZ_SECONDS={FUZZ_SECONDS}"]
    said = run(*bounded, TCMU / "fuzz" / "fuzz-long", 10**7, name)
    runs = re.search(r"Done (\d+) runs", said)
    assert runs, said
    assert int(runs[1]) > 100


@pytest.mark.parametrize("plugin", ["null", "file"])
def test_a_plugin_is_one_page_and_one_line(plugin: str) -> None:
    assert len((TCMU / f"{plugin}.c").read_text().splitlines()) < 120
    assert f"&tcmu_{plugin},\n" in (TCMU / "main.c").read_text()
