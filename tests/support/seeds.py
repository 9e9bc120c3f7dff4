"""Seeds of random tests: always the same, so that a run says something of what was changed, unless others are asked for.

``LUXFUSE_SEED=N`` repeats the one that a failure has printed; ``LUXFUSE_SEED=new`` draws others, and ``LUXFUSE_SEEDS=N``
has so many of them.
"""

from __future__ import annotations

import os
import random


def seeds(count: int, *, first: int = 0) -> range:
    """Return the seeds to try, ``count`` of them if nothing else is asked for."""
    chosen, number = os.environ.get("LUXFUSE_SEED"), os.environ.get("LUXFUSE_SEEDS")
    if chosen and chosen != "new":
        first, count = int(chosen), 1
    elif chosen:
        first = random.randrange(1 << 32)
    return range(first, first + int(number or count))


def drawn_seed() -> int:
    """Return the seed of a test that has one, and show it for a failure."""
    chosen = os.environ.get("LUXFUSE_SEED") or "1"
    seed = random.SystemRandom().getrandbits(32) if chosen == "new" else int(chosen)
    print(f"LUXFUSE_SEED={seed}")
    return seed
