"""Near-duplicates: images a second that find their group beside more and more known ones, and memory.

Images come in batches as a gathered commit has them; a tenth are copies of known ones with two bits turned.
Their hashes are drawn uniformly, or as those of photographs are (skewed): bits with the means and the
correlations, in pairs, of 20,000 crops of the photographs that installed packages ship, through a Gaussian
copula. Thumbnails are of these crops, given out at random. As many images are added as it takes until the
index moves its list into its tables once, and what that takes counts. Seconds are the processor's, of one
thread, so that others on the machine count little; the best of three. Beside it what comparing every hash
takes, and on request faiss.

    python benchmarks/near_growth.py --known 100000,1000000,3000000,10000000 --out near_growth.json
"""

import argparse
import json
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.stats import norm

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from pipeline.catalog import duplicates, hash_index
from pipeline.catalog.hash_index import Fetch, Hashes, HashIndex
from pipeline.dataset import quality
from pipeline.sources.files import locate

HERE = Path(__file__).resolve().parent.parent
NEAR = 6  # split.near's default
BATCH = 2000  # images of a gathered commit
COPIES = 10  # one image in so many is a copy
CROPS = 20_000
SIDE = 128  # pixels of a crop
KNOWN = "100000,1000000,3000000,10000000"
CHECK = "50000,200000"
TRIALS = 3
ONE_BY_ONE = 100  # images that are compared with all known ones, and asked of faiss

Draw = Callable[[int], Hashes]


@dataclass(frozen=True)
class Row:
    """What was measured beside so many known images."""

    hashes: str  # uniform, skewed
    known: int
    load_seconds: float
    by_hash: int  # images a second
    with_thumbnails: int  # images a second
    proposed: float  # known images within twice the distance of one that is no copy, mean
    held_mb: int  # by the index
    peak_mb: int  # of the index while it moved its list into its tables
    one_by_one: int  # images a second, every hash compared, by the hash alone


# --- hashes and thumbnails ---


def crops(count: int) -> tuple[Hashes, duplicates.Thumbnails]:
    """Of the photographs that packages ship: a random square, a fifth of the shorter side at least."""
    lines = (HERE / "manifests" / "photos.jsonl").read_text().splitlines()
    paths = [locate(json.loads(line)["image"]) for line in lines]
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    draw, hashes, thumbnails = np.random.default_rng(1), [], []
    for _ in range(count):
        photograph = photographs[draw.integers(len(photographs))]
        h, w = photograph.shape[:2]
        side = int(min(h, w) * draw.uniform(0.2, 1))
        y, x = draw.integers(h - side + 1), draw.integers(w - side + 1)
        square = photograph[y : y + side, x : x + side]
        square = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        hashes.append(quality.phash(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)))
        thumbnails.append(quality.thumbnail(square))
    pictures = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, duplicates.BYTES)
    return np.array(hashes, np.uint64), pictures


def uniform(seed: int) -> Draw:
    draw = np.random.default_rng(seed)
    return lambda count: draw.integers(0, 2**64, count, dtype=np.uint64)


def skewed(seed: int, sample: Hashes) -> Draw:
    """Bits as correlated, in pairs, as those of the sample."""
    bits = np.unpackbits(sample.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(float)
    # of a Gaussian at medians, which the means of a hash's bits are near
    correlation = np.sin(np.pi / 2 * np.corrcoef(bits.T))
    values, vectors = np.linalg.eigh(correlation)
    mixed = vectors * np.sqrt(np.maximum(values, 0))
    mixed = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).T.astype(np.float32)
    thresholds = norm.ppf(bits.mean(axis=0)).astype(np.float32)
    draw = np.random.default_rng(seed)

    def part(count: int) -> Hashes:
        normal = draw.standard_normal((count, 64), dtype=np.float32) @ mixed
        return np.packbits(normal < thresholds, axis=1).view(">u8").ravel().astype(np.uint64)

    return lambda count: np.concatenate(
        [part(min(100_000, count - start)) for start in range(0, count, 100_000)]
    )


class Images:
    """Known and incoming images: hashes, and which crop's thumbnail each has."""

    def __init__(self, known: Hashes, draw: Draw, count: int, pictures: duplicates.Thumbnails) -> None:
        rng = np.random.default_rng(3)
        self.known, self.pictures = known, pictures
        self.incoming = draw(count)
        self.copies = np.arange(0, count, COPIES)
        copied = rng.integers(0, len(known), len(self.copies))
        turned = np.uint64(1) << rng.integers(0, 64, (2, len(self.copies)), dtype=np.uint64)
        self.incoming[self.copies] = known[copied] ^ turned[0] ^ turned[1]
        self.crop = rng.integers(0, len(pictures), len(known) + count).astype(np.int32)
        self.crop[len(known) + self.copies] = self.crop[copied]

    def fetch(self, numbers: duplicates.Numbers) -> tuple[np.ndarray, duplicates.Thumbnails]:
        return np.ones(len(numbers), bool), self.pictures[self.crop[numbers]]


# --- what is measured ---


def fresh(images: Images) -> tuple[HashIndex, float]:
    """An index of the known images, and the seconds that it took to load."""
    index, start = HashIndex(NEAR), time.process_time()
    index.load(images.known, np.arange(len(images.known)))
    return index, time.process_time() - start


def rate(images: Images, fetch: Fetch | None, trials: int) -> tuple[int, float]:
    """Images a second of `add`, until the list is moved once, and seconds of loading; the best."""
    best, loading = 0.0, np.inf
    for _ in range(trials):
        index, seconds = fresh(images)
        loading = min(loading, seconds)
        start, followers = time.process_time(), 0
        for first in range(0, len(images.incoming), BATCH):
            leaders = index.add(images.incoming[first : first + BATCH], fetch)
            followers += int((leaders >= 0).sum())
        best = max(best, len(images.incoming) / (time.process_time() - start))
        if followers < len(images.copies):
            raise SystemExit(f"of {len(images.copies):,} copies {followers:,} follow")
    return round(best), loading


def memory(images: Images) -> tuple[int, int]:
    """MB that an index holds, and at most while images are added."""
    tracemalloc.start()
    index, _ = fresh(images)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for first in range(0, len(images.incoming), BATCH):
        index.add(images.incoming[first : first + BATCH], None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(held / 1e6), round(peak / 1e6)


def one_by_one(images: Images) -> int:
    """Images a second where each is compared with every known one."""
    start = time.process_time()
    for each in images.incoming[:ONE_BY_ONE]:
        np.flatnonzero(np.bitwise_count(images.known ^ each) <= NEAR)
    return round(ONE_BY_ONE / (time.process_time() - start))


def proposed(images: Images) -> float:
    others = np.delete(images.incoming[:ONE_BY_ONE], images.copies[images.copies < ONE_BY_ONE])
    return float(np.mean([(np.bitwise_count(images.known ^ each) <= 2 * NEAR).sum() for each in others]))


def faiss_rates(images: Images) -> dict[str, int]:
    """Images a second of faiss, within twice the distance, and how many of the pairs it gives."""
    import faiss

    faiss.omp_set_num_threads(1)
    known, asked = (
        hashes.view(np.uint8).reshape(-1, 8) for hashes in (images.known, images.incoming[:ONE_BY_ONE])
    )
    several = faiss.IndexBinaryMultiHash(64, 4, 16)
    several.nflip = 3
    rates = {}
    for name, index in (("IndexBinaryFlat", faiss.IndexBinaryFlat(64)), ("IndexBinaryMultiHash", several)):
        index.add(known)
        start = time.process_time()
        limits, _, _ = index.range_search(asked, 2 * NEAR + 1)
        rates[name] = round(ONE_BY_ONE / (time.process_time() - start))
        print(f"    {name}: {rates[name]:,} images/s, {limits[-1] / ONE_BY_ONE:.1f} proposed")
    return rates


def measured(name: str, draw: Draw, known: int, pictures: duplicates.Thumbnails, trials: int) -> Row:
    hashes = draw(known)
    count = -(-max(hash_index.LIST, known // hash_index.SHARE + 1) // BATCH) * BATCH
    images = Images(hashes, draw, count, pictures)
    by_hash, loading = rate(images, None, trials)
    with_thumbnails, _ = rate(images, images.fetch, trials)
    held, peak = memory(images)
    near = round(proposed(images), 2)
    return Row(name, known, round(loading, 2), by_hash, with_thumbnails, near, held, peak, one_by_one(images))


def table(known: Sequence[int], trials: int = TRIALS, sample: int = CROPS) -> list[Row]:
    """Measures and prints a row for each kind of hashes and each number of known images."""
    heads = "hashes", "known", "load s", "by hash/s", "thumbnails/s", "proposed", "MB", "peak MB", "all/s"
    print(("{:9}" + "{:>13}" * 8).format(*heads))
    photographs, pictures = crops(sample)
    measured("uniform", uniform(0), hash_index.LIST, pictures, 1)  # loads what is compiled
    rows = []
    for name in ("uniform", "skewed"):
        for number in known:
            draw = uniform(number) if name == "uniform" else skewed(number, photographs)
            row = measured(name, draw, number, pictures, trials)
            rows.append(row)
            cells = (f"{value:,}" for value in list(asdict(row).values())[1:])
            print(f"{name:9}" + "".join(f"{cell:>13}" for cell in cells), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--known", default=KNOWN, help=f"numbers of known images (default {KNOWN})")
    parser.add_argument("--check", action="store_true", help=f"{CHECK} known, once: under a minute")
    parser.add_argument("--faiss", action="store_true", help="print what faiss takes, too")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    known = [int(number) for number in (CHECK if options.check else options.known).split(",")]
    rows = table(known, 1, CROPS // 10) if options.check else table(known)
    if options.faiss:
        for number in known:
            draw = uniform(number)
            print(f"{number:,} known, uniform")
            faiss_rates(Images(draw(number), draw, BATCH, np.zeros((1, duplicates.BYTES), np.uint8)))
    if options.out:
        result = {
            "machine": f"{platform.machine()}, one thread",
            "near": NEAR,
            "batch": BATCH,
            "rows": [asdict(row) for row in rows],
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
