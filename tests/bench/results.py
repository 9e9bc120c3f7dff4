"""What was measured, and whether it meets its goals. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PEERS = ("rclone", "s3fs", "juicefs")
SUBJECT = "luxfuse"


@dataclass(frozen=True)
class Goal:
    """luxfuse's figure against the best of ``against``, or (empty) against ``factor`` itself, in the row's unit.

    Of several references those count that were measured: not every peer is installed, nor can do everything.
    """

    factor: float
    against: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return "best peer" if self.against == PEERS else " or ".join(self.against)


@dataclass(frozen=True)
class Value:
    """A figure; ``bound`` means that the trial was cut off, so the truth is worse than this."""

    best: float
    trials: tuple[float, ...] = ()
    bound: bool = False


@dataclass(frozen=True)
class Verdict:
    goal: Goal
    ratio: float
    met: bool
    at_least: bool  # the reference was cut off: the true ratio is better still
    reference: str = ""  # the system that was compared with


@dataclass
class Row:
    """One line of the table; higher figures are better unless ``lower_is_better``."""

    key: str
    title: str
    unit: str
    goals: tuple[Goal, ...] = ()
    lower_is_better: bool = False
    values: dict[str, Value] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def best(self, trials: list[float]) -> float:
        return min(trials) if self.lower_is_better else max(trials)

    def verdicts(self) -> list[Verdict]:
        """One for each goal that has something to compare with."""
        mine = self.values.get(SUBJECT)
        if mine is None:
            return []
        out = []
        for goal in self.goals:
            known = {name: self.values[name] for name in goal.against if name in self.values}
            if goal.against and not known:
                continue
            ratio, bound, reference = mine.best, False, ""
            if known:
                best = self.best([v.best for v in known.values()])
                reference = next(name for name, v in known.items() if v.best == best)
                ratio, bound = mine.best / best, known[reference].bound
            met = (ratio <= goal.factor if self.lower_is_better else ratio >= goal.factor) and not mine.bound
            out.append(Verdict(goal, ratio, met, bound, reference))
        return out

    def as_json(self) -> dict[str, Any]:
        return {
            "key": self.key, "title": self.title, "unit": self.unit, "lower_is_better": self.lower_is_better,
            "values": {n: {"best": v.best, "trials": list(v.trials), "bound": v.bound} for n, v in self.values.items()},
            "missing": dict(self.missing),
            "goals": [{"factor": g.factor, "against": list(g.against)} for g in self.goals],
            "verdicts": [
                {"factor": v.goal.factor, "against": list(v.goal.against), "ratio": v.ratio, "met": v.met,
                 "at_least": v.at_least, "reference": v.reference} for v in self.verdicts()
            ],
        }  # fmt: skip
