"""Probes: what the model does with an injected vector, as numbers.

One file a question; each has a function of the question's name, (study, ...) -> Reading. A probe looks at the study's own
prompts (`scene`), asks the engine for what it needs before the pass (a capture, edits), and gives every number its control and
its interval. It draws nothing: `plots` has a figure under the same name.

    scene.py        one cell of a study laid out for looking inside
    arrays.py       the named arrays of a reading, and how a sentence quotes them
    attention.py    how much answer and query attend to what, per layer and head, against nulls
    geometry.py     what becomes of the encoder's geometry on the way to the last layer; distortion.py, in the slot map alone
    lens.py         what a state would say if the model ended there; linear probes
    patching.py     causal: states that are restored; changing.py, edges cut and vectors exchanged; each beside its placebo
    attribution.py  captum on vectors and text, checked against leaving shots out
    order.py        does it matter where a shot stands?
    similarity.py   does it matter which shots? beside noise and same-shot predictors
    pause.py        is the vector read, or only a place to pause?
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from icrl_lab.errors import StudyError, nearest
from icrl_lab.probes.arrays import xarray
from icrl_lab.probes.scene import unlike

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study
    from icrl_lab.values import Reading

QUESTIONS = ("attention", "geometry", "lens", "patching", "attribution", "order", "similarity", "pause")
FEW = 4  # seeds below which an interval over seeds, with one or two degrees of freedom, is hardly one


def probe(question: str, study: Study, **options: Any) -> Reading:
    """The reading of one of QUESTIONS for a study; `options` are those of the probe's function."""
    if question not in QUESTIONS:
        raise StudyError(f"there is no probe {question!r}; {nearest(question, QUESTIONS)}")
    xarray()  # what is missing is said before the model runs
    made = getattr(import_module(f"icrl_lab.probes.{question}"), question)(study, **options)
    more, seeds = [unlike(study)], len(made.about.get("seeds", ()))
    if 1 < seeds < FEW:
        more.append(f"With {seeds} seeds an interval over new seeds is very wide, and says little; take five.")
    limits = [*made.about.get("limits", ()), *filter(None, more)]
    return replace(made, about={**made.about, "limits": limits})
