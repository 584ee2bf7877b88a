"""A text that is looked at again and again: drawn anew on a terminal, its changes printed elsewhere."""

import sys
import time
from collections.abc import Callable
from datetime import datetime

import click

from pipeline.catalog import CatalogHeld

EVERY = 2.0  # seconds between two looks
CLEAR = "\x1b[H\x1b[2J"  # of a terminal: to its first line, nothing below


def watch(
    look: Callable[[], str],
    goes_on: Callable[[], bool],
    *,
    whole: bool,  # whether a text that changed is printed whole, also where it is no terminal
    every: float = EVERY,
) -> None:
    """Until it no longer goes on, or Ctrl-C; the last look is behind the end. Where the run holds the catalog
    at that moment a look is left out.
    """
    before = ""
    try:
        while True:
            last = not goes_on()
            try:
                text = look()
            except CatalogHeld:
                if last:
                    raise
                text = before
            if text != before:
                _show(text, before, whole=whole)
            if last:
                return
            before = text
            time.sleep(every)
    except KeyboardInterrupt:
        return


def _show(text: str, before: str, *, whole: bool) -> None:
    if sys.stdout.isatty():
        click.echo(CLEAR + text)
        return
    known = set() if whole else set(before.splitlines())
    lines = [line for line in text.splitlines() if line not in known]
    if before and not whole:
        lines.insert(0, f"{datetime.now():%H:%M:%S}")
    click.echo("\n".join(lines))
    sys.stdout.flush()
