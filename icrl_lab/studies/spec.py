"""A study file as a frozen value: what was asked for, checked before anything is computed.

Owns the keys, their defaults and what values they may have; names of arms, controls, layouts and the rest belong to
their rooms and are looked up there. It knows no task and loads no model, so a mistake on line 14 is found in
milliseconds. Whatever is wrong is one StudyError that names the file, the line, the key and the nearest valid name.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from icrl_lab.errors import StudyError, nearest
from icrl_lab.studies import making, toml
from icrl_lab.studies.checks import SECTIONS, Wrong, section
from icrl_lab.studies.sections import EncoderSpec, LLMSpec, PlanSpec, ProbeSpec, TaskSpec


@dataclass(frozen=True)
class StudySpec:
    """A study as resolved: every default filled in, every alias replaced, every path absolute."""

    task: TaskSpec
    encoder: EncoderSpec
    llm: LLMSpec
    study: PlanSpec
    probes: ProbeSpec = field(default_factory=ProbeSpec)

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
        making.check_task(found["task"], "task" in document)
        task, encoder, llm = TaskSpec(**found["task"]), making.encoder(found["encoder"]), LLMSpec(**found["llm"])
        plan, probes = making.plan(found["study"]), ProbeSpec(**found["probes"])
        making.check_probes(probes, plan)
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
        return making.plan(section("study", {"study": keys}, Path()))
    except Wrong as wrong:
        raise StudyError(str(wrong)) from None
