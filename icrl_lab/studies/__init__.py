"""Studies: arms x controls x conditions x seeds on one task, into one tidy table and a manifest.

spec.py      a study file as a frozen value
cells.py     the grid: which cells, in which order
material.py  what goes into a cell: shots, labels, fitted maps, prompts
run.py       the loop: compute, keep, resume
result.py    what a study found: tables, and doors to figures
folder.py    the run folder on disk; journal.py, how a finished cell is kept
"""

from icrl_lab.studies.result import StudyResult, open_run
from icrl_lab.studies.run import Study, load
from icrl_lab.studies.spec import Arm, StudySpec

__all__ = ["Arm", "Study", "StudyResult", "StudySpec", "load", "open_run"]
