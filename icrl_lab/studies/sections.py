"""The sections of a study file as frozen values, with their defaults. What their values may be is for checks and making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from icrl_lab.studies.checks import TEXT_ARMS


@dataclass(frozen=True)
class Arm:
    """One way of putting items into the prompt.

    name        "text", "pca-text" or a slot map
    label       how tables and figures call it; unique in a study
    draws       draws of map and shot order whose predictive distributions are mixed
    slot_scale  norm of a slot relative to a token's, or "own": as the map gives it
    options     the map's own arguments, `row_normalise`, and for maps that need labels `budget`
    mixed       the arms whose answers this one mixes, each with the same weight; the first is this one asked alone. Empty: none
    """

    name: str
    label: str = ""
    draws: int = 1
    slot_scale: float | str = 0.5
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    mixed: tuple[Arm, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __reduce__(self):  # a mapping proxy does not pickle
        return Arm, (self.name, self.label, self.draws, self.slot_scale, dict(self.options), self.mixed)

    @property
    def has_slots(self) -> bool:
        """False for the arms that write text only; controls of the vectors mean nothing there."""
        return self.name not in TEXT_ARMS

    @property
    def members(self) -> tuple[Arm, ...]:
        """The arms that are asked: those that it mixes, or itself."""
        return self.mixed or (self,)

    def to_dict(self) -> dict[str, Any]:
        """As an inline table of a study file."""
        scale = {"slot_scale": self.slot_scale} if self.has_slots else {}
        also = {"also": [arm.to_dict() for arm in self.mixed[1:]]} if self.mixed else {}
        return {"name": self.name, "as": self.label, "draws": self.draws, **scale, **self.options, **also}


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

    label_bins how the labels of a closed set cut the scale of the targets
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
    label_bins: str = "quantile"
    slot_scale: float | str = 0.5
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

    @property
    def asked(self) -> tuple[Arm, ...]:
        """Every arm that is asked, those of mixtures among them."""
        return tuple(member for arm in self.arms for member in arm.members)


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
