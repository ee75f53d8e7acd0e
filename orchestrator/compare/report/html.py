"""Small pieces of the page. Every text that comes from outside is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from orchestrator.wording import MISSING, NONE

TABLE_ROWS = 1000
WRAP = 40  # characters beyond which a column wraps


class Markup(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def text(value: str) -> str:
    """``value`` as HTML; a number stays on one line with its percent sign or its ``n =``."""
    if isinstance(value, Markup):
        return value
    return escape(value).replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, cards: bool = False
) -> str:
    """A table; the first column heads its row, numbers are set to the right, long texts wrap.

    Wide ones scroll inside a region that the keyboard reaches; with ``cards`` each row
    becomes a card on a narrow screen, and says its column names itself.
    """
    kinds = [_column_class([_plain(row[i]) for row in rows]) for i in range(len(head))]
    top = "".join(
        f'<th role="columnheader" scope="col"{kind}>{text(cell)}</th>'
        for cell, kind in zip(head, kinds, strict=True)
    )
    body = "".join(
        '<tr role="row">'
        + f'<th role="rowheader" scope="row">{text(row[0])}</th>'
        + "".join(
            f'<td role="cell"{kind} data-label="{escape(label)}">{text(cell)}</td>'
            for label, kind, cell in zip(head[1:], kinds[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    kind = ' class="cards"' if cards else ""
    label = escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f'<table role="table"{kind}><caption>{label}</caption>'
        f'<thead role="rowgroup"><tr role="row">{top}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table></div>'
    )


def _plain(cell: str) -> str:
    return re.sub(r"<[^>]*>|&\w+;", "", cell) if isinstance(cell, Markup) else cell


def _column_class(cells: Sequence[str]) -> str:
    if max(map(len, cells), default=0) > WRAP:
        return ' class="w"'
    numbers = all(cell.lstrip("−")[:1].isdigit() or cell in (MISSING, NONE) for cell in cells)
    return ' class="n"' if numbers and cells else ""


def limited(rows: list[list[str]], caption: str) -> tuple[list[list[str]], str]:
    """The first rows of a long table, and a caption that says so."""
    if len(rows) <= TABLE_ROWS:
        return rows, caption
    return rows[:TABLE_ROWS], f"{caption}; the first {TABLE_ROWS} of {len(rows)}, all in the ledger"


def details(summary: str, content: str) -> str:
    """Content folded away until it is asked for."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def figure(svg: str, data: str, *, title: str) -> str:
    """A picture with its title, and the table behind it."""
    return f"<figure><figcaption>{text(title)}</figcaption>{svg}{details('Data', data)}</figure>"


def section(name: str, title: str, *content: str) -> str:
    """One section of the page; ``name`` is its anchor."""
    return f'<section id="{name}"><h2>{text(title)}</h2>{"".join(content)}</section>'


def paragraph(content: str, kind: str = "prose") -> str:
    """A paragraph of a CSS class."""
    return f'<p class="{kind}">{text(content)}</p>'


def items(lines: Sequence[str]) -> str:
    """An unordered list."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def named(entries: Sequence[Mapping[str, Any]]) -> dict[str, Markup]:
    """Each family's name behind its colour."""
    names = [entry["family"] for entry in entries]
    return {name: Markup(f"{dot(index)}{text(name)}") for index, name in enumerate(names)}


def dot(index: int) -> Markup:
    """The family's colour before its name."""
    style = f"color: var(--family-{index % 8})"
    return Markup(f'<span class="dot" style="{style}" aria-hidden="true">●</span>&NoBreak;')
