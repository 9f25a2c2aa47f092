"""The grid of a study: which cells it has, in which order, and what each is called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from icrl_lab.studies.sections import Arm, PlanSpec


@dataclass(frozen=True)
class Cell:
    """One arm under one condition and one seed: the smallest piece of a study that is computed, kept and resumed."""

    arm: Arm
    control: str
    with_text: bool
    labels: str
    shots: int
    selection: str
    order: str
    seed: int

    @property
    def members(self) -> tuple[Cell, ...]:
        """The cells whose answers this one mixes, or itself."""
        return tuple(replace(self, arm=arm) for arm in self.arm.members)

    @property
    def key(self) -> str:
        """A string that is equal for equal cells and tells different ones apart, also of arms that share a name."""
        rest = [self.control, self.with_text, self.labels, self.shots, self.selection, self.order, self.seed]
        return json.dumps([self.arm.to_dict(), *rest], sort_keys=True)


def cells(plan: PlanSpec) -> Iterator[Cell]:
    """The cells of a plan, seeds outermost: a run that is stopped early has finished whole seeds of every arm.

    Text arms have no vector, so that no control but "real" applies to them; the arm "text" always shows the text.
    """
    conditions = list(product(plan.labels, plan.shots, plan.selection, plan.order))
    for seed in plan.seeds:
        for labels, shots, selection, order in conditions:
            for arm in plan.arms:
                views = (True,) if arm.name == "text" else plan.with_text
                for with_text, control in product(views, plan.controls if arm.has_slots else ("real",)):
                    yield Cell(arm, control, with_text, labels, shots, selection, order, seed)
