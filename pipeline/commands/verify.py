"""Does the workspace hold what the catalog says? Every shard and every checkpoint read in full, every row
counted.
"""

import math
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evaluate import fidelity
from pipeline.catalog import Catalog, snapshots
from pipeline.catalog.indexing import ROWS_OF
from pipeline.plan import Plan
from pipeline.storage import copies, folders, shards
from pipeline.storage.workspace import TEMPORARY


def problems(catalog: Catalog, *, repair: bool, say: Callable[[str], None]) -> list[str]:
    """One sentence for each problem; with `repair`, broken shards and checkpoints are taken out so that the
    next run makes them again.
    """
    if repair:
        with catalog.workspace.lock(say) as is_held:
            if catalog.path.exists():
                catalog.create()  # one of an earlier version is brought up to date
            sentences = _problems(catalog, repair=True, say=say)
            snapshots.save(catalog, is_held)
            return sentences
    return _problems(catalog, repair=False, say=say)


def _problems(catalog: Catalog, *, repair: bool, say: Callable[[str], None]) -> list[str]:
    workspace, sentences = catalog.workspace, []
    for (table,) in catalog.query("SELECT table_name FROM duckdb_tables()"):
        catalog.row(f"SELECT max(hash(it)) FROM {table} it")  # reads every block, and a damaged one is told
    listed = catalog.query("SELECT shard, rows, bytes, sha256 FROM shards ORDER BY shard")
    for path, rows, size, digest in listed:
        problem = _problem(catalog, path, rows, size, digest)
        if problem:
            sentences.append(f"{path}: {problem}")
            say(sentences[-1])
            if repair:
                catalog.remove_shard(path)
                copies.remove(workspace.root / path)
                say(f"{path}: removed; the next run makes it again")
    known = {path for path, *_ in listed}
    for file in workspace.all_shards():
        if workspace.relative(file) in known:
            continue
        try:
            shards.verify(file)
            say(
                f"{workspace.relative(file)}: complete but not in the catalog (the next run adopts, replaces"
                " or removes it)"
            )
        except shards.BROKEN as error:
            sentences.append(f"{workspace.relative(file)}: broken, and not in the catalog: {error}")
            say(sentences[-1])
            if repair:
                copies.remove(file)
                say(f"{workspace.relative(file)}: removed")
    checkpoints = _checkpoints(catalog, sentences, repair=repair, say=say)
    for sentence, sql in INVARIANTS.items():
        (count,) = catalog.row(sql)
        if count:
            sentences.append(f"{count} {sentence}: `controlmill catalog rebuild` makes the catalog again")
            say(sentences[-1])
    also = f" and {checkpoints} checkpoint{'s' if checkpoints > 1 else ''}" if checkpoints else ""
    say(f"{len(listed)} shards{also} checked, {len(sentences)} problems")
    return sentences


# how many there are
def _checkpoints(catalog: Catalog, sentences: list[str], *, repair: bool, say: Callable[[str], None]) -> int:
    """Adds a sentence for each damaged file of a checkpoint and each line of a run's log that is none."""
    from train import checkpoint, integrity, log_file

    count = 0
    folders.bring_each(catalog.workspace.root / "checkpoints")
    for out in sorted(
        path
        for path in (catalog.workspace.root / "checkpoints").glob("*/")
        if not path.name.startswith(TEMPORARY)
    ):
        steps = checkpoint.folders(out)
        count += len(steps)
        for folder in steps:
            wrong = integrity.problems(folder)
            if wrong and folder.exists():  # a run under way keeps the newest only
                sentences += wrong
                _tell_of_checkpoint(
                    catalog, folder, wrong, newest=folder == steps[-1], repair=repair, say=say
                )
        rows, damaged = log_file.read_log(out / log_file.LOG)
        if damaged:
            place = catalog.workspace.relative(out / log_file.LOG)
            sentences.append(
                f"{place}: {log_file.lines_text(damaged)}: damaged, and passed over by whoever reads it"
            )
            say(sentences[-1])
            if repair:
                log_file.write_log(out / log_file.LOG, rows)
                folders.save(out)
                say(f"{place}: taken out; what stood there is lost, and nothing is made from it but curves")
    return count


def _tell_of_checkpoint(
    catalog: Catalog,
    folder: Path,
    wrong: list[str],
    *,
    newest: bool,
    repair: bool,
    say: Callable[[str], None],
) -> None:
    for sentence in wrong:
        say(sentence)
    if repair:
        shutil.rmtree(folder)
        folders.save(folder.parent)
        place = catalog.workspace.relative(folder)
        with catalog.transaction() as connection:
            connection.execute("UPDATE runs SET status = 'incomplete' WHERE checkpoint = ?", [place])
        say(f"{place}: removed; {'the next run makes it again' if newest else 'its run goes on without it'}")


def _problem(catalog: Catalog, path: str, rows: int, size: int, digest: str) -> str | None:
    file = catalog.workspace.root / path
    there = shards.size(file)
    if there is None:
        return "missing"
    if there != size:
        return f"{there} bytes where the catalog has {size}"
    try:
        shard = shards.verify(file)
    except shards.BROKEN as error:
        return f"broken: {error}"
    if shard.sha256 != digest:
        return "its sha256 is not the one in the catalog"
    if shard.rows != rows:
        return f"{shard.rows} rows where the catalog has {rows}"
    return None


INVARIANTS = {
    "images have several rows": (
        "SELECT count(*) FROM (SELECT image_id FROM images GROUP BY image_id HAVING count(*) > 1)"
    ),
    "addresses have several rows": (
        "SELECT count(*) FROM (SELECT uri FROM sources WHERE gone IS NULL GROUP BY uri HAVING count(*) > 1)"
    ),
    "images have no address": (
        "SELECT count(*) FROM images WHERE image NOT IN (SELECT image FROM source_rows)"
    ),
    "images have several annotations of one condition and fingerprint": (
        """
        SELECT count(*) FROM (SELECT image_id FROM annotations GROUP BY image_id, condition, fingerprint
        HAVING count(*) > 1)"""
    ),
    "shards do not fit their images": (
        """
        SELECT count(*) FROM shard_rows s WHERE kind = 'maps' AND
            (SELECT count(*) FROM annotation_rows a WHERE a.shard_number = s.shard_number) <>
            (SELECT count(*) FROM image_rows i JOIN shard_rows p USING (shard_number)
             WHERE p.kind = 'images' AND p.key = s.image_key AND p.part = s.part AND i.status = 'ok')"""
    ),
    "rows belong to no shard": (
        "SELECT "
        + " + ".join(
            f"(SELECT count(*) FROM {rows} WHERE shard_number NOT IN (SELECT shard_number FROM shard_rows))"
            for rows in ROWS_OF.values()
        )
    ),
}


TOLERANCE = 1e-4  # of a score, relative: networks round differently from batch to batch


def rescored(
    plan: Plan,
    catalog: Catalog,
    samples: int,  # at least so many are scored again, chosen at random, by whole shards
    *,
    seed: int | None = None,  # None = others each time
    say: Callable[[str], None],
) -> list[str]:  # a sentence for each number that is not what is stored
    """Scores stored samples again: what the leaderboard says must follow from the pictures that it shows."""
    from pipeline.benchmark.scoring import jobs, score_part
    from pipeline.benchmark.systems import systems
    from pipeline.experiment.base import device

    scored = [job for job, committed in jobs(plan, catalog, systems(plan, catalog), device()) if committed]
    random.Random(seed).shuffle(scored)
    sentences: list[str] = []
    count = compared = 0
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=plan.workspace.scratch) as folder:
        for job in scored:
            if count >= samples:
                break
            again = Path(folder) / f"{count}.parquet"
            score_part(replace(job.args, path=again), job.rows, {}, False)
            for old, new in zip(
                *(
                    shards.read(file, ["image_id", "seed", "values"]).to_pylist()
                    for file in (job.args.path, again)
                ),
                strict=True,
            ):
                stored, fresh = (
                    {name: value for name, value in row["values"] or () if not fidelity.retired(name)}
                    for row in (old, new)
                )
                compared += len(stored)
                sentences += [
                    f"{job.name}: {name} of {old['image_id'][:12]} seed {old['seed']} is {fresh.get(name)},"
                    f" stored is {stored.get(name)}"
                    for name in sorted(stored.keys() | fresh.keys())
                    if name not in stored
                    or name not in fresh
                    or not math.isclose(stored[name], fresh[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
                ]
            count += len(job.rows)
    for sentence in sentences:
        say(sentence)
    say(f"{count} samples scored again, {compared} numbers compared, {len(sentences)} differ")
    return sentences
