"""The lab: Debian kernels in a virtual machine with emulated persistent memory.

`run` boots a kernel, runs one command in it as root, and gives back what it wrote and its status.
Inside, the host's file system is seen read-only under an overlay, at the same paths.
"""

from tests.lab.guest import Completed, LabError, run
from tests.lab.kernels import DEFAULT, SERIES, Unavailable, unavailable
from tests.lab.qemu import Machine

__all__ = [
    "DEFAULT",
    "SERIES",
    "Completed",
    "LabError",
    "Machine",
    "Unavailable",
    "run",
    "unavailable",
]
