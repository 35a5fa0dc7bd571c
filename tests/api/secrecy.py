"""Does the time of an answer tell which of two requests was made? Measured, and told as a number
that does not depend on how busy the machine is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np


def told_apart(
    first: Callable[[], object], second: Callable[[], object], samples: int, seed: int = 0
) -> float:
    """How often the slower of one answer of each is that of `second`: 0.5 when time tells nothing,
    0 or 1 when it tells all (the area under the ROC curve, Mann-Whitney's U over n * n).

    Each is made `samples` times, in random order, so that whatever else slows the machine down
    slows both. Of two that are alike the number is within 0.5 +- 5 / sqrt(6 * samples) but once in
    two million times.
    """
    order = [False, True] * samples
    random.Random(seed).shuffle(order)
    took: dict[bool, list[float]] = {False: [], True: []}
    for which in order:
        ask = second if which else first
        begun = time.perf_counter()
        ask()
        took[which].append(time.perf_counter() - begun)
    a, b = np.sort(took[False]), np.asarray(took[True])
    below = np.searchsorted(a, b, "left") + np.searchsorted(a, b, "right")
    return float(below.sum() / (2 * samples * samples))
