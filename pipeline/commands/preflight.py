"""What is known to go wrong before the work that would be lost: from the manifest alone, and from the pairs
before they are trained on.
"""

import os
from collections.abc import Collection
from typing import Any, get_args

from annotate import label_spaces
from annotate.conditions import CONDITIONS, MEASURES
from pipeline import MillError
from pipeline.benchmark.systems import LEAST, few
from pipeline.catalog import Catalog, CatalogHeld, addresses, check_selections, snapshots
from pipeline.dataset.changes import differences
from pipeline.dataset.comparison import compare, doubtful
from pipeline.experiment.base import RANDOM_BASE
from pipeline.experiment.pairs import SMALLEST_SHARE
from pipeline.manifest import DepthCoding, KeypointsCoding, Manifest, NormalsCoding, Provided, published
from pipeline.manifest.places import Place
from pipeline.plan import Plan

HURRY = 2.0  # seconds to wait for the catalog; who runs waits for it later
# key of a provided map -> the kinds of map that it says something of
KINDS_OF: dict[str, tuple[str, ...]] = {
    "labels": ("labels",), "depth": ("depth",), "normals": ("normals",), "keypoints": ("people",),
    "depth_scale": ("depth",), "values": ("normals",), "coordinates": ("people", "lines"),
    "ink": ("edges", "soft_edges"),
    "mask": ("labels", "depth", "normals"),  # of which a part may be invalid
}  # fmt: skip
CODING_OF = {"labels": "labels", "depth": "depth", "normals": "normals", "people": "keypoints"}  # by kind
USERS = ("encode", "train", "generate", "score")  # stages that work on pairs


def check(plan: Plan, stages: Collection[str], limit: int | None = None) -> list[str]:
    """MillError names all that can't work; returns what is likely to disappoint. Nothing is touched."""
    given = plan.manifest
    snapshots.fetch(plan.workspace)
    mistakes = [
        sentence
        for number, source in enumerate(given.source)
        for sentence in _provided(given, number, source)
    ]
    split, new = (
        given.evaluate.benchmark.split if given.evaluate else "train",
        not plan.workspace.catalog.exists(),
    )
    most = _most_images(given, limit) if new else None
    if given.evaluate and {"generate", "score"} & set(stages):
        if _share(given, split) == 0:
            place = given.at("evaluate", "benchmark", "split")
            mistakes.append(
                f"{place}: asks for the {split} split, and split.{split} is 0: raise it, or name another"
                " split"
            )
        elif most is not None and most < LEAST:
            mistakes.append(
                f"{given.at('evaluate', 'benchmark')}: needs {LEAST} images of the {split} split, and there"
                f" is {most}: take more images"
            )
    try:
        check_selections(plan.selections(), MEASURES)
        mistakes += [] if new else _failing(plan)
    except MillError as error:
        mistakes += str(error).splitlines()
    mistakes += [*_published(given), *_unwritable(plan)]
    if mistakes:
        raise MillError("\n".join(line if line.endswith((".", ")")) else f"{line}." for line in mistakes))
    return [*_doubts(given, stages, most), *([] if new else _of_catalog(plan, stages))]


def _published(given: Manifest) -> list[str]:
    if given.evaluate and given.evaluate.published:
        try:
            published.read(given.evaluate.published, given.at("evaluate", "published"))
        except MillError as error:
            return str(error).splitlines()
    return []


def _doubts(given: Manifest, stages: Collection[str], most: int | None) -> list[str]:
    """What the manifest of a new workspace makes likely."""
    out = []
    if given.evaluate and most is not None and "generate" in stages:
        frozen, expected = given.evaluate.benchmark, most * _share(given, given.evaluate.benchmark.split)
        asked = frozen.samples if "samples" in frozen.model_fields_set else LEAST
        if expected < asked:
            about = f"about {expected:.0f} of {most} images fall into the {frozen.split} split"
            place = given.at("evaluate", "benchmark", "samples")
            out.append(
                f"{place}: {about}, and {asked} are asked for: take more images, or raise"
                f" split.{frozen.split}."
            )
    if {"encode", "train", "generate"} & set(stages):
        out += _other_side(given)
    watching = [number for number, run in enumerate(given.train.runs if given.train else []) if run.held_out]
    if watching and given.split.validation == 0 and "train" in stages:
        place = given.at("train", "runs", watching[0], "held_out")
        out.append(
            f"{place}: split.validation is 0, so no conditioning gain is measured: raise it, or set"
            " held_out: 0."
        )
    uncaptioned = [
        getattr(source, "captions", "own") in ("none", {"template": ""}) for source in given.source
    ]
    if given.train and not given.captioner and all(uncaptioned) and "train" in stages:
        out.append(
            f"{given.at('source', 0, 'captions')}: no pair will have a caption, and training sees an empty"
            f" prompt: {CAPTIONS}."
        )
    return out


def _other_side(given: Manifest) -> list[str]:
    """Where the base was trained on images of another size than it is given."""
    from train import base

    if given.base in (None, RANDOM_BASE):
        return []
    try:
        side = base.side(given.base)
    except (OSError, ValueError):  # told as missing
        return []
    if side in (None, given.image.resolution):
        return []
    place, own = given.at("image", "resolution"), given.image.resolution
    return [
        f"{place}: the base {given.base} was trained on images of {side} pixels, and these have {own}: set"
        f" image.resolution to {side}, unless you mean to try that."
    ]


CAPTIONS = "give the images captions, or add `captions: {model: blip-base}`"


def _of_catalog(plan: Plan, stages: Collection[str]) -> list[str]:
    catalog = Catalog(plan.workspace)
    try:
        with catalog.at_most(HURRY):
            return without_caption(plan, catalog) if "train" in stages else []
    except MillError:  # an older, a damaged or a held one, which the run itself speaks of
        return []


def changes(plan: Plan, stages: Collection[str], limit: int | None = None) -> list[str]:
    """How many addresses are new, look otherwise than before, or are gone: a look at the sources, which reads
    no picture. Nothing where listing a source might have to load it first.
    """
    loads = any(source.kind == "huggingface" for source in plan.manifest.source)
    if "ingest" not in stages or loads:
        return []
    before = addresses.nothing()
    catalog = Catalog(plan.workspace)
    notes: list[str] = []
    suspects = certain = 0
    try:
        with catalog.at_most(HURRY):
            if catalog.path.exists() and catalog.query(OF_IMAGES) == [(plan.image_key,)]:
                before = addresses.known(catalog)
            listed = plan.raw_images(notes)
            found = compare(listed, before, limit)
            for some in doubtful(listed, catalog, found.doubtful):
                differing = differences(some.raw_images, some.before)
                suspects, certain = suspects + len(differing.suspects), certain + len(differing.certain)
    except MillError:  # a catalog that is damaged or held, a source that is not there: said elsewhere
        return []
    return [
        f"sources: {len(found.new)} new addresses, {suspects} that look changed,"
        f" {certain} with other captions, {len(found.vanished)} gone",
        *notes,
    ]


OF_IMAGES = "SELECT value FROM settings WHERE name = 'image_key'"


def _failing(plan: Plan) -> list[str]:
    catalog = Catalog(plan.workspace)
    try:
        with catalog.at_most(HURRY):
            return catalog.failing(plan.selections(), MEASURES, plan.image_key)
    except CatalogHeld:
        return []


def _unwritable(plan: Plan) -> list[str]:
    if plan.workspace.is_remote:  # `create` proves it, and says what to set
        return []
    root = plan.workspace.root
    above = next(path for path in (root, *root.parents) if path.exists())
    if above.is_dir() and os.access(above, os.W_OK):
        return []
    read_only = os.statvfs(above).f_flag & os.ST_RDONLY
    what = (
        "is a file" if not above.is_dir() else "is on a read-only disk" if read_only else "can't be written"
    )
    return [
        f"{plan.manifest.at('workspace')}: {above} {what}: set it to a folder that can be made and written"
    ]


def _share(given: Manifest, split: str) -> float:
    shares = {"validation": given.split.validation, "test": given.split.test}
    return shares.get(split, 1 - sum(shares.values()))


def _most_images(given: Manifest, limit: int | None) -> int | None:
    """How many images there can be; None = nobody knows before they are listed."""
    counts = [getattr(source, "count", None) for source in given.source]
    known = None if None in counts else sum(count for count in counts if count)
    return min((count for count in (known, limit) if count is not None), default=None)


def _provided(given: Manifest, number: int, source: Any) -> list[str]:
    """What the kind of each provided map demands, and what says nothing there."""
    out = []
    maps: dict[str, Provided] = getattr(source, "provided", {})
    for name, asked in maps.items():
        row, place = CONDITIONS[name], given.at("source", number, "provided", name)
        for key, kinds in KINDS_OF.items():
            if getattr(asked, key) is not None and row.kind not in kinds:
                out.append(f"{place.at(key)}: {name} is no map of {' or '.join(kinds)}: take it out")
        out += _coding(name, asked, place)
        if source.kind == "folder" and asked.column is not None:
            out.append(f"{place.at('column')}: the files of a folder have no columns: write `path:` instead")
        if source.kind in ("webdataset", "parquet", "huggingface") and asked.path is not None:
            out.append(
                f"{place.at('path')}: nothing lies beside the rows of a {source.kind} source: write `column:`"
                " instead"
            )
    return out


def _coding(name: str, asked: Provided, place: Place) -> list[str]:
    """Numbers mean nothing before a manifest says how they are coded."""
    row = CONDITIONS[name]
    key = CODING_OF.get(row.kind)
    if key is None:
        return []
    of_condition = {
        "labels": [coding for coding, space in label_spaces.SOURCES.items() if space in row.label_spaces],
        "depth": list(get_args(DepthCoding)),
        "normals": list(get_args(NormalsCoding)),
        "keypoints": list(get_args(KeypointsCoding)),
    }
    fitting, coding = of_condition[key], getattr(asked, key)
    if coding is None:
        return [
            f"{place}: `{key}:` is missing, which says what the numbers mean: add one of {', '.join(fitting)}"
        ]
    if coding not in fitting:
        takes = f"{name} takes labels of {' or '.join(row.label_spaces)}, not of {coding}"
        return [f"{place.at(key)}: {takes}: set one of {', '.join(fitting)}"]
    if coding == "coco_stuff_png" and "pixelmaps" in f"{asked.path} {asked.column}":
        return [
            f"{place.at(key)}: stuff_*_pixelmaps are another coding, whose ids are one higher and which has"
            " no things: set it to coco_stuff_pixelmaps, or the path to the maps of stuffthingmaps"
        ]
    return []


# -- when the maps are made ----------------------------------------------------------------------------------


def check_pairs(plan: Plan, catalog: Catalog, stages: Collection[str]) -> None:
    """Before the first stage that works on pairs: MillError where one of those asked for has
    too few of them.
    """
    given, mistakes = plan.manifest, []
    counts = {
        (name, split): n
        for name, split, n in catalog.query("SELECT condition, split, count(*) FROM pair_rows GROUP BY ALL")
    }
    runs = given.train.runs if given.train and {"encode", "train"} & set(stages) else []
    for number, run in enumerate(runs):
        bare = [name for name in run.conditions if not counts.get((name, "train"))]
        mistakes += [_bare(plan, name) for name in bare]
        (shared,) = catalog.row(SHARED_BY_ALL, [run.conditions, len(run.conditions)])
        poor = [
            name for name in run.conditions if not bare and shared < SMALLEST_SHARE * counts[name, "train"]
        ]
        if poor:
            place, most = given.at("train", "runs", number, "conditions"), counts[poor[0], "train"]
            mistakes.append(
                f"{place}: {' + '.join(run.conditions)} share {shared} pairs, under 90 % of the {most} of"
                f" {poor[0]}: train them apart."
            )
    if given.evaluate and {"generate", "score"} & set(stages):
        split = given.evaluate.benchmark.split
        compared = dict.fromkeys(
            [
                *(name for run in (given.train.runs if given.train else []) for name in run.conditions),
                *(other.condition for other in given.evaluate.external),
                *(other.condition for other in given.evaluate.submissions),
            ]
        )
        mistakes += [few(plan, name, n) for name in compared if (n := counts.get((name, split), 0)) < LEAST]
    if mistakes:
        raise MillError("\n".join(dict.fromkeys(mistakes)))


SHARED_BY_ALL = """SELECT count(*) FROM (SELECT image_id FROM pair_rows WHERE split = 'train' AND condition IN
                                        (SELECT unnest(?))
                                        GROUP BY image_id HAVING count(*) = ?)"""


def _bare(plan: Plan, name: str) -> str:
    place = plan.manifest.at("conditions", name, "select")
    return (
        f"{place}: {name} has no pairs in the train split: `controlmill status {plan.workspace.address}`"
        " shows why; loosen it, or add images."
    )


BARE = "SELECT image FROM captions WHERE trim(coalesce(caption, '')) = ''"


def without_caption(plan: Plan, catalog: Catalog) -> list[str]:
    """A sentence for the conditions that train on pairs without a caption: how many there are, and what to
    do.
    """
    if plan.manifest.train is None or not catalog.query(f"{BARE} LIMIT 1"):
        return []
    trained = sorted({name for run in plan.manifest.train.runs for name in run.conditions})
    rows = catalog.query(
        f"""
        SELECT condition, count(*) FILTER (image IN ({BARE})), count(*) FROM pair_rows
        WHERE split = 'train' AND condition IN (SELECT unnest(?)) GROUP BY condition ORDER BY condition""",
        [trained],
    )
    alike: dict[tuple[int, int], list[str]] = {}
    for name, bare, count in rows:
        alike.setdefault((bare, count), []).append(name)
    return [
        f"{bare:,} of {count:,} pairs of {', '.join(names)} have no caption and train with an empty prompt:"
        f" {CAPTIONS}"
        for (bare, count), names in alike.items()
        if bare
    ]
