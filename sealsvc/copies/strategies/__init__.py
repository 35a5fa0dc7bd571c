"""The ways to copy, each one file behind one interface (interface.py)."""

from __future__ import annotations

from sealsvc.copies.strategies.clone import Clone
from sealsvc.copies.strategies.dax import Dax
from sealsvc.copies.strategies.direct import Direct
from sealsvc.copies.strategies.interface import Strategy
from sealsvc.copies.strategies.lower import Lower
from sealsvc.copies.strategies.nvme import NvmeCopy
from sealsvc.copies.strategies.plain import Plain
from sealsvc.copies.strategies.ranges import Ranges
from sealsvc.copies.strategies.xcopy import ExtendedCopy
from sealsvc.copies.strategies.zero import Zero

# In order of preference where nothing was measured. The last two take everything.
ALL: tuple[type[Strategy], ...] = (
    Clone,
    Lower,
    NvmeCopy,
    ExtendedCopy,
    Dax,
    Ranges,
    Direct,
    Plain,
    Zero,
)
NAMES = tuple(kind.name for kind in ALL)
