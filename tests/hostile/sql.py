"""Hostile SQL for `where` and `order_by`."""

CLAUSES = (
    "sharpness) UNION ALL (SELECT * FROM candidates", "true) OR (true", "true; DROP TABLE images",
    "true; ATTACH 'escaped.db'", "true; INSTALL httpfs", "true; LOAD httpfs", "true; SET threads = 64",
    "true; COPY candidates TO 'escaped.csv'", "true; PRAGMA database_list", "true -- ", "true /*", "true */ --",
    "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "(SELECT count(*) FROM '/etc/passwd') > 0",
    "(SELECT content FROM read_text('/etc/passwd')) = ''", "(SELECT count(*) FROM read_blob('/etc/*')) > 0",
    "(SELECT count(*) FROM glob('/*')) > 0", "(SELECT count(*) FROM parquet_scan('x.parquet')) > 0",
    "(SELECT count(*) FROM duckdb_settings()) > 0", "(SELECT count(*) FROM information_schema.tables) > 0",
    "(SELECT count(*) FROM images) > 0", "(FROM query('SELECT 1')) = 1", "(SELECT 1 FROM query_table('x')) = 1",
    "current_setting('threads') = '2'", "getenv('HOME') = ''", "getvariable('x') = 1", "random() > 0.5",
    "uuid() = uuid()", "now() > '2020-01-01'", "current_date > '2020-01-01'", "nextval('x') > 0", "txid_current() > 0",
    "pg_sleep(100) IS NULL", "sleep_ms(100000) IS NULL", "write_log('x') IS NULL", "parse_path('/etc') IS NULL",
    "len(repeat('x', 4000000000)) > 1", "len(range(3000000000)) > 1", "len(lpad('x', 2000000000, 'y')) > 1",
    "len(rpad('x', 2000000000, 'y')) > 1", "len(printf('%2000000000d', 1)) > 1", "len(list_resize([1], 10**9)) > 1",
    "len(format('{:>2000000000}', 'x')) > 1", "len(generate_series(1, 3000000000)) > 1", "'x'.repeat(10**9) = 'x'",
    "list_reduce([1, 2], lambda x, y: x + y) > 0", "replace(replace(caption, 'a', 'bb'), 'b', 'cc') = ''",
    "(WITH RECURSIVE candidates(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM candidates) SELECT max(n)"
    " FROM candidates) > 1",
    "(SELECT count(*) FROM candidates a, candidates b, candidates c, candidates d, candidates e) > 0",
    "(SELECT max(a) FROM (SELECT max(a) a FROM (SELECT max(a) a FROM (SELECT max(a || a) a FROM (SELECT"
    " caption a FROM candidates))))) > ''",
    "(" * 3000 + "true" + ")" * 3000, "NOT " * 5000 + "true", "1" + " + 1" * 5000 + " > 0", "true" + " AND true" * 9000,
    "[" * 2000 + "]" * 2000 + " IS NULL", "CASE " * 2000, "-" * 5000 + "1", "'" * 5001, '"' * 5001, "$1", "?", "$a = 1",
    "damerau_levenshtein(caption, caption) > 1", "1/0 > 0", "caption::INT > 0", "sqrt(-1) > 0", "10**400 > 0",
    "regexp_matches(caption, '(a+)+$')", "regexp_matches(caption, '(')", "regexp_matches(caption, '.{1000}{1000}')",
    "caption LIKE " + repr("%a" * 3000), "x -> x", "COLUMNS(*) > 0", "* > 0", "unnest([1, 2]) > 0", "DEFAULT", "", " ",
    "first(caption) OVER () = ''", "row_number() OVER () < 5", "sum(sharpness) > 1", "sharpness LIMIT 1", "1", "NULL",
    "sharpness ORDER BY 1", "sharpness DESC NULLS FIRST, random()", "(SELECT 1 FROM candidates TABLESAMPLE 1%) = 1",
    "EXISTS (SELECT 1 FROM (DESCRIBE candidates))", "EXISTS (FROM (PIVOT candidates ON split))", "\u202etrue", "\x07",
    "true\u0000", "\U0001f600 = 1", "condition = 'canny' OR true", "image_id IN (SELECT image_id FROM pairs)",
)  # fmt: skip
