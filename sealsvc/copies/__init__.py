"""Copies between two files: docs/copies.md.

    ends = open_ends(source_fd, destination_fd)
    result = run(make_plan(ends, Options()))

The names are loaded when they are used: who only sends requests needs no native module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sealsvc.copies.ends import End as End
    from sealsvc.copies.ends import Ends as Ends
    from sealsvc.copies.ends import open_ends as open_ends
    from sealsvc.copies.measured import Measured as Measured
    from sealsvc.copies.plan import Options as Options
    from sealsvc.copies.plan import Plan as Plan
    from sealsvc.copies.plan import make_plan as make_plan
    from sealsvc.copies.result import Result as Result
    from sealsvc.copies.result import parse_token as parse_token
    from sealsvc.copies.run import run as run

_HOMES = {
    "End": "ends",
    "Ends": "ends",
    "open_ends": "ends",
    "Measured": "measured",
    "Options": "plan",
    "Plan": "plan",
    "make_plan": "plan",
    "Result": "result",
    "parse_token": "result",
    "run": "run",
}


def __getattr__(name: str) -> Any:
    """A name that is also a module's (`run`) is bound anew: importing the module bound that."""
    if name not in _HOMES:
        raise AttributeError(name)
    found = getattr(importlib.import_module(f"sealsvc.copies.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
