"""Figures against floors: `./dev bench [NAME…]`.

Each figure is measured alternately with the bare kernel mechanism beneath it, in the same run:
A B A B, medians over all rounds. A ratio means something; a time on a shared machine does not.
At the end each figure is met, MISSED, or says why it has no goal. Exits with 1 when a goal is
missed, or something could not be measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.auditing import audit
from tests.bench.cycles import CYCLE_BENCHMARKS
from tests.bench.etcd import ring_against_etcd
from tests.bench.exporting import nbd
from tests.bench.faces import faces
from tests.bench.fanout import fan_out
from tests.bench.figures import Bench
from tests.bench.guarding import guards
from tests.bench.integrity import INTEGRITY_BENCHMARKS
from tests.bench.lists import lists
from tests.bench.outcome import Benchmark, Outcome, begin, end
from tests.bench.recording import registry
from tests.bench.relocating import relocation
from tests.bench.rest import rest
from tests.bench.restart import reclaim
from tests.bench.ringing import RING_BENCHMARKS
from tests.bench.rings import LIMITS
from tests.bench.scrubbing import SCRUB_BENCHMARKS
from tests.bench.tripping import tripwire
from tests.support.scratch import mounted
from tests.support.service import RISKS, serving

ROOT = Path(__file__).parents[2]

BENCHMARKS: dict[str, Benchmark] = {
    **CYCLE_BENCHMARKS,
    "guards": guards,
    "tripwire": tripwire,
    "fan-out": fan_out,
    "audit": audit,
    "registry": registry,
    "reclaim": reclaim,
    "faces": faces,
    "rest": rest,
    "lists": lists,
    "relocation": relocation,
    "nbd": nbd,
    **RING_BENCHMARKS,
    "ring_against_etcd": ring_against_etcd,
    **INTEGRITY_BENCHMARKS,
    **SCRUB_BENCHMARKS,
}

# Measurements that need a service, or a machine, of their own. Each prints its goals, met or
# MISSED, and exits with other than 0 when one is missed: [module, arguments of a quick run…].
OTHERS = {
    "walls": ["tests.bench.walls", "--rounds", "1", "--samples", "100"],
    "registry_disk": ["tests.bench.registry_disk", "--rounds", "1"],
    "copying": ["tests.bench.copying", "--rounds", "1", "--size", "128", "--small", "64"],
    "mounting": ["tests.bench.mounting", "--changes", "2000", "--overlays", "20", "--seals", "200"],
    "pi_device": ["tests.bench.lab.pi_device"],
}
LAB = "lab"
NEED_A_LAB = {LAB, "pi_device"}
# Statuses of tests.bench.lab: a goal was missed, which its figures say too; there is no lab.
_MISSED, _NO_LAB = 1, 77
NO_LAB = "there is no lab here (`./dev lab -- true` says why)"
# With --quick.
_ROUNDS, _EXTENTS, _SEALS = 1, 20_000, [1_000, 10_000]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    known = ", ".join([*BENCHMARKS, *OTHERS, LAB])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or of: {known}")
    parser.add_argument("--rounds", type=int, help="of each figure (7)")
    parser.add_argument("--extents", type=int, help="of the extent map (1000000)")
    parser.add_argument("--seals", type=int, nargs="+", help="to be reclaimed (1000 10000 100000)")
    parser.add_argument("--quick", action="store_true", help="one round, small loads")
    parser.add_argument("--no-lab", action="store_true", help="not those that need the lab")
    parser.add_argument("--out", type=Path, default=Path("bench.jsonl"))
    options = parser.parse_args()
    options.rounds = options.rounds or (_ROUNDS if options.quick else 7)
    options.extents = options.extents or (_EXTENTS if options.quick else 1_000_000)
    options.seals = options.seals or (_SEALS if options.quick else [1_000, 10_000, 100_000])
    chosen = options.names or [*BENCHMARKS, *OTHERS, LAB]
    if unknown := set(chosen) - {*BENCHMARKS, *OTHERS, LAB}:
        parser.error(f"no figure is called {', '.join(sorted(unknown))}; there are: {known}")
    options.names = [name for name in chosen if not (name in NEED_A_LAB and options.no_lab)]
    return options


def _on_the_host(options: argparse.Namespace, outcome: Outcome) -> None:
    """The benchmarks that share a service and a file system."""
    names = [name for name in options.names if name in BENCHMARKS]
    if not names:
        return
    # Who wakes whom on which CPU decides more than the code does: everything on one.
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        with (
            tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as made,
            mounted("xfs", 12 << 30) as root,
        ):
            floors = Path(made, "floors")
            source = Path(__file__).with_name("floors.c")
            subprocess.run(["gcc", "-O2", "-o", floors, source, "-lpthread"], check=True)
            with serving(Path(made), [root], RISKS + LIMITS) as socket:
                bench = Bench(root, socket, floors, options.extents, options.seals, options.quick)
                for name in names:
                    outcome.measure(name, BENCHMARKS[name], bench, options.rounds)
    finally:
        os.sched_setaffinity(0, everywhere)


def _apart(options: argparse.Namespace, outcome: Outcome) -> None:
    """The measurements of OTHERS, each in a process of its own."""
    for name in options.names:
        if name in OTHERS:
            module, *quick = OTHERS[name]
            command = [sys.executable, "-m", module, *(quick if options.quick else [])]
            print(f"\n{name}:", flush=True)
            done = subprocess.run(command, cwd=ROOT, check=False)
            if done.returncode == _NO_LAB and name in NEED_A_LAB:
                outcome.left_out[name] = NO_LAB
            elif done.returncode:
                outcome.failed[name] = f"a goal was missed, or it could not be measured: {module}"


def _in_the_lab(options: argparse.Namespace, outcome: Outcome) -> None:
    if LAB not in options.names:
        outcome.left_out[LAB] = "not asked for"
        return
    print("\nlab:", flush=True)
    with tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as made:
        found = Path(made, "lab.jsonl")
        command = [sys.executable, "-m", "tests.bench.lab", "--out", str(found)]
        if options.quick:
            command += ["--rounds", str(options.rounds)]
        done = subprocess.run(command, cwd=ROOT, check=False)
        outcome.read(found)
    if done.returncode == _NO_LAB:
        outcome.left_out[LAB] = NO_LAB
    elif done.returncode not in (0, _MISSED):
        outcome.failed[LAB] = f"tests.bench.lab ended with {done.returncode}"


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        raise SystemExit("the benchmarks mount a file system: run as root")
    with options.out.open("w") as out:
        outcome = Outcome(out)
        begin()
        _on_the_host(options, outcome)
        _apart(options, outcome)
        _in_the_lab(options, outcome)
        return end(outcome)


if __name__ == "__main__":
    raise SystemExit(main())
