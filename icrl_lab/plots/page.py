"""One self-contained HTML page: text, tables and figures, nothing from the network, in light and dark.

Owns the page's style and its safety. Every string of data goes through `text`; figures travel as JSON in which no tag can
end; and the page carries a policy that allows only the two scripts written here, by their hashes, so that even markup
that slipped through could neither run nor load anything. It knows nothing of studies.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

CSS = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fdfdfc; --panel: #f3f4f2; --line: #d9dcd8; --mark: #0072B2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #9aa4b0; --paper: #14181d; --panel: #1d232a; --line: #343c46; --mark: #56B4E9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, li { max-width: 46rem; margin: .45rem 0; }
.soft { color: var(--soft); font-size: .88rem; }
.scroll { overflow: auto; max-height: 36rem; border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .55rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
thead th { position: sticky; top: 0; background: var(--panel); font-weight: 600; z-index: 1; white-space: normal; vertical-align: bottom; }
td.number, th.number { text-align: right; }
td.wide { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
td small { color: var(--soft); }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--mark); }
.figure { width: 700px; max-width: 100%; overflow-x: auto; margin: .8rem 0 1.4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: .9rem; margin: .8rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; font-size: .82rem; background: var(--panel); }
.card img { display: block; width: 100%; height: 150px; object-fit: contain; background: #fff; }
.card div { padding: .5rem .7rem; overflow-wrap: anywhere; }
.warning { border-left: 4px solid #D55E00; background: var(--panel); padding: .5rem .9rem; border-radius: 0 8px 8px 0; }
.uses { color: #009E73; font-weight: 600; } .harmed { color: #D55E00; font-weight: 600; }
@media print { .scroll { max-height: none; overflow: visible; } details:not([open]) { display: none; } }
"""

DRAW = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const ink = () => getComputedStyle(document.body).color;
const shown = new Map();
function draw(box) {
  if (shown.has(box)) return;
  const figure = figures[box.id];
  figure.layout.font = Object.assign({}, figure.layout.font, {color: ink()});
  shown.set(box, Plotly.newPlot(box, figure.data, figure.layout, {displayModeBar: false}));
}
const boxes = [...document.querySelectorAll(".figure")];
boxes.filter(box => !box.closest("details:not([open])")).forEach(draw);
document.querySelectorAll("details").forEach(part => part.addEventListener("toggle", () => {
  if (part.open) part.querySelectorAll(".figure").forEach(draw);
}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  shown.forEach((_, box) => Plotly.relayout(box, {"font.color": ink()}));
});
"""


def text(value: Any) -> str:
    """Any value as text of an HTML page or of an attribute: nothing in it is markup, no invisible character turns it around."""
    plain = "".join(c if c.isprintable() or c == " " else " " if c in "\t\n\r" else "\ufffd" for c in str(value))
    return html.escape(plain, quote=True)


def table(
    rows: Sequence[Sequence[Any]], header: Sequence[str], raw: Iterable[int] = (), wide: Iterable[int] = ()
) -> str:
    """A table that scrolls by itself. Cells are escaped, but for the columns `raw`, which hold HTML already.

    A column of numbers, or of strings that begin like one, stands to the right; columns `wide` break their lines.
    """
    if not rows:
        return '<p class="soft">None.</p>'
    raw, wide = set(raw), set(wide)
    right = {i for i in range(len(header)) if i not in wide and all(_numeric(row[i]) for row in rows)}

    def cell(i: int, value: Any) -> str:
        kind = ' class="number"' if i in right else ' class="wide"' if i in wide else ""
        return f"<td{kind}>{value if i in raw else text(value)}</td>"

    heads = "".join(f"<th{' class=number' if i in right else ''}>{text(h)}</th>" for i, h in enumerate(header))
    body = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>\n" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table></div>'
    )


def _numeric(value: Any) -> bool:
    plain = str(value).lstrip("−-+")
    return not plain or plain[0].isdigit()


def figure(name: str) -> str:
    """The place of a figure; `page` is given the figure under the same name."""
    return f'<div class="figure" id="{text(name)}"></div>'


def page(title: str, body: str, figures: dict[str, go.Figure]) -> str:
    """The whole page. `body` is HTML whose data were escaped; the same arguments give the same bytes."""
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs().replace("</script", "<\\/script"), DRAW] if figures else []
    drawn = {name: json.loads(drawing.to_json(engine="json")) for name, drawing in figures.items()}
    data = json.dumps(drawn, sort_keys=True).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes or chr(39) + 'none' + chr(39)}"
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{text(title)}</title>\n<style>{CSS}</style>\n</head>\n'
    )
    code = f'<script type="application/json" id="figures">{data}</script>\n' + "".join(
        f"<script>{s}</script>\n" for s in scripts
    )
    return f"{head}<body>\n<main>\n{body}\n</main>\n{code if figures else ''}</body>\n</html>\n"
