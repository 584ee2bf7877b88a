"""What the report says of the dataset: images and failures, conditions, the contact sheet."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from annotate import label_spaces, remedies
from annotate.annotator import lacks
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from pipeline.benchmark import evidence
from pipeline.benchmark.evidence import thumbnail
from pipeline.catalog import Catalog
from pipeline.dataset.maps import read_annotation
from pipeline.plan import Plan
from pipeline.report import contents
from pipeline.report.counts import WorkspaceCounts
from pipeline.storage import codec, shards

ROWS = 24  # of the contact sheet
CAPTION = 400  # characters of a caption that the page shows
CLASSES = 6  # of a label map that its legend names


def ingest(catalog: Catalog, counts: WorkspaceCounts) -> contents.Ingest:
    sizes = catalog.query(
        "SELECT width || '×' || height, count(*) FROM images WHERE status = 'ok' GROUP BY ALL ORDER BY"
        " count(*) DESC, 1 LIMIT 12"
    )
    reasons = catalog.query(
        """SELECT i.reason, count(DISTINCT image_id), list(DISTINCT uri ORDER BY uri)[:3] FROM images i JOIN
           sources USING (image_id)
           WHERE i.status = 'failed' GROUP BY ALL ORDER BY 2 DESC, 1"""
    )
    return contents.Ingest(
        by_status=counts.images,
        by_split=counts.splits,
        by_size=dict(sizes),
        n_sources=counts.sources,
        n_duplicates=counts.sources - sum(counts.images.values()) + counts.images.get("gone", 0),
        reasons=tuple(
            contents.Reason(text=text, count=count, examples=tuple(uris)) for text, count, uris in reasons
        ),
    )


def conditions(plan: Plan, catalog: Catalog, counts: WorkspaceCounts) -> Iterator[contents.ConditionRow]:
    reasons: dict[str, list[contents.Reason]] = {}
    sql = """SELECT condition, a.status, reason, count(*), list(uri ORDER BY uri)[:3]
             FROM annotations a JOIN sources USING (image_id)
             WHERE a.status <> 'ok' OR reason <> ''
             GROUP BY ALL ORDER BY count(*) DESC, reason, a.status, condition"""
    for name, state, text, count, uris in catalog.query(sql):
        reasons.setdefault(name, []).append(
            contents.Reason(text=text, count=count, status=state, examples=tuple(uris))
        )
    seconds = dict(
        catalog.query(
            "SELECT condition, avg(seconds) FROM annotations WHERE status <> 'failed' GROUP BY condition"
        )
    )
    measures: dict[str, dict[str, float]] = {}
    entries = "SELECT condition, unnest(map_entries(measures)) AS e FROM annotations WHERE status = 'ok'"
    for name, measure, value in catalog.query(
        f"SELECT condition, e.key, avg(e.value) FROM ({entries}) GROUP BY ALL ORDER BY ALL"
    ):
        measures.setdefault(name, {})[measure] = value
    for name, row in CONDITIONS.items():
        facts = {"name": name, "title": row.title, "kind": row.kind}
        planned, rows = plan.conditions.get(name), counts.conditions.get(name)
        if planned is None or rows is None:
            if lack := lacks(name):
                lack = remedies.shortest(name) or lack
            yield contents.ConditionRow(**facts, state="lacking" if lack else "not asked", lacks=lack or "")  # type: ignore[arg-type]
            continue
        yield contents.ConditionRow(
            **facts,
            state="made",
            detector=planned.step.detector,
            version=str(planned.identity["version"]),  # type: ignore[arg-type]
            licence=planned.record()["licence"],
            fingerprint=planned.fingerprint,
            ok=rows.ok,
            skipped=rows.skipped,
            failed=rows.failed,
            todo=rows.todo,
            seconds=seconds.get(name),
            measures=measures.get(name, {}),
            reasons=tuple(reasons.get(name, ())),
        )


def contact_sheet(plan: Plan, catalog: Catalog) -> Iterator[contents.ContactRow]:
    """The images with the most maps first, then in the order of the source."""
    chosen = catalog.query(
        """SELECT i.image, i.image_id, arg_min(uri, (sources.part, position)), arg_min(caption,
           (sources.part, position)), i.split, i.shard, i.row
           FROM images i JOIN sources USING (image_id) LEFT JOIN annotations a ON a.image = i.image AND
           a.status = 'ok'
           WHERE i.status = 'ok' GROUP BY ALL ORDER BY count(DISTINCT a.condition) DESC, i.image LIMIT ?""",
        [ROWS],
    )
    sql = (
        "SELECT image, condition, status, reason, shard, row FROM annotations WHERE image IN (SELECT"
        " unnest(?))"
    )
    made_of: dict[int, list[Any]] = {}
    for image, *annotation in catalog.query(sql, [[image for image, *_ in chosen]]):
        made_of.setdefault(image, []).append(annotation)
    for image, image_id, uri, caption, split, shard, row in chosen:
        drawn: dict[str, bytes | str] = {}
        legends: dict[str, tuple[contents.LegendEntry, ...]] = {}
        for condition, state, reason, map_shard, map_row in sorted(
            made_of.get(image, []), key=lambda it: list(CONDITIONS).index(it[0])
        ):
            made = (
                read_annotation(plan.workspace, map_shard, map_row, condition).map if state == "ok" else None
            )
            if made and made.kind == "labels":
                legends[condition] = tuple(legend(made))
            drawn[condition] = thumbnail(evidence.drawn_small(made)) if made else f"{state}: {reason}"
        picture = codec.decode(shards.read_row(plan.workspace.root / shard, row, ["image"])["image"])
        yield contents.ContactRow(
            image_id=image_id,
            uri=uri,
            caption=short(caption or ""),
            split=split,
            image=thumbnail(picture, "jpeg"),
            maps=drawn,
            legends=legends,
        )


def legend(raw: RawMap) -> Iterator[contents.LegendEntry]:
    """The largest classes of a label map; void, which is black, among them."""
    space = label_spaces.SPACES[raw.meta["label_space"]]
    ids, counts = np.unique(raw.array, return_counts=True)
    for at in np.argsort(-counts, kind="stable")[:CLASSES]:
        number, share = int(ids[at]), float(counts[at] / raw.array.size)
        void = number == label_spaces.VOID
        name, colour = ("void", (0, 0, 0)) if void else (space.names[number], space.colours[number])
        yield contents.LegendEntry(name=name, colour="#{:02x}{:02x}{:02x}".format(*colour), share=share)


def short(text: str) -> str:
    return text if len(text) <= CAPTION else f"{text[:CAPTION]}…"
