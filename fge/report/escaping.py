r"""Names that others chose, such as of files and classes, as plain text in every rendering.

Texts of this package may mark code and strong words as Markdown does, with backticks and pairs of
asterisks. Everything else in them is text, and so is every name: :func:`plain_name` takes these two
marks out of names that enter a text, and the renderings escape the rest.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence

from fge.observer import visible

_MARKS = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*")
"""Code and strong words in this package's own texts."""
_STRONG_NUMBER = re.compile(r"\*\*[-+]?[0-9][^*`]*\*\*")
"""A strong cell of a table, which is a number."""
_INLINE = re.compile(
    r"[\\`*<$]|&(?=#|\w+;)|~(?=~)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|\[(?=[\^T])|:(?=//)|(?<=www)\."
    r"|(?<=\w)@(?=\w)"
)
_ANYWHERE = re.compile(rf"{_INLINE.pattern}|[\[\]{{|!]")
"""What may be a mark of Markdown or one of its usual extensions, in a text and in a name."""
_AT_START = re.compile(r"[#>\[]|!(?=!!)|\?(?=\?\?)|:(?= )|[-+](?=[ -]|$)|(?<=\d)[.)](?= )")
_BACKSLASHED = "\\`*_[]#!|.)-+"
"""Characters that every Markdown takes a backslash for; the others become HTML entities."""
_FORMULA = ("=", "+", "-", "@")


def plain_name(name: object) -> str:
    """Return a name as it may enter a text: on one line, without the marks of code and strength.

    >>> plain_name("a`b**c")
    "a'b__c"
    """
    return visible(name, one_line=True).replace("`", "'").replace("*", "_")


def markdown_name(name: str) -> str:
    r"""Return a name as Markdown in which nothing of it is a mark; also for alternative texts.

    >>> markdown_name("[x](javascript:f) <b>")
    '\\[x\\](javascript:f) &lt;b>'
    """
    return _at_start(_ANYWHERE.sub(_escaped, visible(name, one_line=True)))


def markdown_text(text: str) -> str:
    r"""Return one of this package's texts as Markdown: its marks stay, everything else is text.

    >>> markdown_text("`fold` is from <b>, _not_ **best**")
    '`fold` is from &lt;b>, \\_not\\_ **best**'
    """
    return _at_start(_with_marks(text, lambda part: _INLINE.sub(_escaped, part), "`{}`", "**{}**"))


def markdown_cell(cell: str) -> str:
    """Return a cell of a table as Markdown; numbers may be strong, and nothing else is a mark."""
    text = visible(cell, one_line=True)
    return text if _STRONG_NUMBER.fullmatch(text) else _ANYWHERE.sub(_escaped, text)


def html_text(text: str) -> str:
    """Return one of this package's texts as HTML: its marks are tags, everything else is text."""
    return _with_marks(text, _html, "<code>{}</code>", "<strong>{}</strong>", _html)


def html_cell(cell: str) -> str:
    """Return a cell of a table as HTML; numbers may be strong, and nothing else is a mark."""
    strong = _STRONG_NUMBER.fullmatch(cell)
    return f"<strong>{_html(cell[2:-2])}</strong>" if strong else _html(cell)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    r"""Return rows as CSV; a text that a spreadsheet would take for a formula begins with an ``'``.

    >>> csv_text([["=1+1", -2, "-2.5"]])
    "'=1+1,-2,-2.5\n"
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_csv_cell(cell) for cell in r] for r in rows)
    return buffer.getvalue()


def _csv_cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    # The bytes of a file name that are no UTF-8 stay, so that the name can be used.
    text = re.sub("[^\udc80-\udcff]+", lambda part: visible(part[0]), cell)
    if not text.lstrip().startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _with_marks(
    text: str,
    plain: Callable[[str], str],
    code: str,
    strong: str,
    within: Callable[[str], str] | None = None,
) -> str:
    """Return a text with its marks replaced, and what is between them escaped by ``plain``."""
    text, parts, reached = visible(text, one_line=True), [], 0
    for mark in _MARKS.finditer(text):
        parts.append(plain(text[reached : mark.start()]))
        if mark[1] is not None:
            parts.append(code.format(within(mark[1]) if within else mark[1]))
        else:
            parts.append(strong.format(plain(mark[2])))
        reached = mark.end()
    return "".join([*parts, plain(text[reached:])])


def _escaped(found: re.Match[str]) -> str:
    mark = found[0]
    named = {"<": "&lt;", "&": "&amp;"}
    return f"\\{mark}" if mark in _BACKSLASHED else named.get(mark, f"&#{ord(mark)};")


def _at_start(text: str) -> str:
    """Escape what begins a heading, a list, a link's address or the like at the start of a line."""
    first = re.match(r"\d*", text)
    assert first is not None
    place = first.end()
    found = _AT_START.match(text, place)
    return f"{text[:place]}{_escaped(found)}{text[found.end() :]}" if found else text


def _html(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
