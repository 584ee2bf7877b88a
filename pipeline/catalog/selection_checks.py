"""Whether a manifest's `where` and `order_by` work: on an empty catalog, and on the rows that there are."""

import functools
from collections.abc import Collection
from dataclasses import replace

import duckdb

from pipeline import MillError
from pipeline.catalog import selections as selecting
from pipeline.catalog.connections import MEMORY, config, is_damage
from pipeline.catalog.schema import migrate
from pipeline.catalog.selections import Selection


def check_selections(selections: dict[str, Selection], measures: Collection[str]) -> None:
    """MillError has a line for each `where` and `order_by` that does not work or would choose others each
    time; needs no workspace.
    """
    with duckdb.connect(config=config() | {"memory_limit": MEMORY}) as connection:
        if found := selecting.mistakes(connection, selections, _unstable()):
            raise MillError("\n".join(found))
        migrate(connection)
        connection.execute(selecting.candidates(measures))
        try_all(connection, selections, measures)


def try_all(
    connection: duckdb.DuckDBPyConnection,
    selections: dict[str, Selection],
    measures: Collection[str],
    parts: int | None = None,  # look at the rows of the first so many; None = of all
) -> None:
    """Asks for the rows that each condition selects; MillError names the keys whose SQL does not fit the
    columns or the rows there are.
    """
    found: dict[str, str] = {}
    for name, chosen, key, sql in (
        (one, it, *probe)
        for one, it in selections.items()
        for probe in selecting.probes(one, it, measures, parts)
    ):
        # the rows that those leave are not known
        if key == chosen.order_key and any(where in found for where, _ in chosen.wheres):
            sql = dict(selecting.probes(name, replace(chosen, wheres=(("", "false"),)), measures, parts))[key]
        try:
            connection.execute(sql).fetchall()
        except duckdb.Error as error:
            if is_damage(error) or isinstance(error, duckdb.InterruptException):
                raise
            near = [line for line in str(error).splitlines()[1:] if line.startswith("Candidate")]
            found[key] = " ".join([str(error).splitlines()[0], *near])
    if found:
        hint = '(`controlmill sql WORKSPACE "DESCRIBE candidates"` lists the columns)'
        raise MillError("\n".join(f"{key} does not work: {problem} {hint}" for key, problem in found.items()))


@functools.cache
def _unstable() -> set[str]:
    with duckdb.connect() as connection:
        return selecting.unstable(connection)
