"""An extension of griffe: docstrings of the code as the Markdown that the site shows.

The docstrings have a few marks of reStructuredText (roles, ``::`` before a formula) and examples
that begin with ``>>>``. Here they become code spans and code blocks.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data):`~?([^`]*)`")
_ARXIV = re.compile(r"\barXiv (\d{4}\.\d{4,5})\b")


def to_markdown(text: str) -> str:
    """Return a docstring as Markdown, with links where it names a paper of arXiv."""
    text = _ROLE.sub(r"`\1`", text)
    text = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r" ?::$", ":", text, flags=re.MULTILINE)
    return _fence_examples(text)


def _fence_examples(text: str) -> str:
    """Put every stretch of lines from ``>>>`` to the next empty one into a code block."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if not inside and line.lstrip().startswith(">>>"):
            inside = True
            lines.append(f"{indent}```pycon")
        elif inside and not line.strip():
            inside = False
            lines.append("```")
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)


class Docstrings(Extension):
    """Rewrites every docstring once."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
