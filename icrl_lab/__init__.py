"""icrl_lab: can a text LLM use a vector that no text produced, and how?

The public names load on first use, so that `import icrl_lab` brings in neither torch nor rdkit.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from icrl_lab.errors import DataError, IcrlError, MissingExtra, ModelError, StudyError

if TYPE_CHECKING:  # what the lazy names are, for type checkers and editors
    from icrl_lab.encoders import encode
    from icrl_lab.engine import Engine
    from icrl_lab.models import load_llm
    from icrl_lab.studies import Arm, Study, open_run
    from icrl_lab.tasks import load_task
    from icrl_lab.values import Capture, Prompt, Rendered, SlotMap, Task, Trace, Vectors

# Two threads that wait for each other by spinning turn microseconds into milliseconds as soon as anything else runs on the
# machine; this must be said before torch is loaded, and what the user has set stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOME = {
    "load_task": "tasks",
    "encode": "encoders",
    "load_llm": "models",
    "Engine": "engine",
    "Study": "studies",
    "Arm": "studies",
    "open_run": "studies",
    **dict.fromkeys(("Capture", "Prompt", "Rendered", "SlotMap", "Task", "Trace", "Vectors"), "values"),
}

__all__ = [
    "Arm",
    "Capture",
    "DataError",
    "Engine",
    "IcrlError",
    "MissingExtra",
    "ModelError",
    "Prompt",
    "Rendered",
    "SlotMap",
    "Study",
    "StudyError",
    "Task",
    "Trace",
    "Vectors",
    "__version__",
    "encode",
    "load_llm",
    "load_task",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'icrl_lab' has no attribute {name!r}")
    value = getattr(import_module(f"icrl_lab.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
