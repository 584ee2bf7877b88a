"""A folder of hostile pictures, with captions beside them and names that trip programs."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.hostile.bombs import bombs
from tests.hostile.mutations import mutated
from tests.hostile.pictures import originals

NAMES = (
    "line\nbreak", "tab\tname", "bell\a", "quote'\"`", "semi;colon", "$(touch x)", "-rf", "..", "...jpg",
    "<b>bold", "' OR 1=1 --", "\u202egpj.exe", "zero\u200bwidth", "e\u0301", "\u00e9", "%s%n", "{folder}",
    "back\\slash", "con", "a" * 240, "\U0001f600", "~", "*?[", " ", "tar::member", "scene:", "CAPS.JPG",
)  # fmt: skip


def captions() -> tuple[bytes, ...]:
    """What a caption file holds that no caption should."""
    control = bytes(range(1, 32))
    return (
        b"a plain caption", b"", b"\0\0\0", control, b"<script>alert(1)</script>",
        b"<img src=x onerror=alert(1)>", b"</td></table>{{7*7}}${7*7}<!--", b"'; DROP TABLE images; --",
        b'"; ATTACH \'x.db\'; --', b"x" * 100_000, b"word " * 20_000, b"y" * (10 * 2**20),
        b"\xff\xfe\xfd\xfc",
        b"\xff\xfe" + "two bytes".encode("utf-16-le"), b"\xff\xfea", b"\xed\xa0\x80", b"\xc0\xaf",
        "\u202eright to left\u2066".encode(), "a\u0300".encode() * 5000, b"\x1b[2J\x1b]0;title\a",
        b"=cmd|' /C calc'!A0", b"../../etc/passwd", b"%s%s%n", b"{0.__class__}", b"line\r\nline\n\nline",
        "\ufeffmark".encode(), "\ufffd\ufffe\uffff".encode(), "\U0010ffff".encode(),
    )  # fmt: skip


def json_captions() -> tuple[bytes, ...]:
    return (
        b'{"caption": "plain"}', b'{"caption": ["one", "two"]}', b'{"caption": {"a": 1}}', b"[" * 100_000,
        b'{"caption": NaN}', b'{"caption": 1e999}', b'{"caption": ' + b"9" * 5000 + b"}", b"null", b"{",
        b'{"caption": "\\ud800"}', b'{"caption": "\\u0000"}', b'{"text": ["x"' + b', "x"' * 50_000 + b"]}",
        b'{"caption": "a", "caption": "b"}', b"\xff", b'"one text"',
    )  # fmt: skip


def make(folder: Path, seed: int, count: int) -> dict[str, int]:
    """So many files, all bombs among them, with sidecars and special files besides; how many of each."""
    folder.mkdir(parents=True)
    made = list(_special(folder))
    written = 0
    for number, (extension, data) in enumerate(_files(seed, count)):
        rng = np.random.default_rng([seed, number, 1])
        name = NAMES[number % len(NAMES)] if rng.random() < 0.2 else f"{number:05d}"
        path = folder / f"{number:05d}-{name}"[:240]
        path = path.with_name(f"{path.name}.{extension}"[-250:])
        path.write_bytes(data)
        written += 1
        if rng.random() < 0.3:
            kind, texts = ("json", json_captions()) if rng.random() < 0.3 else ("txt", captions())
            path.with_suffix(f".{kind}").write_bytes(texts[int(rng.integers(len(texts)))])
    return {"files": written, "special": len(made)}


def _files(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """(extension, bytes): the bombs, whole originals, and the rest broken."""
    large = [(name.rpartition(".")[2], data) for name, data in bombs()][:count]
    yield from large
    whole = originals()
    for number in range(count - len(large)):
        rng = np.random.default_rng([seed, number])
        extension, data = whole[number % len(whole)]
        if number >= len(whole):
            data = mutated(data, rng)
            if rng.random() < 0.1:  # of another kind than its name says
                extension = whole[int(rng.integers(len(whole)))][0]
        yield extension, data


def _special(folder: Path) -> Iterator[Path]:
    """Pipes, sockets, devices and links, which are no pictures whatever they are called."""
    outside = folder.parent / "outside.jpg"
    outside.write_bytes(originals()[0][1])
    for name, target in (
        ("self.jpg", "self.jpg"), ("device.jpg", "/dev/zero"), ("random.png", "/dev/urandom"),
        ("passwd.jpg", "/etc/passwd"), ("memory.png", "/proc/self/mem"), ("gone.jpg", "nowhere/at/all"),
        ("loop", "."), ("up", "./../" + folder.name), ("outside.jpg", str(outside)), ("log.txt", "/dev/zero"),
    ):  # fmt: skip
        (folder / name).symlink_to(target)
        yield folder / name
    (folder / "log.jpg").write_bytes(originals()[1][1])  # its caption is the device
    os.mkfifo(folder / "pipe.jpg")
    yield folder / "pipe.jpg"
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.jpg")
    os.chdir(here)
    yield folder / "socket.jpg"
    for name in (b"not-utf8-\xff.jpg", b"\xed\xa0\x80.png"):
        path = os.fsencode(folder) + b"/" + name
        with open(path, "wb") as file:  # noqa: PTH123 - a name that no str of UTF-8 is
            file.write(originals()[0][1])
        yield Path(os.fsdecode(path))
    deep = folder / "/".join(["d" * 100] * 20)
    deep.mkdir(parents=True)
    (deep / "deep.jpg").write_bytes(originals()[2][1])
    yield deep / "deep.jpg"
