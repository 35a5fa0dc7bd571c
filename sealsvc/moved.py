"""Names of modules before they were put into layers: programs that import them go on working.

`import sealsvc.messages` gives a module with the names that it had, and a DeprecationWarning that
says where they are now. To be removed with version 1.0.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# One place: the very module. Several: one with the public names of all of them.
MOVED: dict[str, tuple[str, ...]] = {
    "config": ("runtime.config",),
    "copies.relocation.requests": ("protocol.relocation",),
    "copies.requests": ("protocol.copies",),
    "errors": ("core.errors",),
    "exports.requests": ("protocol.exports",),
    "extents": ("core.extents",),
    "filesystem": ("linux.filesystem",),
    "held": ("client.held",),
    "host": ("linux.host",),
    "host.kernel": ("linux.host.kernel",),
    "host.mapped": ("linux.host.mapped",),
    "host.pmem": ("linux.host.pmem",),
    "host.proofs": ("linux.host.proofs",),
    "host.releases": ("linux.host.releases",),
    "integrity.device_messages": ("protocol.pi_device",),
    "integrity.messages": ("protocol.integrity",),
    "keeper": ("enforce.keeper", "enforce.keeper_messages", "enforce.keeper_start"),
    "messages": (
        "protocol.base",
        "protocol.seals",
        "protocol.rings",
        "protocol.events",
        "protocol.system",
        "protocol.history",
        "protocol.messages",
    ),
    "model": ("core.model",),
    "mountinfo": ("linux.mountinfo",),
    "native": ("linux.native",),
    "overview": ("protocol.admin", "protocol.base"),
    "processes": ("linux.processes",),
    "records": ("protocol.history", "protocol.base"),
    "release": ("service.release",),
    "remote": ("client.http",),
    "ring_client": ("client.ring",),
    "rules": ("core.rules",),
    "states": ("core.states",),
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 (interface)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        name = fullname.removeprefix("sealsvc.")
        if name == fullname or name not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=name == "host")

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        places = [f"sealsvc.{place}" for place in MOVED[spec.name.removeprefix("sealsvc.")]]
        message = f"{spec.name} has moved: {', '.join(places)}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        made = ModuleType(spec.name, message)
        for place in places:
            found = importlib.import_module(place)
            public = {name: value for name, value in vars(found).items() if name[:1] != "_"}
            vars(made).update(public)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """A module that has one place is that module, for whoever changes something in it."""
        places = MOVED[module.__name__.removeprefix("sealsvc.")]
        if len(places) == 1:
            sys.modules[module.__name__] = sys.modules[f"sealsvc.{places[0]}"]


def install() -> None:
    sys.meta_path.insert(0, _Finder())
