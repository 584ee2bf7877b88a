"""Does the workspace hold what the catalog says, and what was written? Every file read in full, every row
counted.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.catalog import Catalog, snapshots
from pipeline.catalog.indexing import ROWS_OF
from pipeline.commands.damage import A_FOLDER, AGAIN, Damage, checkpoints_of, damaged, other_files, runs
from pipeline.sources.columns import first_line
from pipeline.storage import folders, shards
from pipeline.storage.workspace import set_aside


def problems(catalog: Catalog, *, repair: bool, say: Callable[[str], None]) -> list[str]:
    """One sentence for each problem; with `repair`, what is broken is taken out so that the next run makes it
    again.
    """
    if repair:
        with catalog.workspace.lock(say) as is_held:
            sentences = _problems(catalog, repair=True, say=say)
            snapshots.save(catalog, is_held)
            return sentences
    return _problems(catalog, repair=False, say=say)


def _problems(catalog: Catalog, *, repair: bool, say: Callable[[str], None]) -> list[str]:
    sentences: list[str] = []

    def tell(damage: Damage) -> None:
        sentences.extend(damage.sentences)
        for sentence in damage.sentences:
            say(sentence)
        if repair:
            damage.take_out()
            say(f"{damage.place}: removed; {damage.then}")

    workspace = catalog.workspace
    for damage in other_files(workspace):
        tell(damage)
    if repair and catalog.path.exists():
        catalog.create()  # one of an earlier version is brought up to date
    for (table,) in catalog.query("SELECT table_name FROM duckdb_tables()"):
        catalog.row(f"SELECT max(hash(it)) FROM {table} it")  # reads every block, and a damaged one is told
    listed = catalog.query("SELECT shard, rows, bytes, sha256 FROM shards ORDER BY shard")
    for damage in _shards(catalog, listed, say):
        tell(damage)
    from train import checkpoint

    checkpoints = 0
    folders.bring_each(workspace.root / "checkpoints")
    for out in runs(workspace):
        checkpoints += len(checkpoint.folders(out))
        for damage in checkpoints_of(catalog, out):
            tell(damage)
    for sentence, sql in INVARIANTS.items():
        (count,) = catalog.row(sql)
        if count:
            sentences.append(
                f"{count} {sentence}: if they are still there after the next `controlmill run`, `controlmill"
                f" catalog rebuild {workspace.address}` makes the catalog again"
            )
            say(sentences[-1])
    also = f" and {checkpoints} checkpoint{'s' if checkpoints > 1 else ''}" if checkpoints else ""
    say(f"{len(listed)} shards{also} checked, {len(sentences)} problems")
    return sentences


def _shards(
    catalog: Catalog, listed: list[tuple[str, int, int, str]], say: Callable[[str], None]
) -> Iterator[Damage]:
    workspace = catalog.workspace
    for path, rows, size, digest in listed:
        file = workspace.root / path
        if problem := _problem(file, rows, size, digest):
            yield damaged(workspace, file, problem, AGAIN, partial(_take_out, catalog, path))
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
            what = f"broken, and not in the catalog: {first_line(error)}"
            yield damaged(workspace, file, what, AGAIN)


def _take_out(catalog: Catalog, path: str) -> None:
    catalog.remove_shard(path)
    set_aside(catalog.workspace.root / path)


def _problem(file: Path, rows: int, size: int, digest: str) -> str | None:
    there = shards.size(file)
    if there is None:
        return A_FOLDER if file.is_dir() else "missing"
    if there != size:
        return f"{there} bytes where the catalog has {size}"
    try:
        shard = shards.verify(file)
    except shards.BROKEN as error:
        return f"broken: {first_line(error)}"
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
