"""Captions that are lists: each distinct text is encoded once, pairs name theirs, and training draws one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline import plan as plans
from pipeline.catalog import Catalog
from pipeline.cluster.jobs import Job
from pipeline.experiment.addresses import PairAddresses
from pipeline.experiment.base import base_fingerprint, base_spec, latent_key, text_keys
from pipeline.experiment.packing import pack, unpack
from pipeline.experiment.pairs import PlannedRun, planned_runs
from pipeline.experiment.reading import ShardPairs
from pipeline.manifest.dataset import Captions
from pipeline.plan import Plan
from pipeline.run import activate
from pipeline.stages.annotate import annotate
from pipeline.stages.encode import encode
from pipeline.stages.ingest import ingest
from pipeline.stages.stage import StageContext
from pipeline.stages.texts import text_id
from pipeline.storage import codec, shards
from train.batches import Draw, batch_at
from train.options import Options

CAPTIONS = [
    ["a cup", "a red cup", "a cup on the left", "a thing", "a vessel"],
    ["a house"],
    ["a house", "a thing"],
    [],
    ["left-handed", "a hand"],
    ["a thing"],
]
RANDOM = "captions: {choose: random}"
DISTINCT = {text for texts in CAPTIONS for text in texts} | {""}


class Here:
    """A cluster of this process: what a stage asks for is done at once, in order."""

    gpus, device, workers, cores_of_a_node, share = 0, "cpu", 1, 1, 1.0

    def say(self, sentence: str) -> None: ...

    def share_for(self, memory: float) -> float:
        return self.share

    def run(
        self, function: Callable[..., Any], jobs: list[Job], done: Callable[..., None], **more: Any
    ) -> None:
        for job in jobs:
            done([(job, function(job.args, job.rows, {}, False))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs with their captions, and a base of random weights."""
    from train.random_base import build_random

    root = tmp_path_factory.mktemp("texts")
    (root / "photos").mkdir()
    for number, texts in enumerate(CAPTIONS):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
        (root / f"photos/{number}.png").write_bytes(codec.encode(picture, "png"))
        (root / f"photos/{number}.json").write_text(json.dumps({"caption": texts}))
    build_random(root / "base")
    return root


def prepared(
    folder: Path, place: Path, captions: str = "", flip: float = 0.5
) -> tuple[Plan, Catalog, PlannedRun, str]:
    """The stages up to training, in a workspace; and what `encode` said."""
    path = place / "m.yaml"
    path.write_text(
        f"name: x\nworkspace: {place / 'ws'}\n{captions}\n"
        f"source: {{kind: folder, path: {folder / 'photos'}}}\n"
        "image: {resolution: 64}\nsplit: {validation: 0, test: 0, near: null}\nconditions: {canny: {}}\n"
        f"train: {{base: {folder / 'base'}, runs: [{{conditions: [canny], images: 4, flip: {flip}}}]}}\n"
    )
    plan = plans.make(manifests.load(path))
    plan.workspace.create()
    catalog = Catalog(plan.workspace)
    catalog.create()
    activate(plan, catalog)
    context = StageContext(plan, catalog, Here())  # type: ignore[arg-type]
    ingest(context)
    annotate(context)
    said = encode(context).sentence
    activate(plan, catalog)
    (run,) = planned_runs(plan, catalog)
    return plan, catalog, run, said


Prepared = tuple[Plan, Catalog, PlannedRun, str]


@pytest.fixture(scope="module")
def drawn(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(folder, tmp_path_factory.mktemp("drawn"), RANDOM)


def captions_of(plan: Plan, run: PlannedRun) -> dict[str, list[str]]:
    """Image id -> its texts, as its pair names them."""
    found = {}
    for it in run.pairs:
        rows = [
            shards.read_row(
                plan.workspace.texts(run.pairs.encoder, place >> 32), place & 0xFFFFFFFF, ["caption"]
            )
            for place in it.texts
        ]
        found[it.image_id] = [row["caption"] for row in rows]
    return found


def test_each_distinct_text_is_stored_once_and_pairs_name_all_of_theirs(drawn: Prepared) -> None:
    plan, catalog, run, said = drawn
    assert said == f"6 images to do; {len(DISTINCT)} texts to do"
    rows = catalog.query("SELECT text_id, status, may_flip FROM texts")
    assert sorted(rows) == sorted((text_id(text), "ok", "left" not in text) for text in DISTINCT)
    own = dict(catalog.query("SELECT image_id, source_captions FROM captions"))
    assert captions_of(plan, run) == {image_id: texts or [""] for image_id, texts in own.items()}
    assert sorted(map(len, own.values())) == [0, 1, 1, 2, 2, 5]
    for shard in plan.workspace.all_shards():
        if shards.metadata(shard)["kind"] == "latents":
            assert shards.read(shard, ["text"])["text"].null_count == 6, "no text for each image"


def test_the_drawn_caption_is_a_function_of_seed_epoch_and_image(folder: Path, drawn: Prepared) -> None:
    from train import encoders
    from train.base import load

    plan, _, run, _ = drawn
    base = load(folder / "base", parts=("text_encoder",))
    pairs = ShardPairs(plan.workspace, run.pairs, encoders.encode_text(base, [""])[0])
    texts = captions_of(plan, run)
    index, image_id = max(enumerate(pairs.ids), key=lambda it: len(texts[it[1]]))
    expected = {text: encoders.encode_text(base, [text])[0] for text in texts[image_id]}
    options = Options(images=8, batch=8, seed=3, prompt_drop=0.0)
    seen = []
    for epoch in range(24):
        (alone,) = batch_at(pairs, ["canny"], [(epoch, index)], options, scaling_factor=1.0)
        (among,) = batch_at(
            pairs, ["canny"], [(epoch, place) for place in range(6)], options, scaling_factor=1.0
        )
        assert (alone.text[0] == among.text[index]).all(), "whatever is in the batch with it"
        wanted = texts[image_id][Draw(index, (3, epoch, image_id)).text(5)]
        assert np.allclose(alone.text[0], expected[wanted], atol=5e-3)
        seen.append(wanted)
    assert set(seen) == set(texts[image_id]), "every one of them in 24 epochs"
    assert np.allclose(pairs[index].text, expected["a cup"], atol=5e-3), "without an epoch the first"


def test_a_mirrored_pair_is_judged_by_the_text_that_is_drawn(drawn: Prepared) -> None:
    plan, _, run, _ = drawn
    pairs = ShardPairs(plan.workspace, run.pairs, np.zeros((77, 32), np.float32))
    texts = captions_of(plan, run)
    (index,) = (number for number, it in enumerate(pairs.ids) if "left-handed" in texts[it])
    outcomes = set()
    for epoch in range(12):
        draw = Draw(index, (0, epoch, pairs.ids[index]), mirrored=True)
        pair, plain = pairs.read([draw, Draw(index)])
        text = texts[pairs.ids[index]][draw.text(2)]
        turned = not np.array_equal(pair.mean, plain.mean)
        assert turned == (text == "a hand")
        assert np.array_equal(pair.hints["canny"], plain.hints["canny"]) != turned
        outcomes.add(turned)
    assert outcomes == {True, False}


@pytest.mark.slow
def test_the_first_caption_is_used_where_nothing_is_said_and_held_out_pairs_keep_it(
    folder: Path, tmp_path: Path
) -> None:
    plan, catalog, run, said = prepared(folder, tmp_path)
    firsts = {(texts or [""])[0] for texts in CAPTIONS}
    assert said == f"6 images to do; {len(firsts)} texts to do", "and no other is encoded"
    told = dict(catalog.query("SELECT image_id, coalesce(caption, '') FROM captions"))
    assert captions_of(plan, run) == {image_id: [text] for image_id, text in told.items()}
    again = encode(StageContext(plan, catalog, Here()))  # type: ignore[arg-type]
    assert again.sentence == "nothing to do"

    _, catalog, other, said = prepared(folder, tmp_path, RANDOM)
    assert said == f"nothing to do; {len(DISTINCT - firsts)} texts to do", "the rest"
    assert other.name != run.name and len(other.pairs) == 6
    (folder / "photos/1.json").write_text(json.dumps({"caption": ["a house", "a roof"]}))
    try:
        *_, changed, said = prepared(folder, tmp_path, RANDOM)
    finally:
        (folder / "photos/1.json").write_text(json.dumps({"caption": CAPTIONS[1]}))
    assert said == "nothing to do; 1 texts to do" and changed.name != other.name, (
        "other captions, another run"
    )
    assert prepared(folder, tmp_path)[2].name == run.name


@pytest.mark.slow
def test_a_workspace_of_before_keeps_its_runs_and_its_texts(folder: Path, tmp_path: Path) -> None:
    """Its shards of latents hold a text for each image, and no mirror image where that names a side."""
    plan, catalog, run, _ = prepared(folder, tmp_path)
    key = latent_key(plan, base_fingerprint(base_spec(plan)))
    path = plan.workspace.latents(key, 0)
    told = dict(catalog.query("SELECT image_id, coalesce(caption, '') FROM captions"))
    rows = shards.read(path).to_pylist()
    for number, row in enumerate(rows):
        row |= {"caption": told[row["image_id"]], "text": pack(np.full((77, 32), number))}
        if "left" in row["caption"]:
            row |= {"mean_mirrored": None, "std_mirrored": None}
    metadata = shards.metadata(path)
    for text in catalog.query("SELECT DISTINCT shard FROM texts"):
        catalog.remove_shard(text[0])
        (plan.workspace.root / text[0]).unlink()
    catalog.commit(shards.write(path, rows, shards.FLIPPED_LATENTS, metadata, replace=True))

    *_, old, said = prepared(folder, tmp_path)
    assert said == "nothing to do" and old.name == run.name
    assert not any(it.texts for it in old.pairs) and len(old.pairs) == 6
    pairs = ShardPairs(plan.workspace, old.pairs, np.zeros((77, 32), np.float32))
    numbers = {row["image_id"]: number for number, row in enumerate(rows)}
    for index, image_id in enumerate(pairs.ids):
        plain, mirrored = pairs.read([Draw(index), Draw(index, mirrored=True)])
        assert (plain.text == numbers[image_id]).all() and (mirrored.text == numbers[image_id]).all()
        assert np.array_equal(plain.mean, mirrored.mean) == ("left" in told[image_id])

    *_, drawn, said = prepared(folder, tmp_path, RANDOM)
    assert said == f"6 images to do; {len(DISTINCT)} texts to do", "the mirror image that is missing"
    assert all(it.texts for it in drawn.pairs)
    row = next(row for row in shards.read(path).to_pylist() if "left" in told[row["image_id"]])
    assert row["mean_mirrored"] is not None and row["caption"] is None
    assert unpack(row["mean"]).shape == (4, 8, 8)


def test_a_rebuilt_catalog_knows_the_texts(drawn: Prepared) -> None:
    from pipeline.catalog.recovery import rebuild

    plan, catalog, run, _ = drawn
    sql = "SELECT * FROM texts ORDER BY ALL"
    before = catalog.query(sql)
    count, broken = rebuild(plan.workspace, lambda fresh: activate(plan, fresh))
    assert before and not broken and count == 4
    assert catalog.query(sql) == before and planned_runs(plan, catalog)[0].pairs == run.pairs


def test_pairs_travel_as_a_path(drawn: Prepared, tmp_path: Path) -> None:
    import pickle

    plan, _, run, _ = drawn
    path = tmp_path / "pairs.arrow"
    run.pairs.save(path)
    opened = PairAddresses.open(path)
    assert opened == run.pairs and len(pickle.dumps(opened)) < 500
    assert pickle.loads(pickle.dumps(opened)) == opened
    pairs = ShardPairs(plan.workspace, opened, np.zeros((77, 32), np.float32))
    pairs.ahead([Draw(0), Draw(5)])
    assert pickle.loads(pickle.dumps(pairs))[5].image_id == run.pairs[5].image_id


@pytest.mark.parametrize(
    ("given", "model", "choose"),
    [
        ({}, "blip-base", "first"),
        ({"when": "always"}, "blip-base", "first"),
        ({"choose": "random"}, None, "random"),
        ({"choose": "random", "beams": 3}, "blip-base", "random"),
        ({"model": "blip-large", "choose": "first"}, "blip-large", "first"),
    ],
)
def test_choose_alone_asks_for_no_network(given: dict[str, Any], model: str | None, choose: str) -> None:
    read = Captions(**given)
    assert (read.model, read.choose) == (model, choose)
    assert Captions(**read.model_dump()) == read, "as a workspace keeps it"


def test_the_keys_of_texts_are_those_of_the_text_encoder(folder: Path, tmp_path: Path) -> None:
    import shutil

    plan, *_ = prepared(folder, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(folder / "base", other)
    config = json.loads((other / "scheduler/scheduler_config.json").read_text())
    (other / "scheduler/scheduler_config.json").write_text(json.dumps(config | {"steps_offset": 3}))
    one, two = text_keys(plan, str(folder / "base")), text_keys(plan, str(other))
    assert one.encoder == two.encoder and one.latents != two.latents
    merges = next((other / "tokenizer").glob("*.*"))
    merges.write_text(merges.read_text() + " ")
    assert text_keys(plan, str(other)).encoder != one.encoder
