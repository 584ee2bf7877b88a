"""A manifest's `where` and `order_by`: what they may say, and the view `pairs` that they make.

Called with a connection of the catalog.

Which rows become pairs decides a run's name and what resumes, so that every query has to choose the same
ones.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.catalog.schema import CAPTION, IMAGE_FACTS, MADE_CAPTIONS, OWN_CAPTIONS

TIE_BREAK = "part, row"  # no two rows of a condition are equal in these, so that every order ends with them
ROW_ORDER = {  # functions whose answer depends on the order in which rows come
    "any_value", "approx_quantile", "approx_top_k", "arbitrary", "arg_max", "arg_max_null",
    "arg_max_nulls_last", "arg_min", "arg_min_null",
    "arg_min_nulls_last", "argmax", "argmin", "array_agg", "fill", "first", "first_value", "group_concat",
    "lag", "last", "last_value", "lead",
    "list", "listagg", "lttb", "max_by", "min_by", "mode", "nth_value", "ntile", "reservoir_quantile",
    "row_number", "string_agg",
}  # fmt: skip
CLOCK = {  # read the clock, and DuckDB does not call them unstable; most are spelled without brackets
    "current_date", "current_localtime", "current_localtimestamp", "current_time", "current_timestamp",
    "localtime", "localtimestamp",
}  # fmt: skip
GROWING = {  # a number, or the square of a length, says what they take; DuckDB limits none of it
    "array_reduce", "array_resize", "bitstring", "damerau_levenshtein", "editdist3", "format",
    "generate_series", "levenshtein", "list_reduce", "list_resize", "lpad", "printf", "range", "reduce",
    "repeat", "rpad",
}  # fmt: skip
MULTIPLYING = {  # inside each other, they do so too
    "apply", "array_apply", "array_transform", "list_apply", "list_transform", "regexp_replace", "replace",
}  # fmt: skip
DEEPEST = 3  # subqueries inside each other, of which each may double a value
AGAIN = "and every query must choose the same pairs: leave it out"
FIXED = "(`order_by: image_id` is a random order that stays)"
TABLES = {  # of a FROM, in DuckDB's syntax tree -> what it is called where it has no name
    "BASE_TABLE": "a table", "TABLE_FUNCTION": "a table function", "SHOW_REF": "DESCRIBE, SHOW or SUMMARIZE",
    "PIVOT": "PIVOT or UNPIVOT",
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """The rows of a condition that become pairs: all these conditions hold; each is named by its key in the
    manifest.
    """

    wheres: tuple[tuple[str, str], ...]
    order_by: str | None = None
    limit: int | None = None
    order_key: str = "select.order_by"


OF_IMAGE = """split, group_id, first_of_group,
               width, height, raw_width, raw_height, raw_format, raw_bytes, aspect, frames, colour_space,
               damage, upright_width, upright_height, crop_left, crop_top, crop_width, crop_height, cropped,
               sharpness, contrast, colour, grey,
               m.shard AS map_shard, i.shard AS image_shard, i.row, m.part"""
CAPTION_COLUMNS = {"caption", "source_caption", "model_caption", "fields"}
EVERYTHING = {"candidates", "columns"}  # words of a selection that may speak of any column
# the rows of maps lie in the order of their images, so that a number tells where to look
LAST_IMAGE = """SELECT max(image) FROM image_rows JOIN shard_rows USING (shard_number)
                WHERE part < {parts} AND kind = 'images'"""
FIRST_PARTS = 64  # in which a selection is tried on the rows that there are


def candidates(measures: Iterable[str], kind: str = "VIEW") -> str:
    """The view of everything that could be a pair, which `where` and `order_by` speak of; and two with fewer
    columns, which need fewer tables: without captions, and without measures too.
    """
    measures = list(measures)
    return f"""
        CREATE OR REPLACE {kind} candidates AS {_candidates(measures)};
        CREATE OR REPLACE {kind} candidate_measures AS
        SELECT condition, fingerprint, a.image, i.image_id, {OF_IMAGE}{_columns(measures)}
        FROM annotation_rows a
             JOIN shard_rows m USING (shard_number)
             JOIN detectors d ON d.maps = m.name AND d.fingerprint = m.key
             JOIN ({IMAGE_FACTS}) i ON i.image = a.image
        WHERE d.current AND a.status = 'ok' AND i.status = 'ok';
        CREATE OR REPLACE {kind} candidate_images AS
        SELECT condition, fingerprint, i.image, i.image_id, {OF_IMAGE}
        FROM ({IMAGE_FACTS}) i
             JOIN shard_rows m ON m.kind = 'maps' AND m.part = i.part
             JOIN detectors d ON d.maps = m.name AND d.fingerprint = m.key
        WHERE d.current AND i.status = 'ok' AND (m.shard_number, i.image) NOT IN (
            SELECT (shard_number, image) FROM annotation_rows WHERE status <> 'ok')"""


def _columns(measures: Iterable[str]) -> str:
    return "".join(f", measures['{name}'] AS {name}" for name in measures)


def _candidates(measures: Iterable[str], chosen: str = "") -> str:
    """`chosen`: a relation that leaves some of them, joined first."""
    join = f"JOIN {chosen} chosen ON chosen.image = a.image AND chosen.condition = d.condition"
    join = join if chosen else ""
    return f"""
        WITH own AS ({OWN_CAPTIONS}), made AS ({MADE_CAPTIONS})
        SELECT d.condition, fingerprint, a.image, i.image_id, {CAPTION} AS caption,
               own.caption AS source_caption, made.caption AS model_caption, own.fields,
               {OF_IMAGE}{_columns(measures)}
        FROM annotation_rows a
             JOIN shard_rows m USING (shard_number)
             JOIN detectors d ON d.maps = m.name AND d.fingerprint = m.key
             JOIN ({IMAGE_FACTS}) i ON i.image = a.image
             {join}
             LEFT JOIN own ON own.image = a.image LEFT JOIN made ON made.image = a.image
        WHERE d.current AND a.status = 'ok' AND i.status = 'ok'"""


def pairs(selections: dict[str, Selection], measures: Iterable[str]) -> str:
    """The view of the pairs, and `pair_rows`, which has what is asked of all of them; conditions that ask for
    the same share a branch, since views are planned anew for each query.
    """
    measures = list(measures)
    alike: dict[tuple[str, ...], list[str]] = {}
    for condition, it in selections.items():
        alone = condition if it.limit else ""  # the first so many are those of one condition
        alike.setdefault((alone, *(where for _, where in it.wheres)), []).append(condition)
    branches, rows = [], []
    for conditions in alike.values():
        it = selections[conditions[0]]
        chosen = choice(conditions, it, _source(it, measures))
        if it.limit:  # named in the branch, so that whoever asks for another condition skips it
            named = f"'{conditions[0]}' AS condition"
            rows.append(_rows_of(conditions[0], chosen))
            wide = _candidates(measures, f"(SELECT {named}, image FROM {chosen})")
            branches.append(f"SELECT {named}, * EXCLUDE (condition) FROM ({wide})")
        else:
            rows.append(f"SELECT condition, {PAIR_ROWS} FROM {chosen}")
            branches.append(choice(conditions, it))
    return f"""
        CREATE OR REPLACE VIEW pairs AS {" UNION ALL ".join(branches)};
        CREATE OR REPLACE VIEW pair_rows AS {" UNION ALL ".join(rows)}"""


def _rows_of(condition: str, chosen: str) -> str:
    """What `pair_rows` has of the pairs of a condition that `chosen` gives by their image, a number: so the
    first so many, which are sorted in memory, take little of it.
    """
    return f"""
        SELECT '{condition}' AS condition, i.image, i.image_id, i.split, i.width, i.height,
               m.shard AS map_shard, i.shard AS image_shard, i.row, i.part
        FROM (SELECT image FROM {chosen}) chosen
             JOIN ({IMAGE_FACTS}) i USING (image)
             JOIN shard_rows m ON m.kind = 'maps' AND m.part = i.part
             JOIN detectors d ON d.maps = m.name AND d.fingerprint = m.key
        WHERE d.current AND d.condition = '{condition}'"""


PAIR_ROWS = "image, image_id, split, width, height, map_shard, image_shard, row, part"


def _source(it: Selection, measures: Iterable[str]) -> str:
    """The view with the fewest columns that has all that a selection speaks of."""
    text = " ".join([*(where for _, where in it.wheres), it.order_by or ""])
    words = set(re.findall(r"\w+", text.lower()))
    if words & (CAPTION_COLUMNS | EVERYTHING):
        return "candidates"
    return "candidate_measures" if words & set(measures) else "candidate_images"


def choice(conditions: list[str], it: Selection, source: str = "candidates", parts: int | None = None) -> str:
    """The person's words stand alone inside their brackets, on lines of their own: neither a bracket nor a
    comment gets out. Of the first so many parts, or of all.
    """
    names = ", ".join(f"'{name}'" for name in conditions)
    order = f" ORDER BY {f'{it.order_by}{chr(10)}, ' if it.order_by is not None else ''}{TIE_BREAK}"
    tail = f"{order} LIMIT {it.limit}" if it.limit else ""
    wheres = " AND ".join(f"(\n{where}\n)" for _, where in it.wheres)
    within = "" if parts is None else f" AND part < {parts} AND image <= ({LAST_IMAGE.format(parts=parts)})"
    return (
        f"(SELECT * FROM (SELECT * FROM {source} WHERE condition IN ({names}){within}) candidates WHERE"
        f" {wheres}{tail})"
    )


def first_rows(condition: str, it: Selection, measures: Iterable[str], parts: int = FIRST_PARTS) -> str:
    """What is selected of the first parts, which is found without reading the rows of all maps."""
    source = _source(it, measures)
    return choice([condition], it, "candidate_measures" if source == "candidate_images" else source, parts)


def probes(
    condition: str, it: Selection, measures: Iterable[str], parts: int | None = None
) -> Iterator[tuple[str, str]]:
    """Key in the manifest -> a query that fails where that key's SQL does not work, on the rows of the first
    so many parts or on all.
    """

    def probe(one: Selection) -> str:
        if parts:
            return f"SELECT count(*) FROM {first_rows(condition, one, measures, parts)}"
        return f"SELECT count(*) FROM {choice([condition], one, _source(one, measures))}"

    for key, where in it.wheres:
        if where != "true":  # the default: there may be millions of rows, and 13 conditions
            yield key, probe(Selection(((key, where),)))
    if it.order_by is not None:
        yield it.order_key, probe(replace(it, limit=it.limit or 1))


def mistakes(
    connection: Any,
    selections: dict[str, Selection],
    unstable: set[str],
    # a sentence for each text that is not one condition or one list to sort by, or whose answer is not always
    # the same
) -> list[str]:
    texts = {(key, "where", where) for it in selections.values() for key, where in it.wheres}
    texts |= {
        (it.order_key, "order_by", it.order_by) for it in selections.values() if it.order_by is not None
    }
    found = [
        f"{key} {problem}."
        for key, kind, text in sorted(texts)
        if (problem := _problem(connection, kind, text, unstable))
    ]
    return sorted(set(found))


def _problem(connection: Any, kind: str, text: str, unstable: set[str]) -> str | None:
    """What is wrong with it as a whole: it is read alone and in its place, and both must say the same, and
    nothing beside it.
    """
    what = "one condition for a WHERE" if kind == "where" else "one list of columns to sort by"
    if not text.strip():
        return f"is empty: write {what}, or leave the key out"
    before, inside, after, plain = (
        ("WHERE", "(\n", "\n)", "true") if kind == "where" else ("ORDER BY", "\n", f"\n, {TIE_BREAK}", "part")
    )
    alone, placed, empty, empty_placed = (
        _tree(connection, f"FROM candidates {before} {words}")
        for words in (text, inside + text + after, plain, inside + plain + after)
    )
    for tree in (alone, placed):
        if tree["error"]:
            return (
                f"is not {what}: {tree['error_message']}"
                if tree["error_type"] == "parser"
                else f"must be {what}, not several statements"
            )
    if any(part.get("class") == "PARAMETER" for part in _parts(alone)):
        return "holds a parameter (? or $), which nothing fills in: write the value"
    said, beside = _take(alone, kind)
    said_there, beside_there = _take(placed, kind)
    ends = (_take(empty_placed, kind)[0] or [])[1:] if kind == "order_by" else []
    if (
        said is None
        or said_there != [*said, *ends]
        or beside != _take(empty, kind)[1]
        or beside_there != beside
    ):
        return f"must be {what}, and nothing beside it"
    if kind == "order_by" and any(part.get("function_name") in ("unnest", "unlist") for part in _parts(said)):
        return "calls unnest(), which would make several pairs of one row: leave it out"
    found = (_unsteady(part, unstable) or _unbounded(part) for part in _parts(said))
    return next(filter(None, found), _too_deep(said))


def _tree(connection: Any, sql: str) -> Any:
    """DuckDB's own syntax tree of it, without places in the text."""
    return _without_places(
        json.loads(connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()[0])
    )


def _without_places(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            key: _without_places(value) for key, value in tree.items() if not key.startswith("query_location")
        }
    return [_without_places(value) for value in tree] if isinstance(tree, list) else tree


def _take(tree: Any, kind: str) -> tuple[list[Any] | None, Any]:
    """The condition or the list to sort by, as a list, and the statements without it."""
    node = tree["statements"][0]["node"]
    if node["type"] != "SELECT_NODE":
        return None, tree
    if kind == "where":
        return [node.pop("where_clause")], tree
    sorting = [it for it in node["modifiers"] if it["type"] == "ORDER_MODIFIER"]
    node["modifiers"] = [it for it in node["modifiers"] if it not in sorting]
    return [it for modifier in sorting for it in modifier["orders"]], tree


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node of a syntax tree."""
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _parts(value)


def _unsteady(part: dict[str, Any], unstable: set[str]) -> str | None:
    """Why this node of the tree may say another thing at the next query."""
    name = str(part.get("function_name") or "").lower()
    names = part.get("column_names") or []
    if len(names) == 1 and names[0].lower() in CLOCK:
        return f"asks for {names[0]}, which is another at each query, {AGAIN}"
    given = part.get("arguments") or part.get("children") or []
    if name in CLOCK or name in unstable or (name == "age" and len(given) == 1):
        return f"calls {name}(), which gives another answer at each query, {AGAIN} {FIXED}"
    if name in ROW_ORDER or "_ROWS" in f"{part.get('start', '')}{part.get('end', '')}":
        return f"calls {name}(), which depends on the order of the rows, {AGAIN}, or use min, max or rank"
    if part.get("sample"):
        return f"draws a sample, {AGAIN} {FIXED}"
    kind = str(part.get("type"))
    if kind in ("LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER") or part.get("distinct_on_targets"):
        return f"takes the first rows of a subquery, {AGAIN}, or use min, max or rank"
    table = str(part.get("table_name") or "").lower()
    if kind in TABLES and table != "candidates":
        return f"reads {table or TABLES[kind]}: a subquery may read `candidates` and nothing else"
    return None


def _unbounded(part: dict[str, Any]) -> str | None:
    """Why this node of the tree may take any memory or never end."""
    name = _called(part)
    if name in GROWING:
        return f"calls {name}(), which can take any amount of memory: leave it out"
    inner = (_called(below) for value in part.values() for below in _parts(value))
    if name in MULTIPLYING and (other := next((it for it in inner if it in MULTIPLYING), None)):
        return f"calls {other}() inside {name}(), which can take any amount of memory: leave one of them out"
    if part.get("type") == "RECURSIVE_CTE_NODE":
        return "has WITH RECURSIVE, which need not end: leave it out"
    return None


def _called(part: dict[str, Any]) -> str:
    return str(part.get("function_name") or "").lower()


def _too_deep(tree: Any, above: int = 0) -> str | None:
    """Whether subqueries lie inside each other more often than anyone writes them."""
    if above > DEEPEST:
        return f"has more than {DEEPEST} subqueries inside each other: write fewer"
    if isinstance(tree, dict):
        above += tree.get("type") == "SELECT_NODE"
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return next(filter(None, (_too_deep(each, above) for each in inner)), None)


def unstable(connection: Any) -> set[str]:
    """The functions that DuckDB calls unstable, and the macros made of them; reading them takes a moment."""
    tree = (
        "CASE WHEN macro_definition <> '' THEN json_serialize_sql('SELECT (' || macro_definition || ')') END"
    )
    rows = connection.execute(f"SELECT function_name, stability, {tree} FROM duckdb_functions()").fetchall()
    found = {name for name, stability, _ in rows if stability not in (None, "CONSISTENT")}
    macros = [(name, list(_parts(json.loads(text)))) for name, _, text in rows if text]
    while more := {name for name, parts in macros if any(_unsteady(part, found) for part in parts)} - found:
        found |= more
    return found
