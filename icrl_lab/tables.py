"""The summary of a study as a table for a terminal, a README and a notebook. Computes nothing.

How many labels a row has seen stands beside its figures: in a column of its own where any row saw others than those of its
shots (a map fitted on more), and otherwise once for all rows, in the sentence below the table.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from icrl_lab.stats import more_labels

if TYPE_CHECKING:
    import pandas as pd

CONDITIONS = ("with_text", "labels", "shots", "selection", "order")


def _interval(row: Any, name: str) -> str:
    value, low, high = row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None or value != value:
        return ""
    sign = "" if name == "accuracy" else "+"  # of what can be negative
    return f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]" if low == low else f"{value:{sign}.2f}"


def _line(cell: Any) -> str:
    """A cell on one line: a label of the user's own may have several, and a terminal obeys some characters."""
    return "".join(c for c in " ".join(str(cell).split()) if c.isprintable())


def _count(row: Any, name: str) -> str:
    value = row.get(name)
    return "" if value is None or value != value else f"{value:.0f}"


def _decimals(*columns: Any) -> str:
    """One format for a column's numbers: two decimals, or three significant digits where all are small."""
    largest = max((abs(v) for column in columns for v in column if v == v), default=1.0)
    return ".2f" if largest >= 0.1 or largest == 0 else ".3g"


def rows(summary: pd.DataFrame, baselines: pd.DataFrame | None, units: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every cell of the summary, then the baselines. Conditions that do not vary are left out, and so are the
    labels seen where they are those of the shots in every row."""
    main = "pearson" if "pearson" in summary else "accuracy"
    error = "rmse" if "rmse" in summary else None
    others = summary[summary["arm"] != "text"]  # which always shows the text, and so says nothing of `with_text`
    several = lambda c: (others if c == "with_text" else summary)[c].astype(str).nunique() > 1  # noqa: E731
    varying = [c for c in CONDITIONS if c in summary and several(c)]
    more = len(more_labels(summary)) > 0
    title = {"pearson": "Pearson r [95 %]", "accuracy": "accuracy [95 %]", "rmse": f"RMSE {units}".strip()}
    header = [
        "arm",
        "control",
        *varying,
        *(["labels seen"] if more else []),
        title[main],
        *([title[error]] if error else []),
        "minus noise [95 %]",
        "failed",
        "verdict",
    ]
    form = _decimals(
        *(table[error] for table in (summary, baselines) if error and table is not None and error in table)
    )
    out: list[list[str]] = []
    for row in summary.to_dict("records"):
        out.append(  # noqa: PERF401
            [row["arm"], row.get("control", ""), *(str(row[c]) for c in varying)]
            + ([_count(row, "gold_labels")] if more else [])
            + [_interval(row, main)]
            + ([f"{row[error]:{form}}"] if error else [])
            + [
                _interval(row, f"delta_{main}"),
                f"{row['failures']}/{row['n']}",
                "" if row["verdict"] == "control" else row["verdict"],
            ]
        )
    for row in () if baselines is None else baselines.to_dict("records"):
        fill = [str(row.get(c, "")) for c in varying]
        out.append(
            [
                row["baseline"],
                "baseline",
                *fill,
                *([_count(row, "shots")] if more else []),  # a baseline sees the shots and nothing else
                _interval(row, main),
                *([f"{row[error]:{form}}"] if error else []),
                "",
                "",
                "",
            ]
        )
    return [_line(name) for name in header], [[_line(cell) for cell in line] for line in out]


def text(summary: pd.DataFrame, baselines: pd.DataFrame | None = None, units: str = "") -> str:
    """Columns aligned with spaces."""
    header, body = rows(summary, baselines, units)
    width = [max(len(r[i]) for r in [header, *body]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, width)).rstrip() for r in [header, *body]]
    return "\n".join([lines[0], "  ".join("-" * w for w in width), *lines[1:], _foot(summary)])


def markdown(summary: pd.DataFrame, baselines: pd.DataFrame | None = None, units: str = "") -> str:
    """A pipe table."""
    header, body = rows(summary, baselines, units)
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def html(summary: pd.DataFrame, baselines: pd.DataFrame | None = None, units: str = "") -> str:
    """A table for a notebook; every string escaped."""
    header, body = rows(summary, baselines, units)
    cells = lambda tag, line: "".join(f"<{tag} style='text-align:left'>{escape(str(c))}</{tag}>" for c in line)  # noqa: E731
    lines = "".join(f"<tr>{cells('td', line)}</tr>" for line in body)
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{lines}</tbody></table><p>{escape(_foot(summary))}</p>"


def _foot(summary: pd.DataFrame) -> str:
    n, seeds = sorted(set(summary["n"])), sorted(set(summary["seeds"]))
    span = lambda v: f"{v[0]}" if len(v) == 1 else f"{v[0]} to {v[-1]}"  # noqa: E731
    labels = ""
    if "gold_labels" in summary and summary["gold_labels"].notna().all() and not len(more_labels(summary)):
        labels = f" each row saw the {span(sorted(set(summary['gold_labels'].astype(int))))} labels of its shots;"
    new = "new items only, which says nothing of other shots" if seeds == [1] else "new seeds and new items"
    many = "1 seed" if seeds == [1] else f"{span(seeds)} seeds"
    return f"{span(n)} prediction{'s' * (n != [1])} a row over {many};{labels} intervals over {new}; verdicts Holm-corrected over the arms."
