"""Molecules as pictures."""

from __future__ import annotations

import base64
import re
from typing import Any

from icrl_lab.errors import MissingExtra

LEAN = (  # half of what RDKit writes says nothing: names of classes that no style uses, and a bond's defaults
    (r"(?s)^.*?(?=<svg)", ""),
    (r" class='[^']*'|<!--.*?-->", ""),
    (r"style='fill:none;fill-rule:evenodd;(stroke):(#\w+);(stroke-width):([\d.]+)px;stroke-linecap:butt;stroke-linejoin:miter;stroke-opacity:1'", r"fill='none' \1='\2' \3='\4'"),
)  # fmt: skip


def drawing(smiles: str, width: int = 240, height: int = 160) -> str | None:
    """A molecule as a data URI of an SVG, for an <img>, where nothing in it can run; None for what is no molecule."""
    chem, draw = _rdkit()
    settings = chem.SmilesParserParams()
    settings.allowCXSMILES = False  # labels of the user's own have no place in a picture
    settings.parseName = False
    molecule = chem.MolFromSmiles(smiles, settings)
    if molecule is None or not molecule.GetNumAtoms():
        return None
    canvas = draw.MolDraw2DSVG(width, height)
    canvas.drawOptions().clearBackground = False
    draw.PrepareAndDrawMolecule(canvas, molecule)
    canvas.FinishDrawing()
    text = canvas.GetDrawingText()
    for long, short in LEAN:
        text = re.sub(long, short, text)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def _rdkit() -> tuple[Any, Any]:
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem.Draw import rdMolDraw2D
    except ImportError:
        raise MissingExtra('drawing molecules needs rdkit: pip install "icrl-lab[molecules]"') from None
    RDLogger.DisableLog("rdApp.error")  # type: ignore[attr-defined]
    return Chem, rdMolDraw2D
