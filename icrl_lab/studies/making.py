"""Sections made from their keys, each of which is checked already: what must fit together within a section, and between two.

Names of maps, encoders and probes, and the options of each, are looked up in their rooms.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from icrl_lab.answers.formats import FORMATS
from icrl_lab.errors import StudyError, nearest
from icrl_lab.studies.checks import (
    DRAWS,
    TEXT_ARMS,
    Bad,
    Check,
    Wrong,
    flag,
    names_of,
    option,
    scale,
    show,
    text,
    whole,
)
from icrl_lab.studies.sections import Arm, EncoderSpec, PlanSpec, ProbeSpec

ARMS = ("text", "pca-text", "zero-pad", "random-projection", "moments-text", "moments-pca", "moments-vocab", "ridge")


def plan(keys: dict[str, Any]) -> PlanSpec:
    """A plan of the checked keys of a [study] section; an arm takes its draws and its scale where it names none."""
    arms = _arms(keys.get("arms", ARMS), keys.get("draws", 1), keys.get("slot_scale", 0.5))
    made = PlanSpec(**{**keys, "arms": arms})
    if made.label_bins != "quantile" and not FORMATS[made.label_format]:
        said = f"label_bins = {made.label_bins!r} cuts the bins of a closed set of labels, and {made.label_format!r} has none"
        raise Wrong(
            ("study", "label_bins"), f"in [study], {said}; take label_format = 'digit', 'letter' or 'two-digit'"
        )
    return made


def check_task(task: Mapping[str, Any], given: bool) -> None:
    where = ("task",) if given else ()
    if "name" not in task and "path" not in task:
        raise Wrong(
            where, f"[task] needs the name of a bundled task ({', '.join(names_of('task'))}) or the path of a table"
        )
    if "name" in task and "path" in task:
        raise Wrong(("task", "path"), "[task] has both a name and a path; keep one of them")
    if "path" in task and "options" in task:
        raise Wrong(("task", "options"), "[task] options are those of a bundled task, and a table has none")
    if "target" in task and "label" in task:
        numbers = "target (a column of numbers) and label (a column of classes)"
        raise Wrong(("task", "label"), f"[task] has both {numbers}; keep one of them")
    if "path" in task:
        return
    name = task["name"]
    for key in ("text", "target", "label", "id", "modality"):
        if key in task:
            raise Wrong(("task", key), f"[task] {key} is for a table of your own, and {name!r} is a bundled task")
    from icrl_lab.tasks import TASKS

    known = set(inspect.signature(TASKS[name]).parameters) - {"seed"}
    for key in task.get("options", ()):
        if key not in known:
            has = nearest(key, sorted(known)) if known else "it has none"
            raise Wrong(("task", "options", key), f"[task] {name!r} has no option {key!r}; {has}")


def encoder(keys: Mapping[str, Any]) -> EncoderSpec:
    """An encoder and those beside it, each with options that it knows."""
    also = tuple(_one_encoder(dict(more), ("also",), str(more.get("name", ""))) for more in keys.get("also", ()))
    return _one_encoder({**keys, "also": also})


def _one_encoder(keys: dict[str, Any], where: tuple[str, ...] = (), value: str | None = None) -> EncoderSpec:
    """`where` it stands in the section, and a `value` of it to look for there."""
    at = " also" if where else ""
    if where and not {"name", "path"} & set(keys):
        raise Wrong(
            ("encoder", *where), f"in [encoder],{at} has an encoder with neither a name nor a path; give it one"
        )
    if {"name", "path"} <= set(keys):
        raise Wrong(
            ("encoder", *(where or ("path",))), f"[encoder]{at} has both a name and a path; keep one of them", value
        )
    if keys.get("name", "").endswith((".npz", ".parquet")):
        keys["path"] = keys["name"]
    if "path" in keys:
        return EncoderSpec(**{**keys, "name": None})
    from icrl_lab.encoders import ENCODERS

    found = EncoderSpec(**keys)
    try:
        if found.name in ENCODERS:
            ENCODERS[found.name].settle(found.options)
    except StudyError as error:
        sentence = f"in [encoder],{at} options do not fit: {error}"
        raise Wrong(("encoder", *(where or ("options",))), sentence, value) from None
    return found


def check_probes(probes: ProbeSpec, plan: PlanSpec) -> None:
    labels = [arm.label for arm in plan.arms]
    if probes.arm is not None and probes.arm not in labels:
        raise Wrong(
            ("probes", "arm"), f"[probes] arm {probes.arm!r} is not in the study; {nearest(probes.arm, labels)}"
        )
    for question, options in probes.options.items():
        if question not in probes.questions:
            raise Wrong(("probes", "options", question), f"[probes] has options of {question!r}, which it does not ask")
        module = import_module(f"icrl_lab.probes.{question}")
        known = set(inspect.signature(getattr(module, question)).parameters) - {"study"}
        for key in options:
            if key not in known:
                where = ("probes", "options", question, key)
                raise Wrong(where, f"the probe {question!r} has no option {key!r}; {nearest(key, sorted(known))}")


def _arms(arms: Iterable[Any], draws: int, slot_scale: float | str) -> tuple[Arm, ...]:
    found: dict[str, Arm] = {}
    for value in arms:
        try:
            arm = value if isinstance(value, Arm) else _arm(value, draws, slot_scale)
        except Bad as bad:
            raise Wrong(("study", "arms"), f"in [study], arms {bad}", bad.value) from None
        if arm.label in found:
            again = f'in [study], arms has {arm.label!r} twice; take one out, or name it with as = "..."'
            raise Wrong(("study", "arms"), again)
        found[arm.label] = arm
    asked: dict[str, Arm] = {}
    for arm in (member for mixture in found.values() for member in mixture.members):
        if asked.setdefault(arm.label, arm) != arm:  # what is fitted for an arm is found by its label
            again = f'in [study], arms asks two different arms {arm.label!r}; name one of them with as = "..."'
            raise Wrong(("study", "arms"), again)
    return tuple(found.values())


def _arm(value: Any, draws: int, slot_scale: float | str) -> Arm:
    """An arm from "name", "name x16" or {name = ..., as = ..., draws = ..., slot_scale = ..., also = [arms], options of the map}."""
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise Bad(f'must hold names or tables such as {{name = "moments-vocab", draws = 16}}, not {show(value)}')
    written: str = table["name"]
    own: dict[str, Any] = {}
    match = re.fullmatch(r"(.*\S)\s+[x×]\s?(\d{1,9})", written)
    if match:
        written, own["draws"] = match[1], int(match[2])
    from icrl_lab.maps import ALIASES, arguments

    if written not in names_of("arm") and written not in ALIASES:
        raise Bad(f"has an unknown name {written!r}; {nearest(written, [*names_of('arm'), *ALIASES])}", written)
    name = ALIASES.get(written, written)
    own |= {k: v for k, v in table.items() if k != "name"}
    checks: dict[str, Check] = {
        "as": text,
        "draws": DRAWS,
        **({"slot_scale": scale, "also": partial(_beside, draws, slot_scale)} if name not in TEXT_ARMS else {}),
    }
    checks |= dict.fromkeys(_map_options(name), option) | ({"budget": whole(1, 10**9)} if _needs_labels(name) else {})
    checks |= {k: known for k, known in (("row_normalise", flag), ("dims", whole(1, 10**6))) if k in checks}
    for key, given in own.items():
        if key not in checks:
            raise Bad(f"gives {written!r} an option {key!r} that it does not have; {nearest(key, checks)}", written)
        try:
            own[key] = checks[key](given)
        except Bad as bad:
            raise Bad(f"gives {written!r} a wrong {key}: it {bad}", written) from None
    options = {k: v for k, v in own.items() if k not in ("as", "draws", "slot_scale", "also")}
    if name not in TEXT_ARMS:
        try:
            arguments(name, {k: v for k, v in options.items() if k not in ("budget", "row_normalise")})
        except StudyError as error:
            raise Bad(f"cannot be: {error}", written) from None
    shown = [
        name,
        *([f"x{own['draws']}"] if own.get("draws", 1) > 1 else []),
        *(k if v is True else f"{k}={v}" for k, v in options.items()),
    ]
    scaled = own.get("slot_scale", slot_scale)
    shown += [f"slot_scale={scaled if scaled == 'own' else format(scaled, 'g')}"] if scaled != slot_scale else []
    arm = Arm(name, " ".join(shown), own.get("draws", draws), scaled, options)
    mixed = (arm, *own["also"]) if "also" in own else ()
    return replace(arm, label=own.get("as") or " + ".join(m.label for m in mixed or (arm,)), mixed=mixed)


def _beside(draws: int, slot_scale: float | str, value: Any) -> tuple[Arm, ...]:
    """The arms that are mixed with another one."""
    values = value if isinstance(value, (list, tuple)) else [value]
    found = tuple(arm if isinstance(arm, Arm) else _arm(arm, draws, slot_scale) for arm in values)
    if not found or any(arm.mixed or not arm.has_slots for arm in found):
        raise Bad("must be arms with slots, none of which is a mixture itself")
    return found


def _map_options(name: str) -> set[str]:
    if name == "text":
        return set()
    from icrl_lab import maps

    fixed = {"pool", "vectors", "tokens", "seed", "labels"}
    taken = inspect.signature(maps.pca_text if name == "pca-text" else maps.MAPS[name]).parameters
    return {key for key in taken if key not in fixed} | ({"row_normalise"} if name not in TEXT_ARMS else set())


def _needs_labels(name: str) -> bool:
    from icrl_lab.maps import NEEDS

    return NEEDS.get(name) == "labels"
