"""The loop of a study: cell by cell, kept the moment it is finished, then one table.

A study is a function of its task, vectors, model and plan. It can be interrupted at any moment and resumed: what was
finished is never computed again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab import answers, baselines
from icrl_lab.engine import Engine
from icrl_lab.studies.cells import Cell, cells
from icrl_lab.studies.material import Material, Shots
from icrl_lab.studies.spec import Arm, PlanSpec, StudySpec, plan_of
from icrl_lab.values import Rendered, Task, Vectors

if TYPE_CHECKING:
    import pandas as pd

    from icrl_lab.models import LLM
    from icrl_lab.studies.result import StudyResult

TEMPERATURE = 0.6  # of sampled decoding, as in the paper


class Study:
    """Arms x controls x with/without text x labels x shots x selection x order x seeds on one task.

    task, vectors, llm   what `load_task`, `encode` and `load_llm` give; the vectors cover the task's items
    plan                 any key of a study file's [study] section: arms, controls, shots, seeds, draws, ...

    Nothing is computed before `run`.
    """

    def __init__(self, task: Task, vectors: Vectors, llm: LLM, *, spec: StudySpec | None = None, **plan: Any) -> None:
        self.task, self.llm, self.spec = task, llm, spec
        self.plan: PlanSpec = spec.study if spec is not None and not plan else plan_of(plan)
        self.material = Material(task, vectors, llm, self.plan)
        self.vectors = self.material.vectors

    def cells(self) -> list[Cell]:
        """The study's cells, in the order in which they run."""
        return list(cells(self.plan))

    def __repr__(self) -> str:
        arms = ", ".join(a.label for a in self.plan.arms)
        return f"Study({self.task.name!r}, {self.vectors.space!r}, {self.llm.name!r}, {len(self.cells())} cells; arms: {arms})"

    def run(
        self, out: str | os.PathLike | None = None, *, resume: bool = False, progress: bool | None = None
    ) -> StudyResult:
        """Compute every cell and return the result.

        out       a run folder; each finished cell is kept there at once. None: nothing is written (`result.save`)
        resume    go on with the run that `out` holds
        progress  a bar with the time left; None shows it in a terminal
        """
        from icrl_lab.studies.folder import RunFolder

        start = time.time()
        if out is None:
            done = [(cell, self.compute(cell)) for cell in self._bar(self.cells(), progress)]
            return self._result([frame for _, frame in done], start)
        with RunFolder.open_for_writing(out, self.manifest(start), resume) as folder:
            finished = folder.finished()
            for cell in self._bar([c for c in self.cells() if c.key not in finished], progress):
                folder.put(cell.key, self.compute(cell))
            self.refit()
            result = self._result([folder.predictions()], start)
            result.path = folder.path
            folder.finish(self.ended(start), result.summary(), result.baselines(), result.maps, result.items)
        return result

    def compute(self, cell: Cell) -> pd.DataFrame:
        """The predictions of one cell, one row a query, in the columns of predictions.parquet."""
        start = time.perf_counter()
        by_query: dict[int, list[Any]] = {}
        lengths: dict[int, int] = {}
        for draw in range(cell.arm.draws):
            rendered, groups = self.material.rendered(cell, draw)
            order = [q for group in groups for q in group.queries]
            for query, answer in zip(order, self._answers(cell, rendered, len(order), draw)):
                by_query.setdefault(query, []).append(answer)
            size = self.plan.queries_per_prompt
            lengths |= {q: lengths.get(q, 0) + len(rendered[i // size]) for i, q in enumerate(order)}
            if draw == 0:
                shown = {q: group for group in groups for q in group.queries}
        seconds = (time.perf_counter() - start) / len(by_query)
        rows = [
            self._row(cell, query, answers.mix(found), shown[query], seconds, lengths[query])
            for query, found in by_query.items()
        ]
        return _frame(rows)

    # ------------------------------------------------------------------------------------ one cell

    @property
    def engine(self) -> Engine:
        """The engine that this study runs on, made at the first use."""
        if not hasattr(self, "_engine"):
            self._engine = Engine(self.llm)
            self._seen: dict[bytes, list[Any]] = {}
        return self._engine

    def _answers(self, cell: Cell, rendered: list[Rendered], queries: int, draw: int) -> list[Any]:
        """An answer a query. Prompts that were asked before (dummy markers of another arm) are not asked again."""
        engine = self.engine
        key = hashlib.blake2b(digest_size=16)
        for prompt in rendered:
            key.update(prompt.ids.tobytes() + prompt.vectors.tobytes())
        key.update(f"{draw} {cell.seed}".encode() if self.plan.decode == "sample" else b"")
        if key.digest() not in self._seen:
            self._seen[key.digest()] = self._ask(engine, cell, rendered, queries, draw)
        return self._seen[key.digest()]

    def _ask(self, engine: Engine, cell: Cell, rendered: list[Rendered], queries: int, draw: int) -> list[Any]:
        tokenizer, fmt, size = self.llm.tokenizer, self.material.format, self.plan.queries_per_prompt
        options = self.task.options
        if self.plan.decode == "score" and size == 1:
            if fmt is not None:
                return answers.score_numbers(engine, rendered, fmt, tokenizer)
            return answers.score_options(engine, rendered, options, tokenizer)
        hot = {"temperature": TEMPERATURE if self.plan.decode == "sample" else 0.0, "seed": cell.seed * 1000 + draw}
        if fmt is None:
            return answers.decode_options(engine, rendered, options, tokenizer, **hot)
        last = queries - size * (len(rendered) - 1)  # the last prompt may ask fewer
        full = (
            answers.decode_numbers(engine, rendered[:-1], fmt, tokenizer, queries=size, **hot)
            if len(rendered) > 1
            else []
        )
        rest = answers.decode_numbers(engine, rendered[-1:], fmt, tokenizer, queries=last, **hot)
        return [answer for prompt in [*full, *rest] for answer in prompt]

    def _row(self, cell: Cell, query: int, answer: Any, shown: Shots, seconds: float, tokens: int) -> dict[str, Any]:
        material, task = self.material, self.task
        number = task.targets is not None
        return {
            "task": task.name,
            "encoder": self.vectors.space,
            "llm": self.llm.name,
            "arm": cell.arm.label,
            "control": cell.control,
            "with_text": cell.with_text,
            "labels": cell.labels,
            "shots": cell.shots,
            "selection": cell.selection,
            "order": cell.order,
            "seed": cell.seed,
            "item": task.ids[query],
            "target": float(task.targets[query]) if number else task.labels[query],  # type: ignore[index]
            "prediction": (answer.point(self.plan.point) if number else answer.label or None),
            "status": answer.status,
            "raw": answer.raw,
            "seconds": seconds,
            "prompt_tokens": tokens,
            "gold_labels": material.gold_labels(cell),
            "draws": cell.arm.draws,
            "shot_items": ";".join(task.ids[p] for p in shown.positions),
            "reference": material.reference(shown),
            "copied": bool(answer.ok and answer.raw.strip() in shown.written),
            "lower": answer.quantile(0.025) if number else float("nan"),
            "upper": answer.quantile(0.975) if number else float("nan"),
            "crps": answer.crps(float(task.targets[query])) if number else float("nan"),  # type: ignore[index]
        }

    # ------------------------------------------------------------------------------------ the whole

    def _bar(self, todo: list[Cell], progress: bool | None) -> Iterable[Cell]:
        from tqdm import tqdm

        bar = tqdm(
            todo,
            unit="cell",
            desc=self.task.name,
            disable=None if progress is None else not progress,
            dynamic_ncols=True,
        )
        for cell in bar:
            bar.set_postfix_str(f"{cell.arm.label} {cell.control}, seed {cell.seed}", refresh=False)
            yield cell

    def _result(self, frames: list[pd.DataFrame], start: float) -> StudyResult:
        import pandas as pd

        from icrl_lab.studies.result import StudyResult

        predictions = self._in_order(pd.concat(frames, ignore_index=True))
        manifest = {**self.manifest(start), **self.ended(start)}
        return StudyResult(
            predictions, self.baseline_predictions(), manifest, items_table(self), self.material.fitted()
        )

    def _in_order(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Rows in the order of the plan, however they were computed: by arm, then control, then condition and seed."""
        ranks = {"arm": [a.label for a in self.plan.arms], "control": list(self.plan.controls)}
        keys = predictions.assign(
            **{c: predictions[c].map(lambda v, r=r: r.index(v) if v in r else len(r)) for c, r in ranks.items()}
        )
        order = keys.sort_values(
            ["arm", "with_text", "labels", "shots", "selection", "order", "control", "seed"], kind="stable"
        ).index
        return predictions.loc[order].reset_index(drop=True)

    def refit(self) -> None:
        """Fit the maps of cells that were finished by an earlier process: fits are pure, so they come out the same."""
        for cell in self.cells():
            if cell.arm.has_slots:
                for draw in range(cell.arm.draws):
                    self.material.slot_map(cell, draw)

    def baseline_predictions(self) -> pd.DataFrame:
        """The simple predictors on the same shots, labels and queries, in the columns of predictions.parquet that apply."""
        material, task = self.material, self.task
        known = baselines.REGRESSORS if task.targets is not None else baselines.CLASSIFIERS
        values = material.vectors.values.reshape(len(task), -1)
        rows = []
        done: set[tuple[Any, ...]] = set()
        for cell in self.cells():
            key = (cell.labels, cell.shots, cell.selection, cell.seed)
            if key in done:
                continue
            done.add(key)
            for group in material.shots(cell, 0):
                x, y = values[group.positions], material.shown_targets(group, cell)
                for name in known:
                    found = baselines.baseline(name, x, y, values[list(group.queries)], seed=cell.seed)
                    for query, value in zip(group.queries, found):
                        target = task.targets[query] if task.targets is not None else task.labels[query]  # type: ignore[index]
                        rows.append(
                            {"task": task.name, "encoder": self.vectors.space, "baseline": name, "labels": cell.labels}
                            | {
                                "shots": cell.shots,
                                "selection": cell.selection,
                                "seed": cell.seed,
                                "item": task.ids[query],
                            }
                            | {
                                "target": target,
                                "prediction": value,
                                "status": "ok",
                                "reference": material.reference(group),
                            }
                        )
        return _frame(rows)

    def manifest(self, start: float) -> dict[str, Any]:
        """What was asked for, and of what: enough to tell whether a run can be resumed."""
        import platform
        from importlib.metadata import version

        packages = ("numpy", "pandas", "torch", "transformers", "scikit-learn")
        study = self.spec.to_dict() if self.spec is not None else {"study": StudySpec.plan_dict(self.plan)}
        return {
            "study": study,
            "inputs": {
                "task": _hash([self.task.name, *self.task.ids, *map(str, self._labels())]),
                "split": _hash(
                    [",".join(map(str, self.task.pool.tolist())), ",".join(map(str, self.material.queries.tolist()))]
                ),
                "vectors": hashlib.sha256(np.ascontiguousarray(self.vectors.values).tobytes()).hexdigest(),
                "encoder": self.vectors.space,
                "model": self.llm.space,
                "dtype": self.llm.dtype,
            },
            "task": {
                "name": self.task.name,
                "kind": self.task.kind,
                "property": self.task.property,
                "units": self.task.units,
                "modality": self.task.modality,
                "source": self.task.source,
                "split": self.task.split,
                "pool": len(self.task.pool),
                "queries": len(self.material.queries),
                "dropped": [
                    {"row": d.row, "id": d.id, "column": d.column, "reason": d.reason} for d in self.task.dropped
                ],
            },
            "model": {
                "name": self.llm.name,
                "device": self.llm.device,
                "dtype": self.llm.dtype,
                "threads": self.llm.threads,
                "proof": dict(self.llm.proof),
                "measured": dict(self.llm.measured),
            },
            "versions": {
                "icrl_lab": _own_version(),
                "python": platform.python_version(),
                **{p: version(p) for p in packages},
            },
            "seeds": list(self.plan.seeds),
            "start": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(start)),
        }

    def ended(self, start: float) -> dict[str, Any]:
        """What the run took, added to the manifest at its end."""
        engine = self.engine
        tokens = {"computed": engine.computed, "asked": engine.asked}
        return {"seconds": round(time.time() - start, 2), "tokens": tokens, "cells": len(self.cells())}

    def _labels(self) -> list[Any]:
        return list(self.task.targets if self.task.targets is not None else self.task.labels or ())


def items_table(study: Study) -> pd.DataFrame:
    """One row an item: id, text, what it is labelled with, and its role in the study."""
    import pandas as pd

    task = study.task
    role = np.full(len(task), "", dtype=object)
    role[task.pool], role[study.material.queries] = "pool", "query"
    text = list(task.text) if task.text is not None else [""] * len(task)
    shown = {"target": task.targets} if task.targets is not None else {"label": list(task.labels or ())}
    return pd.DataFrame({"id": list(task.ids), "text": text, **shown, "role": role})


def _frame(rows: list[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _own_version() -> str:
    from icrl_lab import __version__

    return __version__


def load(spec: StudySpec, *, progress: bool | None = None) -> Study:
    """The study of a study file: its task, its vectors and its model loaded."""
    from icrl_lab.encoders import encode
    from icrl_lab.models import load_llm
    from icrl_lab.tasks import load_task

    t = spec.task
    given = {"units": t.units, "property": t.property, "text": t.text, "target": t.target, "label": t.label, "id": t.id}
    given = {k: v for k, v in given.items() if v} | dict(t.options)
    if t.modality:
        given["modality"] = t.modality
    if t.split:
        given["split"] = t.split
    source: Any = t.name or Path(t.path or "")
    task = load_task(source, on_bad=t.on_bad, query_fraction=t.query_fraction, seed=spec.study.split_seed, **given)
    e = spec.encoder
    vectors = encode(task, **({"path": e.path} if e.path else {"name": e.name}), progress=progress, **dict(e.options))
    llm = load_llm(spec.llm.name, dtype=spec.llm.dtype, progress=progress)
    return Study(task, vectors, llm, spec=spec)


__all__ = ["Arm", "Study", "load"]
