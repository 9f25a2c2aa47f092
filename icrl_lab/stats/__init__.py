"""Statistics: what a study measured, how far it can be trusted, and what may be said.

The room owns metrics, intervals, tests and verdicts, and the simulations that show that the instrument reads right. It
knows nothing of models, prompts or chemistry: it sees predictions of seeds by items, targets, and what predicting the
mean of the shots would have given.

The estimand is the expected metric over new seeds (that is shots, map draws and orders) and new items of the task; see
`intervals` for how it is estimated and why so.

Reading order: metrics, intervals, verdicts, effects, table, words, simulate.
"""

from icrl_lab.stats.effects import Effects, adjusted, correlations, effects, sign_flip
from icrl_lab.stats.intervals import Interval, interval, paired
from icrl_lab.stats.metrics import METRICS, efficiency, spread_ratio
from icrl_lab.stats.simulate import power_table
from icrl_lab.stats.table import differences, more_labels, paper_mode, summarise
from icrl_lab.stats.verdicts import HARMED, NOTHING, UNTESTED, USES, holm, verdict

__all__ = [
    "HARMED",
    "METRICS",
    "NOTHING",
    "UNTESTED",
    "USES",
    "Effects",
    "Interval",
    "adjusted",
    "correlations",
    "differences",
    "effects",
    "efficiency",
    "holm",
    "interval",
    "more_labels",
    "paired",
    "paper_mode",
    "power_table",
    "sign_flip",
    "spread_ratio",
    "summarise",
    "verdict",
]
