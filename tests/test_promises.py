"""Every promise of SEMANTICS.md has a number and names tests that there are."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SEMANTICS = TESTS.parent / "luxfuse/SEMANTICS.md"
OPERATING = TESTS.parent / "luxfuse/docs/OPERATING.md"
PROMISE = re.compile(r"^(?: *- )?\*\*([A-Z]\d+)\.\*\* ", re.MULTILINE)
HELD_BY = "*Held by* "


def promises(text: str) -> list[tuple[str, list[str]]]:
    """Return the number of each promise with the tests that it names."""
    starts = list(PROMISE.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    found = []
    for start, end in zip(starts, ends, strict=True):
        _, _, tests = text[start.end() : end].partition(HELD_BY)
        found.append((start[1], re.findall(r"`([^`]+\.py::[^`]+)`", tests.partition("\n\n")[0])))
    return found


@functools.cache
def names_of_tests(path: Path) -> dict[str, bool]:
    """Return what pytest calls the tests of a file, without running it, and whether the default suite runs each."""
    body = ast.parse(path.read_text()).body
    classes = [(f"{node.name}::", node.body) for node in body if isinstance(node, ast.ClassDef)]
    return {
        prefix + node.name: "pytest.mark.slow" not in map(ast.unparse, node.decorator_list)
        for prefix, nodes in [("", body), *classes]
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_what_is_taken_for_a_promise() -> None:
    text = "- **N1.** One.\n  *Held by* `a/b.py::test_x`,\n  `c.py::T::test_y`.\n- **N2.** Two `d.py::test_z`.\n\nText.\n"
    assert promises(text) == [("N1", ["a/b.py::test_x", "c.py::T::test_y"]), ("N2", [])]


def test_numbers_are_given_once() -> None:
    numbers = [number for number, _ in promises(SEMANTICS.read_text())]
    assert len(numbers) > 100
    assert len(numbers) == len(set(numbers))


def test_each_item_has_a_number() -> None:
    """But for those that only begin a list of others."""
    items = [line.strip() for line in SEMANTICS.read_text().splitlines() if re.match(r" *- ", line)]
    assert [item for item in items if not PROMISE.match(item) and not item.endswith(":")] == []


@pytest.mark.parametrize(("number", "named"), promises(SEMANTICS.read_text()))
def test_each_promise_names_tests_that_there_are(number: str, named: list[str]) -> None:
    assert named, f"{number} names no test"
    for path, _, test in (name.partition("::") for name in named):
        assert (TESTS / path).is_file(), f"{number}: there is no tests/{path}"
        assert test in names_of_tests(TESTS / path), f"{number}: there is no {test} in tests/{path}"
    assert any(names_of_tests(TESTS / path)[test] for path, _, test in (name.partition("::") for name in named)), (
        f"{number}: all tests that it names are left out by default"
    )


def test_each_failure_that_operators_are_told_of_is_promised() -> None:
    _, _, table = OPERATING.read_text().partition("| what happens |")
    rows = [line.strip("| ").split(" | ") for line in table.partition("\n\n")[0].splitlines()[2:]]
    known = {number for number, _ in promises(SEMANTICS.read_text())}
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"[A-Z]\d+", row[-1])
        assert named, row
        assert set(named) <= known, row
