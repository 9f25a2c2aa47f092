"""Widgets: one question a view, one selection for all of them.

Owns what a person clicks. A view shows a figure of `plots`, made of numbers that `probes` and `studies` computed, and moves with the
page's one `Selection`; it computes nothing that would be quoted. Views know the selection and never each other. What needs a
model runs in `live`, in the background, can be stopped, and shows its errors where it stands.

    selection.py  Selection: what is looked at, validated in one place
    base.py       View: title, message, figure, the plain picture where no front end runs
    live.py       Runner: debounce, progress, cancel
    prompt.py attention.py geometry.py order.py similarity.py patching.py study.py   one question each
    dashboard.py  all of them on one page

Python 3, ipywidgets for controls, and where it has none a small ES module beside the Python file. Nothing comes from a network.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icrl_lab.widgets.selection import Selection

_HOME = {
    "Selection": "selection",
    "Dashboard": "dashboard",
    **{f"{name.title()}View": name for name in ("prompt", "attention", "geometry", "patching", "order", "similarity", "study")},
}  # fmt: skip

__all__ = [
    "AttentionView",
    "Dashboard",
    "GeometryView",
    "OrderView",
    "PatchingView",
    "PromptView",
    "Selection",
    "SimilarityView",
    "StudyView",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'icrl_lab.widgets' has no attribute {name!r}")
    return getattr(import_module(f"icrl_lab.widgets.{_HOME[name]}"), name)
