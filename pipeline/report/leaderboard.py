"""Writes the leaderboard: pictures, evidence pages and tables first, the page that leads to them last."""

import functools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import listings
from pipeline.report.citation import bibtex
from pipeline.report.figures import above, bar, figure, places, share_text
from pipeline.report.leaderboard_data import EvidenceSample, Leaderboard
from pipeline.report.leaderboard_view import ConditionTable, shared, tables
from pipeline.report.overall import overall
from pipeline.report.provenance import provenance
from pipeline.report.site import PICTURES, TEMPLATES, Picture, count, number, picture_of, tail, write_pictures
from pipeline.storage.workspace import write_text, write_whole

PAGE, EVIDENCE = "leaderboard.html", "evidence-{}.html"
SHUFFLED_ROWS = 8  # more of them in one table are folded away at first
RANK_OF = {"best": 0, "median": 1, "worst": 2}


def render(data: Leaderboard, folder: Path) -> Path:
    """Writes leaderboard.html, .md, .csv, .parquet, .json and the evidence; an older page stays until the new
    one is whole. Returns the page.
    """
    pictures: dict[str, bytes] = {}
    picture = functools.cache(lambda content: picture_of(content, pictures))
    environment = _environment(picture)
    shown = tables(
        data,
        {benchmark.condition: EVIDENCE.format(_slug(benchmark.condition)) for benchmark in data.benchmarks},
    )
    whole = overall(shown)
    pages = {
        table.evidence: page
        for table in shown
        if table.evidence
        for page in [_evidence_page(environment, data, shown, table)]
    }
    stored = listings.plain(data, lambda content: filed.href if (filed := picture(content)) else None)
    page = environment.get_template("leaderboard.html").render(
        data=data,
        tables=shown,
        overall=whole,
        bibtex=bibtex(data.version.removeprefix("controlmill ")),
        fold=any(
            sum(row.arm == "shuffled_condition" for row in table.floor) > SHUFFLED_ROWS for table in shown
        ),
        provenance=_script(vars(provenance(data))),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(folder / PICTURES, pictures)
    for name, text in pages.items():
        write_text(folder / name, text)
    write_text(folder / "leaderboard.json", listings.lines(stored))
    write_text(folder / "leaderboard.csv", listings.csv(data))
    table = listings.parquet(data)
    write_whole(folder / "leaderboard.parquet", lambda temporary: temporary.write_bytes(table))
    write_text(folder / "leaderboard.md", listings.markdown(data, shown, whole))
    write_text(folder / PAGE, page)
    _sweep(folder.glob(EVIDENCE.format("*")), pages)
    _sweep((folder / PICTURES).glob("*"), pictures)
    return folder / PAGE


def _environment(picture: Callable[[Any], Picture | None]) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        above=above,
        count=count,
        figure=figure,
        number=number,
        places=places,
        bar=bar,
        share=share_text,
        slug=_slug,
        tail=tail,
    )
    environment.globals.update(picture=picture)
    return environment


def _evidence_page(
    environment: Environment, data: Leaderboard, all_tables: list[ConditionTable], table: ConditionTable
) -> str:
    """The same images and seeds of all models, then each model's best, median and worst."""
    samples = [sample for sample in data.evidence if sample.condition == table.benchmark.condition]
    extremes: dict[str, list[EvidenceSample]] = {}
    ranked = (sample for sample in samples if sample.which in RANK_OF)
    for sample in sorted(ranked, key=lambda sample: RANK_OF[sample.which]):
        extremes.setdefault(sample.model, []).append(sample)
    titles = {metric.name: metric.title for metric in data.metrics}
    return environment.get_template("evidence.html").render(
        data=data,
        table=table,
        others=[other for other in all_tables if other.evidence],
        shared=shared(samples, table),
        extremes=extremes,
        titles=titles,
        measures=sorted({titles.get(sample.metric, sample.metric) for sample in samples}),
    )


def _script(value: Any) -> Markup:
    """JSON that no name or caption in it can end: it stands in a <script> of the page."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _sweep(files: Iterable[Path], keep: Iterable[str]) -> None:
    """Removes what an older page had."""
    named = set(keep)
    for file in list(files):
        if file.name not in named and not file.is_dir():
            file.unlink(missing_ok=True)


def _slug(name: str) -> str:
    """A name as a part of an address."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)
