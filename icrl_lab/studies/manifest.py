"""What was asked for, of what, on what: the manifest of a run, and its table of items."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

import icrl_lab
from icrl_lab.studies.spec import StudySpec

if TYPE_CHECKING:
    import pandas as pd

    from icrl_lab.studies.run import Study

PACKAGES = ("numpy", "pandas", "torch", "transformers", "scikit-learn")


def manifest(study: Study, start: float) -> dict[str, Any]:
    """The manifest at the start of a run. A run may be resumed when "study" and "inputs" are the same."""
    task, llm, vectors = study.task, study.llm, study.vectors
    truth = task.targets if task.targets is not None else task.labels or ()
    shown = [task.name, task.property, task.units, task.modality, *task.options]  # what prompts say besides
    split = [",".join(map(str, rows.tolist())) for rows in (task.pool, study.material.queries)]
    asked = study.spec.to_dict() if study.spec is not None else {"study": StudySpec.plan_dict(study.plan)}
    kinds = study.material.kinds
    slots = [kind.slots for kind in kinds] if any(kind.once() is not kind for kind in kinds) else []
    probes = asked.pop("probes", {})  # more may be asked of a study that has run: they are not what it is
    return {
        "study": asked,
        **({"probes": probes} if probes else {}),
        "inputs": {
            "task": _hash([*shown, *task.ids, *map(str, truth), *(task.text or ())]),
            "split": _hash(split),
            "vectors": hashlib.sha256(np.ascontiguousarray(vectors.values).tobytes()).hexdigest(),
            **({"slots": slots} if slots else {}),
            "encoder": vectors.space,
            "model": llm.space,
            "dtype": llm.dtype,
        },
        "task": {
            **{key: getattr(task, key) for key in ("name", "kind", "property", "units", "modality", "source", "split")},
            "pool": len(task.pool),
            "queries": len(study.material.queries),
            "dropped": [asdict(row) for row in task.dropped],
        },
        "model": {
            **{key: getattr(llm, key) for key in ("name", "device", "dtype", "threads")},
            "proof": dict(llm.proof),
            "measured": dict(llm.measured),
        },
        "versions": {
            "icrl_lab": icrl_lab.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "seeds": list(study.plan.seeds),
        "start": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(start)),
    }


def ended(study: Study, start: float, before: float = 0.0) -> dict[str, Any]:
    """What the run took, added to the manifest at its end; tokens of the last process alone, where a run was resumed.

    before  seconds of the cells that earlier processes had finished
    """
    tokens = {"computed": study.engine.computed, "asked": study.engine.asked}
    return {"seconds": round(time.time() - start + before, 2), "tokens": tokens, "cells": len(study.cells())}


def items_table(study: Study) -> pd.DataFrame:
    """One row an item: id, text, its target or label, and its role in the study ("pool", "query" or "")."""
    import pandas as pd

    task = study.task
    role = np.full(len(task), "", dtype=object)
    role[task.pool], role[study.material.queries] = "pool", "query"
    text = list(task.text) if task.text is not None else [""] * len(task)
    shown = {"target": task.targets} if task.targets is not None else {"label": list(task.labels or ())}
    return pd.DataFrame({"id": list(task.ids), "text": text, **shown, "role": role})


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
