"""Which column holds what. Published layouts are values in a table; what the caller names goes before them."""

from __future__ import annotations

from dataclasses import dataclass

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.tasks.splits import SIDES, SPLITS
from icrl_lab.tasks.tables import Table


@dataclass(frozen=True)
class Layout:
    """A published layout: the columns that tell it, all of molecules.

    id  the column of names; published names may repeat, and then the SMILES is the id
    """

    name: str
    text: str
    target: str
    id: str
    units: str = ""
    property: str = ""


LAYOUTS = (
    Layout(
        "MoleculeNet ESOL",
        "smiles",
        "measured log solubility in mols per litre",
        "Compound ID",
        "log mol/L",
        "aqueous solubility",
    ),
    Layout("MoleculeNet Lipophilicity", "smiles", "exp", "CMPD_CHEMBLID", "logD", "lipophilicity at pH 7.4"),
    Layout("MoleculeNet FreeSolv", "smiles", "expt", "iupac", "kcal/mol", "hydration free energy"),
    Layout("Huuskonen", "smiles", "SOL", "NAME", "log mol/L", "aqueous solubility"),
    Layout("TDC", "Drug", "Y", "Drug_ID"),
    Layout("TDC", "X", "Y", "ID"),
)

TDC = {  # TDC names a data set by its file: units and property
    "caco2_wang": ("log cm/s", "Caco-2 permeability"),
    "aqsoldb": ("log mol/L", "aqueous solubility"),
    "ld50_zhu": ("-log mol/kg", "acute oral toxicity (LD50, rat)"),
    "lipophilicity_astrazeneca": ("logD", "lipophilicity at pH 7.4"),
    "freesolv": ("kcal/mol", "hydration free energy"),
}

MOLECULES = ("smiles", "drug", "canonical_smiles")  # column names, in lower case, that hold SMILES
TEXTS = (*MOLECULES, "sequence", "text")
MODALITIES = ("molecule", "text", "protein", "image", "audio", "table", "vector")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that make a task; exactly one of target and label is set."""

    text: str
    target: str | None
    label: str | None
    id: str | None  # None: the text is the id
    split: str | None  # None: no given split
    molecule: bool
    units: str
    property: str
    layout: str  # "" where the columns are no published layout


def columns_of(
    table: Table,
    text: str | None = None,
    target: str | None = None,
    label: str | None = None,
    id: str | None = None,
    split: str | None = None,
    modality: str | None = None,
) -> Columns:
    """Find the task's columns. A name that is not there is a DataError with the nearest one that is."""
    if target is not None and label is not None:
        raise StudyError(f"target={target!r} makes a regression and label={label!r} a classification; give one of them")
    if modality is not None and modality not in MODALITIES:
        raise StudyError(f"modality={modality!r} does not exist; {nearest(modality, MODALITIES)}")
    layout = next(
        (k for k in LAYOUTS if {k.text, k.target, k.id} <= set(table.columns) and text in (None, k.text)),
        None,
    )
    text = text or (layout.text if layout else _guess(table, TEXTS))
    if text is None:
        raise DataError(f"{table.name}: say which column holds the items with text=...; {_columns(table)}")
    if target is None and label is None:
        if layout is None:
            raise DataError(f"{table.name}: say what to predict with target=... or label=...; {_columns(table)}")
        target = layout.target
    if id is None:
        id = _own_id(table, layout)
    split = _split_column(table, split)
    for name in (text, target, label, id, split):
        if name is not None:
            _check(table, name)
    if text in (target, label):
        what = "target" if text == target else "label"
        raise StudyError(f"{table.name}: column {text!r} is both the item and its {what}; name another with text=...")
    known = layout is not None and target == layout.target
    units, property = (layout.units, layout.property) if layout and known else ("", "")
    if layout and known and layout.name == "TDC":
        stem = table.name.lower()
        units, property = next((v for k, v in TDC.items() if k in stem), ("", ""))
    molecule = modality == "molecule" or (modality is None and (layout is not None or text.lower() in MOLECULES))
    return Columns(
        text, target, label, id, split, molecule, units, property or str(target or label), layout.name if layout else ""
    )


def _own_id(table: Table, layout: Layout | None) -> str | None:
    """The id column nobody named: "id" as it is; a layout's names only where they are all there and none repeats."""
    if layout is None:
        return _guess(table, ("id",))
    names = table.columns[layout.id]
    whole = all(n is not None and str(n).strip() for n in names) and len({str(n).strip() for n in names}) == len(names)
    return layout.id if whole else None


def _split_column(table: Table, split: str | None) -> str | None:
    if split in SPLITS:
        return None
    if split is not None:
        if split not in table.columns:
            raise DataError(
                f"{table.name}: split={split!r} is no split and no column; {_among(split, [*SPLITS, *table.columns])}"
            )
        return split
    sides = {SIDES.get(str(s).strip().lower()) for s in table.columns.get("split", ())}
    return "split" if {"train", "test"} <= sides else None


def _guess(table: Table, names: tuple[str, ...]) -> str | None:
    lower = {c.lower(): c for c in reversed(list(table.columns))}
    return next((lower[n] for n in names if n in lower), None)


def _check(table: Table, name: str) -> None:
    if name not in table.columns:
        raise DataError(f"{table.name} has no column {name!r}; {_among(name, list(table.columns))}")
    if name in table.repeated:
        raise DataError(f"{table.name} has more than one column {name!r}; rename all but the one that is meant")


def _columns(table: Table) -> str:
    return _line("its columns are " + ", ".join(repr(c) for c in table.columns))


def _among(name: str, valid: list[str]) -> str:
    return _line(nearest(name, valid))


def _line(text: str, most: int = 400) -> str:
    """One line of a message, whatever a header holds."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."
