"""SMILES: is it a molecule, which one, and what is its scaffold. The only place of the room that knows chemistry."""

from __future__ import annotations

from typing import Any

from icrl_lab.errors import MissingExtra


def chem() -> Any:
    """rdkit.Chem, or MissingExtra."""
    try:
        from rdkit import Chem
    except ImportError:
        raise MissingExtra('molecules need rdkit: pip install "icrl-lab[molecules]"') from None
    return Chem


def quiet() -> Any:
    """A context in which rdkit writes nothing to stderr; what it has to say goes into our own sentence."""
    chem()
    from rdkit.rdBase import BlockLogs

    return BlockLogs()


def canonical(smiles: str) -> tuple[str, str]:
    """(canonical SMILES, "") of a molecule, or ("", what is wrong) where `smiles` is none."""
    Chem = chem()
    if any(c.isspace() for c in smiles):
        return "", "has a space inside; keep the SMILES alone in its cell"
    if not smiles.isascii():
        return "", "has a character that no SMILES has"
    mol = Chem.MolFromSmiles(smiles)
    if mol is not None and mol.GetNumAtoms():
        return Chem.MolToSmiles(mol), ""
    loose = Chem.MolFromSmiles(smiles, sanitize=False)
    problems = Chem.DetectChemistryProblems(loose) if loose is not None else ()
    if problems:
        return "", f"is not a valid molecule ({problems[0].Message()})"
    return "", "is not a valid SMILES (its syntax does not parse)"


def scaffold(smiles: str) -> str:
    """The Bemis-Murcko scaffold (rings and what links them, chirality ignored) of a valid SMILES; "" without rings."""
    Chem = chem()
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(smiles), includeChirality=False)
