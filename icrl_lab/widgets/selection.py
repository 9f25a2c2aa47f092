"""What is looked at: one hub of traits that every view of a page reads and writes.

A value is checked here and nowhere else; a wrong one raises TraitError and changes nothing. No trait is set because another
was, so that the state after some clicks does not depend on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import traitlets as t

if TYPE_CHECKING:
    import pandas as pd

    from icrl_lab.studies import StudyResult
    from icrl_lab.values import Reading


class Selection(t.HasTraits):
    """The selection of one run.

    arm, control  of the run's predictions
    layer, head   a block and its head; a view that shows the residual stream reads `layer` as depth
    shot          place of a shot in the prompt, from 0; -1 is none
    query         id of an item that was asked about; "" is none
    item          id of any item, the one that is pointed at; "" is none
    items         ids that were lassoed; empty is all
    """

    arm = t.Unicode()
    control = t.Unicode()
    layer = t.Int(0)
    head = t.Int(0)
    shot = t.Int(-1)
    query = t.Unicode()
    item = t.Unicode()
    items: Any = t.Tuple()

    def __init__(
        self, result: StudyResult, *, layers: int | None = None, heads: int | None = None, **chosen: Any
    ) -> None:
        """layers, heads: of the model; None takes them from the run's readings or model, or does not limit them."""
        frame = result.predictions
        self.result = result
        self.arms = tuple(map(str, frame["arm"].unique()))
        self.controls = tuple(map(str, frame["control"].unique()))
        self.queries = tuple(map(str, frame["item"].unique()))
        self.known = frozenset(map(str, result.items["id"])) if len(result.items) else frozenset(self.queries)
        self.shots = int(frame["shots"].max())
        self.layers, self.heads = layers, heads
        real = "real" if "real" in self.controls else self.controls[0]
        with_slots = frame.loc[frame["control"] != "real", "arm"]
        arm = str(with_slots.iloc[0]) if len(with_slots) else self.arms[0]
        super().__init__(**{"arm": arm, "control": real, "query": self.queries[0], **chosen})

    @classmethod
    def of_reading(cls, reading: Reading) -> Selection:
        """The selection of a reading whose run is not at hand: of its arm, controls, queries and items, and no predictions."""
        return cls(_Alone(reading), **sizes_of(reading))  # type: ignore[arg-type]

    @t.validate("arm", "control")
    def _named(self, proposal: Any) -> str:
        valid = self.arms if proposal.trait.name == "arm" else self.controls
        return self._one_of(proposal, valid)

    @t.validate("query")
    def _asked(self, proposal: Any) -> str:
        return self._one_of(proposal, ("", *self.queries))

    @t.validate("item")
    def _item(self, proposal: Any) -> str:
        return self._one_of(proposal, {"", *self.known})

    @t.validate("items")
    def _items(self, proposal: Any) -> tuple[str, ...]:
        unknown = [i for i in proposal.value if i not in self.known]
        if unknown:
            raise t.TraitError(f"items: the run has no item {unknown[0]!r}")
        return tuple(dict.fromkeys(map(str, proposal.value)))

    @t.validate("layer", "head", "shot")
    def _number(self, proposal: Any) -> int:
        name, value = proposal.trait.name, proposal.value
        low = -1 if name == "shot" else 0
        # a depth may be one more than the last block
        top = {"shot": self.shots - 1, "layer": self.layers, "head": None if self.heads is None else self.heads - 1}[
            name
        ]
        if value < low or (top is not None and value > top):
            raise t.TraitError(f"{name} must be from {low} to {'any' if top is None else top}, not {value}")
        return value

    @staticmethod
    def _one_of(proposal: Any, valid: Sequence[str] | set[str]) -> str:
        if proposal.value not in valid:
            raise t.TraitError(f"{proposal.trait.name}: {proposal.value!r} is not in this run")
        return proposal.value

    def to_dataframe(self) -> pd.DataFrame:
        """The predictions that are selected: of the arm and control, and of the lassoed items where there are some."""
        frame = self.result.predictions
        rows = (frame["arm"] == self.arm) & (frame["control"] == self.control)
        if self.items:
            rows &= frame["item"].astype(str).isin(self.items)
        return frame[rows].reset_index(drop=True)

    def __repr__(self) -> str:
        names = ("arm", "control", "layer", "head", "shot", "query", "item")
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"Selection({told}, {len(self.items)} items)"


class _Alone:
    """As much of a run as a reading tells: what there is to select."""

    def __init__(self, reading: Reading) -> None:
        import pandas as pd

        data, about = reading.data, reading.about
        queries = [str(q) for q in data["query"].values] if "query" in data.coords else ["-"]
        controls = [str(c) for c in data["control"].values] if "control" in data.coords else []
        named = list(dict.fromkeys(["real", *controls]))
        rows = [(str(about.get("arm", "-")), c, q, int(about.get("shots", 1))) for c in named for q in queries]
        self.predictions = pd.DataFrame(rows, columns=["arm", "control", "item", "shots"])
        text = data["text"].values if "text" in data.coords and data["text"].dims == ("query",) else queries
        known = {q: str(x) for q, x in zip(queries, text)}
        for name in ("shot_item", "shown_item"):
            known |= {str(i): known.get(str(i), str(i)) for i in (data[name].values.ravel() if name in data else ())}
        self.items = pd.DataFrame({"id": list(known), "text": list(known.values())})
        self.manifest: dict[str, Any] = {"task": {"name": about.get("task"), "modality": about.get("modality")}}


def sizes_of(reading: Reading) -> dict[str, int]:
    """Blocks and heads of a reading's model, where it says so."""
    sizes = reading.data.sizes
    both = "layer" in sizes and "head" in sizes
    return {"layers": int(sizes["layer"]), "heads": int(sizes["head"])} if both else {}
