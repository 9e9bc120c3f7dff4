"""Input as nobody writes it, and everybody does at some time: for tests that nothing is taken amiss."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.seeds import drawn_seed

ODD = (
    "", " ", "-", "--", "-1", "0", "1", "nan", "inf", "-inf", "1e400", "9" * 5000, "9" * 400 + "P", "0x10", "\u0967",
    "1_0", "0777", "999", "\x1b[31m", "a\nb", "\u2028", "\udce9", "a\udcffb", "=", ",", '"', '"a,b"', "%", "1e400%",
    "-5%", "[::]:0", "[", "file:", "never", "on", "off", "true", "1.5", "s3://", "s3:///", "://", "fake://x", ".",
    "http://", "http://[::", "http://h:99999", "http://a b", "s3:/b", "s3://[::", "s3://b?x", "https:///x", "-h", "--help",
    "..", "/", "//", "/dev/null", "/proc/self/mem", "\u00e9" * 300, "x" * 5000, "{}", "[[path]]", "a=b", "=b", "a=",
    "*", "**/[", "async-thruogh", "mem", "/c,size=1GiB", "/c,size=", "/c,tier=",
)  # fmt: skip
# What a process can be given: bytes without NUL, decoded as Python does it.
words = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12),
    st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),
    st.integers().map(str),
    st.floats().map(str),
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip

# What the control socket is asked for.
FIELDS = {
    "paths": st.lists(words, max_size=3), "seconds": st.floats() | st.integers(),
    "action": st.sampled_from(["free", "delete", "x"]),
    "min": st.integers(), "max": st.integers(), "source": words, "path": words,
    "options": st.dictionaries(words, json_values, max_size=2),
    "force": st.booleans(), "repair": st.booleans(), "lazy": st.booleans(), "x": json_values,
}  # fmt: skip
ORDERS = (
    "status", "metrics", "refresh", "persist", "load", "load/start", "load/jobs", "load/stop", "free", "check", "locate",
    "reload", "pin", "unpin", "ttl", "replicate", "attach", "detach", "unmount", "nothing", "",
)  # fmt: skip
bodies = st.one_of(
    st.binary(max_size=30),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.sets(st.sampled_from(sorted(FIELDS)), max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({name: FIELDS[name] | json_values for name in names})
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


def fuzz(examples: int, check: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Call ``check`` with that many examples; up to 500 are always the same ones.

    More are others each time: LUXFUSE_SEED repeats them, which a failure shows.
    """
    same = examples <= 500
    chosen = settings(
        max_examples=examples, derandomize=same, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    test = given(*strategies)(check)
    if not same:
        test = seed(drawn_seed())(test)
    chosen(test)()
