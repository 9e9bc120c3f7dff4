"""The one table: every figure beside its references, and the goals with their marks."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench.results import SUBJECT, Row, Value

SHORT_WIDTH = 200  # where the output is no terminal


def _number(value: float) -> str:
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.1 else f"{value:.4f}"


def _cell(row: Row, name: str) -> Text:
    value: Value | None = row.values.get(name)
    if value is not None:
        sign = "" if not value.bound else (">" if row.lower_is_better else "<")
        return Text(sign + _number(value.best), style="bold" if name == SUBJECT else "")
    return Text("n/a", style="dim") if name in row.missing else Text("")


def _goal_text(row: Row) -> Text:
    verdicts = {v.goal: v for v in row.verdicts()}
    out = Text()
    for goal in row.goals:
        if out:
            out.append("\n")
        limit = "≤" if row.lower_is_better else "≥"
        target = f"{limit} {goal.factor:g}" + (f" x {goal.reference}" if goal.against else f" {row.unit}")
        verdict = verdicts.get(goal)
        if verdict is None:
            out.append(f"{target}: not measured", style="dim")
            continue
        prefix = ("≤" if row.lower_is_better else "≥") if verdict.at_least else ""
        style = "green" if verdict.met else "red"
        out.append(f"{target}: {prefix}{_number(verdict.ratio)} {'met' if verdict.met else 'MISSED'}", style=style)
        if len(goal.against) > 1:
            out.append(f" ({verdict.reference})", style="dim")
    return out


def show(rows: Iterable[Row], names: list[str], title: str, notes: Iterable[str]) -> None:
    rows = list(rows)
    console = Console(width=None if Console().is_terminal else SHORT_WIDTH)
    table = Table(title=title, show_lines=True)
    table.add_column("measurement")
    table.add_column("unit")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"goals of {SUBJECT}")
    for row in rows:
        table.add_row(row.title, row.unit, *(_cell(row, name) for name in names), _goal_text(row))
    console.print(table)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row.missing.items():
            reasons.setdefault((name, reason), []).append(row.key)
    for (name, reason), keys in reasons.items():
        console.print(f"n/a {name} ({', '.join(keys)}): {reason}", markup=False, highlight=False)
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)
