"""The simple predictors on the very shots, labels and queries that the arms saw."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from icrl_lab import baselines

if TYPE_CHECKING:
    import pandas as pd

    from icrl_lab.studies.run import Study


def baseline_predictions(study: Study, progress: bool | None = None) -> pd.DataFrame:
    """One row a baseline, seed and query, in the columns of predictions.parquet that apply; `baseline` names it.

    The order of the shots is nothing to a predictor, so that studies of the order have one set of baselines.
    """
    import pandas as pd
    from tqdm import tqdm

    material, task = study.material, study.task
    known = baselines.REGRESSORS if task.targets is not None else baselines.CLASSIFIERS
    values = material.vectors.values.reshape(len(task), -1)
    truth: Any = task.targets if task.targets is not None else task.labels
    cells = {(c.labels, c.shots, c.selection, c.seed): replace(c, order="given") for c in study.cells()}
    rows = []
    off = None if progress is None else not progress
    # shots of each query's own need a fit each: seconds, where shared ones take milliseconds
    bar = tqdm(cells.items(), desc="baselines", disable=off, delay=2, leave=False, dynamic_ncols=True)
    for (labels, shots, selection, seed), cell in bar:
        common = {"task": task.name, "encoder": material.vectors.space, "labels": labels, "shots": shots}
        common |= {"selection": selection, "seed": seed, "status": "ok"}
        for group in material.shots(cell, 0):
            x, y = values[group.positions], material.shown_targets(group, cell)
            asked, reference = list(group.queries), material.reference(group)
            for name in known:
                said = baselines.baseline(name, x, y, values[asked], seed=seed) if len(y) > 1 else [y[0]] * len(asked)
                for query, value in zip(asked, said):  # of a single shot, all of them say its label
                    about = {
                        "item": task.ids[query],
                        "target": truth[query],
                        "prediction": value,
                        "reference": reference,
                    }
                    rows.append({**common, "baseline": name, **about})
    return pd.DataFrame(rows)
