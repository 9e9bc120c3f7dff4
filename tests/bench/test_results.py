"""Which goals count as met, and what is left of a run that was interrupted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.bench.processes import Failed, TooSlow
from tests.bench.results import PEERS, Goal, Row, Value
from tests.bench.table import show
from tests.bench.trials import SIZES, Trials


def row(*goals: Goal, lower: bool = False, **values: float | Value) -> Row:
    known = {k: v if isinstance(v, Value) else Value(v) for k, v in values.items()}
    return Row("key", "title", "unit", goals, lower, known)


@pytest.mark.parametrize(("mine", "met"), [(20.0, True), (19.9, False)])
def test_higher_is_better_against_the_better_of_two(mine: float, met: bool) -> None:
    (verdict,) = row(Goal(2, ("rclone", "s3fs")), luxfuse=mine, rclone=10.0, s3fs=3.0).verdicts()
    assert verdict.met is met
    assert verdict.reference == "rclone"
    assert verdict.ratio == pytest.approx(mine / 10)


@pytest.mark.parametrize(("mine", "met"), [(1.5, True), (1.6, False)])
def test_lower_is_better(mine: float, met: bool) -> None:
    (verdict,) = row(Goal(1.5, ("raw",)), lower=True, luxfuse=mine, raw=1.0).verdicts()
    assert verdict.met is met


def test_goal_without_reference_is_absolute() -> None:
    (verdict,) = row(Goal(300), lower=True, luxfuse=250.0).verdicts()
    assert verdict.met
    assert verdict.ratio == 250.0


def test_nothing_is_met_without_a_figure_or_with_a_cut_off_one() -> None:
    assert row(Goal(2, ("rclone",)), rclone=1.0).verdicts() == []
    assert row(Goal(2, ("rclone", "s3fs")), luxfuse=9.0).verdicts() == []
    (verdict,) = row(Goal(1.0), lower=True, luxfuse=Value(0.5, bound=True)).verdicts()
    assert not verdict.met


@pytest.mark.parametrize(("rclone", "juicefs"), [(5.0, 4.0), (4.0, 5.0)])
def test_of_the_peers_those_count_that_were_measured(rclone: float, juicefs: float) -> None:
    (verdict,) = row(Goal(2, PEERS), luxfuse=9.0, rclone=rclone, juicefs=juicefs).verdicts()
    assert not verdict.met
    assert verdict.reference == ("rclone" if rclone > juicefs else "juicefs")


def test_cut_off_reference_makes_the_ratio_a_bound() -> None:
    (verdict,) = row(Goal(2, ("rclone",)), luxfuse=9.0, rclone=Value(1.0, bound=True)).verdicts()
    assert verdict.met
    assert verdict.at_least


def test_the_table_says_why_something_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    it = row(Goal(2, ("rclone",)), rclone=1234.5)
    it.missing["luxfuse"] = "not there"
    show([it], ["rclone", "luxfuse"], "title", ["a note"])
    out = capsys.readouterr().out
    assert "1,234" in out
    assert "not measured" in out
    assert "n/a luxfuse (key): not there" in out


def trials_of(it: Row, *systems: str) -> tuple[Trials, list[Any]]:
    found = [SimpleNamespace(name=name, unusable=None) for name in systems]
    rows, nowhere = {it.key: it}, cast("Any", None)
    return Trials(nowhere, cast("Any", found), SIZES["full"], rows, lambda _text: None, Path()), found


def test_what_was_measured_before_an_interruption_is_shown() -> None:
    it = row()
    trials, systems = trials_of(it, "native", "luxfuse")

    def measure(system: Any) -> dict[str, float]:
        if system.name == "luxfuse":
            raise KeyboardInterrupt
        return {"key": 7.0}

    with pytest.raises(KeyboardInterrupt):
        trials._trials(["key"], systems, measure)
    assert it.values == {"native": Value(7.0, (7.0,))}


@pytest.mark.parametrize("error", [Failed("no"), TooSlow(60)])
def test_a_trial_that_fails_takes_no_earlier_figure_away(error: Failed) -> None:
    it, figures = row(), iter([5.0, 7.0])
    trials, systems = trials_of(it, "native")

    def measure(_system: Any) -> dict[str, float]:
        for figure in figures:
            return {"key": figure}
        raise error

    trials._trials(["key"], systems, measure)
    assert it.values == {"native": Value(7.0, (5.0, 7.0))}
    assert not it.missing
