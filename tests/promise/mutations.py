"""`python -m tests.promise.mutations`: faults that were mended, put back one by one in a copy of
the tree, and fuzzed. Each must be found. It takes minutes for each: the copy is built from nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Change:
    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """`where` it shows: the file system, and XFS's reflink."""

    name: str
    where: tuple[str, int]
    changes: Sequence[Change]


_OPERATION, _CALLS = "native/kernel/operation.c", "native/kernel/system_calls.c"
_RULES, _FANOTIFY = "sealsvc/core/rules.py", "sealsvc/enforce/fanotify_gaps.py"

MUTATIONS = (
    Mutation(
        "overlays of unprivileged users are not refused",
        ("ext4", 0),
        (Change("native/gate/overlays.c", "response = FAN_DENY;\n", "response = FAN_ALLOW;\n"),),
    ),
    Mutation(
        "madvise's advice is compared with all 64 bits of its register",
        ("xfs", 0),
        (
            Change(
                _OPERATION,
                "\t\t\tout->op = SEAL_OP_REMOVE;\n",
                "\t\t\t*among = BIT(SEAL_OP_READ) | BIT(SEAL_OP_REMOVE);\n",
            ),
            Change(
                _CALLS,
                "\t\t\tout->op = calls[i].kind((uint32_t)out->argument);\n",
                "\t\t\tout->op = call->args[calls[i].argument] >> 32\n"
                "\t\t\t\t\t  ? SEAL_OP_READ\n"
                "\t\t\t\t\t  : calls[i].kind((uint32_t)out->argument);\n",
            ),
        ),
    ),
    Mutation(
        "the registers that an io_uring worker shows are believed",
        ("ext4", 0),
        (
            Change(
                _OPERATION,
                "\t\telse if (functions[i].among && seal_stack_is_plain_call(stack, at + 1))\n"
                "\t\t\t*among = functions[i].among;\n",
                "\t\telse if (functions[i].among)\n\t\t\t*among = ~UINT64_C(0);\n",
            ),
        ),
    ),
    Mutation(
        "openat2's how is read from its caller's memory",
        ("ext4", 0),
        (
            Change(
                _CALLS,
                "#include <sys/syscall.h>\n",
                "#include <sys/syscall.h>\n#include <sys/uio.h>\n",
            ),
            Change(
                _CALLS,
                "\t\tif (call->nr == SYS_truncate ||",
                "\t\tif (call->nr == SYS_openat2) {\n"
                "\t\t\tuint64_t flags = O_TRUNC;\n"
                "\t\t\tstruct iovec ours = {&flags, sizeof(flags)};\n"
                "\t\t\tstruct iovec theirs = {(void *)call->args[2], sizeof(flags)};\n\n"
                "\t\t\tprocess_vm_readv(out->tid, &ours, 1, &theirs, 1, 0);\n"
                "\t\t\tout->op = of_open((uint32_t)flags);\n"
                "\t\t}\n"
                "\t\tif (call->nr == SYS_truncate ||",
            ),
        ),
    ),
    Mutation(
        "a clone beside the sealed range is no conflict",
        ("xfs", 1),
        (
            Change(
                _RULES,
                '"shares blocks; source and destination alike", _WHOLE)',
                '"shares blocks; source and destination alike")',
            ),
        ),
    ),
    Mutation(
        "a write with RWF_ATOMIC is judged as in place",
        ("xfs", 1),
        (
            Change(
                _CALLS,
                "return flags & RWF_ATOMIC ? SEAL_OP_WRITE_ATOMIC : SEAL_OP_WRITE;",
                "return flags ? SEAL_OP_WRITE : SEAL_OP_WRITE;",
            ),
        ),
    ),
    Mutation(
        "an asynchronous write is judged as one without flags",
        ("xfs", 1),
        (
            Change(
                _OPERATION,
                '{"aio_write", SEAL_OP_WRITE_UNKNOWN, 0}',
                '{"aio_write", SEAL_OP_WRITE, 0}',
            ),
        ),
    ),
    Mutation(
        "EXT4_IOC_SWAP_BOOT is a risk that nobody names",
        ("ext4", 0),
        (Change(_FANOTIFY, 'risk="ext4-swap-boot"', 'risk="ext4-move-ext"'),),
    ),
)


def mutated(mutation: Mutation, tree: Path) -> None:
    """A built copy of this tree with the mutation in it. Raises ValueError where the code that it
    changes is not there any more."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    for change in mutation.changes:
        path = tree / change.file
        text = path.read_text()
        if text.count(change.old) != 1:
            raise ValueError(f"{change.file} has {text.count(change.old)} times: {change.old!r}")
        path.write_text(text.replace(change.old, change.new))
    _run(tree, "./dev", "build")
    if any(change.file == _RULES for change in mutation.changes):
        _run(tree, ".venv/bin/python", "-m", "sealsvc.core.native_headers")
        _run(tree, "./dev", "build")


def _run(tree: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")


def found(
    tree: Path, where: tuple[str, int], seed: int, seconds: float, without: str | None
) -> str:
    """What the fuzzer says of the tree; empty when it finds nothing."""
    fs, reflink = where
    command = [".venv/bin/python", "-m", "tests.promise", "--fs", fs, "--reflink", str(reflink)]
    command += ["--seed", str(seed), "--ops", "1000000000", "--seconds", str(seconds)]
    command += ["--without", without] if without else []
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    if "VIOLATION" not in done.stdout:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    wanted = ("seed ", "VIOLATION", "  0 ", "  1 ", "  2 ")
    return "\n".join([line for line in done.stdout.splitlines() if line.startswith(wanted)][:8])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.promise.mutations", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120, help="of fuzzing, at most (120)")
    parser.add_argument("--without", help="kinds of operations that are left out: a,b")
    parser.add_argument("--only", type=int, action="append", help="their numbers, from 1")
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args()
    missed = 0
    for number, mutation in enumerate(MUTATIONS, 1):
        if chosen.only and number not in chosen.only:
            continue
        print(f"{number}. {mutation.name} ({mutation.where[0]} reflink={mutation.where[1]})")
        if chosen.list:
            continue
        with tempfile.TemporaryDirectory(prefix="sealsvc-mutation-") as directory:
            mutated(mutation, Path(directory))
            began = time.monotonic()
            said = found(
                Path(directory), mutation.where, chosen.seed, chosen.seconds, chosen.without
            )
            print(f"{said or 'NOT FOUND'}\nafter {time.monotonic() - began:.0f} s", flush=True)
            missed += not said
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
