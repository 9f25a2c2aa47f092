"""From predictions to the table a study reports: one row a cell, nothing dropped, nothing selected.

A cell is one arm under one control in one setting; its predictions form a table of seeds by items. A failed prediction
counts as its row's `reference` (the mean of its shots' labels, or their majority class) and is counted beside. Where a
run is unfinished, the largest table of seeds and items that is complete is read, and the note says what was left out.
pandas is imported inside the functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.stats import metrics, verdicts
from icrl_lab.stats.intervals import FEWEST, NOTHING_KNOWN, Interval, fill, interval, over_seeds, paired

if TYPE_CHECKING:
    from pandas import DataFrame

CELL = ("task", "encoder", "llm", "arm", "control", "with_text", "labels", "shots", "selection", "order", "draws")
SAME_SHOTS = ("task", "encoder", "shots", "selection", "labels")
FAMILY = ("task", "labels")  # verdicts that Holm's correction takes together


@dataclass(frozen=True, eq=False)
class Cell:
    """Predictions of one cell: pred, failed, there, copied (S, N); target (N,); reference (S, N) or None; seeds and items by name.

    The reference is what the shots alone say: one value a seed, unless each query has shots of its own.
    """

    pred: np.ndarray
    there: np.ndarray
    failed: np.ndarray
    copied: np.ndarray
    target: np.ndarray
    reference: np.ndarray | None
    seeds: tuple
    items: tuple

    def take(self, rows: np.ndarray, columns: np.ndarray) -> Cell:
        grid = np.ix_(rows, columns)
        reference = None if self.reference is None else self.reference[grid]
        seeds, items = tuple(self.seeds[r] for r in rows), tuple(self.items[c] for c in columns)
        parts = (self.pred[grid], self.there[grid], self.failed[grid], self.copied[grid], self.target[columns])
        return Cell(*parts, reference, seeds, items)


def cell(frame: DataFrame) -> Cell:
    """The table of seeds by items in rows of one cell. The same seed and item twice is a DataError."""
    import pandas as pd

    twice = frame.duplicated(["seed", "item"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise DataError(
            f"seed {row['seed']} has two predictions for item {row['item']!r} in one cell; a cell holds each once"
        )
    s, seeds = pd.factorize(frame["seed"], sort=True)
    i, items = pd.factorize(frame["item"])
    words = isinstance(frame["target"].iloc[0], str)
    shape = (len(seeds), len(items))
    there, failed, copied = np.zeros(shape, bool), np.ones(shape, bool), np.zeros(shape, bool)
    pred = np.full(shape, np.nan, object if words else float)
    target = np.empty(len(items), object if words else float)
    there[s, i] = True
    failed[s, i] = (frame["prediction"].isna() | (frame["status"] != "ok")).to_numpy()
    if "copied" in frame:
        copied[s, i] = frame["copied"].fillna(False).astype(bool).to_numpy()
    pred[s, i] = (
        frame["prediction"].to_numpy() if words else pd.to_numeric(frame["prediction"], errors="coerce").to_numpy(float)
    )
    failed |= pd.isna(pred) & there
    pred[failed] = None if words else np.nan
    target[i] = frame["target"].to_numpy()
    reference = None
    if "reference" in frame and frame["reference"].notna().all():
        reference = np.full(shape, np.nan, object if words else float)
        reference[s, i] = frame["reference"].to_numpy()
    if failed[there].any() and reference is None:
        raise DataError(
            "a prediction failed and the table has no `reference` for it (the mean of its shots) to count it as"
        )
    return Cell(pred, there, failed, copied, target, reference, tuple(seeds), tuple(items))


def rectangle(there: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Rows and columns of the largest complete table in `there` (S, N) that the seeds with most items make, and whether it holds
    at least half of what is there. Where it does not, each seed has items of its own and they do not cross."""
    order = np.argsort(-there.sum(1), kind="stable")
    sizes = [(k + 1) * int(there[order[: k + 1]].all(0).sum()) for k in range(len(order))]
    best = len(sizes) - 1 - int(np.argmax(sizes[::-1]))
    rows = np.sort(order[: best + 1])
    return rows, np.flatnonzero(there[rows].all(0)), max(sizes) * 2 >= int(there.sum())


def _left_out(one: Cell, rows: np.ndarray, columns: np.ndarray) -> list[str]:
    rest = int(one.there.sum()) - len(rows) * len(columns)
    if not rest:
        return []
    return [
        f"unfinished: {rest} predictions outside the complete table of {len(rows)} seeds x {len(columns)} items are left out"
    ]


def _each_seed(one: Cell, name: str) -> np.ndarray:
    """The metric of each seed on the items it has, failures filled in."""
    pred = fill(np.where(one.there, one.pred, one.target), one.reference)  # absent cells are never read below
    target = one.target.astype(str) if pred.dtype.kind in "US" else one.target
    refs = np.zeros(pred.shape) if one.reference is None else one.reference
    values = metrics.metric(name).values
    return np.array([values(p[t], target[t], r[t]) for p, t, r in zip(pred, one.there, refs)], float)


def _names(one: Cell) -> tuple[str, ...]:
    names = metrics.REGRESSION if one.target.dtype.kind == "f" else metrics.CLASSIFICATION
    return tuple(m for m in names if m != "r2" or one.reference is not None)


def read(one: Cell) -> dict[str, Any]:
    """Everything one cell says of itself: counts, metrics with intervals, spread ratio, copy rate, notes."""
    rows, columns, crossed = rectangle(one.there)
    notes = (
        _left_out(one, rows, columns) if crossed else ["each seed has items of its own: the interval is between seeds"]
    )
    part = one.take(rows, columns) if crossed else one
    n, failures = int(part.there.sum()), int((part.failed & part.there).sum())
    out: dict[str, Any] = {"n": n, "seeds": len(part.seeds), "failures": failures, "failure_rate": failures / n}
    for name in _names(part):
        if crossed:
            value = interval(part.pred, part.target, name, part.reference)
        else:
            value = over_seeds(_each_seed(part, name), name)
        out |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
    if crossed and part.target.dtype.kind == "f":
        filled = fill(part.pred, part.reference)
        out["spread_ratio"] = metrics.spread_ratio(filled, part.target)
        flat = int((np.ptp(filled, axis=1) == 0).sum())
        if flat:
            notes.append(
                f"constant predictions in {flat} of {len(part.seeds)} seeds: their correlation is undefined and counts as 0"
            )
    out["copy_rate"] = float(part.copied[part.there].mean())
    if crossed and len(columns) < FEWEST["fisher"] and part.target.dtype.kind == "f":
        notes.append(f"{len(columns)} items: too few for the interval of a correlation")
    if len(part.seeds) == 1:
        notes.append("one seed: the interval is over items only and says nothing about other shots, maps or orders")
    return out | {"note": "; ".join(notes)}


def against(one: Cell, noise: Cell, name: str) -> Interval:
    """The paired difference, cell minus noise control, on the seeds and items that both have."""
    seeds = [s for s in one.seeds if s in noise.seeds]
    items = [i for i in one.items if i in set(noise.items)]
    if not seeds or not items:
        return NOTHING_KNOWN
    a, b = (
        c.take(np.array([c.seeds.index(s) for s in seeds]), np.array([where[i] for i in items]))
        for c in (one, noise)
        for where in [{item: k for k, item in enumerate(c.items)}]
    )
    there = a.there & b.there
    rows, columns, crossed = rectangle(there)
    if crossed:
        a, b = a.take(rows, columns), b.take(rows, columns)
        value = paired(a.pred, b.pred, a.target, name, a.reference)
    else:
        rows = np.flatnonzero(there.any(1))
        both = (Cell(c.pred, there, c.failed, c.copied, c.target, c.reference, c.seeds, c.items) for c in (a, b))
        left, right = (_each_seed(c.take(rows, np.arange(len(items))), name) for c in both)
        value = over_seeds(left - right)
    enough = len(rows) >= verdicts.MIN_SEEDS and there[rows].sum(1).min() >= verdicts.MIN_ITEMS
    return value if enough else replace(value, p=float("nan"))  # shown, but no test rests on it


def differences(one: DataFrame, other: DataFrame) -> DataFrame:
    """What the rows of one cell have over those of another, a row a metric: the metric on `one` and on `other`, each on all that it
    has, and the paired `difference` on the seeds and items that both have, with its 95 % interval and its p-value, which is NaN
    where they are too few to test and is not corrected for other comparisons. How many labels either side has seen stands first,
    where its rows say so."""
    import pandas as pd

    a, b = cell(one), cell(other)
    seen = _labels_seen(one) | {f"other_{key}": value for key, value in _labels_seen(other).items()}
    left, right = read(a), read(b)
    rows = []
    for name in _names(a):
        found = against(a, b, name)
        row = {**seen, "metric": name, "one": left[name], "other": right.get(name, np.nan)}
        rows.append(
            row
            | {"difference": found.estimate, "difference_low": found.low, "difference_high": found.high, "p": found.p}
        )
    return pd.DataFrame(rows)


def _cells(frame: DataFrame) -> tuple[list[str], dict[tuple, tuple[Cell, DataFrame]]]:
    """The columns that name a cell, and by their values each cell and its rows."""
    import pandas as pd

    missing = [c for c in ("arm", "seed", "item", "target", "prediction", "status") if c not in frame]
    if missing:
        raise DataError(f"the table of predictions has no column {missing[0]!r}")
    if not len(frame):
        raise DataError("the table of predictions is empty")
    keys = [c for c in CELL if c in frame]
    groups = frame.groupby(keys, dropna=False, sort=False)
    clean = lambda key: tuple("" if pd.isna(k) else k for k in key)  # noqa: E731  NaN is not equal to itself
    return keys, {clean(key): (cell(rows), rows) for key, rows in groups}


def more_labels(rows: DataFrame) -> DataFrame:
    """The rows, of predictions or of a summary, that saw other labels than those of their shots."""
    if not {"gold_labels", "shots"} <= set(rows):
        return rows.iloc[:0]
    return rows[rows["gold_labels"].notna() & (rows["gold_labels"] != rows["shots"])]


def _labels_seen(rows: DataFrame) -> dict[str, Any]:
    """How many labels a cell has seen, where its rows say so; the most of them where they differ."""
    return {"gold_labels": rows["gold_labels"].max()} if "gold_labels" in rows else {}


def _draws_left_out(rows: DataFrame) -> str:
    """A sentence on draws that failed in rows which have an answer all the same, of their other draws."""
    if not {"failed_draws", "draws"} <= set(rows):
        return ""
    mixed = rows[rows["status"] == "ok"]
    lost = int(mixed["failed_draws"].fillna(0).sum())
    return f"{lost} of {int(mixed['draws'].sum())} draws failed and are left out of their mixtures" if lost else ""


def _efficiency(key: dict[str, Any], row: dict[str, Any], baselines: DataFrame | None) -> float:
    """Skill over that of ridge on the same shots: Pearson's r for numbers; for classes accuracy above the majority class's
    over that of logistic regression."""
    if baselines is None:
        return float("nan")
    named = "baseline" if "baseline" in baselines else "arm"
    for column in SAME_SHOTS:
        if column in baselines and key.get(column, "") != "":
            baselines = baselines[baselines[column] == key[column]]

    def score(name: str, metric: str) -> float:
        rows = baselines[baselines[named] == name].drop_duplicates(["seed", "item"])
        return float(_each_seed(cell(rows), metric).mean()) if len(rows) else float("nan")

    if "pearson" in row:
        return metrics.efficiency(row["pearson"], score("ridge", "pearson"))
    floor = score("majority", "accuracy")
    return metrics.efficiency(row["accuracy"] - floor, score("logistic", "accuracy") - floor)


def summarise(predictions: DataFrame, baselines: DataFrame | None = None) -> DataFrame:
    """One row a cell: labels seen, counts, metrics with 95 % intervals, the paired difference to the noise control, the verdict.

    predictions  rows of predictions.parquet, with `reference` (the mean or the majority of the seed's shots) and, where
                 known, `copied` and `gold_labels`; target and prediction are floats for regression and strings for classification
    baselines    rows of the same columns, named in `baseline` (or `arm`), for the extraction efficiency
    The verdicts of real cells that share a task and a kind of labels are corrected together (Holm). Control cells get
    their differences too, and no verdict.
    """
    import pandas as pd

    keys, cells = _cells(predictions)
    at = keys.index("control") if "control" in keys else None
    rows = []
    for key, (one, own) in cells.items():
        named = dict(zip(keys, key))
        row = named | _labels_seen(own) | read(one)
        row["note"] = "; ".join(filter(None, [row["note"], _draws_left_out(own)]))
        row["efficiency"] = _efficiency(named, row, baselines)
        name = "pearson" if "pearson" in row else "accuracy"
        delta = NOTHING_KNOWN
        if at is not None and key[at] != "noise":
            noise = cells.get((*key[:at], "noise", *key[at + 1 :]))
            delta = against(one, noise[0], name) if noise else delta
        most = 2.0 if name == "pearson" else 1.0  # few seeds make an interval wider than any difference can be
        row |= {
            f"delta_{name}": delta.estimate,
            f"delta_{name}_low": max(delta.low, -most) if delta.low == delta.low else delta.low,
            f"delta_{name}_high": min(delta.high, most) if delta.high == delta.high else delta.high,
            "p": delta.p,
        }
        rows.append(row | {"_delta": delta.estimate})
    table = pd.DataFrame(rows)
    real = table["control"] == "real" if "control" in table else pd.Series(True, index=table.index)
    table["p_holm"] = np.nan
    family = [c for c in FAMILY if c in table]
    for _, group in table[real].groupby(family, dropna=False) if family else [((), table[real])]:
        table.loc[group.index, "p_holm"] = verdicts.holm(group["p"])
    table["verdict"] = [
        verdicts.verdict(d, p) if r else "control" for d, p, r in zip(table.pop("_delta"), table["p_holm"], real)
    ]
    last = ["note"]
    return table[[c for c in table.columns if c not in last] + last]


def paper_mode(predictions: DataFrame, best: int = 3, of: int = 10) -> DataFrame:
    """What the paper's protocol would report, beside the honest figure, for each cell and metric.

    The first `of` seeds are scored on the queries and the `best` of them by that very score are kept; `paper` is their mean
    and `paper_variance` what stands behind the paper's plus-minus. It is selected on the test score and therefore
    optimistic: 3 of 10 seeds that differ by luck alone gain about 1.06 standard deviations.
    """
    import pandas as pd

    keys, cells = _cells(predictions)
    rows = []
    for key, (one, own) in cells.items():
        for name in _names(one):
            every = _each_seed(one, name)
            scores = np.sort(every[:of])
            kept = scores[:best] if name in ("rmse", "mae") else scores[::-1][:best]
            label = f"best {len(kept)} of {len(scores)} seeds, selected on the test score"
            row = dict(zip(keys, key)) | {
                **_labels_seen(own),
                "metric": name,
                "paper": kept.mean(),
                "paper_variance": kept.var(ddof=1) if len(kept) > 1 else np.nan,
            }
            rows.append(row | {"selection_of_seeds": label, "honest": every.mean(), "seeds": len(every)})
    return pd.DataFrame(rows)
