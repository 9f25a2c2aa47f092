"""The loop of a study: cell by cell, kept the moment it is finished, then one table.

A study is a function of its task, vectors, model and plan. It can be interrupted at any moment and resumed: what was
finished is never computed again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from icrl_lab import answers
from icrl_lab.engine import Engine
from icrl_lab.engine.tree import all_symbols, build
from icrl_lab.errors import IcrlError
from icrl_lab.studies.cells import Cell, cells
from icrl_lab.studies.choice import Shots, stream
from icrl_lab.studies.comparison import baseline_predictions
from icrl_lab.studies.manifest import ended, items_table, manifest
from icrl_lab.studies.material import Material
from icrl_lab.studies.sections import PlanSpec
from icrl_lab.studies.spec import StudySpec, plan_of
from icrl_lab.values import Rendered, Task, Vectors

if TYPE_CHECKING:
    import pandas as pd

    from icrl_lab.models import LLM
    from icrl_lab.studies.result import StudyResult

TEMPERATURE = 0.6  # of sampled decoding, as in the paper


class Study:
    """Arms x controls x with/without text x labels x shots x selection x order x seeds on one task.

    task, vectors, llm   what `load_task`, `encode` and `load_llm` give; the vectors cover the task's items; several
                         Vectors (of several encoders) each get a map and slots of their own
    plan                 any key of a study file's [study] section: arms, controls, shots, seeds, draws, ...

    Nothing is computed before `run`.
    """

    def __init__(
        self, task: Task, vectors: Vectors | Sequence[Vectors], llm: LLM, *, spec: StudySpec | None = None, **plan: Any
    ) -> None:
        self.task, self.llm, self.spec = task, llm, spec
        self.plan: PlanSpec = spec.study if spec is not None and not plan else plan_of(plan)
        self.material = Material(task, vectors, llm, self.plan)
        self.vectors = self.material.vectors
        self._coming: list[Cell] = []  # what a run computes after the cell at hand
        self._early = 0.0  # seconds that it took before its turn, less those it took for others

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
        from icrl_lab.studies.place import disk_trouble
        from icrl_lab.studies.shown import kept

        start = time.time()
        if out is None:
            self._rehearse(self.cells())
            return self._result([frame for _, frame in self._computed(self.cells(), progress)], start, progress)
        with RunFolder.open_for_writing(out, manifest(self, start), resume) as folder:
            finished = folder.finished()
            before = float(folder.predictions()["seconds"].sum())
            todo = [c for c in self.cells() if c.key not in finished]
            self._rehearse(todo)
            for cell, frame in self._computed(todo, progress):
                folder.put(cell.key, frame)
            self.refit()
            result = self._result([folder.predictions()], start, progress)
            result.path = folder.path
            spent = ended(self, start, before)
            if not todo:  # only written again: what the run took is what it took
                spent |= {key: folder.manifest[key] for key in spent if key in folder.manifest}
            tables = result.summary(), result.baselines(), result.maps, result.items, kept(self).data
            folder.finish(spent, *tables, predictions=result.predictions)
            if self.spec is not None and self.spec.probes.questions:
                from icrl_lab.probes.running import run_all

                with disk_trouble(folder.path):
                    run_all(self, self.spec.probes, folder.path, progress)
        return result

    def _rehearse(self, todo: list[Cell]) -> None:
        """Fit and write what the first seed asks for once, and of the others what has texts, so that what cannot be (a map, a prompt that is
        too long) is an error before anything is computed."""
        for cell in todo:
            texts = cell.with_text or not cell.arm.has_slots
            if cell.control == "real" and (texts or cell.seed == todo[0].seed):
                for member in cell.members:
                    self.material.rendered(member, 0)

    def compute(self, cell: Cell) -> pd.DataFrame:
        """The predictions of one cell, one row a query, in the columns of predictions.parquet."""
        import pandas as pd

        start, self._early = time.perf_counter(), 0.0
        by_query: dict[int, list[Any]] = {}
        lengths: dict[int, int] = {}
        lost: dict[int, int] = {}
        for member in cell.members:
            found: dict[int, list[Any]] = {}
            for draw in range(member.arm.draws):
                rendered, groups = self.material.rendered(member, draw)
                order = [q for group in groups for q in group.queries]
                for query, answer in zip(order, self._answers(member, rendered, groups, draw)):
                    found.setdefault(query, []).append(answer)
                size = self.plan.queries_per_prompt
                lengths |= {q: lengths.get(q, 0) + len(rendered[i // size]) for i, q in enumerate(order)}
                if draw == 0:
                    shown = {q: group for group in groups for q in group.queries}
            for query, draws in found.items():
                lost[query] = lost.get(query, 0) + sum(not answer.ok for answer in draws)
                # a member weighs the same, however many draws it has
                by_query.setdefault(query, []).extend([answers.mix(draws)] if cell.arm.mixed else draws)
        seconds = (time.perf_counter() - start + self._early) / len(by_query)
        rows = [
            self._row(cell, query, answers.mix(found), shown[query], seconds, lengths[query], lost[query])
            for query, found in by_query.items()
        ]
        return pd.DataFrame(rows)

    # ------------------------------------------------------------------------------------ one cell

    @property
    def engine(self) -> Engine:
        """The engine that this study runs on, made at the first use."""
        if not hasattr(self, "_engine"):
            self._engine = Engine(self.llm)
            self._seen: dict[bytes, list[Any]] = {}
            self._ahead: dict[bytes, float] = {}  # seconds of what was asked before its cell was computed
        return self._engine

    def _computed(self, todo: list[Cell], progress: bool | None) -> Iterator[tuple[Cell, pd.DataFrame]]:
        """Each cell and its predictions, in order."""
        for number, cell in enumerate(self._bar(todo, progress)):
            self._coming = todo[number + 1 :]
            yield cell, self.compute(cell)

    def _ask_ahead(self, key: bytes, rendered: list[Rendered], cell: Cell, draw: int) -> None:
        """Score these prompts, and with them those of the next draws and cells of the seed for which the engine has room.
        A matrix product of few rows leaves half of a CPU idle, and answers do not depend on the company they are asked in."""
        start, engine = time.perf_counter(), self.engine
        room = engine.room - build(all_symbols(rendered)).size
        new = {key: rendered}
        coming = [(cell, later) for later in range(draw + 1, cell.arm.draws)]
        coming += [(m, d) for c in self._coming if c.seed == cell.seed for m in c.members for d in range(m.arm.draws)]
        for other, later in coming if room > 0 else ():
            try:
                prompts = self.material.rendered(other, later)[0]
            except IcrlError:  # said when its turn comes, and what stands before it is kept
                break
            found = _digest(prompts)
            if found in self._seen or found in new:
                continue
            room -= build(all_symbols(prompts)).size
            if room < 0:
                break
            new[found] = prompts
        scored = self._score(engine, [p for prompts in new.values() for p in prompts])
        spent, at = time.perf_counter() - start, 0
        for found, prompts in new.items():
            self._seen[found] = scored[at : at + len(prompts)]
            at += len(prompts)
            if found != key:
                self._ahead[found] = spent * len(prompts) / len(scored)
                self._early -= self._ahead[found]

    def _answers(self, cell: Cell, rendered: list[Rendered], groups: list[Shots], draw: int) -> list[Any]:
        """An answer a query. Prompts that were asked before (dummy markers of another arm) are not asked again."""
        engine = self.engine
        free = [self.material.content_free(cell, draw, group) for group in groups if self.plan.calibrate]
        sampled = f"{draw} {cell.seed}" if self.plan.decode == "sample" else ""
        key = _digest([*rendered, *(p for some in free for p in some)], sampled)
        self._early += self._ahead.pop(key, 0.0)
        if key not in self._seen:
            if self.plan.calibrate:
                self._seen[key] = self._calibrated(engine, rendered, groups, free)
            elif self.plan.decode == "score":
                self._ask_ahead(key, rendered, cell, draw)
            else:
                self._seen[key] = self._ask(engine, cell, rendered, sum(len(g.queries) for g in groups), draw)
        return self._seen[key]

    def _score(self, engine: Engine, rendered: list[Rendered]) -> list[Any]:
        """The distribution behind each prompt, over numbers or options."""
        if (fmt := self.material.format) is not None:
            return answers.score_numbers(engine, rendered, fmt, self.llm.tokenizer, mass=False)
        given: dict[str, Any] = {"per_token": self.plan.per_token, "end": self.material.template.behind, "mass": False}
        return answers.score_options(engine, rendered, self.task.options, self.llm.tokenizer, **given)

    def _ask(self, engine: Engine, cell: Cell, rendered: list[Rendered], queries: int, draw: int) -> list[Any]:
        tokenizer, fmt, size = self.llm.tokenizer, self.material.format, self.plan.queries_per_prompt
        options = self.task.options
        if fmt is None:
            hot = self._hot(cell, draw, 0)
            return answers.decode_options(engine, rendered, options, tokenizer, **hot)
        found = []
        whole = queries // size  # prompts that ask `size` queries; one more may ask the rest
        for part, some, asked in ((0, rendered[:whole], size), (1, rendered[whole:], queries % size)):
            if some:
                hot = self._hot(cell, draw, part)
                found += answers.decode_numbers(engine, some, fmt, tokenizer, queries=asked, **hot)
        return [answer for prompt in found for answer in prompt]

    def _calibrated(
        self, engine: Engine, rendered: list[Rendered], groups: list[Shots], free: list[list[Rendered]]
    ) -> list[Any]:
        """Classes behind each prompt, less what the same shots say of nothing."""
        found, start = [], 0
        for group, nothing in zip(groups, free):
            some = rendered[start : start + len(group.queries)]
            given: dict[str, Any] = {"per_token": self.plan.per_token, "end": self.material.template.behind}
            given |= {"content_free": nothing, "mass": False}
            found += answers.score_options(engine, some, self.task.options, self.llm.tokenizer, **given)
            start += len(group.queries)
        return found

    def _hot(self, cell: Cell, draw: int, part: int) -> dict[str, Any]:
        """How decoding chooses: the arms and controls of a seed share a stream, its prompts and draws do not."""
        temperature = TEMPERATURE if self.plan.decode == "sample" else 0.0
        return {"temperature": temperature, "seed": stream("sample", cell.seed, draw, part)}

    def _row(
        self, cell: Cell, query: int, answer: Any, shown: Shots, seconds: float, tokens: int, lost: int
    ) -> dict[str, Any]:
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
            "draws": sum(arm.draws for arm in cell.arm.members),
            "shot_items": ";".join(task.ids[p] for p in shown.positions),
            "reference": material.reference(shown),
            "copied": bool(answer.ok and material.copied(answer, shown)),
            "lower": answer.quantile(0.025) if number else float("nan"),
            "upper": answer.quantile(0.975) if number else float("nan"),
            "crps": answer.crps(float(task.targets[query])) if number else float("nan"),  # type: ignore[index]
            "failed_draws": lost,
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

    def _result(self, frames: list[pd.DataFrame], start: float, progress: bool | None) -> StudyResult:
        import pandas as pd

        from icrl_lab.studies.result import StudyResult

        predictions = self._in_order(pd.concat(frames, ignore_index=True))
        about = {**manifest(self, start), **ended(self, start)}
        simple = baseline_predictions(self, progress)
        return StudyResult(predictions, simple, about, items_table(self), self.material.fitted(), study=self)

    def _in_order(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Rows in the order of the plan, however they were computed: by arm, then control, then condition and seed."""
        ranks: dict[str, list[Any]] = {"arm": [a.label for a in self.plan.arms], "control": list(self.plan.controls)}
        ranks |= {
            axis: list(getattr(self.plan, axis)) for axis in ("with_text", "labels", "shots", "selection", "order")
        }
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
            for member in cell.members if cell.arm.has_slots else ():
                for draw in range(member.arm.draws):
                    self.material.fitting.slot_maps(member, draw)


def _digest(prompts: Iterable[Rendered], more: str = "") -> bytes:
    """What these prompts are."""
    key = hashlib.blake2b(digest_size=16)
    for symbols in all_symbols(list(prompts)):
        key.update(len(symbols).to_bytes(8, "little") + symbols.tobytes())
    key.update(more.encode())
    return key.digest()
