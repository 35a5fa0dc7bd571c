"""/proc/PID/stat of a process (proc_pid_stat(5))."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class ProcStat(NamedTuple):
    """`state` is one letter, Z for a zombie. `start_time` is field 22, in clock ticks since boot:
    with the pid it names a process, whose pid may be reused later."""

    comm: str
    state: str
    start_time: int


def read(pid: int) -> ProcStat:
    """The process that has `pid` now. Raises OSError when there is none, or none that is shown
    (hidepid)."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    comm = text[text.index("(") + 1 : text.rindex(")")]  # which may contain parentheses
    fields = text[text.rindex(")") + 2 :].split()
    return ProcStat(comm, fields[0], int(fields[19]))
