"""The frozen objects that pass between rooms.

Each checks itself once, at construction, and then never changes: arrays are set read-only. None holds a
model, a tokenizer or a GPU tensor, so each can be pickled, saved and compared. They have no behaviour beyond
checks, `take`, `save` and `load`; what is computed from them lives in the rooms.

    items.py      Task: what there is to predict about what
    vectors.py    Vectors in a named space
    slot_maps.py  SlotMap: from one space to another
    prompts.py    Prompt as parts, Rendered as the engine takes it
    forward.py    what is asked of a forward pass (Capture, Patch, Cut, Outcome) and what it kept (Trace)
    reading.py    Reading: what a probe found
"""

from icrl_lab.values.forward import Capture, Cut, Edit, Outcome, Patch, Trace, key_of
from icrl_lab.values.items import Dropped, Task
from icrl_lab.values.prompts import ROLES, SLOT, Prompt, Rendered, Slot, Span, Text
from icrl_lab.values.reading import Reading
from icrl_lab.values.slot_maps import SlotMap, Step
from icrl_lab.values.vectors import Vectors

__all__ = [
    "ROLES",
    "SLOT",
    "Capture",
    "Cut",
    "Dropped",
    "Edit",
    "Outcome",
    "Patch",
    "Prompt",
    "Reading",
    "Rendered",
    "Slot",
    "SlotMap",
    "Span",
    "Step",
    "Task",
    "Text",
    "Trace",
    "Vectors",
    "key_of",
]
