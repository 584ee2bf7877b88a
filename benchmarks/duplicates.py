"""Near-duplicates: how many copies of pictures are found, how many different pictures are taken for copies.

Copies: photographs that installed packages ship and crops of them, re-coded, scaled, made brighter or darker,
more or less contrasting, cropped by 2 %, with a logo or a caption burnt in; drawn pictures re-coded and
scaled. Different pictures: discs and product shots on a plain ground (the same form in other colours, the
same colour in other forms), pages of text with one layout, line drawings that differ in one of eight figures,
frames of a rendered scene (an object a quarter of a metre further, or gone), crops of one photograph,
photographs, scenes, gradients, flat colours. Beside the perceptual hash alone, the test of before. Thresholds
were chosen on every second picture; the table is of the others, `--tuning` of those.
What grouping takes beside many known images is measured by `near_growth.py`.

    python benchmarks/duplicates.py --out duplicates.json
"""

import argparse
import io
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from pipeline.catalog import duplicates, hash_index
from pipeline.dataset import quality
from pipeline.scenes.painter import paint
from pipeline.scenes.plan import draw_plan
from pipeline.sources.files import locate

HERE = Path(__file__).resolve().parent.parent
SIDE = 384  # pixels of a canonical image
NEAR = 6  # split.near's default
LETTERS = list("eeeettaaooiinnsshhrrddlluumwcfgypb")


# --- photographs and their copies ---


def photographs() -> list[np.ndarray]:  # uint8 [h, w, 3] RGB
    lines = (HERE / "manifests" / "photos.jsonl").read_text().splitlines()
    return [np.asarray(Image.open(locate(json.loads(line)["image"])).convert("RGB")) for line in lines]


def squares(photograph: np.ndarray) -> list[np.ndarray]:
    """The middle, and the four corners of half its size."""
    h, w = photograph.shape[:2]
    side, corner = min(h, w), min(h, w) // 2
    top, left = (h - side) // 2, (w - side) // 2
    middle = photograph[top : top + side, left : left + side]
    corners = [photograph[y:, x:][:corner, :corner] for y in (0, h - corner) for x in (0, w - corner)]
    return [fitted(each) for each in (middle, *corners)]


def fitted(pixels: np.ndarray) -> np.ndarray:
    shrinks = min(pixels.shape[:2]) > SIDE
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def coded(pixels: np.ndarray, form: str, grade: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, quality=grade)
    return np.asarray(Image.open(file).convert("RGB"))


def scaled(pixels: np.ndarray, factor: float) -> np.ndarray:
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=way)


def contrasted(pixels: np.ndarray, factor: float) -> np.ndarray:
    mean = float(pixels.mean())
    return cv2.convertScaleAbs(cv2.max(pixels * factor + mean * (1 - factor), 0.0))


def cropped(
    pixels: np.ndarray, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0
) -> np.ndarray:
    """Less these shares of its sides."""
    h, w = pixels.shape[:2]
    return pixels[round(top * h) : round(h - bottom * h), round(left * w) : round(w - right * w)]


def four_at_once(pixels: np.ndarray) -> np.ndarray:
    """A tenth brighter, 1 % off two sides, half the size, JPEG 70."""
    brighter = cv2.convertScaleAbs(pixels, alpha=1.1)
    return coded(scaled(cropped(brighter, left=0.01, bottom=0.01), 0.5), "JPEG", 70)


def with_logo(pixels: np.ndarray) -> np.ndarray:
    """A tenth of the width and a twentieth of the height in the lower right corner."""
    made = pixels.copy()
    h, w = made.shape[:2]
    made[h - h // 20 - 8 : h - 8, w - w // 10 - 8 : w - 8] = (255, 255, 255)
    cv2.putText(made, "logo", (w - w // 10 - 6, h - 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (200, 0, 0))
    return made


def with_caption(pixels: np.ndarray) -> np.ndarray:
    """White letters along the lower border."""
    made = pixels.copy()
    h, w = made.shape[:2]
    place, font = (w // 10, h - h // 20), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(made, "a caption that was burnt in", place, font, w / 640, (255, 255, 255), 1, cv2.LINE_AA)
    return made


Change = Callable[[np.ndarray], np.ndarray]
CHANGES: dict[str, list[Change]] = {
    "JPEG 40 to 90": [partial(coded, form="JPEG", grade=grade) for grade in (40, 60, 75, 90)],
    "WebP 40 and 80": [partial(coded, form="WEBP", grade=grade) for grade in (40, 80)],
    "scaled 0.3 to 1.5": [partial(scaled, factor=factor) for factor in (0.3, 0.5, 0.75, 1.5)],
    "brightness ±10 %": [partial(cv2.convertScaleAbs, alpha=factor) for factor in (0.9, 1.1)],
    "brightness ±20 %": [partial(cv2.convertScaleAbs, alpha=factor) for factor in (0.8, 1.2)],
    "contrast ±20 %": [partial(contrasted, factor=factor) for factor in (0.8, 1.2)],
    "cropped by 2 %, around": [partial(cropped, left=0.01, top=0.01, right=0.01, bottom=0.01)],
    "cropped by 2 %, one side": [partial(cropped, left=0.02), partial(cropped, bottom=0.02)],
    "cropped by 2 %, two sides": [
        partial(cropped, left=0.02, top=0.02), partial(cropped, right=0.02, bottom=0.02),
    ],
    "four of these at once": [four_at_once],
    "logo in a corner": [with_logo],
    "caption burnt in": [with_caption],
}  # fmt: skip
OVERLAID = {"logo in a corner", "caption burnt in"}
DRAWN_CHANGES: list[Change] = [partial(coded, form="JPEG", grade=75), partial(scaled, factor=0.5)]


# --- different pictures: families, of which every second is in one half ---

Family = list[np.ndarray]
WHITE, GREY, BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)


def _canvas(ground: tuple[int, int, int] = WHITE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    return picture, ImageDraw.Draw(picture)


def discs(draw: np.random.Generator) -> Iterator[Family]:
    """Of different colours on white, in the middle, of five sizes that hardly differ."""
    for number in range(80):
        picture, pen = _canvas()
        colour = tuple(map(int, draw.integers(0, 200, 3)))
        pen.circle((SIDE / 2, SIDE / 2), (50 + number % 5) * SIDE / 256, fill=colour)
        yield [np.asarray(picture)]


STAR = [
    (np.sin(a) * r, -np.cos(a) * r) for a, r in zip(np.arange(10) * np.pi / 5, [0.9, 0.4] * 5, strict=True)
]
OUTLINES = [  # in -1 to 1: bottle, box, shoe, shirt, bowl, triangle, star, lamp
    [(-.15, -.9), (.15, -.9), (.15, -.5), (.4, -.2), (.4, .9), (-.4, .9), (-.4, -.2), (-.15, -.5)],
    [(-.7, -.5), (.7, -.5), (.7, .5), (-.7, .5)],
    [(-.9, -.4), (-.4, -.5), (-.1, -.1), (.7, .1), (.9, .4), (-.9, .4)],
    [(-.9, -.5), (-.3, -.7), (.3, -.7), (.9, -.5), (.7, -.1), (.5, -.2), (.5, .8), (-.5, .8), (-.5, -.2),
     (-.7, -.1)],
    [(-.8, -.2), (.8, -.2), (.4, .5), (-.4, .5)],
    [(0, -.8), (.8, .7), (-.8, .7)],
    STAR,
    [(-.3, -.8), (.3, -.8), (.6, 0), (.1, 0), (.1, .7), (.4, .8), (-.4, .8), (-.1, .7), (-.1, 0), (-.6, 0)],
]  # fmt: skip


def products(draw: np.random.Generator, ground: tuple[int, int, int]) -> Iterator[Family]:
    """A form with a lighter part and a soft shadow, in eight colours a family, at nearly one place."""
    for number in range(20):
        turns = np.sort(draw.uniform(0, 2 * np.pi, 9))
        anything = np.stack([np.cos(turns), np.sin(turns)], axis=1) * draw.uniform(0.4, 0.9, (9, 1))
        outline = np.array(OUTLINES[number]) if number < len(OUTLINES) else anything
        yield [_product(draw, outline, ground) for _ in range(8)]


def _product(draw: np.random.Generator, outline: np.ndarray, ground: tuple[int, int, int]) -> np.ndarray:
    colour = draw.integers(20, 235, 3)
    size, (x, y) = draw.uniform(0.3, 0.33) * SIDE, SIDE / 2 + draw.uniform(-3, 3, 2)
    picture, pen = _canvas(ground)
    pen.ellipse(
        (x - size * 0.8, y + size * 0.8, x + size * 0.8, y + size),
        fill=tuple(level * 7 // 8 for level in ground),
    )
    picture = Image.fromarray(cv2.GaussianBlur(np.asarray(picture), (0, 0), 4))
    pen = ImageDraw.Draw(picture)
    lighter = colour + 0.25 * (255 - colour)
    for points, fill in ((outline * size, colour), (outline * size / 2 - size / 20, lighter)):
        pen.polygon([(px + x, py + y) for px, py in points], fill=tuple(map(int, fill)))
    return np.asarray(picture)


def pages(draw: np.random.Generator) -> Iterator[Family]:
    """Black words on white, all with the same margins, letters and lines."""
    font = ImageFont.load_default(13)
    for _ in range(80):
        picture, pen = _canvas()
        for line in range(20):
            words = ["".join(draw.choice(LETTERS, draw.integers(1, 10))) for _ in range(12)]
            pen.text((30, 26 + 17 * line), " ".join(words)[:48], fill="black", font=font)
        picture.paste("white", (SIDE - 30, 0, SIDE, SIDE))
        yield [np.asarray(picture)]


def drawings(draw: np.random.Generator) -> Iterator[Family]:
    """Eight black lines, ellipses and boxes on white; the second of a family has another one of them."""
    for _ in range(60):
        figures = [
            (str(draw.choice(["line", "ellipse", "rectangle"])), draw.uniform(20, 364, 4)) for _ in range(8)
        ]
        yield [_drawing(figures), _drawing([("line", draw.uniform(20, 364, 4)), *figures[1:]])]


def _drawing(figures: list[tuple[str, np.ndarray]]) -> np.ndarray:
    picture, pen = _canvas()
    for name, (x0, y0, x1, y1) in figures:
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if name == "line":
            pen.line((x0, y0, x1, y1), fill="black", width=2)
        elif name == "ellipse":
            pen.ellipse(box, outline="black", width=2)
        else:
            pen.rectangle(box, outline="black", width=2)
    return np.asarray(picture)


def frames(draw: np.random.Generator) -> Iterator[Family]:
    """A rendered scene; its nearest object a quarter of a metre to the side; that object gone."""
    aside = np.array([0.25, 0, 0])
    for index in range(120):
        plan = draw_plan(7, index)
        first, *rest = plan.actors
        moved = replace(first, parts=[replace(part, at=part.at + aside) for part in first.parts])
        others = [[moved, *rest], rest] if rest else [[moved]]
        yield [paint(each, SIDE) for each in (plan, *(replace(plan, actors=actors) for actors in others))]


def gradients(draw: np.random.Generator) -> Iterator[Family]:
    """From one colour to another: across, down, aslant, or from the middle outwards."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    ways = [x, y, (x + y) / 2, np.hypot(x - 0.5, y - 0.5)]
    for _ in range(80):
        one, other = draw.uniform(0, 255, (2, 3))
        colours = one + ways[draw.integers(4)][..., None] * (other - one)
        yield [colours.round().clip(0, 255).astype(np.uint8)]


def flats(draw: np.random.Generator) -> Iterator[Family]:
    """One colour; with a little noise in some."""
    for number in range(80):
        level = np.full((SIDE, SIDE, 3), draw.integers(0, 256, 3), np.float32)
        noise = draw.normal(0, 1.5, (SIDE, SIDE, 3)) if number % 4 > 1 else 0
        yield [(level + noise).round().clip(0, 255).astype(np.uint8)]


DRAWN: dict[str, Callable[[np.random.Generator], Iterator[Family]]] = {
    "discs on white": discs,
    "products on white": partial(products, ground=WHITE),
    "products on grey": partial(products, ground=GREY),
    "products on black": partial(products, ground=BLACK),
    "pages of text": pages,
    "line drawings": drawings,
    "gradients": gradients,
    "flat colours": flats,
}


# --- what is found ---


@dataclass
class Pairs:
    """What is compared: hashes and thumbnails, and pairs of their numbers by kind."""

    hashes: list[int] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    same: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    different: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, pixels: np.ndarray) -> int:
        measures = quality.measure(pixels)
        self.hashes.append(measures["phash"])
        self.thumbnails.append(measures["thumbnail"])
        return len(self.hashes) - 1

    def judged(self, pairs: list[tuple[int, int]]) -> dict[str, float]:
        """Shares of the pairs that are taken for copies, by the hash alone and now."""
        hashes, thumbnails = np.array(self.hashes, np.uint64), self.thumbnails

        def fetch(numbers: duplicates.Numbers) -> tuple[np.ndarray, np.ndarray]:
            data = b"".join(thumbnails[pair[number]] for number in numbers)
            return np.ones(len(numbers), bool), np.frombuffer(data, np.uint8).reshape(-1, duplicates.BYTES)

        before = now = 0
        for pair in pairs:
            one, other = hashes[list(pair)][:, None]
            before += int(hash_index.leaders(one, other, NEAR)[0] == 0)
            now += int(hash_index.leaders(one, other, NEAR, None, fetch)[0] == 0)
        return {"pairs": len(pairs), "hash": before / len(pairs), "now": now / len(pairs)}


def every_pair(half: int) -> Pairs:
    pairs = Pairs()
    centres: list[int] = []
    for photograph in photographs()[half::2]:
        parts = squares(photograph)
        numbers = [pairs.add(part) for part in parts]
        pairs.different.setdefault("crops of one photograph", []).extend(combinations(numbers[1:], 2))
        centres.append(numbers[0])
        for name, changes in CHANGES.items():
            copies = [(number, pairs.add(fitted(change(part)))) for change in changes
                      for number, part in zip(numbers, parts, strict=True)]  # fmt: skip
            pairs.same.setdefault(name, []).extend(copies)
    pairs.different["photographs"] = list(combinations(centres, 2))
    scenes: list[int] = []
    for family in list(frames(np.random.default_rng(5)))[half::2]:
        numbers = [pairs.add(picture) for picture in family]
        scenes.append(numbers[0])
        pairs.different.setdefault("frames of one scene", []).extend(combinations(numbers, 2))
    pairs.different["scenes"] = list(combinations(scenes, 2))
    for name, kind in DRAWN.items():
        pictures = [picture for family in list(kind(np.random.default_rng(5)))[half::2] for picture in family]
        numbers = [pairs.add(picture) for picture in pictures]
        pairs.different[name] = list(combinations(numbers, 2))
        if name not in ("gradients", "flat colours"):
            pairs.same.setdefault("drawn, JPEG 75 or half the size", []).extend(
                (number, pairs.add(fitted(change(picture))))
                for number, picture in zip(numbers, pictures, strict=True)
                for change in DRAWN_CHANGES
            )
    return pairs


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tuning", action="store_true", help="the half that thresholds were chosen on")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    pairs = every_pair(0 if options.tuning else 1)
    same = {name: pairs.judged(numbers) for name, numbers in pairs.same.items()}
    different = {name: pairs.judged(numbers) for name, numbers in pairs.different.items()}
    print(f"{'':34}{'pairs':>7}{'hash':>9}{'now':>9}")
    for title, rows in (("copies, share found", same), ("different, share taken for copies", different)):
        print(title)
        for name, row in rows.items():
            print(f"  {name:32}{row['pairs']:7}{row['hash']:9.4f}{row['now']:9.4f}")
    plain = [row for name, row in same.items() if name not in OVERLAID]
    total = {way: round(sum(row["pairs"] * row[way] for row in plain)) for way in ("hash", "now")}
    total["pairs"] = sum(int(row["pairs"]) for row in plain)
    print("without logo and caption {hash} and {now} of {pairs} found".format(**total))
    if options.out:
        machine = f"{platform.machine()}, one thread"
        result = {
            "machine": machine,
            "near": NEAR,
            "same": same,
            "total": total,
            "different": different,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
