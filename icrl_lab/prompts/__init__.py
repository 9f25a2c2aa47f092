"""Prompts: Template -> Prompt -> Rendered.

Owns how shots and queries become one string, and where each part of it stands among the tokens. A template is a frozen
value, `build` a pure function of it, and `render` makes one tokenisation of one string. The room knows no chemistry, no
model and no score: vectors come from the maps, labels come written from the answers' room.

    templates.py   the layouts, and `layout` for the user's own
    building.py    `build`, `build_all`: a template, shots and queries become Prompts
    tokens.py      the tokenizer seen so that the text of data can never be a control token
    rendering.py   `render`, `render_all`: ids, slots, spans
    cuts.py        where the prompt ends and its label begins, for any tokenizer
    pieces.py      a rendered prompt as one sees it, part by part
"""

from __future__ import annotations

from icrl_lab.prompts.building import VIEWS, Example, build, build_all
from icrl_lab.prompts.cuts import Cut, cuts
from icrl_lab.prompts.pieces import Piece, pieces
from icrl_lab.prompts.rendering import ROOM, refill, render, render_all, too_long
from icrl_lab.prompts.templates import LAYOUTS, MARKERS, Template, layout

__all__ = [
    "LAYOUTS",
    "MARKERS",
    "ROOM",
    "VIEWS",
    "Cut",
    "Example",
    "Piece",
    "Template",
    "build",
    "build_all",
    "cuts",
    "layout",
    "pieces",
    "refill",
    "render",
    "render_all",
    "too_long",
]
