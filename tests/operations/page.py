"""Writes docs/operations.md from the table: `python -m tests.operations.page`."""

from __future__ import annotations

from collections.abc import Iterator

from tests.operations.table import JUDGEMENTS, KEYS, OPERATIONS, Entry, Table, kernels, load

PAGE = OPERATIONS.parent / "operations.md"
_TITLES = {
    "system": "System calls, ioctls of the VFS, and the kernel's own work",
    "servers": "Servers, block devices over files, stacked file systems",
    "xfs": "XFS",
    "ext4": "ext4",
}
_HEAD = """\
# Operations

Every path that can change a file's extent map, or what its blocks mean, on XFS and ext4.
Generated from docs/operations/*.toml by `python -m tests.operations.page`; do not edit.

The list is derived, not collected. `python -m tests.operations.derive` reads a kernel's sources and
writes docs/operations/kernels/VERSION.txt: each function that calls a map-changing function of the
two file systems, each operation from which one is reached, each caller of the VFS's file-changing
functions, each ioctl command and each io_uring opcode. Tests check that all of these are in the
table, or set aside with a reason (docs/operations/aside.toml); that each function cited is there in
each version named; and that what shows a path exists. Derived from: {versions}.

To take in another kernel: unpack its source, run `python -m tests.operations.derive VERSION TREE`,
run tests/operations, and name what is missing.

How a path is judged:

{judgements}

What stands in the columns: {columns}.
"""


def text(table: Table) -> str:
    return "\n".join(_lines(table)) + "\n"


def _lines(table: Table) -> Iterator[str]:
    versions = ", ".join(f"{major}.{minor}" for major, minor in kernels())
    judgements = "\n".join(f"* `{kind}`: {words}." for kind, words in JUDGEMENTS.items())
    shown = ("fanotify", "bpf", "others", "privilege", "shown")
    columns = "; ".join(f"*{key}*: {KEYS[key]}" for key in shown)
    yield _HEAD.format(versions=versions, judgements=judgements, columns=columns)
    yield (OPERATIONS / "tripwire.md").read_text()
    yield from _open(table)
    for name, title in _TITLES.items():
        yield f"## {title}\n"
        yield "| path | entry | kernels | changes | fanotify | bpf | others | judged | shown by |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        for path in table.paths:
            if path.file == name:
                yield _row(path)
        yield ""
        yield "Kernel functions:\n"
        for path in table.paths:
            if path.file == name:
                yield f"* `{path.id}`: {', '.join(f'`{place}`' for place in path.code)}"
        yield ""
    yield "## Set aside\n"
    yield "What the derivation finds and is no path:\n"
    for entry in table.aside:
        names = [*entry.get("functions", []), *entry.get("ioctls", []), *entry.get("opcodes", [])]
        yield f"* {entry['reason']}: {', '.join(f'`{name}`' for name in names)}"


def _open(table: Table) -> Iterator[str]:
    waiting = [path for path in table.paths if path.judgement[0] == "open"]
    if not waiting:
        return
    yield "## Not judged as it must be yet\n"
    for path in waiting:
        yield f"* `{path.id}`: {path.judgement[1]}"
    yield ""


def _row(path: Entry) -> str:
    kind, name = path.judgement
    why = f": {path.why}" if path.why else ""
    judged = f"{kind} `{name}`{why}" if kind not in ("open", "below") else f"{kind}: {name}"
    kernel = path.kernels or "all"
    if path.filesystems and path.file not in path.filesystems:
        kernel += f" ({', '.join(path.filesystems)})"
    others = "; ".join(filter(None, (path.others, path.privilege)))
    cells = (
        f"`{path.id}`",
        path.entry,
        kernel,
        path.changes,
        path.fanotify,
        path.bpf,
        others,
        judged.replace("harmless ``", "harmless"),
        "; ".join(path.shown),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(text(load()))
