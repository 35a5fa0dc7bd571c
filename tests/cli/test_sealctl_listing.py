"""Lists on terminals of any width, and in pipes: what people copy is never cut."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from sealsvc.cli.listing import Listing, shortened
from sealsvc.cli.output import WholeConsole, fields

ID = "65f0c0ffee5ea15e00000001"
PATH = "/srv/pmem/volumes/very/deep/below/the/root/of/things/volume-000001.img"


def shown(listing: Listing, width: int) -> list[str]:
    out = io.StringIO()
    WholeConsole(file=out, width=width, markup=False, highlight=False, emoji=False).print(listing)
    return out.getvalue().splitlines()


def seals() -> Listing:
    made = Listing(
        *("ID", "STATE", "KIND", "RANGE", "HOLDER", "AGE", "PATH"),
        right=["RANGE", "AGE"],
        optional=["KIND", "AGE"],
    )
    made.add_row(ID, "granted", "exclusive", "0:64K", "4711/server", "3m", PATH)
    made.add_row(ID, "fence-failed", "shared", "1023M:512M", "12/x", "12h", "/a")
    return made


@pytest.mark.parametrize("width", [60, 80, 100, 132, 1000])
def test_what_is_copied_is_whole(width: int) -> None:
    header, one, two = shown(seals(), width)
    assert one.split()[0] == two.split()[0] == ID
    assert "0:64K" in one.split()
    assert "1023M:512M" in two.split()
    assert one.split()[-1].startswith("/srv/pm")
    assert one.split()[-1].endswith("01.img")
    if width >= 80:
        assert max(map(len, (header, one, two))) <= width
    assert ("KIND" in header.split()) is (width >= 132)
    # On 60 columns not even a shortened path fits: the terminal wraps the line.
    assert (PATH in one) is (width in (60, 1000))


def test_numbers_stand_to_the_right() -> None:
    _, one, two = shown(seals(), 1000)
    assert one.index("0:64K") + len("0:64K") == two.index("1023M:512M") + len("1023M:512M")


def test_prose_is_wrapped_and_not_cut() -> None:
    made = Listing("GAP", "WHY")
    made.add_row("overlay-truncate", "a truncation through an overlay raises no event at all")
    lines = shown(made, 50)
    assert " ".join(" ".join(line.split()) for line in lines[1:]).startswith("overlay-truncate a ")
    assert "".join(lines).count("event") == 1
    assert len(lines) > 2


def test_a_path_in_prose_stays_whole() -> None:
    made = Listing("ID", "REASON")
    made.add_row("7", f"attachment of {PATH}: 3 corrupt blocks")
    assert any(PATH in line for line in shown(made, 40))


def test_fields_have_no_line_break() -> None:
    out = io.StringIO()
    made = fields([("path", PATH), ("to end it", f"sealctl recall --path {PATH} --wait")])
    WholeConsole(file=out, width=40, markup=False, highlight=False).print(made)
    assert out.getvalue().splitlines() == [
        f"path       {PATH}",
        f"to end it  sealctl recall --path {PATH} --wait",
    ]


@pytest.mark.parametrize("text", [PATH, "/データ/ボリューム/とても/長い/名前.img", "/" + "x" * 300])
@pytest.mark.parametrize("width", [3, 10, 21, 40])
def test_a_path_keeps_both_ends(text: str, width: int) -> None:
    made = shortened(text, width)
    assert cell_len(made) <= width
    head, _, tail = made.partition("…")
    assert text.startswith(head)
    assert text.endswith(tail)


def test_an_empty_list_has_its_header() -> None:
    assert shown(Listing("ID", "PATH"), 80) == ["ID  PATH"]
