"""The leaderboard for machines and for text: JSON (docs/leaderboard.schema.json), CSV and Parquet with a row
for each number, Markdown.
"""

import csv as table
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pipeline.report.figures import above, figure, places, share_text
from pipeline.report.leaderboard_data import EvidenceSample, Leaderboard
from pipeline.report.leaderboard_view import Cell, ConditionTable, Reported, Row
from pipeline.report.overall import Overall, OverallRow

VERSION = 2  # of the layout of leaderboard.json
Json = dict[str, Any]  # a JSON object
STORED_AS = {"provenance": "passport"}  # field -> key of leaderboard.json
PICTURES = ("hint", "source", "generated", "reread", "difference")  # fields of EvidenceSample
COLUMNS = (
    "condition", "model", "arm", "metric", "metric_version", "column", "unit", "higher_is_better", "value",
    "low", "high", "n", "n_failed",
    "share", "share_low", "share_high", "rank_first", "rank_last", "marks", "benchmark", "share_reason",
    "kind", "origin", "date", "closed_first", "closed_last",
)  # fmt: skip


def plain(data: Leaderboard, href: Callable[[Any], str | None]) -> Json:
    """The leaderboard as `lines` writes it: pictures as addresses."""
    stored: Json = {
        "layout": VERSION,
        **{key: getattr(data, key) for key in ("name", "made_at", "version", "machine")},
    }
    stored["notes"] = list(data.notes)
    for part in ("metrics", "benchmarks", "models", "scores", "speeds", "published"):
        stored[part] = [
            {STORED_AS.get(name, name): value for name, value in vars(row).items()}
            for row in getattr(data, part)
        ]
    stored["evidence"] = [_witness(row, href) for row in data.evidence]
    return stored


def _witness(row: EvidenceSample, href: Callable[[Any], str | None]) -> Json:
    plain = {field.name: getattr(row, field.name) for field in fields(row) if field.name not in PICTURES}
    shown = {name: href(getattr(row, name)) for name in PICTURES}
    return plain | shown | {"reason": row.reread if isinstance(row.reread, str) else None}


def lines(stored: Json) -> str:
    """JSON with a line for each row, so that two leaderboards can be compared line by line; no number is
    written that is none.
    """
    parts = []
    for key, value in stored.items():
        rows = ",\n".join(map(_line, value)) if isinstance(value, list) else None
        parts.append(
            f"{_line(key)}: " + (_line(value) if rows is None else f"[\n{rows}\n]" if rows else "[]")
        )
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """null in place of a number that is none."""
    if _is_none(value):
        return None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return {key: _finite(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def csv(data: Leaderboard) -> str:
    """One row for each number, empty where there is none."""
    file = io.StringIO()
    out = table.writer(file, lineterminator="\n")
    out.writerow(COLUMNS)
    for row in _rows(data):
        out.writerow(["; ".join(row[name]) if name == "marks" else row[name] for name in COLUMNS])
    return file.getvalue()


def parquet(data: Leaderboard) -> bytes:
    """The same rows with types, and what each number depends on; null where there is none."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    rows = [
        {name: None if _is_none(value) else value for name, value in row.items()}
        | {"provenance": list(score.provenance.items())}
        for row, score in zip(_rows(data), data.scores, strict=True)
    ]
    text, number = pa.string(), pa.float64()
    types = dict.fromkeys(COLUMNS, text) | {
        **dict.fromkeys(("value", "low", "high", "share", "share_low", "share_high"), number),
        **dict.fromkeys(
            ("n", "n_failed", "rank_first", "rank_last", "closed_first", "closed_last"), pa.int64()
        ),
        "higher_is_better": pa.bool_(),
        "marks": pa.list_(text),
        "provenance": pa.map_(text, text),
    }
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(types)), file, compression="zstd")
    return file.getvalue()


def _is_none(value: Any) -> bool:
    """A number that is none."""
    return isinstance(value, float) and not math.isfinite(value)


def _rows(data: Leaderboard) -> Iterator[Json]:
    """By COLUMNS."""
    metrics = {metric.name: metric for metric in data.metrics}
    benchmarks = {benchmark.condition: benchmark.fingerprint for benchmark in data.benchmarks}
    models = {model.name: model for model in data.models}
    for score in data.scores:
        metric, rank = metrics[score.metric], score.rank or (None, None)
        of_metric = {
            "metric_version": metric.version,
            "column": metric.column,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }
        closed = score.closed_rank or (None, None)
        placed = {"rank_first": rank[0], "rank_last": rank[1], "benchmark": benchmarks.get(score.condition)}
        placed |= {"closed_first": closed[0], "closed_last": closed[1]}
        model = models.get(score.model)
        of_model = {name: getattr(model, name, "") for name in ("kind", "origin", "date")}
        told = vars(score) | of_metric | placed | of_model
        yield {name: told[name] for name in COLUMNS}


def markdown(data: Leaderboard, tables: Sequence[ConditionTable], whole: Overall | None) -> str:
    """A table of all conditions, then one for each; where one has too many columns for a page, the reader
    scrolls.
    """
    lines = [
        f"# {_text(data.name)}",
        "",
        _text(" · ".join(part for part in (data.made_at, data.version, data.machine) if part)),
        "",
    ]
    lines += [f"> {_text(note)}" for note in data.notes]
    parts = (
        "value (95 % interval), normalized score (0 % = the better baseline, 100 % = the real image), rank, n"
        " and failures"
    )
    lines += [""]
    if whole:
        lines += _overall(whole)
    lines += [f"Each number below: {parts}.", ""]
    for condition in tables:
        benchmark = condition.benchmark
        lines += [
            f"## {_text(benchmark.title)}",
            "",
            _text(
                f"{benchmark.samples:,} samples of {benchmark.images:,} images, split {benchmark.split},"
                f" benchmark {benchmark.fingerprint}; made by {benchmark.detector}, read again by"
                f" {benchmark.reader or 'no detector'}."
            ),
            "",
            _row(
                "model",
                *(
                    f"{column.metric.title} {'↑' if column.metric.higher_is_better else '↓'}"
                    for column in condition.columns
                ),
                "s/image",
            ),
            "|" + " --- |" * (len(condition.columns) + 2),
        ]
        lines += [
            _row(_name(row), *map(_cell, row.cells), figure(row.seconds, 2))
            for row in (*condition.ceiling, *condition.models, *condition.floor)
        ]
        if condition.limit:
            lines += ["", _text(condition.limit)]
        lines += [_text(sentence) for sentence in condition.remarks]
        for reported in condition.reported:
            lines += _reported(reported)
        lines.append("")
    return "\n".join(lines)


def _overall(whole: Overall) -> list[str]:
    titles = [table.benchmark.title for table in whole.conditions]
    return [
        "## Overall",
        "",
        "Normalized score and rank by the first measure of each condition; models whose difference could be"
        " chance share a place.",
        "",
        _row("model", *titles, "may be first in"),
        "|" + " --- |" * (len(titles) + 2),
        *(_row("real image through the VAE", *map(_placed, row.cells), "") for row in whole.ceiling),
        *(_row(row.model, *map(_placed, row.cells), _first(row)) for row in whole.models),
        "",
    ]


def _placed(cell: Cell | None) -> str:
    if cell is None:
        return ""
    rank = f"rank {places(cell.score.rank)}" if cell.score.rank else ""
    return ", ".join(filter(None, (share_text(cell.score) or "–", rank, *cell.score.marks)))


def _first(row: OverallRow) -> str:
    return f"{row.first} of {row.ranked}" if row.ranked else ""


def _reported(reported: Reported) -> list[str]:
    protocol = (
        "by the protocol of this benchmark"
        if reported.comparable
        else "by another protocol, not to be compared with the numbers above"
    )
    rows = [
        _row(
            model,
            *(", ".join(f"{number.value:g} ({note})" for number, note in cell) for cell in cells),
        )
        for model, cells in reported.models.items()
    ]
    notes = [
        _text(f"{number}. {source}, {url} {note}")
        for number, (source, url, note) in enumerate(reported.notes, 1)
    ]
    return [
        "",
        f"Reported elsewhere, {protocol}; not ranked:",
        "",
        _row("model", *(name for name, _ in reported.metrics)),
        "|" + " --- |" * (len(reported.metrics) + 1),
        *rows,
        "",
        *notes,
    ]


def _name(row: Row) -> str:
    return row.model if not row.label else row.label if row.model == row.arm else f"{row.model}, {row.label}"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    score = cell.score
    between = (
        f" ({figure(score.low, cell.digits)} – {figure(score.high, cell.digits)})"
        if score.low is not None
        else ""
    )
    rank = f"rank {places(score.rank)}" if score.rank else ""
    failed = f"{score.n_failed:,} failed" if score.n_failed else ""
    parts = [
        f"{figure(score.value, cell.digits)}{between}",
        share_text(score),
        above(score),
        rank,
        f"n {score.n:,}",
        failed,
        *score.marks,
    ]
    return ", ".join(part for part in parts if part)


def _row(*cells: str) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"


def _text(words: str) -> str:
    """Names and titles stay words: no tags, links or emphasis, no new cells or rows."""
    plain = re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(words.split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
