"""A page of recalls is made of a page for each state."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sealsvc.protocol.seals import SealPage
from sealsvc_api import examples
from sealsvc_api.recalls import _merged


def page(ids: list[int], after: int, limit: int) -> SealPage:
    """As the service answers."""
    left = sorted(i for i in ids if i > after)
    seals = [msgspec.structs.replace(examples.SEAL, id=f"{i:024x}") for i in left[:limit]]
    return SealPage(seals=seals, next=seals[-1].id if len(left) > limit else None)


@given(
    st.lists(st.lists(st.integers(1, 99), unique=True, max_size=30), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_whoever_follows_the_pages_sees_all_in_order(
    states: list[list[int]], limit: int, most: int
) -> None:
    found: list[int] = []
    after = 0
    for _ in range(200):
        pages = [page(ids, after, min(limit, most)) for ids in states]
        merged = _merged(pages, limit)
        found += [int(seal.id, 16) for seal in merged.seals]
        assert len(merged.seals) <= limit
        if merged.next is None:
            break
        after = int(merged.next, 16)
    assert found == sorted({i for ids in states for i in ids})
