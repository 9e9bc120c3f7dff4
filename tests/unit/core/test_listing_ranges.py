"""Listing a directory in ranges: everything once, in few requests more than one after the other, and in far fewer turns."""

from __future__ import annotations

import heapq
import random
import string
from bisect import bisect_right
from collections.abc import Callable

import pytest

from luxfuse.core.listing_ranges import Disordered, Range, Ranges

PAGE = 40
WIDTH = 8


def simulate(names: set[str], seed: int, *, even: bool) -> tuple[int, float]:
    """List ``names``; returns how many requests it took, and how many times as long as one of them.

    Not ``even``: some requests take twice as long as others.
    """
    ordered, rng = sorted(names), random.Random(seed)
    ranges = Ranges(WIDTH)
    under_way: list[tuple[float, int, object, list[str], str]] = []
    found: list[str] = []
    now, requests = 0.0, 0
    while True:
        while (asked := ranges.next()) is not None:
            at = bisect_right(ordered, asked.at)
            token = "more" if at + PAGE < len(ordered) else ""
            requests += 1
            ends = now + 1 + (0 if even else rng.random())
            heapq.heappush(under_way, (ends, requests, asked, ordered[at : at + PAGE], token))
        assert len(under_way) <= WIDTH
        if not under_way:
            break
        now, _, asked, part, token = heapq.heappop(under_way)
        last = ranges.answered(asked, part, token)
        found += part if last is None else [name for name in part if name <= last]
    assert ranges.done
    assert sorted(found) == ordered, "something is missing, or came twice"
    return requests, now


def _random_name(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


KINDS: dict[str, Callable[[random.Random, int], set[str]]] = {
    "counted": lambda _rng, n: {f"sample_{i:07}.txt" for i in range(n)},
    "counted from anywhere": lambda _rng, n: {f"img_{i + 3456789:08}.jpg" for i in range(n)},
    "not padded": lambda _rng, n: {f"img_{i}.jpg" for i in range(n)},
    "hexadecimal": lambda rng, n: {f"{rng.getrandbits(128):032x}" for _ in range(n)},
    "mixed": lambda rng, n: {_random_name(rng, string.ascii_letters + string.digits, 11) for _ in range(n)},
    "words": lambda rng, n: {_random_name(rng, "etaoinshrdlu", rng.randrange(3, 12)) for _ in range(n)},
    "days": lambda rng, n: {
        f"2024-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T{rng.random():.9f}" for _ in range(n)
    },
    "two sorts": lambda _rng, n: {f"{kind}_{i:06}.png" for kind in ("train", "val") for i in range(n // 2)},
    "directories": lambda _rng, n: {f"d{i:06}/" for i in range(n)},
    "not ASCII": lambda _rng, n: {f"ファイル{i:06}" for i in range(n)},
    "crowded": lambda rng, n: {f"a{i:06}" for i in range(n * 9 // 10)} | {f"z{rng.random()}" for _ in range(n // 10)},
}


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_comes_once_in_few_more_requests(kind: str, even: bool) -> None:
    for seed in range(3):
        names = KINDS[kind](random.Random(seed), 100 * PAGE)
        pages = -(-len(names) // PAGE)
        requests, turns = simulate(names, seed, even=even)
        assert requests <= 1.18 * pages + 1
        assert turns <= (1.0 if even else 1.5) * 0.65 * pages


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE])
def test_small_directories_take_no_further_requests(count: int) -> None:
    for kind in KINDS.values():
        names = kind(random.Random(5), count)
        assert simulate(names, 0, even=True)[0] == max(1, -(-len(names) // PAGE))


@pytest.mark.parametrize("seed", range(8))
def test_names_without_any_order_come_once(seed: int) -> None:
    rng = random.Random(seed)
    names = {
        _random_name(
            rng, rng.choice(["ab", "01", "\x01\U0010ffff", "é-.~ ", "aB9/"]).replace("/", ""), rng.randrange(1, 14)
        )
        for _ in range(rng.randrange(5_000))
    }
    simulate(names, seed, even=False)


def test_a_store_without_order_is_noticed() -> None:
    ranges = Ranges(WIDTH)
    first = ranges.next()
    assert first is not None
    ranges.answered(first, ["c", "d"], "more")
    again = ranges.next()
    assert again is first
    with pytest.raises(Disordered):
        ranges.answered(again, ["a", "e"], "more")


def test_a_store_that_begins_elsewhere_than_asked_is_noticed() -> None:
    ranges = Ranges(WIDTH)
    names = [f"{i:05}" for i in range(100 * PAGE)]

    def list_all() -> None:
        for _ in range(20):
            under_way: list[Range | None] = [ranges.next(), ranges.next()]
            for asked in filter(None, under_way):
                at = bisect_right(names, asked.at) if asked.token else 0  # as if there were no such parameter
                ranges.answered(asked, names[at : at + PAGE], "more")

    with pytest.raises(Disordered):
        list_all()
