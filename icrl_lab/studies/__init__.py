"""Studies: arms x controls x conditions x seeds on one task, into one tidy table and a manifest.

    spec.py        a study file as a frozen value; sections.py, its parts; checks.py, what a value may be; making.py, what must fit
                   together; toml.py, where it stands
    plan_checks.py whether a task can have a plan
    cells.py       the grid: which cells, in which order
    choice.py      which items a cell shows and asks about, with which labels
    fitting.py     its slot maps, fitted and applied
    material.py    its prompts, of both
    run.py         the loop: compute, keep, resume
    loading.py     the study of a study file: task, vectors and model
    comparison.py  the simple predictors on the same shots
    manifest.py    what was run, of what, on what
    shown.py       what its prompts look like, with the model or as the run kept them
    result.py      what a study found: tables, and doors to figures
    folder.py      the run folder on disk; journal.py, how a finished cell is kept

The names load on first use: a report is read and a study file checked without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icrl_lab.studies.loading import load
    from icrl_lab.studies.result import StudyResult, open_run
    from icrl_lab.studies.run import Study
    from icrl_lab.studies.sections import Arm
    from icrl_lab.studies.spec import StudySpec

_HOME = {
    "Arm": "sections",
    "Study": "run",
    "StudyResult": "result",
    "StudySpec": "spec",
    "load": "loading",
    "open_run": "result",
}

__all__ = ["Arm", "Study", "StudyResult", "StudySpec", "load", "open_run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'icrl_lab.studies' has no attribute {name!r}")
    return getattr(import_module(f"icrl_lab.studies.{_HOME[name]}"), name)
