"""The comparison with others names each of its rows in which another one is better, and the README shows its figures."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "luxfuse/docs/COMPARISON.md").read_text()
PEERS = ("rclone", "s3fs", "JuiceFS")
FEWER_IS_BETTER = ("s", "us", "MB")
"""The units of figures of which the smaller one is better: MB is that of memory, while rates are in MB/s."""


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a document: rows of cells, the head first."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]
    return [[table[0], *table[2:]] for table in rows]


def figures() -> list[dict[str, str]]:
    """Return the rows of the table of figures, by their heads."""
    [table] = [table for table in tables(PAGE) if "raw to file" in table[0]]
    return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


def number(cell: str) -> float:
    """Return a figure; of one that was not reached within the time limit, the bound that it stayed below."""
    return float(cell.lstrip("< ").replace(",", ""))


def better_ones(row: dict[str, str]) -> set[str]:
    """Return those that do better than luxfuse in a row; what did not end has lost to whatever did."""
    down = row[""].rpartition(", ")[2] in FEWER_IS_BETTER
    ours = row["luxfuse"]
    ended = {peer: number(row[peer]) for peer in PEERS if row[peer] and not row[peer].startswith("<")}
    if ours.startswith("<"):
        return set(ended)
    return {peer for peer, value in ended.items() if (value < number(ours) if down else value > number(ours))}


def test_each_row_in_which_another_is_better_is_named() -> None:
    [table] = [table for table in tables(PAGE) if table[0][:2] == ["row", "better"]]
    told = {row[0]: (set(row[1].split(", ")), row[2]) for row in table[1:]}
    lost = {row[""]: (better, factor(row, better)) for row in figures() if (better := better_ones(row))}
    assert told == lost


def factor(row: dict[str, str], better: set[str]) -> str:
    """Return how many times as good as luxfuse the best of others is, as it is written."""
    ratios = [number(row[peer]) / number(row["luxfuse"]) for peer in better]
    return f"{'> ' if row['luxfuse'].startswith('<') else ''}{max(max(ratio, 1 / ratio) for ratio in ratios):.2f}"


def test_rows_are_read_as_they_are_meant() -> None:
    row = dict.fromkeys(PEERS, "") | {"luxfuse": "1,000"}
    assert better_ones({**row, "": "warm, MB/s", "s3fs": "1,001", "rclone": "999"}) == {"s3fs"}
    assert better_ones({**row, "": "cold: ls -f, s", "s3fs": "1,001", "rclone": "999"}) == {"rclone"}
    assert better_ones({**row, "": "processor time, us", "JuiceFS": "10"}) == {"JuiceFS"}
    assert better_ones({**row, "": "daemon's peak memory, MB", "JuiceFS": "1,001"}) == set()
    assert better_ones({**row, "": "untar, files/s", "luxfuse": "< 83", "rclone": "< 83", "JuiceFS": "94"}) == {"JuiceFS"}
    assert better_ones({**row, "": "untar, files/s", "rclone": "< 5,000"}) == set()
    assert len(figures()) > 20


def warm_ratios(peer: str) -> list[float]:
    """Return how many times as fast as a peer cached data is read, row by row."""
    rows = [row for row in figures() if row[""].startswith(("warm:", "no passthrough, warm"))]
    return sorted(number(row["luxfuse"]) / number(row[peer]) for row in rows)


def test_what_is_said_of_all_rows_holds() -> None:
    assert "four times and more as fast as from rclone" in PAGE
    assert warm_ratios("rclone")[0] >= 4
    assert "three times and more as fast\nas from s3fs's, but for one row" in PAGE
    assert warm_ratios("s3fs")[0] < 1
    assert warm_ratios("s3fs")[1] >= 3


def test_the_readme_shows_rows_of_the_comparison() -> None:
    """With the same figures, and of those that are lost, too."""
    text = (ROOT / "README.md").read_text()
    [table] = [table for table in tables(text) if "JuiceFS" in table[0]]
    ours = {row[""]: row for row in figures()}
    shown = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    assert len(shown) >= 5
    for row in shown:
        assert {name: ours[row[""]][name] for name in row} == row
    assert any(better_ones(ours[row[""]]) for row in shown)
