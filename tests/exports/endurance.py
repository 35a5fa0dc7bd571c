"""Recalls and kills by the hundred: `python -m tests.exports.endurance --type T`.

    sudo .venv/bin/python -m tests.exports.endurance --type nbd
    sudo ./dev lab --cpus 2 --timeout 7200 -- .venv/bin/python -m tests.exports.endurance \\
        --type dm --type ublk --type tcmu

For each type: while a load verifies what it wrote, another process punches and refills pieces of
the file (each time a recall), and then the exporter is killed with SIGKILL, and is started again by
its supervisor, again and again. On a block device the recalls come while a file system is on it,
where fio verifies, and the load works on a file. The exit status is 1 when a request failed, or
data is not what was last acknowledged.

Printed: quantiles of the pauses (upper bounds, of the export's own histogram), and the time from a
kill to the first request that is completed after it, of an export with --restart.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sealsvc.exports.runtime import Runtime
from sealsvc.exports.stats import read_stats
from tests.exports.exporting import RELOCATE, Exports
from tests.exports.loading import loaded
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running, served
from tests.support.waiting import until

TYPES = ("dm", "nbd", "ublk", "tcmu")
MODULES = {"dm": ["dm-mod"], "ublk": ["ublk_drv"],
           "tcmu": ["target_core_user", "tcm_loop", "sd_mod"]}  # fmt: skip
MiB = 1 << 20
SIZE = 48 * MiB
GRACE = ["--grace", "25s"]  # a machine that is busy elsewhere is not what is tried here
GOAL_MS = 100.0  # from a kill to the first completion
PATIENCE = 1200.0


def sh(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {done.stdout}{done.stderr}")


@contextmanager
def verified(target: list[str]) -> Iterator[None]:
    """fio meanwhile, for ten seconds again and again: it ends with an error at the first request
    that fails, and at the first block that is not what it wrote."""
    ended = threading.Event()
    failures: list[str] = []

    def again() -> None:
        while not ended.is_set() and not failures:
            done = subprocess.run(
                [
                    "fio", "--name=verify", *target, "--rw=randrw", "--bs=4k", "--verify=crc32c",
                    "--verify_fatal=1", "--verify_backlog=64", "--verify_state_save=0",
                    "--size=8m", "--time_based", "--runtime=10",
                ],
                capture_output=True, text=True, check=False, cwd="/tmp",
            )  # fmt: skip
            failures.extend([done.stdout + done.stderr] if done.returncode else [])

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise SystemExit(f"fio: {failures[0]}")


@contextmanager
def file_system_on(node: str, directory: Path) -> Iterator[Path]:
    point = directory / "above"
    point.mkdir()
    sh("mkfs.ext4", "-q", "-F", node)
    sh("mount", node, point)
    try:
        yield point
    finally:
        sh("umount", point)
    sh("e2fsck", "-f", "-n", node)


@contextmanager
def two_loads(node: str, directory: Path) -> Iterator[None]:
    with ExitStack() as stack:
        if node.startswith("nbd"):
            fio = ["--ioengine=nbd", f"--uri={node}", "--iodepth=8", f"--offset={5 * MiB}"]
            ours = node
        else:
            above = stack.enter_context(file_system_on(node, directory))
            fio = [f"--filename={above / 'fio'}", "--ioengine=psync", "--direct=1"]
            ours = str(above / "ours")
            Path(ours).write_bytes(bytes(16 * MiB))
        stack.enter_context(loaded(ours))
        stack.enter_context(verified(fio))
        yield


def recalls(exports: Exports, image: Path, count: int) -> None:
    with exports.serving(kind_of(image), "disk", image, *GRACE) as info:
        begun = time.monotonic()
        with two_loads(info["device"], exports.directory.parent):
            relocations(exports, image, count)
        shown = exports.show("disk")
    pauses, errors = shown["pauses"], shown["counters"]["errors"]
    if pauses["count"] < count or errors:
        raise SystemExit(f"{pauses['count']} pauses, {errors} requests failed")
    print(
        f"  {pauses['count']} recalls in {time.monotonic() - begun:.0f} s, no request failed;"
        f" pauses in ms: p50 <= {pauses['p50']:.0f}, p99 <= {pauses['p99']:.0f},"
        f" longest {pauses['longest']:.0f}"
    )


def relocations(exports: Exports, image: Path, count: int) -> None:
    """Each is a recall of its own. SystemExit when the export has ended."""
    runtime = Runtime(os.fspath(exports.directory))
    arguments = [image, count, MiB, 0.02, runtime.stats("disk")]
    process = subprocess.Popen([sys.executable, RELOCATE, *map(str, arguments)])
    try:
        while process.poll() is None:
            if not runtime.read("disk").lives:
                raise SystemExit(f"the export has ended: {exports.log()}")
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise SystemExit(f"{RELOCATE.name} ended with {process.returncode}")


def kind_of(image: Path) -> str:
    return image.name.split("-")[0]


def first_completion(slow: Path, killed: int, recovered: int) -> float | None:
    """ms from the kill to the end of the first of the requests that waited through it. None: none
    of them is over yet."""
    spans = [tuple(map(int, line.split())) for line in slow.read_text().splitlines()]
    over = [(begin, end) for begin, end in spans if begin <= recovered and end >= killed]
    longest = max((end - begin for begin, end in over), default=0)
    if longest < (recovered - killed) / 2:
        return None
    return min(end - killed for begin, end in over if end - begin > longest / 2) / 1e6


def serves_anew(runtime: Runtime, before: int) -> bool:
    stats = read_stats(runtime.stats("disk"))
    return stats is not None and stats.pid != before and stats.state == "serving"


def kill_once(exports: Exports, slow: Path) -> float:
    """ms until requests are completed again. SystemExit when they never are."""
    runtime = Runtime(os.fspath(exports.directory))
    slow.write_text("")
    killed = time.monotonic_ns()
    pid = runtime.read("disk").pid
    os.kill(pid, signal.SIGKILL)
    while not serves_anew(runtime, pid):
        time.sleep(0.001)
    recovered = time.monotonic_ns()
    found: list[float] = []

    def completed() -> bool:
        took = first_completion(slow, killed, recovered)
        found.extend([] if took is None else [took])
        return took is not None

    until(completed, what="a request after the kill")
    return found[0]


def kills(exports: Exports, image: Path, count: int) -> None:
    more = ["--restart", *GRACE] + (
        ["--initiator-timeout", "300s"] if kind_of(image) == "dm" else []
    )
    slow = exports.directory.parent / "slow"
    slow.write_text("")
    took = []
    with (
        exports.serving(kind_of(image), "disk", image, *more) as info,
        loaded(info["device"], slow=str(slow)),
    ):
        time.sleep(2)
        for _ in range(count):
            time.sleep(random.uniform(0.01, 0.2))
            took.append(kill_once(exports, slow))
    took.sort()
    median, p99 = statistics.median(took), took[-1 - len(took) // 100]
    met = "met" if p99 <= GOAL_MS else "missed"
    print(
        f"  {count} kills, no write lost or done twice; from kill to first completion in ms:"
        f" p50 {median:.0f}, p99 {p99:.0f} (goal {GOAL_MS:.0f}: {met})"
    )


@contextmanager
def host_or_lab() -> Iterator[Path]:
    if "SEALSVC_LAB" in os.environ:
        from tests.lab.pmem import mounted_dax

        # On a linear device, as LVM makes it: dm exports need no loop device on it.
        sh("modprobe", "dm-mod")
        sectors = int(Path("/sys/block/pmem0/size").read_text()) - 2048
        table = f"0 {sectors} linear /dev/pmem0 2048"
        sh("dmsetup", "create", "--noudevsync", "endurance", "--table", table)
        try:
            with mounted_dax("xfs", device="/dev/mapper/endurance") as root:
                yield root
        finally:
            sh("dmsetup", "remove", "--noudevsync", "--retry", "endurance")
    else:
        with mounted("xfs", mkfs_args=["-m", "reflink=1"]) as root:
            yield root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--type", action="append", choices=TYPES, required=True, dest="types")
    parser.add_argument("--recalls", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    with host_or_lab() as root, tempfile.TemporaryDirectory(prefix="sealsvc-endurance-") as made:
        policy = RISKS + "[fence]\nsignal_grace = 1.0\n"
        with served(Running(Path(made), [root], policy)) as running:
            os.environ["SEALSVC_SOCKET"] = str(running.socket)
            for kind in options.types:
                print(f"{kind}:", flush=True)
                for module in MODULES.get(kind, []):
                    sh("modprobe", module)
                if kind == "tcmu" and not Path("/sys/kernel/config/target").exists():
                    sh("mount", "-t", "configfs", "none", "/sys/kernel/config")
                directory = Path(made) / kind
                (directory / "exports").mkdir(parents=True)
                exports = Exports(directory / "exports", running.socket)
                image = root / f"{kind}-image"
                image.write_bytes(os.urandom(SIZE))
                if options.recalls:
                    recalls(exports, image, options.recalls)
                if options.kills:
                    kills(exports, image, options.kills)
                image.unlink()
                shutil.rmtree(directory)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
