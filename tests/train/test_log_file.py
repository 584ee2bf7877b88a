"""What is read of a log that a kill, a disk or a person left damaged."""

import json
from pathlib import Path

import pytest

from train.log_file import lines_text, read_log

MEASURED = {
    "n": 2,
    "gap": 0.1,
    "gap_error": None,
    "shuffled_gap": 0.0,
    "control": None,
    "control_z": 1.0,
    "losses": [0.1, None],
}
ROWS = [
    {"images": 0, "step": 0, "held_out": {"canny": MEASURED}},
    {"images": 8, "step": 2, "loss": {"canny": 0.5}, "seconds": 3.5, "alarm": {"canny": 8}, "mfu": None},
    {"images": 8, "step": 2, "note": "a sentence"},
]


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\x9f\xff",
        b'{"images": 8, "st',
        b"[1, 2]",
        b"null",
        b"3",
        b'"images"',
        b"{}",
        b'{"step": 3}',
        b'{"images": "8", "step": 2}',
        b'{"images": 8.5}',
        b'{"images": true}',
        b'{"images": 8, "loss": 3}',
        b'{"images": 8, "loss": 0}',
        b'{"images": 8, "loss": null}',
        b'{"images": 8, "held_out": []}',
        b'{"images": 8, "loss": {"canny": "low"}}',
        b'{"images": 8, "loss": {"canny": NaN}}',
        b'{"images": 8, "held_out": {"canny": {}}}',
        b'{"images": 8, "held_out": {"canny": 3}}',
        b'{"images": 8, "alarm": [8]}',
        b'{"images": 8, "seconds": "long"}',
        b'{"images": 8, "note": 3}',
        b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_row_is_passed_over_and_the_rows_around_it_stay(
    tmp_path: Path, line: bytes
) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    (tmp_path / "log").write_bytes(b"\n".join([lines[0], line, *lines[1:], b""]))
    assert read_log(tmp_path / "log") == (ROWS, [2])


def test_a_last_line_without_its_end_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(json.dumps(ROWS[0]) + '\n{"images": 8, "st')
    assert read_log(tmp_path / "log") == (ROWS[:1], [])
    assert read_log(tmp_path / "nowhere") == ([], [])


def test_damaged_lines_are_named_and_many_are_counted() -> None:
    assert [lines_text(numbers) for numbers in ([3], [3, 7], [1, 2, 3, 4, 5])] == [
        "line 3",
        "lines 3, 7",
        "lines 1, 2, 3 and 2 more",
    ]
