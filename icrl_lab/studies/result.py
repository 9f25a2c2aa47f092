"""What a study found: one tidy table, the tables made of it, and doors to figures and to disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icrl_lab import stats
from icrl_lab.errors import DataError, StudyError, nearest

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from icrl_lab.studies.run import Study
    from icrl_lab.studies.shown import Shown
    from icrl_lab.values import Reading, SlotMap

SHARED, TOLD = ("labels", "shots", "selection"), ("with_text", "order")  # what two sides of a comparison have in common
NOT_OF_BASELINES = ("p", "p_holm", "verdict", "efficiency", "copy_rate", "note", "failures", "failure_rate")


@dataclass(eq=False)
class StudyResult:
    """The predictions of a study and what follows from them.

    predictions  one row a prediction, the columns of predictions.parquet
    manifest     what was run, of what, on what
    items        one row an item: id, text, target or label, role
    maps         fitted slot maps by name (of a run that was opened: read from its folder when asked)
    study        what was run, with its model; None for a run that was opened: its probes are those that were saved
    record       the folder of a run that was opened
    """

    predictions: pd.DataFrame
    baseline_predictions: pd.DataFrame | None
    manifest: Mapping[str, Any]
    items: pd.DataFrame
    maps: Mapping[str, SlotMap] = field(default_factory=dict)
    path: Path | None = None
    study: Study | None = field(default=None, repr=False)
    record: Any = field(default=None, repr=False)
    _tables: dict[str, tuple[tuple[Any, Any], pd.DataFrame]] = field(default_factory=dict, init=False, repr=False)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the predictions."""
        return self.predictions.copy()

    def summary(self) -> pd.DataFrame:
        """One row a cell: metrics with 95 % intervals over seeds and items, the difference to noise, the verdict."""
        if self.record is not None and self.predictions is self.record.predictions:
            return self.record.summary.copy()
        return self._table("summary", lambda: stats.summarise(self.predictions, self.baseline_predictions))

    def baselines(self) -> pd.DataFrame:
        """One row a simple predictor, on the same shots, labels and queries, with the same intervals."""
        if self.baseline_predictions is None:
            return self.record.baselines.copy()
        simple = self.baseline_predictions

        def make() -> pd.DataFrame:
            table = stats.summarise(simple.rename(columns={"baseline": "arm"}))
            keep = [c for c in table if c not in NOT_OF_BASELINES and not str(c).startswith("delta_")]
            return table[keep].rename(columns={"arm": "baseline"})

        return self._table("baselines", make)

    def _table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A copy of a table, which is made once for the predictions that stand here now."""
        of = (self.predictions, self.baseline_predictions)
        if name not in self._tables or any(a is not b for a, b in zip(of, self._tables[name][0])):
            self._tables[name] = (of, make())
        return self._tables[name][1].copy()

    def compare(
        self,
        arm: str,
        other: str | None = None,
        *,
        baseline: str | None = None,
        control: str = "real",
        other_control: str | None = None,
    ) -> pd.DataFrame:
        """What one arm has over another, over itself under another control, or over a simple predictor: paired on seeds and queries.

        other          None: the same arm; `baseline` in its place: "mean", "knn", "ridge", ... on the same shots
        other_control  None: as `control`
        One row a condition and metric, with the columns of `stats.differences`: `p` is that of one comparison, not corrected for
        others. Labels, shots and their selection are the same on both sides; so are text and order, where the other side has them
        (`other_with_text` says whether its prompts held the text).
        A DataError for what the run has not, a StudyError for a comparison of something with itself.
        """
        import pandas as pd

        mine = self._rows(self.predictions, "arm", arm).query("control == @control")
        if other is None and baseline is None and other_control in (None, control) and len(mine):
            raise StudyError(
                f"{arm!r} under {control!r} would be compared with itself; name another arm, baseline=... or other_control=..."
            )
        if baseline is not None:
            if other is not None or other_control is not None:
                raise DataError(
                    "a baseline stands in the place of the other arm and has no control; give one of the two"
                )
            if self.baseline_predictions is None:
                raise DataError("a run that was opened holds no predictions of its baselines; compare where it was run")
            theirs = self._rows(self.baseline_predictions, "baseline", baseline)
            theirs = theirs.assign(gold_labels=theirs["shots"])
        else:
            theirs = self._rows(self.predictions, "arm", arm if other is None else other)
            theirs = theirs[theirs["control"] == (other_control or control)]
        found = []
        for condition, rows in mine.groupby([*SHARED, *TOLD]):
            here = dict(zip((*SHARED, *TOLD), condition))
            there = theirs
            for name, value in here.items():
                same = there[there[name] == value] if name in there else there
                there = same if name in SHARED or len(same) else there
            if len(there):
                text = {"other_with_text": bool(there["with_text"].iloc[0])} if "with_text" in there else {}
                found.append(stats.differences(rows, there).assign(**here, **text))
        if not found:
            raise DataError(f"no prediction of {arm!r} under {control!r} has its like on the other side; see summary()")
        table = pd.concat(found, ignore_index=True)
        first = [c for c in (*SHARED, *TOLD, "other_with_text") if c in table]
        return table[[*first, *(c for c in table if c not in first)]]

    @staticmethod
    def _rows(frame: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
        if name not in set(frame[column]):
            raise DataError(f"the run has no {column} {name!r}; {nearest(name, frame[column].unique())}")
        return frame[frame[column] == name]

    def paper_mode(self) -> pd.DataFrame:
        """The best 3 of 10 seeds by test score, as the paper reports, beside the honest figures; optimistic, and labelled so."""
        return stats.paper_mode(self.predictions)

    def plot(self, metric: str | None = None) -> go.Figure:
        """Arms and controls with their intervals and the baselines; of several conditions, the first.

        `plots.study.conditions(result.summary())` gives the others.
        """
        from icrl_lab.plots import study

        label, table = next(iter(study.conditions(self.summary())))
        return study.arms(table, self.baselines(), metric, units=self.manifest["task"]["units"], title=label)

    def parity(self, arm: str, control: str = "real", **condition: Any) -> go.Figure:
        """Predicted against measured for one arm in one condition, of classes their confusion; the title names it where the arm has several.

        condition  values of with_text, labels, shots, selection, order; without any, the first with true labels
        """
        from icrl_lab.plots import study

        if unknown := [name for name in condition if name not in (*SHARED, *TOLD)]:
            raise DataError(f"a prediction has no condition {unknown[0]!r}; {nearest(unknown[0], (*SHARED, *TOLD))}")
        rows = self._rows(self.predictions, "arm", arm).query("control == @control")
        if not len(rows):
            known = self.predictions.query("arm == @arm")["control"].unique()
            raise DataError(f"no predictions of arm {arm!r} under {control!r}; {nearest(control, known)}")
        parts = sorted(study.conditions(rows), key=lambda part: part[1]["labels"].iloc[0] != "true")
        found = [(w, part) for w, part in parts if all(part[c].iloc[0] == v for c, v in condition.items())]
        if not found:
            has = "; ".join(words for words, _ in parts if words) or "one condition only"
            asked = ", ".join(f"{name}={value!r}" for name, value in condition.items())
            raise DataError(f"no predictions of arm {arm!r} under {control!r} are of {asked}; there are: {has}")
        (words, rows), about = found[0], self.manifest["task"]
        title = ", ".join(filter(None, [arm, control, words]))
        if rows["target"].dtype.kind not in "fi":
            return study.confusion(rows, title=title)
        return study.parity(rows, about["units"], about["property"], title=title)

    # doors to the probes; see icrl_lab.probes

    def probe(self, question: str, **options: Any) -> Reading:
        """The reading of a question (see `icrl_lab.probes.QUESTIONS`): computed now, or the one saved with an opened run.

        A run that was opened has no model: a question that it was not asked is a DataError, and so are options.
        """
        from icrl_lab.probes import probe

        if self.study is not None:
            return probe(question, self.study, **options)
        if options.get("arm") is not None:
            self._rows(self.predictions, "arm", options["arm"])  # a misspelt one is said first
        found = self.readings()
        if question not in found or options:
            has = ", ".join(found) or "none"
            raise DataError(
                f"this run was opened without a model and cannot be asked for {question!r}{' with options' if options else ''}: "
                f"saved readings: {has}; add [probes] to the study file and run it with --resume"
            )
        return found[question]

    def readings(self) -> dict[str, Reading]:
        """The readings saved beside the run, by question; none where the run has no folder."""
        from icrl_lab.probes.running import saved

        return saved(self.path) if self.path is not None else {}

    def prompts(self) -> Shown | None:
        """Where the run's prompts are looked up: all of a study with its model, those that were kept of an opened run; None
        for a run that kept none."""
        from icrl_lab.studies.shown import Kept, Live

        if self.study is not None:
            return Live(self.study)
        found = self.record.load_prompts() if self.record is not None else None
        return None if found is None else Kept(found)

    def widget(self) -> Any:
        """The dashboard of this run."""
        from icrl_lab.widgets.dashboard import Dashboard

        return Dashboard(self)

    def geometry(self, **options: Any) -> Reading:
        """What becomes of the encoder's geometry on the way to the last layer."""
        return self.probe("geometry", **options)

    def lens(self, **options: Any) -> Reading:
        """What a state would say if the model ended there; linear probes for the label."""
        return self.probe("lens", **options)

    def attention(self, **options: Any) -> Reading:
        """How much the answer and the query attend to each shot's vector, text and label."""
        return self.probe("attention", **options)

    def patching(self, **options: Any) -> Reading:
        """Which states carry the answer: restored one by one in a corrupted run."""
        return self.probe("patching", **options)

    def attribution(self, **options: Any) -> Reading:
        """Which shots an answer rests on, by captum, checked against leaving them out."""
        return self.probe("attribution", **options)

    def order(self, **options: Any) -> Reading:
        """Whether it matters where a shot stands."""
        return self.probe("order", **options)

    def similarity(self, **options: Any) -> Reading:
        """Whether it matters which shots, beside noise and same-shot predictors."""
        return self.probe("similarity", **options)

    def pause(self, **options: Any) -> Reading:
        """Whether the vector is read, or only a place to pause."""
        return self.probe("pause", **options)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a run folder with its report, as `icrl-lab run` does; the folder must be new or empty."""
        from icrl_lab import report
        from icrl_lab.probes.running import FOLDER
        from icrl_lab.studies.folder import RunFolder
        from icrl_lab.studies.place import disk_trouble

        readings = self.readings()
        with RunFolder.open_for_writing(path, self.manifest) as folder:
            for key, rows in self._by_cell():
                folder.put(key, rows)
            known = self.summary(), self.baselines(), self.maps, self.items, self._kept()
            folder.finish({}, *known, predictions=self.predictions)
            with disk_trouble(folder.path):
                for question, reading in readings.items():
                    reading.save(folder.path / FOLDER / f"{question}.nc")
        return report.write(path).parent

    def _by_cell(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The predictions of each cell under its key, as a run keeps them: what was saved can be resumed."""
        from icrl_lab.studies.cells import cells
        from icrl_lab.studies.spec import plan_of

        axes = ["arm", "control", *SHARED, *TOLD, "seed"]
        found = dict(list(self.predictions.groupby(axes, sort=False)))
        for cell in cells(plan_of(self.manifest["study"]["study"])):
            at = (cell.arm.label, *(getattr(cell, axis) for axis in axes[1:]))
            if at in found:
                yield cell.key, found[at]

    def _kept(self) -> Mapping[str, Any] | None:
        from icrl_lab.studies.shown import kept

        if self.study is not None:
            return kept(self.study).data
        return self.record.load_prompts() if self.record is not None else None

    def __repr__(self) -> str:
        arms = ", ".join(map(str, self.predictions["arm"].unique()))
        return f"StudyResult({self.manifest['task']['name']!r}, {len(self.predictions)} predictions; arms: {arms})"

    def _repr_html_(self) -> str:
        from icrl_lab import tables

        return tables.html(self.summary(), self.baselines(), units=self.manifest["task"]["units"])


def counted(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions as every metric counts them: one that failed is its `reference`, the mean (of classes the majority) of its shots;
    the column `failed` says which did."""
    import pandas as pd

    given, number = predictions["prediction"], predictions["target"].dtype.kind in "fi"
    given = pd.to_numeric(given, errors="coerce") if number else given.astype(object)
    failed = given.isna() | (predictions["status"] != "ok" if "status" in predictions else False)
    shots = predictions["reference"] if "reference" in predictions else pd.Series(None, predictions.index, given.dtype)
    return predictions.assign(prediction=given.mask(failed, shots), failed=failed)


def open_run(path: str | os.PathLike, *, live: bool = False, progress: bool | None = None) -> StudyResult:
    """A finished run from its folder. DataError names what is missing or damaged.

    live      also load its data, vectors and model, so that it can be asked more; a DataError where they are not what they were
    progress  bars while they are loaded; None shows them in a terminal
    """
    from icrl_lab.studies.folder import RunFolder

    record = RunFolder.read(path)
    maps = _Lazy(record)
    study = _again(record.manifest, progress) if live else None
    return StudyResult(record.predictions, None, record.manifest, record.items, maps, record.path, study, record=record)


def _again(told: Mapping[str, Any], progress: bool | None) -> Study:
    """The study that a manifest tells of, loaded as its study file would."""
    from icrl_lab.studies.loading import load
    from icrl_lab.studies.manifest import manifest
    from icrl_lab.studies.spec import StudySpec

    if "task" not in told["study"]:
        raise DataError(
            "this run was started in Python, and its folder does not say how its data and model are loaded; "
            "open it without live, or keep its study in a study file"
        )
    study = load(StudySpec.from_dict(told["study"]), progress=progress)
    now = manifest(study, 0.0)["inputs"]
    other = [name for name, value in told["inputs"].items() if now.get(name) != value]
    if other:
        raise DataError(
            f"what was loaded is not what this run saw: its {', '.join(other)} differ; open it without live"
        )
    return study


class _Lazy(Mapping):
    """Saved maps, each read when it is asked for."""

    def __init__(self, record: Any) -> None:
        self.record = record

    def __getitem__(self, name: str) -> SlotMap:
        if name not in self.record.maps:
            raise KeyError(name)
        return self.record.load_map(name)

    def __iter__(self):
        return iter(self.record.maps)

    def __len__(self) -> int:
        return len(self.record.maps)
