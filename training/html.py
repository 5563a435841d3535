"""Building blocks of self-contained HTML pages: cards, tables, figures inside the file.

Reports of training, of simulations and of the demo are lists of :class:`Section`, joined by
:func:`page`. Text is escaped here; arguments named ``*_html`` and ``body`` are HTML already.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { --ink: #1d2733; --soft: #5d6b7a; --line: #e3e8ee; --card: #ffffff; --accent: #1f6feb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.2rem 1.2rem 3rem; }
h1 { font-size: 1.75rem; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 0 0 .9rem; }
.subtitle { color: var(--soft); margin: 0 0 1.6rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.3rem 1.4rem; margin: 0 0 1.2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .8rem;
  margin: 0 0 1.2rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: .9rem 1.1rem; }
.card .value { font-size: 1.55rem; font-weight: 650; letter-spacing: -.02em; white-space: nowrap; }
.card .unit { font-size: .85rem; font-weight: 500; color: var(--soft); margin-left: .25rem; }
.card .label { color: var(--soft); font-size: .87rem; }
figure { margin: 0 0 .6rem; text-align: center; }
figure img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .87rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
.row > * { flex: 1 1 320px; min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .38rem .7rem .38rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr:last-child td { border-bottom: 0; }
p { margin: .2rem 0 .8rem; }
.note { background: #fff8e6; border: 1px solid #f0dca8; border-radius: 8px; padding: .6rem .9rem; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: #eef2f6;
  border-radius: 4px; padding: .08em .35em; }
details > summary { cursor: pointer; color: var(--accent); }
footer { color: var(--soft); font-size: .85rem; margin-top: 1.6rem; }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A titled part of a page.

    Attributes:
        title: Heading; empty for a part without frame and heading, such as a row of cards.
        body: HTML.
    """

    title: str
    body: str


@dataclass(frozen=True)
class Card:
    """A figure that matters, in large type.

    Attributes:
        label: What it is.
        value: The number, formatted.
        unit: Its unit.
    """

    label: str
    value: str
    unit: str = ""


def page(title: str, sections: Sequence[Section], subtitle: str = "", footer: str = "") -> str:
    """A whole HTML page, without any reference to other files."""
    parts = [
        section.body
        if not section.title
        else f"<section><h2>{escape(section.title)}</h2>{section.body}</section>"
        for section in sections
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p>'
        + "\n".join(parts)
        + f"<footer>{escape(footer)}</footer></main></body></html>\n"
    )


def cards(items: Sequence[Card]) -> str:
    """A row of figures that matter."""
    inner = "".join(
        f'<div class="card"><div class="value">{escape(card.value)}'
        f'<span class="unit">{escape(card.unit)}</span></div>'
        f'<div class="label">{escape(card.label)}</div></div>'
        for card in items
    )
    return f'<div class="cards">{inner}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers are set to the right."""
    numeric = [
        bool(rows) and all(isinstance(row[k], int | float) for row in rows)
        for k in range(len(header))
    ]

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=number' if right else ''}>{escape(_text(value))}</{tag}>"
            for value, right in zip(values, numeric, strict=True)
        )

    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if any(header) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def key_values(values: Mapping[str, object]) -> str:
    """A table of names and values."""
    return table(["", ""], [[key, _text(value)] for key, value in values.items()])


def figure_html(figure: "Figure", caption: str, dpi: int = 150) -> str:
    """A matplotlib figure as an image inside the page; the caption is its alternative text, too."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return image_html(buffer.getvalue(), caption)


def image_html(png: bytes, caption: str) -> str:
    """A PNG image inside the page."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def row(*blocks_html: str) -> str:
    """Blocks side by side where the window is wide enough."""
    return '<div class="row">' + "".join(f"<div>{block}</div>" for block in blocks_html) + "</div>"


def details(summary: str, body: str) -> str:
    """A part that is folded until someone opens it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def note(text: str) -> str:
    """A remark that should not be overlooked."""
    return f'<p class="note">{escape(text)}</p>'


def number(value: float) -> str:
    """A number with three significant digits, as a person would write it."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 1e6 and abs(value) >= 1000 else f"{value:.2e}"


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
