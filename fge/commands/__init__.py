"""The commands, one file each; they only connect the other packages."""

from fge.commands.cli import COMMANDS, main

__all__ = [
    "COMMANDS",
    "main",
]
