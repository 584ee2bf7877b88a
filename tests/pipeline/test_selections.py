"""What a manifest may ask for in `where` and `order_by`: the same pairs at every query, and nothing beside
its own rows.
"""

import pytest

from pipeline import MillError
from pipeline.catalog import check_selections
from pipeline.catalog.selections import Selection
from pipeline.plan import MEASURES

AGAIN = "every query must choose the same pairs"
ONE, LIST = "one condition for a WHERE", "one list of columns to sort by"


def refusal(where: str = "true", order_by: str | None = None) -> str:
    """'' where it is accepted."""
    wheres = (("where", "first_of_group"), ("conditions.canny.select.where", where))
    try:
        check_selections(
            {"canny": Selection(wheres, order_by, 5, "conditions.canny.select.order_by")}, MEASURES
        )
    except MillError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "where",
    [
        "true",
        "sharpness > 5 AND NOT grey",
        "caption <> 'random() -- now() /* ; LIMIT 5'",
        "CAST(fields->>'similarity' AS DOUBLE) > 0.3",
        "sharpness > 5 -- not blurred\nAND contrast > 0.1",
        "sharpness > (SELECT median(sharpness) FROM candidates)",
        "raw_format IN (SELECT unnest(['JPEG', 'PNG']))",
        "image_id IN (VALUES ('a'), ('b'))",
        "len(list_filter([aspect], lambda x: x > 1)) = 1",
        '"sharpness" BETWEEN 1 AND 3 OR (grey AND n_lines >= 1)',
        "edge_density > 0.01 AND keypoint_fraction >= 0.3",
        "age(TIMESTAMP '2001-01-01', TIMESTAMP '2000-01-01') > INTERVAL 1 DAY",
        "candidates.sharpness > 3",
        (
            "EXISTS (FROM candidates c WHERE c.group_id = candidates.group_id AND c.sharpness >"
            " candidates.sharpness)"
        ),
    ],
)
def test_a_condition_over_the_candidates_is_accepted(where: str) -> None:
    assert refusal(where) == ""


@pytest.mark.parametrize(
    "order_by",
    [
        "sharpness",
        "sharpness DESC NULLS LAST, caption",
        "CAST(fields->>'popularity' AS DOUBLE) DESC",
        "raw_width * raw_height DESC",
        "md5(image_id)",
        "rank() OVER (PARTITION BY group_id ORDER BY sharpness DESC)",
        "caption = 'random()' -- first",
        "caption COLLATE NOCASE",
        "candidates.sharpness DESC",
    ],
)
def test_a_list_to_sort_by_is_accepted(order_by: str) -> None:
    assert refusal(order_by=order_by) == ""


@pytest.mark.parametrize(
    "call",
    [
        "random()",
        "RANDOM()",
        '"random"()',
        "main.random()",
        "uuid()",
        "gen_random_uuid()",
        "uuidv7()",
        "now()",
        "today()",
        "current_timestamp",
        "CURRENT_DATE",
        "current_time",
        "localtime",
        "localtimestamp",
        "current_localtimestamp()",
        "get_current_timestamp()",
        "transaction_timestamp()",
        "nextval('s')",
        "txid_current()",
        "current_setting('threads')",
        "age(TIMESTAMP '2000-01-01')",
        "ago(INTERVAL 1 DAY)",
        "pg_postmaster_start_time()",
        "sharpness + random() * 0",
    ],
)
def test_what_gives_another_answer_each_time_is_refused_by_the_key_that_holds_it(call: str) -> None:
    for key, told in (
        ("where", refusal(where=f"md5(({call})::VARCHAR) > 'a'")),
        ("order_by", refusal(order_by=f"grey, {call} DESC")),
    ):
        assert (
            told.startswith(f"conditions.canny.select.{key} ")
            and AGAIN in told
            and len(told.splitlines()) == 1
        ), told


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("image IN (SELECT image FROM candidates LIMIT 5)", "takes the first rows"),
        ("image IN (SELECT image FROM candidates LIMIT 5%)", "first"),
        ("image IN (SELECT DISTINCT ON (group_id) image FROM candidates)", "takes the first rows"),
        ("image IN (SELECT image FROM candidates USING SAMPLE 5)", "draws a sample"),
        ("image IN (SELECT image FROM candidates TABLESAMPLE 10%)", "draws a sample"),
        ("image IN (SELECT any_value(image) FROM candidates GROUP BY group_id)", "any_value()"),
        ("image IN (SELECT arg_max(image, sharpness) FROM candidates GROUP BY group_id)", "arg_max()"),
        (
            (
                "image IN (SELECT image FROM candidates QUALIFY row_number() OVER (PARTITION BY group_id"
                " ORDER BY sharpness) = 1)"
            ),
            "row_number()",
        ),
        ("image IN (SELECT image FROM images)", "reads images"),
        ("image IN (FROM pairs SELECT image)", "reads pairs"),
        ("(SELECT count(*) FROM range(3)) > 2", "reads a table function"),
        ("EXISTS (FROM read_csv('/etc/passwd'))", "reads a table function"),
        ("EXISTS (FROM duckdb_settings())", "reads a table function"),
        ("EXISTS (DESCRIBE candidates)", "reads DESCRIBE, SHOW or"),
        ("EXISTS (FROM '/etc/passwd')", "reads /etc/passwd"),
    ],
)
def test_a_subquery_reads_the_candidates_alone_and_takes_no_first_ones(where: str, why: str) -> None:
    told = refusal(where)
    assert told.startswith("conditions.canny.select.where ") and why in told, told


@pytest.mark.parametrize(
    "where",
    [
        "",
        "  ",
        "-- nothing",
        "true) OR (true",
        "true)) OR ((true",
        "true\n) OR (true\n",
        "true; SELECT 1",
        "true;",
        "true); DROP TABLE shards; --",
        "true LIMIT 5",
        "true ORDER BY sharpness",
        "true GROUP BY ALL",
        "true QUALIFY true",
        "true USING SAMPLE 5",
        "true TABLESAMPLE 5",
        "true UNION ALL FROM candidates",
        "true WINDOW w AS ()",
        "true /* open",
        "true) --",
        "(true",
        "SELECT true",
        "sharpness > 1,",
        "true AS x",
    ],
)
def test_what_is_not_one_condition_is_refused(where: str) -> None:
    told = refusal(where)
    assert (
        told.startswith("conditions.canny.select.where ") and ONE in told and len(told.splitlines()) == 1
    ), told


@pytest.mark.parametrize(
    "order_by",
    [
        "",
        "  ",
        "sharpness) UNION ALL (SELECT * FROM candidates",
        "sharpness LIMIT 5",
        "sharpness OFFSET 5",
        "sharpness FETCH FIRST 5 ROWS ONLY",
        "sharpness LIMIT 5 --",
        "sharpness LIMIT 5 /*",
        "sharpness) --",
        "sharpness; DROP TABLE shards",
        "sharpness;",
        "sharpness,",
        "ALL",
        "ALL DESC",
        "sharpness UNION ALL FROM candidates ORDER BY grey",
        "sharpness USING SAMPLE 5",
        "sharpness) x, (SELECT 1",
        "sharpness) OR (true",
        "/* x",
    ],
)
def test_what_is_not_one_list_to_sort_by_is_refused(order_by: str) -> None:
    told = refusal(order_by=order_by)
    assert (
        told.startswith("conditions.canny.select.order_by ") and LIST in told and len(told.splitlines()) == 1
    ), told


@pytest.mark.parametrize("value", ["?", "$1", "$limit"])
def test_a_parameter_is_refused_by_its_name(value: str) -> None:
    assert "where holds a parameter (? or $), which nothing fills in" in refusal(f"sharpness > {value}")
    assert "order_by holds a parameter (? or $), which nothing fills in" in refusal(
        order_by=f"sharpness + {value}"
    )


def test_an_order_that_makes_several_pairs_of_a_row_is_refused() -> None:
    assert "order_by calls unnest(), which would make several pairs of one row" in refusal(
        order_by="sharpness, unnest([1, 2])"
    )


def test_the_order_is_tried_beside_a_condition_that_does_not_work() -> None:
    told = refusal("sharpnes > 1", "contrst DESC").splitlines()
    assert [line.split(" does not work: ")[0] for line in told] == [
        "conditions.canny.select.where",
        "conditions.canny.select.order_by",
    ], told


def test_every_mistake_is_told_at_once_with_its_key_and_the_column_that_was_meant() -> None:
    selections = {
        "canny": Selection((("where", "grey"), ("canny", "sharpnes > 1")), "grey", 3, "canny sorted"),
        "hed": Selection((("where", "grey"), ("hed", "sharpnes > 1"))),
        "hough": Selection((("where", "grey"),), "contrst", None, "hough sorted"),
    }
    with pytest.raises(MillError) as raised:
        check_selections(selections, MEASURES)
    told = str(raised.value).splitlines()
    assert [line.split(" does not work: ")[0] for line in told] == ["canny", "hed", "hough sorted"], told
    assert '"sharpness"' in told[0] and '"contrast"' in told[2]
