"""A study file as a frozen value: what was asked for, checked before anything is computed.

Owns the keys, their defaults and what values they may have; names of arms, controls, layouts and the rest belong to
their rooms and are looked up there. It knows no task and loads no model, so a mistake on line 14 is found in
milliseconds. Whatever is wrong is one StudyError that names the file, the line, the key and the nearest valid name.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from icrl_lab.errors import StudyError, nearest
from icrl_lab.studies import toml
from icrl_lab.studies.checks import (
    DRAWS,
    SCALE,
    SECTIONS,
    TEXT_ARMS,
    Bad,
    Check,
    Wrong,
    names_of,
    option,
    section,
    show,
    text,
    whole,
)


@dataclass(frozen=True)
class Arm:
    """One way of putting items into the prompt.

    name        "text", "pca-text" or a slot map
    label       how tables and figures call it; unique in a study
    draws       draws of map and shot order whose predictive distributions are mixed
    slot_scale  norm of a slot relative to a token's
    options     the map's own arguments, `row_normalise`, and for maps that need labels `budget`
    """

    name: str
    label: str = ""
    draws: int = 1
    slot_scale: float = 0.5
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __reduce__(self):  # a mapping proxy does not pickle
        return Arm, (self.name, self.label, self.draws, self.slot_scale, dict(self.options))

    @property
    def has_slots(self) -> bool:
        """False for the arms that write text only; controls of the vectors mean nothing there."""
        return self.name not in TEXT_ARMS

    def to_dict(self) -> dict[str, Any]:
        """As an inline table of a study file."""
        scale = {"slot_scale": self.slot_scale} if self.has_slots else {}
        return {"name": self.name, "as": self.label, "draws": self.draws, **scale, **self.options}


@dataclass(frozen=True)
class TaskSpec:
    """[task]: a bundled task by name, or a table by path and its columns. `path` is absolute.

    None where the tasks room decides: known layouts name their own columns. `options` are those of a bundled task.
    """

    name: str | None = None
    path: str | None = None
    text: str | None = None
    target: str | None = None
    label: str | None = None
    id: str | None = None
    units: str = ""
    property: str = ""
    on_bad: str = "error"
    split: str | None = None
    query_fraction: float = 0.5
    modality: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class EncoderSpec:
    """[encoder]: a name and its options, or a file of vectors. `path` is absolute.

    slots  how many times an item's vector stands in its place in the prompt
    also   further encoders: each item gets their vectors too, with a map and slots of their own
    """

    name: str | None = "minimol"
    path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    slots: int = 1
    also: tuple[EncoderSpec, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As a section of a study file; what is not said there has its default."""
        found: dict[str, Any] = {"name": self.name, "path": self.path, "options": dict(self.options)}
        found |= {"slots": self.slots if self.slots > 1 else None}
        found |= {"also": [e.name if e == EncoderSpec(e.name) else e.to_dict() for e in self.also]}
        return {key: value for key, value in found.items() if value}


@dataclass(frozen=True)
class LLMSpec:
    """[llm]: an embedded model, a hub name, or the absolute path of a folder or GGUF file."""

    name: str = "smollm2-135m"
    dtype: str = "auto"


@dataclass(frozen=True)
class PlanSpec:
    """[study]: the axes of the study and how answers are read. Axes are tuples; a cell is one value of each.

    repeat     how many times the list of shots stands in the prompt
    per_token  a class's log-probability is divided by its tokens
    calibrate  the log-probabilities behind a query that says nothing are subtracted
    """

    arms: tuple[Arm, ...] = ()
    controls: tuple[str, ...] = ("real", "shuffled", "noise", "shared", "dummy", "zero", "back-translated")
    with_text: tuple[bool, ...] = (False, True)
    labels: tuple[str, ...] = ("true", "permuted")
    shots: tuple[int, ...] = (20,)
    selection: tuple[str, ...] = ("quantile",)
    order: tuple[str, ...] = ("random",)
    draws: int = 1
    layout: str | Mapping[str, Any] = field(default="arrow", hash=False)
    label_format: str = "digit"
    slot_scale: float = 0.5
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    queries: int = 100
    point: str = "mean"
    decode: str = "score"
    per_token: bool = False
    calibrate: bool = False
    markers: str | tuple[str, str] | None = None
    queries_per_prompt: int = 1
    repeat: int = 1
    split_seed: int = 0


@dataclass(frozen=True)
class ProbeSpec:
    """[probes]: which questions are asked of the model when the study has run.

    arm, seeds, queries  of every probe; None: the first arm with slots, and the probe's own defaults
    options              further options of single probes, by question
    """

    questions: tuple[str, ...] = ()
    arm: str | None = None
    seeds: tuple[int, ...] | None = None
    queries: int | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def asked(self, question: str) -> dict[str, Any]:
        """The options of one probe."""
        common = {"arm": self.arm, "seeds": self.seeds, "queries": self.queries}
        return {k: v for k, v in common.items() if v is not None} | dict(self.options.get(question, {}))


ARMS = ("text", "pca-text", "zero-pad", "random-projection", "moments-text", "moments-pca", "moments-vocab", "ridge")


@dataclass(frozen=True)
class StudySpec:
    """A study as resolved: every default filled in, every alias replaced, every path absolute."""

    task: TaskSpec
    encoder: EncoderSpec
    llm: LLMSpec
    study: PlanSpec
    probes: ProbeSpec = ProbeSpec()

    @classmethod
    def read(cls, path: str | os.PathLike) -> StudySpec:
        """Read a study file. Its relative paths start at the folder it lies in, and nowhere else."""
        path = Path(path)
        try:
            text = path.read_bytes().decode("utf-8-sig")
            return cls._checked(tomllib.loads(text.replace("\r\n", "\n")), path.resolve().parent)
        except Wrong as wrong:
            line = toml.line_of(text.replace("\r\n", "\n"), wrong.keys, wrong.value) if wrong.keys else None
            raise StudyError(f"{path}{f', line {line}' if line else ''}: {wrong}") from None
        except OSError as error:
            raise StudyError(f"{path}: {error.strerror or error}; give the path of a study file") from None
        except UnicodeDecodeError:
            raise StudyError(f"{path} is not UTF-8 text, so it is no study file") from None
        except (ValueError, RecursionError) as error:
            what = error if isinstance(error, tomllib.TOMLDecodeError) else "a value is too large or too deep"
            raise StudyError(f"{path} is not valid TOML: {what}") from None

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], base: str | os.PathLike = ".") -> StudySpec:
        """The same from a nested mapping, as a study file or `to_dict` gives it; relative paths start at `base`."""
        try:
            return cls._checked(document, Path(base).resolve())
        except Wrong as wrong:
            raise StudyError(str(wrong)) from None

    @classmethod
    def _checked(cls, document: Mapping[str, Any], base: Path) -> StudySpec:
        for name in document:
            if name not in SECTIONS:
                raise Wrong((name,), f"[{name}] is not a section of a study file; {nearest(name, SECTIONS)}")
        found = {name: section(name, document, base) for name in SECTIONS}
        _task_makes_sense(found["task"], "task" in document)
        task, encoder, llm = TaskSpec(**found["task"]), _encoder(found["encoder"]), LLMSpec(**found["llm"])
        plan, probes = _plan(found["study"]), ProbeSpec(**found["probes"])
        _probes_make_sense(probes, plan)
        return cls(task, encoder, llm, plan, probes)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values; `from_dict` of it is equal to this."""
        parts = {name: asdict(getattr(self, name)) for name in ("task", "encoder", "llm", "probes")}
        parts["encoder"] = self.encoder.to_dict()
        plain = {
            n: {k: list(v) if isinstance(v, tuple) else v for k, v in p.items() if v not in (None, "", {}, ())}
            for n, p in parts.items()
        }
        probes = plain.pop("probes")
        return {**plain, "study": self.plan_dict(self.study), **({"probes": probes} if probes else {})}

    @staticmethod
    def plan_dict(plan: PlanSpec) -> dict[str, Any]:
        """A plan as the [study] section of `to_dict`."""
        found = {f.name: getattr(plan, f.name) for f in fields(PlanSpec)}
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items() if v is not None}
        return {**found, "arms": [arm.to_dict() for arm in plan.arms]}

    def to_toml(self) -> str:
        """The resolved study as a study file that reads back equal."""
        return toml.dumps(self.to_dict())

    @property
    def hash(self) -> str:
        """Hex SHA-256 of the resolved study: equal if and only if the studies are."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def plan_of(keys: Mapping[str, Any]) -> PlanSpec:
    """A plan from the keys of a [study] section, checked; what is not given has its default."""
    try:
        return _plan(section("study", {"study": keys}, Path()))
    except Wrong as wrong:
        raise StudyError(str(wrong)) from None


def _plan(keys: dict[str, Any]) -> PlanSpec:
    return PlanSpec(
        **{**keys, "arms": _arms(keys.get("arms", ARMS), keys.get("draws", 1), keys.get("slot_scale", 0.5))}
    )


# ------------------------------------------------------------------------------------------- checking


def _task_makes_sense(task: Mapping[str, Any], given: bool) -> None:
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


def _encoder(keys: Mapping[str, Any]) -> EncoderSpec:
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


def _probes_make_sense(probes: ProbeSpec, plan: PlanSpec) -> None:
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


def _arms(arms: Iterable[Any], draws: int, slot_scale: float) -> tuple[Arm, ...]:
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
    return tuple(found.values())


def _arm(value: Any, draws: int, slot_scale: float) -> Arm:
    """An arm from "name", "name x16" or {name = ..., as = ..., draws = ..., slot_scale = ..., options of the map}."""
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise Bad(f'must hold names or tables such as {{name = "moments-vocab", draws = 16}}, not {show(value)}')
    written: str = table["name"]
    own: dict[str, Any] = {}
    match = re.fullmatch(r"(.*\S)\s+[x×]\s?(\d{1,9})", written)
    if match:
        written, own["draws"] = match[1], int(match[2])
    from icrl_lab.maps import ALIASES

    if written not in names_of("arm") and written not in ALIASES:
        raise Bad(f"has an unknown name {written!r}; {nearest(written, [*names_of('arm'), *ALIASES])}", written)
    name = ALIASES.get(written, written)
    own |= {k: v for k, v in table.items() if k != "name"}
    checks: dict[str, Check] = {
        "as": text,
        "draws": DRAWS,
        **({"slot_scale": SCALE} if name not in TEXT_ARMS else {}),
    }
    checks |= dict.fromkeys(_map_options(name), option) | ({"budget": whole(1, 10**9)} if _needs_labels(name) else {})
    for key, given in own.items():
        if key not in checks:
            raise Bad(f"gives {written!r} an option {key!r} that it does not have; {nearest(key, checks)}", written)
        try:
            own[key] = checks[key](given)
        except Bad as bad:
            raise Bad(f"gives {written!r} a wrong {key}: it {bad}", written) from None
    options = {k: v for k, v in own.items() if k not in ("as", "draws", "slot_scale")}
    shown = [
        name,
        *([f"x{own['draws']}"] if own.get("draws", 1) > 1 else []),
        *(f"{k}={v}" for k, v in options.items()),
    ]
    shown += [f"slot_scale={own['slot_scale']:g}"] if "slot_scale" in own else []
    label = own.get("as") or " ".join(shown)
    return Arm(name, label, own.get("draws", draws), own.get("slot_scale", slot_scale), options)


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
