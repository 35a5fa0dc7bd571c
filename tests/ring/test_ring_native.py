"""The C side by itself: its tests under sanitizers, fuzzers for a bounded time, the model of the
doorbells, and what libseal promises as a library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sealsvc.core import native_headers
from sealsvc.core.states import TRANSITIONS, after

pytestmark = pytest.mark.timeout(600)  # it compiles

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
LIBSEAL = NATIVE / "libseal"
INCLUDES = [f"-I{NATIVE}", f"-I{NATIVE / 'include'}", f"-I{LIBSEAL}"]
RINGS = [*map(str, sorted((NATIVE / "ring").glob("*.c"))), str(NATIVE / "kernel" / "verdict.c")]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-w"]
FUZZ_SECONDS = int(os.environ.get("SEALSVC_FUZZ_SECONDS", "5"))

SANITIZERS = {
    "plain": [],
    "address-undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def run(*command: str | Path, cwd: Path | None = None, seconds: int = 550) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=cwd, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def compiler(name: str, *flags: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    program = "int LLVMFuzzerTestOneInput(const char *d, long n) { return 0; }"
    program += "" if "fuzzer" in "".join(flags) else "int main(void) { return 0; }"
    tried = subprocess.run(
        [found, *flags, "-x", "c", "-", "-o", "/dev/null"],
        input=program, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"{name} cannot link with {' '.join(flags)}: {tried.stderr.strip()[-100:]}")
    return found


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("name", ["rings", "doorbells"])
def test_the_keepers_side(name: str, sanitizer: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    gcc, program = compiler("gcc", *flags), tmp_path / f"test_{name}"
    source = NATIVE / "tests" / f"test_{name}.c"
    run(gcc, *FLAGS, *flags, *INCLUDES, "-o", program, source, *RINGS, "-lpthread")
    run(program)


@pytest.mark.parametrize("name", ["ring", "control", "extents"])
def test_fuzz(name: str, tmp_path: Path) -> None:
    flags = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    clang, program = compiler("clang", *flags), tmp_path / "fuzz"
    sources = [str(LIBSEAL / "control.c")] if name == "control" else RINGS
    source = NATIVE / "fuzz" / f"fuzz_{name}.c"
    run(clang, *FLAGS, *flags, *INCLUDES, "-o", program, source, *sources, "-lpthread")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    said = run(
        program, f"-max_total_time={FUZZ_SECONDS}", "-rss_limit_mb=2048", "-timeout=300",
        corpus, NATIVE / "fuzz" / "corpus" / name, cwd=tmp_path,
    )  # fmt: skip
    runs = re.search(r"Done (\d+) runs", said)
    assert runs, said
    assert int(runs[1]) > 100


@pytest.mark.parametrize("forgetful", [False, True])
def test_no_wakeup_is_lost(forgetful: bool, tmp_path: Path) -> None:
    """Without the last look there is a lost wake-up, and the checker finds it."""
    if not shutil.which("spin"):
        pytest.skip("spin is not installed")
    shutil.copy(NATIVE / "ring" / "doorbell.pml", tmp_path)
    run("spin", *["-DFORGETFUL"][: int(forgetful)], "-a", "doorbell.pml", cwd=tmp_path)
    run("gcc", "-O2", "-w", "-o", "pan", "pan.c", cwd=tmp_path)
    said = run(tmp_path / "pan", cwd=tmp_path)
    errors = re.search(r"errors: (\d+)", said)
    assert errors, said
    assert (int(errors[1]) > 0) is forgetful


@pytest.mark.parametrize("path", native_headers.HEADERS, ids=lambda path: path.name)
def test_generated_headers_are_up_to_date(path: Path) -> None:
    assert path.read_text() == native_headers.HEADERS[path]()


def test_the_compiled_table_is_the_table(tmp_path: Path) -> None:
    """Every cell, as C sees it."""
    program, source = tmp_path / "table", tmp_path / "table.c"
    source.write_text(
        '#include <stdio.h>\n#include "sealsvc/transitions.h"\nint main(void) {\n'
        "for (int s = 0; s < SEAL_STATE_COUNT; s++) for (int t = 0; t < SEAL_STEP_COUNT; t++)\n"
        'if (seal_transitions[s][t]) printf("%d %d %d\\n", s, t, seal_transitions[s][t] - 1);\n}\n'
    )
    run("gcc", *INCLUDES, "-o", program, source)
    states, steps = native_headers.STATES, native_headers.STEPS
    found = {tuple(map(int, line.split())) for line in run(program).splitlines()}
    assert found == {
        (states[state], steps[step], states[after(state, step).to]) for state, step in TRANSITIONS
    }


def test_the_header_is_clean_c_and_cxx(tmp_path: Path) -> None:
    source = tmp_path / "embed.c"
    source.write_text(
        '#include "seal.h"\n#include "seal_ring.h"\n#include "seal_ring_geometry.h"\n'
        "int valid(const struct seal *seal) { return seal_valid(seal); }\n"
    )
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    strict += [f"-I{LIBSEAL}", f"-I{NATIVE / 'abi'}"]
    run("gcc", "-std=c11", *strict, source)
    cxx = shutil.which("g++")
    if cxx:
        run(cxx, "-std=c++17", "-x", "c++", *strict, source)


def library() -> Path:
    found = ROOT / "build" / "native" / "native" / "libseal" / "libseal.so"
    if not found.exists():
        pytest.skip("libseal is built by ./dev build")
    return found


def test_the_library_exports_what_the_header_declares_and_nothing_else() -> None:
    said = run("nm", "-D", "--defined-only", library())
    exported = set(re.findall(r" T (\w+)@@LIBSEAL_1", said))
    text = "".join((LIBSEAL / name).read_text() for name in ("seal.h", "seal_pi.h"))
    header = re.sub(r"/\*.*?\*/|static inline.*?^}", "", text, flags=re.S | re.M)
    assert exported == set(re.findall(r"\b(seal_\w+)\(", header))
    assert "libseal.so.1" in run("readelf", "-d", library())


def test_the_library_neither_forks_nor_threads_nor_catches_signals() -> None:
    said = run("nm", "-D", "--undefined-only", library())
    used = {line.split()[-1].split("@")[0] for line in said.splitlines()}
    forbidden = {"fork", "vfork", "clone", "pthread_create", "signal", "sigaction", "exit", "abort"}
    assert not used & forbidden
    assert "malloc" not in used
