"""Results of leaderboards as files: written, read again, merged where they may be, else refused."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluate import measures
from evaluate.comparison import Metric
from evaluate.replicates import bootstrap_weights, of_means
from pipeline import MillError
from pipeline.benchmark.systems import CONTROL, NO_CONTROL, PLAIN, REAL
from pipeline.commands.leaderboard import _lm_eval, merge
from pipeline.report import results, stored
from pipeline.report.leaderboard_data import FrozenBenchmark, Leaderboard, LeaderboardModel, Measure, Score
from pipeline.report.merging import merged
from pipeline.report.placing import CatalogScore
from pipeline.report.results import SAMPLE_COLUMNS, Mark, Results, draws_hash

PROMPTS = 60
METRIC = measures.metric("edge_f1_bsds")
MARK = Mark(task="a" * 16, reader="opencv-canny 0", prompts=PROMPTS, draws=draws_hash(PROMPTS))
LEVELS = {"ours": 0.6, "twin": 0.6, "theirs": 0.75, "worse": 0.3}
DIFFICULTY = np.random.default_rng(0).normal(0, 0.1, PROMPTS)  # of the prompts, which all share


def score(system: str, level: float, seed: int, metric: Metric = METRIC) -> CatalogScore:
    model, _, variant = (
        system.split("/") if system.count("/") == 2 else (system.split("/")[0], "", system.split("/")[0])
    )
    values = level + DIFFICULTY + np.random.default_rng(seed).normal(0, 0.02, PROMPTS)
    found = of_means(values.clip(0, 1), np.arange(PROMPTS), bootstrap_weights(PROMPTS))
    found = replace(found, possible=metric.possible)
    low, high = found.interval or (None, None)
    return CatalogScore(
        system=system, model=model, variant=variant, condition="canny", metric=metric.name,
        metric_version=metric.version, value=found.value, low=low, high=high, n=PROMPTS, n_failed=0,
        prompts=PROMPTS, method=found.method, higher_is_better=True, benchmark="b", reader="opencv-canny 0",
        checkpoint="", score_key="k", caveats=(), score=found,
    )  # fmt: skip


def board(name: str, scores: list[CatalogScore], submitted: tuple[str, ...] = ()) -> Leaderboard:
    return Leaderboard(
        name=name,
        made_at="2026-11-30 12:00 UTC",
        version="controlmill 0.1.0",
        machine="x86_64",
        metrics=(
            Measure(
                name=METRIC.name, title=METRIC.title, definition=METRIC.definition, higher_is_better=True,
                column=METRIC.column, level=METRIC.level, version=METRIC.version, primary=True,
            ),
        ),
        benchmarks=(
            FrozenBenchmark(
                condition="canny", title="Canny edges", kind="edges", fingerprint="b", split="test",
                images=PROMPTS, samples=PROMPTS, seeds=(0,), sampler="DDIM", steps=20, guidance=7.5,
                scale=1.0, negative="", base="mini", detector="opencv-canny 0", reader="opencv-canny 0",
            ),
        ),
        models=tuple(
            LeaderboardModel(name=model, kind="submitted" if model in submitted else "run")
            for model in dict.fromkeys(each.model for each in scores)
        ),
        scores=tuple(
            Score(
                model=each.model, arm=each.variant, condition="canny", metric=each.metric, value=each.value,
                n=each.n, provenance={"system": each.system},
            )
            for each in scores
        ),
    )  # fmt: skip


def made(
    name: str,
    models: dict[str, float],
    *,
    floor: float = 0.2,
    mark: Mark = MARK,
    submitted: tuple[str, ...] = (),
    weights: str = "",
    protocol: str = "p",
) -> Results:
    """Of one leaderboard: its models, its base without control, the real images."""
    scores = [score(f"{model}/canny/{CONTROL}", level, hash_of(model)) for model, level in models.items()]
    scores += [score(f"{NO_CONTROL}/canny", floor, 7), score(f"{REAL}/canny", 0.95, 8)]
    scores += [score(f"{model}/canny/{PLAIN}", 0.25, 9) for model in submitted]
    return Results(
        board=board(name, scores, submitted),
        marks={"canny": mark},
        weights={each.system: weights or f"weights of {each.system} {each.value:.6f}" for each in scores},
        scores=tuple(scores),
        origins={each.system: name for each in scores},
        protocols={each.system: "" if each.model in submitted else protocol for each in scores},
    )


def hash_of(model: str) -> int:
    return sum(model.encode())


def samples(of: Results) -> pa.Table:
    rows = [
        dict.fromkeys(SAMPLE_COLUMNS) | {"system": system, "origin": origin, "condition": "canny"}
        for system, origin in of.origins.items()
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(SAMPLE_COLUMNS))


def save(of: Results, path: Path) -> Path:
    from pipeline.report import listings

    text = listings.lines(listings.plain(of.board, lambda _: None))
    results.write(path, of, samples(of), text.encode(), {})
    return path


def test_results_are_read_as_they_were_written_and_equal_ones_are_equal_files(tmp_path: Path) -> None:
    of = made("ours", {"ours": 0.6})
    path = save(of, tmp_path / "a.zip")
    again = results.read(path)
    assert (again.marks, again.weights, again.origins) == (of.marks, of.weights, of.origins)
    assert again.protocols == of.protocols
    for mine, theirs in zip(of.scores, again.scores, strict=True):
        assert vars(mine) | {"score": None} == vars(theirs) | {"score": None}
        assert (
            mine.score.replicates == theirs.score.replicates
        ).all() and mine.score.possible == theirs.score.possible
    assert again.board.scores == of.board.scores
    assert save(of, tmp_path / "b.zip").read_bytes() == path.read_bytes()


def test_paired_tests_survive_the_merge_with_their_ties(tmp_path: Path) -> None:
    one = made("one", {"ours": LEVELS["ours"], "worse": LEVELS["worse"]})
    other = made("other", {"twin": LEVELS["twin"], "theirs": LEVELS["theirs"]})
    paths = [save(each, tmp_path / f"{each.board.name}.zip") for each in (one, other)]
    said: list[str] = []
    merge(paths, tmp_path / "board", said.append)
    found = {(it.model, str(it.arm)): it for it in stored.read(tmp_path / "board").scores}
    ranks = {model: it.rank for (model, arm), it in found.items() if arm == CONTROL}
    assert ranks == {"theirs": (1, 1), "ours": (2, 3), "twin": (2, 3), "worse": (4, 4)}
    assert found["theirs", CONTROL].provenance["origin"] == "other"
    models = {it.name: (it.origin, it.date) for it in stored.read(tmp_path / "board").models}
    assert models["ours"] == ("one", "2026-11-30") and models["theirs"] == ("other", "2026-11-30")
    merge([tmp_path / "board" / "results.zip"], tmp_path / "again", said.append)
    whole = results.read(tmp_path / "board" / "results.zip")
    own = {system: system for system in whole.origins}
    table = results.samples_of(tmp_path / "board" / "results.zip", own, {})
    told = zip(table["system"].to_pylist(), table["origin"].to_pylist(), strict=True)
    assert sorted(told) == sorted(whole.origins.items())  # each once, and what both have by its first file
    assert table.schema.field("seed").type == pa.int64()
    again = {(it.model, it.arm): it.rank for it in stored.read(tmp_path / "again").scores}
    assert again == {key: it.rank for key, it in found.items()}


def test_the_base_of_one_is_no_floor_of_the_other() -> None:
    one, other = made("one", {"ours": 0.6}, floor=0.1), made("other", {"theirs": 0.6}, floor=0.5)
    found = {
        (it.model, str(it.arm)): it for it in merged([(Path("a"), one), (Path("b"), other)]).board.scores
    }
    assert {key for key in found if key[1] == NO_CONTROL} == {
        (NO_CONTROL, NO_CONTROL), (f"{NO_CONTROL} (other)", NO_CONTROL),
    }  # fmt: skip
    ours, theirs = (found[model, CONTROL].share for model in ("ours", "theirs"))
    assert ours and theirs and ours > 0.5 > theirs


def test_a_submitted_model_has_its_own_floor() -> None:
    one = made("one", {"ours": 0.6, "foreign": 0.6}, floor=0.5, submitted=("foreign",))
    found = {(it.model, str(it.arm)): it for it in merged([(Path("a"), one)]).board.scores}
    ours, foreign = (found[model, CONTROL].share for model in ("ours", "foreign"))
    assert ours and foreign and foreign > 2 * ours


def test_what_two_files_have_alike_is_there_once_and_the_same_name_with_other_weights_is_refused() -> None:
    one, other = (
        made("one", {"ours": 0.6}, weights="w"),
        made("two", {"ours": 0.6, "theirs": 0.7}, weights="w"),
    )
    found = merged([(Path("a"), one), (Path("b"), other)])
    assert len({each.system for each in found.scores}) == len(found.scores) == 4
    assert found.origins["ours/canny/control"] == "one"
    with pytest.raises(MillError, match=r"ours on canny has other weights in a than in c"):
        merged([(Path("a"), one), (Path("c"), made("three", {"ours": 0.6}, weights="x"))])


def test_those_of_one_protocol_have_places_among_themselves_too() -> None:
    """In the open track all have one."""
    one = made("one", {"ours": 0.6, "worse": 0.3, "foreign": 0.5}, submitted=("foreign",))
    other = made("other", {"theirs": 0.75}, protocol="q")
    found = {
        it.model: it
        for it in merged([(Path("a"), one), (Path("b"), other)]).board.scores
        if it.arm == CONTROL
    }
    assert {model: it.rank for model, it in found.items()} == {
        "theirs": (1, 1), "ours": (2, 2), "foreign": (3, 3), "worse": (4, 4),
    }  # fmt: skip
    assert {model: it.closed_rank for model, it in found.items()} == {
        "theirs": None, "ours": (1, 1), "foreign": None, "worse": (2, 2),
    }  # fmt: skip
    alone = merged([(Path("a"), made("one", {"ours": 0.6, "worse": 0.3}))]).board.scores
    assert all(it.closed_rank is None for it in alone)


def test_one_model_sampled_in_two_ways_is_there_twice() -> None:
    one, other = (
        made("one", {"ours": 0.6}, weights="w"),
        made("two", {"ours": 0.7}, weights="w", protocol="q"),
    )
    found = {
        it.model: it
        for it in merged([(Path("a"), one), (Path("b"), other)]).board.scores
        if it.arm == CONTROL
    }
    assert {model: it.rank for model, it in found.items()} == {"ours (two)": (1, 1), "ours": (2, 2)}
    assert found["ours (two)"].provenance["origin"] == "two"


def test_two_leaderboards_of_one_name_keep_their_origins_apart() -> None:
    one, other = made("demo", {"ours": 0.6}), made("demo", {"theirs": 0.7})
    found = merged([(Path("a"), one), (Path("b"), other)])
    assert found.origins["ours/canny/control"] == "demo" and found.origins["theirs/canny/control"] == "demo 2"


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        (replace(MARK, task="b" * 16), r"canny: a and b can't be compared \(task aaaaaaaaaaaaaaaa and bbbb"),
        (replace(MARK, reader="mini 1"), r"\(reader opencv-canny 0 and mini 1\)"),
        (replace(MARK, prompts=20), r"\(prompts 60 and 20\)"),
        (replace(MARK, draws="0"), r"\(draws .* and 0\)"),
    ],
)
def test_what_was_not_asked_or_read_alike_is_not_compared(mark: Mark, sentence: str) -> None:
    one, other = made("one", {"ours": 0.6}), made("other", {"theirs": 0.6}, mark=mark)
    with pytest.raises(MillError, match=sentence):
        merged([(Path("a"), one), (Path("b"), other)])


def test_another_version_of_a_measure_and_another_reader_in_fact_are_refused() -> None:
    one, other = made("one", {"ours": 0.6}), made("other", {"theirs": 0.6})
    older = replace(other, scores=tuple(replace(each, metric_version="0") for each in other.scores))
    with pytest.raises(MillError, match=r"edge_f1_bsds is of version 2 in a and 0 in b"):
        merged([(Path("a"), one), (Path("b"), older)])
    real = [replace(each, value=0.9) if each.variant == REAL else each for each in other.scores]
    with pytest.raises(MillError, match="the reader works otherwise there"):
        merged([(Path("a"), one), (Path("b"), replace(other, scores=tuple(real)))])


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def json_with(key: str, value: object) -> Callable[[dict[str, bytes]], object]:
    return lambda it: it.update({"run.json": json.dumps(json.loads(it["run.json"]) | {key: value}).encode()})


def scores_with(column: str, value: object) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        table = pq.read_table(pa.BufferReader(members["scores.parquet"]))
        rows = [row | {column: value} for row in table.to_pylist()]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        members["scores.parquet"] = sink.getvalue()

    return change


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "a path out of the folder": (lambda it: it.update({"../x": b""}), "holds '../x', which no results have"),
    "an absolute path": (lambda it: it.update({"/etc/x": b""}), "holds '/etc/x', which no results have"),
    "a picture elsewhere": (lambda it: it.update({"pictures/../x.png": b""}), "which no results have"),
    "a program": (lambda it: it.update({"pictures/x.py": b""}), "which no results"),
    "a bomb": (lambda it: it.update({"pictures/x.png": bytes(2**25)}), "would unpack to more"),
    "no scores": (lambda it: it.pop("scores.parquet"), "it lacks scores.parquet"),
    "scores of nonsense": (lambda it: it.update({"scores.parquet": b"x" * 100}), "holds no results of this"),
    "scores of other types": (scores_with("value", "high"), "holds no results of this"),
    "scores that are no numbers": (scores_with("value", float("nan")), "holds no results of this"),
    "replicates of half a number": (scores_with("replicates", b"123"), "holds no results of this"),
    "an unknown method": (scores_with("method", "guess"), "holds no results of this"),
    "an unknown measure": (scores_with("metric", "beauty"), "holds no results of this"),
    "a later format": (json_with("format", 2), "is of format 2, and this version reads 1"),
    "no conditions": (json_with("conditions", None), "holds no results of this"),
    "a mark that lacks": (json_with("conditions", {"canny": {"task": "a"}}), "holds no results of this"),
    "run.json of nonsense": (lambda it: it.update({"run.json": b"{"}), "holds no results of this"),
    "run.json of a list": (lambda it: it.update({"run.json": b"[]"}), "holds no results of this"),
    "a deep run.json": (lambda it: it.update({"run.json": b"[" * 10**5}), "holds no results of this"),
    "a board of nonsense": (lambda it: it.update({"leaderboard.json": b"[]"}), "leaderboard"),
    "a board of other types": (
        lambda it: it.update({"leaderboard.json": b'{"layout": 2, "metrics": [1]}'}),
        "holds no results of this",
    ),
}  # fmt: skip


@pytest.mark.parametrize("content", [b"x" * 100, b""])
def test_samples_of_nonsense_are_one_sentence_and_write_no_board(content: bytes, tmp_path: Path) -> None:
    path = save(made("ours", {"ours": 0.6}), tmp_path / "ours.zip")
    rewritten(path, lambda it: it.update({"samples.parquet": content}))
    with pytest.raises(MillError, match="holds no results of this program") as told:
        merge([path], tmp_path / "board", lambda line: None)
    assert "\n" not in str(told.value) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_results_are_one_sentence_and_write_nothing(case: str, tmp_path: Path) -> None:
    change, sentence = HOSTILE[case]
    path = rewritten(save(made("ours", {"ours": 0.6}), tmp_path / "a" / "b" / "ours.zip"), change)
    with pytest.raises(MillError) as told:
        results.read(path)
    assert sentence in str(told.value) and "\n" not in str(told.value)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_sentence(share: float, tmp_path: Path) -> None:
    path = save(made("ours", {"ours": 0.6}), tmp_path / "ours.zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(MillError, match="is no whole zip"):
        results.read(path)
    with pytest.raises(MillError, match="can't be read"):
        results.read(tmp_path / "nothing.zip")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = save(made("ours", {"ours": 0.6}), tmp_path / "ours.zip")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("run.json", "{}")
    with pytest.raises(MillError, match="twice"):
        results.read(path)


def test_a_model_has_the_shape_of_lm_evaluation_harness() -> None:
    of = made("ours", {"ours": 0.6, "worse": 0.3})
    told = _lm_eval(of, "ours", [each for each in of.scores if each.model == "ours"])
    (first,) = [each for each in of.scores if each.model == "ours"]
    assert told["results"] == {
        "canny": {
            "alias": "canny", "edge_f1_bsds,none": first.value, "edge_f1_bsds_stderr,none": first.score.error,
        }
    }  # fmt: skip
    assert told["n-samples"] == {"canny": {"original": PROMPTS, "effective": PROMPTS}}
    assert told["higher_is_better"] == {"canny": {"edge_f1_bsds": True}}
    assert told["task_hashes"] == told["versions"] == {"canny": MARK.task}
    assert told["configs"]["canny"]["seeds"] == (0,) and told["model_name"] == "ours"
    json.dumps(told)
