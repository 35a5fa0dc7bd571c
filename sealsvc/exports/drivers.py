"""The types of exports: a line for each."""

from __future__ import annotations

from sealsvc.core.errors import Refusal
from sealsvc.exports.base import Driver, Spec
from sealsvc.exports.dm import Dm
from sealsvc.exports.nbd import Nbd
from sealsvc.exports.runtime import Runtime
from sealsvc.exports.tcmu import Tcmu
from sealsvc.exports.ublk import Ublk

DRIVERS: tuple[type[Driver], ...] = (
    Dm,
    Nbd,
    Tcmu,
    Ublk,
)


def driver_of(spec: Spec, runtime: Runtime) -> Driver:
    """Refusal `bad-request` for a type that there is not."""
    for driver in DRIVERS:
        if driver.type == spec.type:
            return driver(spec, runtime)
    known = ", ".join(driver.type for driver in DRIVERS)
    raise Refusal("bad-request", f"{spec.type} is no type of export; there are {known}")
