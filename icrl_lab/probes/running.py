"""The probes of a study file: each reading is kept the moment it is finished, and none is computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from icrl_lab.errors import DataError, IcrlError, ProbeRefused
from icrl_lab.probes import probe
from icrl_lab.values import Reading

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study
    from icrl_lab.studies.sections import ProbeSpec

FOLDER = "readings"


def run_all(study: Study, asked: ProbeSpec, folder: Path, progress: bool | None = None) -> dict[str, Reading]:
    """The readings that a study file asks for, saved under `folder`/readings; one that is there already is not made again.

    A question that is refused does not keep the others from being asked: a ProbeRefused names all such at the end.
    """
    from tqdm import tqdm

    found, refused = {}, []
    bar = tqdm(asked.questions, unit="probe", desc="probes", disable=None if progress is None else not progress)
    for question in bar:
        bar.set_postfix_str(question, refresh=True)
        path = folder / FOLDER / f"{question}.nc"
        options = asked.asked(question)
        told = {"study": study.plan.__repr__(), **{k: _json(v) for k, v in options.items()}}
        kept = _kept(path)
        if kept is None or dict(kept.about.get("asked", {})) != told:
            try:
                made = probe(question, study, **options)
            except IcrlError as error:  # the questions that come after it are asked all the same
                refused.append(f"{question}: {error}")
                continue
            except (TypeError, ValueError) as error:
                if not options:
                    raise
                given = ", ".join(f"{key} = {value!r}" for key, value in options.items())
                refused.append(f"{question}: it cannot be asked with {given}: {error}")
                continue
            kept = Reading(made.question, made.data, {**made.about, "asked": told})
            kept.save(path)
        found[question] = kept
    if refused:
        raise ProbeRefused(
            f"{len(refused)} of {len(asked.questions)} questions could not be asked; {'; '.join(refused)}"
        )
    return found


def saved(folder: Path) -> dict[str, Reading]:
    """The readings of a run folder, by question. A damaged one is a DataError."""
    return {path.stem: Reading.load(path) for path in sorted((folder / FOLDER).glob("*.nc"))}


def _kept(path: Path) -> Reading | None:
    try:
        return Reading.load(path)
    except DataError:
        return None


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
