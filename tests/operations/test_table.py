"""The table of operations is complete, true and up to date."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from sealsvc.core import rules
from sealsvc.doctor.operations import CATALOGUE
from sealsvc.linux.native import ffi, lib
from tests.operations import page
from tests.operations.derive import Sources
from tests.operations.table import FILES, JUDGEMENTS, KEYS, ROOT, SHOWN, Entry, Range, kernels, load

TABLE = load()
KERNELS = kernels()
# Measured of whole file systems and tools whose operations the table has under their own names, or
# of btrfs, which is refused.
NOT_OF_THE_TABLE = {
    "btrfs-defrag", "btrfs-snapshot", "btrfs-balance", "fallocate-tool", "truncate-tool", "cp-over",
}  # fmt: skip


def by_id(path: Entry) -> str:
    return str(path.id)


@cache
def operation_names() -> frozenset[str]:
    return frozenset(ffi.string(lib.seal_op_name(op)).decode() for op in range(256))


@cache
def risk_names() -> frozenset[str]:
    """Every name of a risk that an enforcer's gap or the rules declare, as a literal."""
    found = set()
    for path in (ROOT / "sealsvc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return frozenset(found)


@cache
def error_codes() -> frozenset[str]:
    return frozenset(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/errors.md").read_text(), re.M))


def test_ids_are_unique() -> None:
    ids = [path.id for path in TABLE.paths]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", TABLE.paths, ids=by_id)
def test_an_entry_is_whole(path: Entry) -> None:
    assert set(path.rows) <= set(KEYS)
    for key in ("id", "entry", "code", "changes", "fanotify", "bpf", "judged", "shown"):
        assert path.rows.get(key), key
    assert set(path.rows.get("filesystems", [])) <= {"xfs", "ext4"}
    assert path.fanotify.startswith(("range", "open", "none"))
    kind, name = path.judgement
    assert kind in JUDGEMENTS
    assert bool(name) == (kind != "harmless")
    assert kind != "harmless" or path.why


@pytest.mark.parametrize("path", TABLE.paths, ids=by_id)
def test_what_it_is_judged_as_exists(path: Entry) -> None:
    kind, name = path.judgement
    if kind == "class":
        assert name in operation_names()
    if kind == "risk":
        assert name in risk_names()
    if kind == "grant":
        assert name in error_codes()


@pytest.mark.parametrize("path", TABLE.paths, ids=by_id)
def test_what_shows_it_exists(path: Entry) -> None:
    for text in path.shown:
        kind, _, what = text.partition(":")
        assert kind in SHOWN
        assert what.strip()
    assert set(path.shown_by("doctor")) <= set(CATALOGUE)
    for test in path.shown_by("test"):
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), test


def test_every_row_of_the_doctor_is_in_the_table() -> None:
    shown = {row for path in TABLE.paths for row in path.shown_by("doctor")}
    measured = {name.split("/")[0] for name in CATALOGUE}
    assert measured - {row.split("/")[0] for row in shown} == NOT_OF_THE_TABLE


def may_conflict(path: Entry, filesystem: str) -> bool:
    """By the rule book, whatever the range; or it is named as a gap."""
    kind, name = path.judgement
    if kind != "class":
        return kind in ("risk", "open")
    traits = rules.Trait.REFLINK if filesystem == "xfs" else rules.Trait(0)
    return rules.reach(rules.of(name), traits) is not rules.Reach.NONE


@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_what_moves_blocks_is_judged_so(filesystem: str) -> None:
    """What the doctor has seen to change an unsealed file's map is judged harmless by no path."""
    wrong = [
        f"{name}: {path.id}"
        for name, operation in CATALOGUE.items()
        if operation.changes_map(filesystem)
        for path in TABLE.paths
        if name in path.shown_by("doctor") and not may_conflict(path, filesystem)
    ]
    assert not wrong


@pytest.mark.parametrize("version", KERNELS, ids=lambda v: f"{v[0]}.{v[1]}")
def test_citations_are_of_this_kernel(version: tuple[int, int]) -> None:
    """A function stands where the table says, in each version that it says."""
    present = {line.partition(" ")[2] for line in KERNELS[version] if line.startswith("cited ")}
    outside = ("block/",)  # not among what is unpacked and derived from
    wrong = [
        f"{path.id}: {citation.file}:{citation.function}"
        for path in TABLE.paths
        if version in path.kernel_range
        for citation in path.citations
        if version in citation.kernels
        and not citation.file.startswith(outside)
        and f"{citation.file}:{citation.function}" not in present
    ]
    assert not wrong


@pytest.mark.parametrize("version", KERNELS, ids=lambda v: f"{v[0]}.{v[1]}")
def test_nothing_derived_is_left_out(version: tuple[int, int]) -> None:
    functions = {citation.function for path in TABLE.paths for citation in path.citations}
    named = {
        key: {x for path in TABLE.paths for x in path.rows.get(key, [])}
        for key in ("ioctls", "opcodes")
    }
    for entry in TABLE.aside:
        functions |= set(entry.get("functions", []))
        named["ioctls"] |= set(entry.get("ioctls", []))
        named["opcodes"] |= set(entry.get("opcodes", []))
    missing = set()
    for line in KERNELS[version]:
        kind, *words = line.split()
        if kind == "cited":
            continue
        if words[0] in ("calls", "operation"):
            if words[1].partition(":")[2] not in functions:
                missing.add(line)
        elif words[1] not in named[f"{words[0]}s"] | {"IORING_OP_LAST"}:
            missing.add(line)
    assert not missing


def test_nothing_is_set_aside_for_nothing() -> None:
    """Neither what no kernel has, nor what the table judges."""
    derived = {
        re.split(r"[ :]", line)[3]
        for lines in KERNELS.values()
        for line in lines
        if line.split()[1] in ("calls", "operation")
    }
    judged = {citation.function for path in TABLE.paths for citation in path.citations}
    aside = {name for entry in TABLE.aside for name in entry.get("functions", [])}
    assert aside <= derived
    assert not aside & judged


def test_the_page_is_up_to_date() -> None:
    """`python -m tests.operations.page` writes it."""
    assert page.PAGE.read_text() == page.text(TABLE)


def test_a_range_of_kernels() -> None:
    assert [v in Range.parse("6.9-") for v in ((6, 1), (6, 12))] == [False, True]
    assert [v in Range.parse("-6.12") for v in ((6, 12), (6, 18))] == [True, False]
    assert [v in Range.parse("6.1") for v in ((6, 1), (6, 2))] == [True, False]


C_SOURCE = """\
static int changes(struct inode *inode)
{
	return 0;
}

SYSCALL_DEFINE2(entered, int, fd, loff_t, length)
{
	/* changes(inode) is not called here */
	return wrapped(fd);
}

static int
wrapped(
	int	fd)

{
	if (fd)
		return changes(file_inode(fd));
	return 0;
}

static int stopped(int fd)
{
	return wrapped(fd);
}

static const struct file_operations operations = {
	.write	= above,
};

static int above(int fd) { return 0; }

long above(int fd)
{
	return stopped(fd);
}
"""


def test_the_derivation_reads_the_kernels_c(tmp_path: Path) -> None:
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs" / "a.c").write_text(C_SOURCE)
    sources = Sources(tmp_path, ["fs"])
    assert {f.name for f in sources.callers("changes")} == {"wrapped"}
    assert {f.name for f in sources.reaching(["changes"], [])} == {
        "wrapped", "stopped", "sys_entered", "above",
    }  # fmt: skip
    assert {f.name for f in sources.reaching(["changes"], ["stopped"])} == {
        "wrapped",
        "sys_entered",
    }
    assert sources.members()["above"] == {".write"}


def test_every_file_of_the_table_is_read() -> None:
    assert {path.file for path in TABLE.paths} == set(FILES)
