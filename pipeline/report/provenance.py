"""Under every number of the leaderboard, what it is and what it depends on."""

from dataclasses import dataclass

from pipeline.report.figures import places, share_text
from pipeline.report.leaderboard_data import Leaderboard, Measure, Score

COLUMNS = {"corrected": "corrected", "paper": "paper-compatible", "diagnostic": "diagnostic"}


@dataclass(frozen=True)
class Provenance:
    """A line for each score: pairs of places in `words`, since most lines say mostly the same."""

    words: list[str]
    lines: list[list[int]]


def provenance(data: Leaderboard) -> Provenance:
    words: dict[str, int] = {}
    metrics = {metric.name: metric for metric in data.metrics}
    lines = [
        [words.setdefault(text, len(words)) for pair in _facts(score, metrics[score.metric]) for text in pair]
        for score in data.scores
    ]
    return Provenance(list(words), lines)


def _facts(score: Score, metric: Measure) -> list[tuple[str, str]]:
    unit = f" {metric.unit}" if metric.unit else ""
    interval = "too few prompts" if score.low is None else f"{score.low:.6g} – {score.high:.6g}{unit}"
    failed = "none failed"
    if score.n_failed:
        failed = f"of which {score.n_failed:,} failed and count as the worst value"
    facts = [
        ("measure", f"{metric.title}, {'higher' if metric.higher_is_better else 'lower'} is better"),
        ("definition", metric.definition),
        ("column", COLUMNS[metric.column]),
        ("quirks", metric.quirks),
        ("value", f"{score.value:.6g}{unit}"),
        ("95 % interval", interval),
        ("samples", f"{score.n:,}, {failed}"),
        (
            "normalized score",
            share_text(score, intervals=True) or (score.share_reason and f"none: {score.share_reason}"),
        ),
        ("rank", "" if score.rank is None else places(score.rank)),
        *(("mark", mark) for mark in score.marks),
        *((str(key), str(value)) for key, value in score.provenance.items()),
    ]
    return [(key, value) for key, value in facts if value]
