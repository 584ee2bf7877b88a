"""The results of a leaderboard as one file, which others merge with theirs: what was asked, by whom it was
answered, every score with its replicates and every sample's, and the pictures that the pages show.
"""

import hashlib
import json
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluate import measures
from evaluate.replicates import Replicated, bootstrap_weights
from pipeline import MillError
from pipeline.report import stored
from pipeline.report.leaderboard_data import Leaderboard
from pipeline.report.placing import CatalogScore
from pipeline.report.site import PICTURES
from pipeline.storage.workspace import write_whole

FORMAT = 1
RUN, SCORES, SAMPLES, BOARD = "run.json", "scores.parquet", "samples.parquet", "leaderboard.json"
# bytes that a member may have when it is unpacked, and members
LARGEST = {RUN: 2**28, BOARD: 2**30, SCORES: 2**32, SAMPLES: 2**34}
LARGEST_PICTURE, MOST_PICTURES = 2**24, 200_000
# what reading a file raises that another program wrote
BROKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error, pa.ArrowException)
SCORE_COLUMNS = {
    "system": pa.string(), "origin": pa.string(), "model": pa.string(), "variant": pa.string(),
    "condition": pa.string(), "metric": pa.string(), "metric_version": pa.string(), "value": pa.float64(),
    "low": pa.float64(), "high": pa.float64(), "n": pa.int64(), "n_failed": pa.int64(), "prompts": pa.int64(),
    "method": pa.string(), "higher_is_better": pa.bool_(), "benchmark": pa.string(), "reader": pa.string(),
    "checkpoint": pa.string(), "score_key": pa.string(), "caveats": pa.list_(pa.string()),
    "replicates": pa.binary(),
}  # fmt: skip
SAMPLE_COLUMNS = {
    "system": pa.string(), "origin": pa.string(), "condition": pa.string(), "image_id": pa.string(),
    "seed": pa.int64(), "status": pa.string(), "reason": pa.string(), "metric": pa.string(),
    "value": pa.float64(),
}  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """What has to be the same for two results of a condition to be compared."""

    task: str
    reader: str  # detector and fingerprint
    prompts: int
    draws: str  # hash of the bootstrap's weights, which NumPy may draw otherwise in another version

    def differences(self, other: "Mark") -> list[str]:
        return [
            f"{name} {mine} and {theirs}"
            for name, mine, theirs in (
                (name, getattr(self, name), getattr(other, name)) for name in vars(self)
            )
            if mine != theirs
        ]


@dataclass(frozen=True, eq=False)
class Results:
    """Of one leaderboard, or of several that were merged."""

    board: Leaderboard
    marks: Mapping[str, Mark]  # by condition
    weights: Mapping[str, str]  # system -> identity of its weights or pictures; '' = it has none
    scores: tuple[CatalogScore, ...]
    origins: Mapping[str, str]  # system -> whose it is
    protocols: Mapping[str, str]  # system -> identity of base and sampling; '' = a way of its own


def draws_hash(prompts: int) -> str:
    return hashlib.sha256(bootstrap_weights(prompts).tobytes()).hexdigest()[:16]


def write(
    path: Path, results: Results, samples: pa.Table, board_json: bytes, pictures: Mapping[str, bytes]
) -> None:
    """The file, whole or not at all; equal results give equal bytes."""
    run = {
        "format": FORMAT,
        "name": results.board.name,
        "made_at": results.board.made_at,
        "made_by": results.board.version,
        "conditions": {name: vars(mark) for name, mark in results.marks.items()},
        "weights": dict(results.weights),
        "protocols": dict(results.protocols),
    }
    table = pa.Table.from_pylist(
        [
            {name: getattr(each, name) for name in SCORE_COLUMNS if name not in ("replicates", "origin")}
            | {"caveats": list(each.caveats), "replicates": each.score.replicates.tobytes()}
            | {"origin": results.origins[each.system]}
            for each in results.scores
        ],
        schema=pa.schema(SCORE_COLUMNS),
    )

    def fill(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as file:
            _add(file, RUN, json.dumps(run, indent=1, ensure_ascii=False).encode())
            _add(file, BOARD, board_json)
            _add(file, SCORES, _packed(table))
            _add(file, SAMPLES, _packed(samples))
            for name, content in sorted(pictures.items()):
                _add(file, f"{PICTURES}/{name}", content)

    write_whole(path, fill)


def read(path: Path) -> Results:
    """MillError in one sentence: no such file, or none that `write` wrote; nothing of it is trusted."""
    try:
        with zipfile.ZipFile(path) as file:
            members = _members(file, path)
            run = json.loads(file.read(RUN))
            if run["format"] != FORMAT:
                raise MillError(
                    f"{path} is of format {run['format']!r:.20}, and this version reads {FORMAT}: update"
                    " ControlMill."
                )
            shown = members - LARGEST.keys()
            picture = lambda address: file.read(address) if address in shown else None
            board = stored.parsed(file.read(BOARD), f"{BOARD} of {path}", picture)
            table = pq.read_table(pa.BufferReader(file.read(SCORES)))
    except MillError:
        raise
    except OSError as error:
        raise MillError(f"{path} can't be read: {error.strerror or error}.") from error
    except BROKEN as error:
        raise _wrong(path, error) from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, RuntimeError) as error:  # also of a password
        raise MillError(f"{path} is no whole zip ({str(error)[:100]}): get it again.") from error
    try:
        rows = list(_scores(table))
        return Results(
            board=board,
            marks={name: Mark(**mark) for name, mark in run["conditions"].items()},
            weights={str(name): str(mark) for name, mark in run["weights"].items()},
            scores=tuple(score for score, _ in rows),
            origins={score.system: origin for score, origin in rows},
            protocols={score.system: str(run["protocols"][score.system]) for score, _ in rows},
        )
    except BROKEN as error:
        raise _wrong(path, error) from error


def samples_of(path: Path, systems: Mapping[str, str], origins: Mapping[str, str]) -> pa.Table:
    """The samples of these systems of a file that `read` has taken, under their new names, and whose they
    are. There are millions of rows, and most words are there many times, so they stay codes of a dictionary.
    """
    coded = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema({name: coded if of == pa.string() else of for name, of in SAMPLE_COLUMNS.items()})
    try:
        with zipfile.ZipFile(path) as file:
            data = pa.BufferReader(file.read(SAMPLES))
        words = [name for name in SAMPLE_COLUMNS if schema.field(name).type == coded]
        table = pq.read_table(data, read_dictionary=words).select(schema.names).cast(schema)
    except BROKEN as error:
        raise _wrong(path, error) from error
    wanted = [
        pa.array([word in systems for word in chunk.dictionary.to_pylist()], pa.bool_()).take(chunk.indices)
        for chunk in table.column("system").chunks
    ]
    for name, new in (("system", systems), ("origin", origins)):
        chunks = [
            pa.DictionaryArray.from_arrays(
                chunk.indices,
                pa.array([new.get(word, word) for word in chunk.dictionary.to_pylist()], pa.string()),
            )
            for chunk in table.column(name).chunks
        ]
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.chunked_array(chunks, coded))
    return table.filter(pa.chunked_array(wanted, pa.bool_()))


def _wrong(path: Path, error: Exception) -> MillError:
    told = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0][:150]
    return MillError(f"{path} holds no results of this program ({told}): get it again.")


def _members(file: zipfile.ZipFile, path: Path) -> set[str]:
    """The names, all of them ours; MillError where a member lies elsewhere or is larger than any of ours."""
    found: set[str] = set()
    for each in file.infolist():
        place = PurePosixPath(each.filename)
        is_picture = (
            len(place.parts) == 2 and place.parts[0] == PICTURES and place.suffix in (".png", ".jpg", ".webp")
        )
        if each.filename not in LARGEST and not (is_picture and place.as_posix() == each.filename):
            raise MillError(
                f"{path} holds {each.filename[:80]!r}, which no results have: it is not unpacked."
            )
        if each.file_size > LARGEST.get(each.filename, LARGEST_PICTURE) or len(found) > MOST_PICTURES:
            raise MillError(f"{path} would unpack to more than results ever have: it is not unpacked.")
        if each.filename in found:
            raise MillError(f"{path} holds {each.filename[:80]!r} twice: get it again.")
        found.add(each.filename)
    if lacking := LARGEST.keys() - found:
        raise MillError(f"{path} holds no results (it lacks {', '.join(sorted(lacking))}): get it again.")
    return found


def _scores(table: pa.Table) -> Iterator[tuple[CatalogScore, str]]:
    for row in table.select(list(SCORE_COLUMNS)).cast(pa.schema(SCORE_COLUMNS)).to_pylist():
        replicates, origin = np.frombuffer(row.pop("replicates"), np.float32), row.pop("origin")
        if row["method"] not in ("bootstrap", "jackknife") or not np.isfinite(replicates).all():
            raise ValueError(f"replicates of {row['system']}")
        if not math.isfinite(row["value"]) or row["prompts"] < 1:
            raise ValueError(f"value of {row['system']}")
        possible = measures.metric(row["metric"]).possible
        score = Replicated(row["value"], replicates, row["method"], row["prompts"], possible)
        yield CatalogScore(**row | {"caveats": tuple(row["caveats"]), "score": score}), origin


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", store_schema=False)  # codes are read as words
    return bytes(sink.getvalue())


def _add(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Its date is the first that a zip can have."""
    stored_as = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
    file.writestr(zipfile.ZipInfo(name), content, stored_as)
