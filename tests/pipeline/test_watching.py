"""`controlmill status --watch`: what is shown while a run goes on, and when it ends."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.catalog import CatalogHeld
from pipeline.cli import watching
from tests.conftest import Command


def looks(*texts: str | Exception) -> Callable[[], str]:
    given = iter(texts)

    def look() -> str:
        text = next(given)
        if isinstance(text, Exception):
            raise text
        return text

    return look


def until(count: int) -> Callable[[], bool]:
    """A run that is under way when it is asked so many times."""
    answers: Iterator[bool] = iter([True] * count + [False])
    return lambda: next(answers)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_what_changed_is_printed_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    watching.watch(looks("a 1\nb 1", "a 1\nb 1", "a 2\nb 1", "a 3\nb 2"), until(3), whole=False)
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert [first, second] == ["a 1", "b 1"]
    assert [line for line in rest if ":" not in line] == ["a 2", "a 3", "b 2"]
    assert len(rest) == 5, "each change with its time of day"


def test_a_terminal_is_drawn_anew(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    watching.watch(looks("a 1", "a 2"), until(1), whole=False)
    assert capsys.readouterr().out == f"{watching.CLEAR}a 1\n{watching.CLEAR}a 2\n"


def test_a_catalog_that_is_held_is_looked_at_the_next_time(capsys: pytest.CaptureFixture[str]) -> None:
    watching.watch(looks("a 1", CatalogHeld("held"), "a 2"), until(2), whole=True)
    assert capsys.readouterr().out == "a 1\na 2\n"
    with pytest.raises(CatalogHeld):
        watching.watch(looks(CatalogHeld("held")), until(0), whole=True)


def test_ctrl_c_ends_it_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> str:
        raise KeyboardInterrupt

    watching.watch(look, until(9), whole=False)
    assert capsys.readouterr().out == ""


def test_a_workspace_without_a_run_is_shown_once(
    folder: Callable[[int], Path], manifest: Callable[..., Path], controlmill: Command
) -> None:
    folder(2)
    path = manifest()
    assert controlmill("run", path).returncode == 0
    once, watched = controlmill("status", path), controlmill("status", path, "--watch")
    assert watched.returncode == 0
    assert watched.stdout == once.stdout
