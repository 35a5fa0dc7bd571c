"""The virtual machine: which devices QEMU is asked for, and how Linux is told to boot."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.lab.initramfs import initramfs
from tests.lab.kernels import Kernel
from tests.lab.ports import NAMES

MiB = 1 << 20
_NAMESPACE = 64 * MiB

# Boots a second faster than Debian's defaults. lsm=bpf: nothing else may refuse what is tested.
# no_timer_check: a guest that others leave no time fails the test of its timer, and hangs.
_BOOT = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr lsm=bpf rcupdate.rcu_expedited=1"
    " tsc=reliable no_timer_check cryptomgr.notests random.trust_cpu=on"
)


@dataclass(frozen=True)
class Machine:
    """Sizes are bytes; there is an NVDIMM for each of `pmem`. Each of `nvme` makes a namespace of
    one NVMe controller, 64 MiB large: properties of QEMU's nvme-ns, such as "ms=8,pi=1"."""

    cpus: int = 1
    memory: int = 3072 * MiB
    pmem: tuple[int, ...] = (1024 * MiB,)
    nvme: tuple[str, ...] = ()


MACHINE = Machine()


def command_line(machine: Machine, kernel: Kernel, directory: Path, share: Path) -> list[str]:
    """QEMU with its files in `directory`: ports (a listening socket), lab (for the guest to
    read), console, and the NVDIMMs' images. TCG unless SEALSVC_LAB_ACCEL says otherwise."""
    # One thread for all CPUs: with a thread each, QEMU before 8.1 may run stale translations of
    # kernel text that is patched meanwhile (oops: int3), which BPF trampolines are all the time.
    room = (machine.memory + sum(machine.pmem)) // MiB + 1024
    arguments = [
        "qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none",
        "-accel", os.environ.get("SEALSVC_LAB_ACCEL", "tcg,thread=single"),
        "-cpu", "max", "-smp", str(machine.cpus), "-machine", "q35,nvdimm=on",
        "-m", f"size={machine.memory // MiB}M,slots={len(machine.pmem) + 1},maxmem={room}M",
        "-kernel", str(kernel.vmlinux), "-initrd", str(initramfs(kernel)), "-append", _BOOT,
        "-serial", f"file:{directory}/console",
        "-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
    ]  # fmt: skip
    for name in NAMES:
        arguments += ["-chardev", f"socket,id={name},path={directory}/ports"]
        arguments += ["-device", f"virtserialport,chardev={name},name={name}"]
    arguments += _folder("root", Path("/"), "readonly=on")
    arguments += _folder("lab", directory / "lab", "readonly=on")
    arguments += _folder("share", share, "readonly=off")
    for number, size in enumerate(machine.pmem):
        arguments += _nvdimm(f"pmem{number}", directory / f"pmem{number}", size)
    if machine.nvme:
        arguments += ["-device", "nvme,id=nvme,serial=lab"]
    for number, properties in enumerate(machine.nvme, 1):
        arguments += _namespace(number, directory / f"nvme{number}", properties)
    return arguments


def _folder(tag: str, path: Path, mode: str) -> list[str]:
    options = f"path={path},mount_tag={tag},security_model=none,{mode},multidevs=remap"
    return ["-virtfs", f"local,{options}"]


def _nvdimm(name: str, image: Path, size: int) -> list[str]:
    with image.open("xb") as file:
        file.truncate(size)
    memory = f"memory-backend-file,id={name},share=on,mem-path={image},size={size}"
    return ["-object", memory, "-device", f"nvdimm,memdev={name}"]


def _namespace(number: int, image: Path, properties: str) -> list[str]:
    """QEMU keeps the metadata of all blocks behind their data, in the same image."""
    with image.open("xb") as file:
        file.truncate(_NAMESPACE)
    drive = f"file={image},format=raw,if=none,id=ns{number}"
    device = f"nvme-ns,drive=ns{number},bus=nvme,nsid={number},{properties}"
    return ["-drive", drive, "-device", device]
