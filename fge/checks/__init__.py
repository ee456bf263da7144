"""Checks of a model: whether everything this package does to a network works on this one."""

from fge.checks.findings import Finding, Findings
from fge.checks.run import check

__all__ = ["Finding", "Findings", "check"]
