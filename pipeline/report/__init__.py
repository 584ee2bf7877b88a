"""The static report of a run: plain values in, one page and its pictures out."""
