"""What a study's prompts look like: of a study with its model any of them, of a run on disk those that it kept.

A run keeps the first draw of its first seed under the first condition, of every arm and control: `prompts.json`. Arms and
controls share their text, and queries share their shots, so each stretch is kept once. No forward pass is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.prompts import Piece, pieces
from icrl_lab.studies.cells import Cell
from icrl_lab.studies.choice import Shots

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study
    from icrl_lab.values import Rendered

LIMIT = 300_000  # bytes of prompts.json
AXES = ("with_text", "labels", "shots", "selection", "order", "seed")


class Shown(Protocol):
    """Where prompts are looked up.

    axes     values of each of AXES that there are prompts of
    queries  ids of the items whose prompts there are
    asked    how many items the study asks about
    token    median length of the model's token embeddings, which a slot's norm stands beside; NaN where no arm has slots
    """

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]: ...
    @property
    def queries(self) -> tuple[str, ...]: ...
    @property
    def asked(self) -> int: ...
    @property
    def token(self) -> float: ...
    def pieces(self, arm: str, control: str, query: str, **condition: Any) -> tuple[Piece, ...]:
        """The prompt that asks about `query`, in pieces; what is not given of AXES is its first value. DataError where there is none."""
        ...


class Live:
    """Any prompt of a study that has its model."""

    def __init__(self, study: Study) -> None:
        plan = study.plan
        self.study = study
        self.axes: Mapping[str, tuple[Any, ...]] = {
            **{name: tuple(getattr(plan, name)) for name in AXES[:-1]},
            "seed": tuple(plan.seeds),
        }
        self.queries = tuple(study.task.ids[q] for q in study.material.queries)
        self.asked = len(self.queries)
        self.token = _token_norm(study)

    def pieces(self, arm: str, control: str, query: str, **condition: Any) -> tuple[Piece, ...]:
        """One prompt; only this one is written."""
        study, task = self.study, self.study.task
        found = next((a for a in study.plan.arms if a.label == arm), None)
        if found is None or query not in self.queries:
            raise DataError(f"this study asks no arm {arm!r} about {query!r}")
        chosen = {**{name: values[0] for name, values in self.axes.items()}, **condition}
        text = found.name == "text" or chosen["with_text"]
        control = control if found.has_slots else "real"
        cell = Cell(found.members[0], control, text, *(chosen[name] for name in AXES[1:]))
        position = task.ids.index(query)
        group = next(g for g in study.material.shots(cell, 0) if position in g.queries)
        size = study.plan.queries_per_prompt
        start = group.queries.index(position) // size * size
        own = Shots(group.queries[start : start + size], group.positions, group.written)
        (rendered,) = study.material.arranged(cell, 0, [own])
        return pieces(rendered, _items(study, own))


@dataclass(frozen=True, eq=False)
class Kept:
    """The prompts that a run kept: the content of its prompts.json."""

    data: Mapping[str, Any]

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        rest = {name: (value,) for name, value in self.data["condition"].items()}
        cells = self.data["cells"]
        vectors = [cell for cell in cells if any(cell["norms"])] or cells  # an arm of text has its text in any case
        return {"with_text": tuple(dict.fromkeys(cell["with_text"] for cell in vectors)), **rest}

    @property
    def queries(self) -> tuple[str, ...]:
        return tuple(self.data["queries"])

    @property
    def asked(self) -> int:
        return int(self.data["asked"])

    @property
    def token(self) -> float:
        found = self.data["token_norm"]
        return float("nan") if found is None else float(found)

    def pieces(self, arm: str, control: str, query: str, **condition: Any) -> tuple[Piece, ...]:
        data = self.data
        if query not in data["queries"]:
            raise DataError(
                f"this run kept the prompts of {len(data['queries'])} of its {data['asked']} queries, and not of {query!r}"
            )
        of_arm = [cell for cell in data["cells"] if cell["arm"] == arm]
        of_arm = [cell for cell in of_arm if cell["control"] == control] or [
            cell for cell in of_arm if cell["control"] == "real" and not any(cell["norms"])
        ]  # an arm of text has no vectors that a control could change
        with_text = condition.get("with_text")
        found = next((c for c in of_arm if with_text is None or c["with_text"] == with_text), None)
        found = found or next((c for c in of_arm if len({c["with_text"] for c in of_arm}) == 1), None)
        if found is None:
            raise DataError(f"this run kept no prompts of arm {arm!r} under {control!r}")
        text = data["texts"][found["text"]]
        items, norms = data["items"], found["norms"]
        out = []
        for role, tokens, shot, item in (*text["shared"], *text["own"][data["queries"].index(query)]):
            name = "" if item is None else items[item]
            of_slot = tuple(norms[item]) if role == "slot" and item is not None else ()
            out.append(Piece(role, tuple(tokens), shot, name, of_slot))
        return tuple(out)


def kept(study: Study, limit: int = LIMIT) -> Kept:
    """The prompts that a run of the study keeps: of all queries, or of fewer, spread evenly, where they would be more than `limit` bytes."""
    everyone = len(study.material.queries)
    count = everyone
    while True:
        found = _gathered(study, np.unique(np.linspace(0, everyone - 1, count).round().astype(int)).tolist())
        size = len(json.dumps(found, ensure_ascii=False).encode())
        if size <= limit or count == 1:
            return Kept(found)
        count = max(1, min(count - 1, int(0.9 * count * limit / size)))


def _gathered(study: Study, which: Sequence[int]) -> dict[str, Any]:
    """The content of prompts.json for queries by their number."""
    plan, task = study.plan, study.task
    first: dict[str, Any] = {name: getattr(plan, name)[0] for name in AXES[1:-1]} | {"seed": plan.seeds[0]}
    asked = [int(study.material.queries[i]) for i in which]
    items: dict[str, int] = {}
    texts: dict[Any, int] = {}
    stored: list[dict[str, Any]] = []
    cells = []
    for cell in study.cells():
        if any(getattr(cell, name) != value for name, value in first.items()):
            continue
        found = _prompts(study, cell, asked)
        key = tuple(rendered.tokens for rendered, _ in found), tuple(ids for _, ids in found)
        seen = [pieces(rendered, ids) for rendered, ids in found]
        lengths = {p.item: [float(f"{n:.4g}") for n in p.norms] for prompt in seen for p in prompt if p.norms}
        if key not in texts:
            texts[key] = len(stored)
            plain = [[_plain(piece, items) for piece in prompt] for prompt in seen]
            common = _common(plain)
            stored.append({"shared": plain[0][:common], "own": [prompt[common:] for prompt in plain]})
        cells.append((cell, texts[key], lengths))
    told = [
        {"arm": c.arm.label, "control": c.control, "with_text": c.with_text, "text": text, "norms": [n.get(i, []) for i in items]}
        for c, text, n in cells
    ]  # fmt: skip
    norm = _token_norm(study)
    return {
        "condition": first, "asked": len(study.material.queries), "queries": [task.ids[q] for q in asked], "items": list(items),
        "token_norm": norm if np.isfinite(norm) else None, "texts": stored, "cells": told,
    }  # fmt: skip


def _prompts(study: Study, cell: Cell, asked: Sequence[int]) -> list[tuple[Rendered, tuple[str, ...]]]:
    """The prompt that asks each query, and the items of its shots and queries."""
    rendered, groups = study.material.rendered(cell.members[0], 0)
    size, number = study.plan.queries_per_prompt, 0
    where: dict[int, tuple[Rendered, tuple[str, ...]]] = {}
    for group in groups:
        for start in range(0, len(group.queries), size):
            some = Shots(group.queries[start : start + size], group.positions, group.written)
            where |= {int(q): (rendered[number], _items(study, some)) for q in some.queries}
            number += 1
    return [where[q] for q in asked]


def _items(study: Study, group: Shots) -> tuple[str, ...]:
    ids = study.task.ids
    return (*([ids[p] for p in group.positions] * study.plan.repeat), *(ids[q] for q in group.queries))


def _plain(piece: Piece, items: dict[str, int]) -> list[Any]:
    item = items.setdefault(piece.item, len(items)) if piece.item else None
    return [piece.role, list(piece.tokens), piece.shot, item]


def _common(prompts: Sequence[Sequence[Any]]) -> int:
    """How many pieces all prompts begin with."""
    count = 0
    for same in zip(*prompts):
        if any(piece != same[0] for piece in same):
            break
        count += 1
    return count


def _token_norm(study: Study) -> float:
    if not any(arm.has_slots for arm in study.plan.arms):
        return float("nan")
    table = study.material.tokens.embeddings
    return float(np.median(np.einsum("ij,ij->i", table, table)) ** 0.5)  # a norm is monotonic in its square
