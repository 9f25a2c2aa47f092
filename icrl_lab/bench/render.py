"""The result as text for a terminal, or as Markdown for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def _number(value: float | None, form: str = ".3g") -> str:
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:{form}}"


COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "method": lambda r: r["method"],
    "dtype": lambda r: r["dtype"],
    "N": lambda r: str(r["queries"]),
    "measured on": lambda r: r["measured on"],
    "ms/query": lambda r: _number(r["ms"]),
    "CPU s/query": lambda r: _number(r["CPU s"]),
    "queries/s": lambda r: _number(r["queries/s"]),
    "tokens/query": lambda r: _number(r["tokens"], ".1f"),
    "peak MB": lambda r: _number(r["peak MB"], ".0f"),
    "ours is x faster": lambda r: _number(r["slower"]),
    "in CPU time": lambda r: _number(r["slower CPU"]),
    "of product rate": lambda r: "-" if r["share"] is None else f"{100 * r['share']:.0f} %",
    "largest difference": lambda r: "-" if r["difference"] is None else f"{r['difference']:.1e}",
    "answers that flip": lambda r: "-" if r["flips"] is None else f"{r['flips']} of {r['compared']}",
}
INSIDE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "method": lambda r: r["method"],
    "dtype": lambda r: r["dtype"],
    "asked": lambda r: r["asked"],
    "answers": lambda r: r["measured on"],
    "ms/answer": lambda r: _number(r["ms"]),
    "CPU s/answer": lambda r: _number(r["CPU s"]),
    "peak MB": lambda r: _number(r["peak MB"], ".0f"),
    "times": lambda r: _number(r["times"]),
    "in CPU time": lambda r: _number(r["times CPU"]),
    "of": lambda r: r["against"] or "-",
    "largest difference": lambda r: "-" if r["difference"] is None else f"{r['difference']:.1e}",
}
NOTES = (
    "N queries after one prefix of T tokens with 20 vectors; S suffix tokens a query, the first a vector. The prefix is in the time, "
    "but for rows that say otherwise; loading is not.",
    "measured on: queries x rounds; medians over the rounds, and a peer's ratio the median over pairs of rounds. Rows with a shared prefix count prefix + N x a query.",
    "peak MB is above the model and the second copy of its weights, where products take one; the product rate is measured in turn with the rows, in the same dtype and threads, and on a CPU held in CPU time.",
    "difference and flips: log-probabilities of 10 labels, and the most probable of them, against a full forward of each prompt "
    "in the table's dtype.",
    "the paper's way: three queries a prompt, 24 tokens generated for their answers, the prefix computed for each prompt.",
    "looking inside: an answer is a query's attention (the answer's row and the query slot's, over the vectors, all layers and heads), "
    "or a query's log-probabilities under one patch (a cell: a layer and a position); answers: a call x calls. `times` and `in CPU time` "
    "are the time of an answer over that of the row under `of`, called in turn. A table of patches is measured on a sample of its cells, "
    "the middles of equal parts of its layers and positions; ours computes the prefix in each call. Differences: attention, to eager's; "
    "patched log-probabilities of 10 labels, to ours.",
)


def table(result: Mapping[str, Any], markdown: bool = False) -> str:
    """Every row, column and limit of what `run` returned, as aligned text or as Markdown."""
    head, sub = ("# ", "## ") if markdown else ("", "")
    machine = result["machine"]
    lines = [
        f"{head}icrl-lab bench: {result['geometry']}, {result['dtype']}, {result['weights']} weights",
        f"{machine['device']}; {machine['cpu']}, {machine['cores']} cores, threads {result['threads'] or 'default'}, "
        f"load {machine['load']}; torch {machine['torch']}, transformers {machine['transformers']}; {machine['date']}",
    ]
    for case in result["cases"]:
        rates = [
            f"{dtype} {rate['wall GFLOP/s']:,.0f} GFLOP/s, {rate['CPU GFLOP/s']:,.0f} a CPU second"
            for dtype, rate in case["product rate"].items()
        ]
        lines += [
            "",
            f"{sub}T = {case['prefix']}, S = {case['suffix']}",
            "",
            f"matrix products: {'; '.join(rates)}",
            "",
        ]
        lines += _grid([[cell(row) for cell in COLUMNS.values()] for row in case["rows"]], markdown)
        lines += [""] + [_limit(item, markdown) for item in case["limits"]]
        lines += [f"{'- ' if markdown else ''}{note}" for note in case.get("notes", ())]
    for look in result["inside"]:
        lines += ["", f"{sub}{look['title']}", ""]
        lines += _grid([[cell(row) for cell in INSIDE.values()] for row in look["rows"]], markdown, INSIDE)
        lines += [""] + [_limit(item, markdown) for item in look["limits"]]
        lines += [f"{'- ' if markdown else ''}{note}" for note in look["notes"]]
    if result["trees"]:
        lines += ["", f"{sub}Tokens computed over tokens asked", ""]
        for tree in result["trees"]:
            lines.append(
                f"{'- ' if markdown else ''}{_verdict(tree)} {tree['what']}: {tree['computed']:,} of {tree['asked']:,} tokens "
                f"({tree['times fewer']:.1f} times fewer), optimum {tree['optimum']:,}"
            )
    if result["exactness"]:
        lines += ["", f"{sub}Exactness", ""]
        for item in result["exactness"]:
            lines.append(
                f"{_limit(item, markdown)}; to float64: ours {item['ours to float64']:.1e}, full forward {item['full forward to float64']:.1e}"
            )
    lines += ["", *(f"{'- ' if markdown else ''}{note}" for note in NOTES)]
    return "\n".join(lines)


def _verdict(item: Mapping[str, Any]) -> str:
    return "[pass]" if item["pass"] else "[SHORT]"


def _limit(item: Mapping[str, Any], markdown: bool) -> str:
    sign = ">=" if item["at least"] else "<="
    return f"{'- ' if markdown else ''}{_verdict(item)} {item['limit']} {_number(item['measured'])} ({sign} {_number(item['bound'])})"


def _grid(rows: Sequence[Sequence[str]], markdown: bool, columns: Mapping[str, Any] = COLUMNS) -> list[str]:
    """Rows of cells under their columns, padded to line up; the first column to the left, the others to the right."""
    names = list(columns)
    widths = [max(len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(names)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded)

    rule = [("-" * w if i == 0 else "-" * (w - 1) + ":") if markdown else "-" * w for i, w in enumerate(widths)]
    return [line(names), line(rule), *(line(row) for row in rows)]
