"""The guest's initramfs: busybox, the modules that reach the host's files, and `init`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab.kernels import Kernel

_HERE = Path(__file__).parent
_MODULES = ("9p", "9pnet_virtio", "overlay", "virtio_pci", "virtio_console")


def initramfs(kernel: Kernel) -> Path:
    """Made once for each kernel and each version of `init`."""
    digest = hashlib.sha256((_HERE / "init").read_bytes() + Path(__file__).read_bytes())
    path = kernel.vmlinux.with_name(f"initramfs-{digest.hexdigest()[:16]}")
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        root = Path(directory, "root")
        (root / "bin").mkdir(parents=True)
        (root / "modules").mkdir()
        shutil.copy(shutil.which("busybox") or "busybox", root / "bin/busybox")
        shutil.copy(_HERE / "init", root / "init")
        (root / "init").chmod(0o755)
        order = _load_order(kernel)
        for module in order:
            shutil.copy(module, root / "modules")
        names = "".join(f"{module.name}\n" for module in order)
        (root / "modules/order").write_text(names)
        files = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
        packed = Path(directory, "packed")
        with packed.open("wb") as out:
            subprocess.run(
                ["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=files, stdout=out,
                check=True,
            )  # fmt: skip
        os.rename(packed, path)
    return path


def _load_order(kernel: Kernel) -> list[Path]:
    """Files of the modules and of all they need, each after its own needs. What is built in needs
    no file."""
    tree = kernel.modules / kernel.release
    needs: dict[str, list[str]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[name] = rest.split()
    by_name = {Path(name).stem.replace("-", "_"): name for name in needs}
    order: list[str] = []
    for module in _MODULES:
        if module in by_name:
            name = by_name[module]
            order += [need for need in (*reversed(needs[name]), name) if need not in order]
    return [tree / name for name in order]
