"""Joins the three libraries: sources -> shards -> catalog -> stages -> report, and the command line."""

__version__ = "0.1.0"

COMPLETE, NOT_COMPLETE, COMPLETE_WITH_FAILURES = 0, 1, 3  # exit statuses


class MillError(Exception):
    """A sentence for the person at the keyboard: what is wrong, where, and what to do.

    Never shown as a traceback.
    """
