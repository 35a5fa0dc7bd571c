"""What a call is refused with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sealsvc.core.errors import Refusal


def refusal(call: Callable[[], object]) -> Refusal:
    """The Refusal that the call raises; an assertion fails when it raises none."""
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value
