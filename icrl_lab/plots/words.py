"""Words that figures share: the same thing is called the same in all of them."""

from __future__ import annotations

import re


def shown_group(name: str) -> str:
    """A group of positions as it is shown: readings count shots from 0, people from 1. "shot 3 slot" is "shot 4 slot"."""
    return re.sub(r"^shot (\d+) ", lambda found: f"shot {int(found[1]) + 1} ", name)
