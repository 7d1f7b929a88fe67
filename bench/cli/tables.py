"""How a command prints: one console, one kind of table, one form of JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console

from reports.data.terminal import Column, TerminalTable

__all__ = ["Column", "TerminalTable", "create_console", "print_json"]

UNLIMITED = 100_000
"""Characters in a line of a pipe or a file, which do not wrap."""


def create_console(*, stderr: bool = False, wide: bool = False) -> Console:
    """A console as wide as the terminal, or as COLUMNS says; without limit in a pipe, or if ``wide``."""
    stream = sys.stderr if stderr else sys.stdout
    console = Console(stderr=stderr, highlight=False)
    if wide or not (stream.isatty() or os.environ.get("COLUMNS", "").isdecimal()):
        console.width = UNLIMITED
    return console


def print_json(value: Any) -> None:
    """Print plain values as JSON. NaN and infinities raise `ValueError`: JSON has none."""
    print(json.dumps(value, indent=2, allow_nan=False))
