# SPDX-License-Identifier: Apache-2.0
"""HTML and SVG as text: every value goes through one function that escapes it."""

from __future__ import annotations

import html
from collections.abc import Iterable

from quotary_cli.output import clean


def text(value: object) -> str:
    """Return a value as it may stand in an element or an attribute, whoever wrote it."""
    return html.escape(clean(str(value)), quote=True)


def tag(name: str, *content: str, **attributes: object) -> str:
    """Return an element. Attributes are escaped here; content is markup, made by `text` or `tag`.

    A trailing `_` of an attribute's name is dropped, other `_` become `-`; an attribute that is None is left out.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{shown}>{''.join(content)}</{name}>"


def short(value: str, most: int) -> str:
    """Return a text, its middle left out where it is longer than `most` characters."""
    value = clean(value)
    half = (most - 1) // 2
    return value if len(value) <= most else f"{value[:half]}…{value[len(value) - half :]}"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], caption: str, numbers: frozenset[int]) -> str:
    """Return a table of cells that are markup; columns in `numbers` stand right."""

    def cells(name: str, row: Iterable[str], **more: str) -> str:
        return "".join(
            tag(name, cell, class_="n" if place in numbers else None, **more)
            for place, cell in enumerate(row)
        )

    head = tag("thead", tag("tr", cells("th", map(text, heads), scope="col")))
    body = tag("tbody", *(tag("tr", cells("td", row)) for row in rows))
    # wide tables scroll by themselves, and can be reached by keyboard
    return tag(
        "div",
        tag("table", tag("caption", text(caption)), head, body),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )
