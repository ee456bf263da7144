"""One file a command: wiring and nothing else."""

from fge.commands.cli import COMMANDS, main

__all__ = [
    "COMMANDS",
    "main",
]
