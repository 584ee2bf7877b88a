"""The compiled loops of near-duplicates: hashes within a distance, tables that grow, thumbnails too unlike.

Only `hash_tables.py` imports this file, and that only beside many images, since importing numba takes a third
of a second and compiling some seconds, once.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

WORDS, WORD = 4, 16  # of a hash; bits of each: its first word are its highest bits
KEYS = 1 << WORD
LOW = 8  # bits of a key within a block of neighbouring buckets, which the processor's cache holds at once
BLOCKS, LOW_KEYS = 1 << (WORD - LOW), (1 << LOW) - 1
MASKS = np.array(sorted(range(1 << LOW), key=lambda mask: (mask.bit_count(), mask)), np.int64)
TURNED = np.bitwise_count(MASKS).astype(np.int64)
# of MASKS: how many turn so many bits at most
WITHIN = np.bincount(TURNED, minlength=WORD + 1).cumsum()

STRETCH = 256  # hashes of a list that are first asked whether any is near
COLUMNS = 7  # of the fit of two thumbnails
TINY = 1e-12  # of a column: what is left of one that the columns before it explain


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """With its machine code kept beside the file, or for this process where no folder can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


def _popcount(context: Any, value: Any) -> Any:
    """The number of set bits, of the value's own type: one instruction."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.ctpop(values[0])

    return value(value), generate


popcount: Any = intrinsic(_popcount)


def _either_within(context: Any, so_far: Any, words: Any, others: Any, bits: Any) -> Any:
    """uint16: 1 where `so_far` is, or where three words differ from three others by at most so many bits.

    Written in 16 bits throughout, which the compiler does not do by itself: 32 hashes to an instruction.
    """
    word = numba.types.uint16
    three = numba.types.UniTuple(word, 3)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        before, mine, theirs, most = values
        parts = [
            builder.ctpop(builder.xor(builder.extract_value(mine, i), builder.extract_value(theirs, i)))
            for i in range(3)
        ]
        total = builder.add(builder.add(parts[0], parts[1]), parts[2])
        near = builder.icmp_unsigned("<=", total, most)
        return builder.or_(before, builder.zext(near, ir.IntType(WORD)))

    return word(word, three, three, word), generate


either_within: Any = intrinsic(_either_within)


# --- hashes within a distance ---


@compiled
def scan(offsets, rest, table, words, radii, reach, queries_found, hashes_found):  # type: ignore[no-untyped-def]
    """Hashes of a table within `reach` bits of queries, uint16 [m, 4], that no table before it gives.

    `offsets` [KEYS + 1] are the places of its buckets in `rest`, three uint16 [n]: the words of each hash
    after the one that is the table's key, in a circle. Buckets within `radii[table]` bits are looked at,
    block by block for all queries. Returns how many there are; what does not fit into `queries_found` and
    `hashes_found` is only counted.
    """
    count, radius = 0, radii[table]
    first, second, third = rest
    for block in range(BLOCKS):
        for query in range(len(words)):
            high = popcount(np.int64((np.int64(words[query, table]) >> LOW) ^ block))
            if high > radius:
                continue
            low = np.int64(words[query, table]) & LOW_KEYS
            others = (
                words[query, (table + 1) % WORDS],
                words[query, (table + 2) % WORDS],
                words[query, (table + 3) % WORDS],
            )
            for number in range(WITHIN[radius - high]):
                key = (block << LOW) | (low ^ MASKS[number])
                start, end = np.int64(offsets[key]), np.int64(offsets[key + 1])
                bits = np.uint16(reach - high - TURNED[number])
                seen = np.uint16(0)
                for i in range(start, end):
                    seen = either_within(seen, (first[i], second[i], third[i]), others, bits)
                if seen:
                    bucket = first[start:end], second[start:end], third[start:end]
                    out = queries_found[count:], hashes_found[count:]
                    count += _collect(bucket, (table, key, query), words[query], radii, reach, out)
    return count


@compiled
def _collect(bucket, where, words, radii, reach, out):  # type: ignore[no-untyped-def]
    table, key, query = where
    count, hash_words = 0, np.empty(WORDS, np.uint16)
    for i in range(len(bucket[0])):
        hash_words[table] = key
        hash_words[(table + 1) % WORDS] = bucket[0][i]
        hash_words[(table + 2) % WORDS] = bucket[1][i]
        hash_words[(table + 3) % WORDS] = bucket[2][i]
        distance, again, value = 0, False, np.uint64(0)
        for k in range(WORDS):
            bits = popcount(np.int64(hash_words[k]) ^ np.int64(words[k]))
            again |= k < table and bits <= radii[k]
            distance += bits
            value = (value << np.uint64(WORD)) | np.uint64(hash_words[k])
        if distance <= reach and not again:
            if count < len(out[0]):
                out[0][count], out[1][count] = query, value
            count += 1
    return count


@compiled
def near(hashes, queries, reaches, limits, queries_found, places_found):  # type: ignore[no-untyped-def]
    """Which of the first `limits[i]` hashes are within `reaches[i]` bits of query i, one after the other; -1
    bits is none. Returns their number as `scan` does.
    """
    count = 0
    for query in range(len(queries)):
        if reaches[query] < 0:
            continue
        value, bits = queries[query], np.uint64(reaches[query])
        for start in range(0, limits[query], STRETCH):
            stretch = hashes[start : min(start + STRETCH, limits[query])]
            if _how_many(stretch, value, bits):
                out = queries_found[count:], places_found[count:]
                count += _collect_near(stretch, start, query, value, bits, out)
    return count


@compiled
def _how_many(hashes, value, bits):  # type: ignore[no-untyped-def]
    count = np.uint64(0)
    for i in range(len(hashes)):
        count += np.uint64(popcount(hashes[i] ^ value) <= bits)
    return count


@compiled
def _collect_near(hashes, start, query, value, bits, out):  # type: ignore[no-untyped-def]
    count = 0
    for i in range(len(hashes)):
        if popcount(hashes[i] ^ value) <= bits:
            if count < len(out[0]):
                out[0][count], out[1][count] = query, start + i
            count += 1
    return count


# --- tables ---


@compiled
def fill(hashes, table, offsets, rest):  # type: ignore[no-untyped-def]
    """Puts sorted hashes into a table's buckets, in their order."""
    turn = WORD * (table + 1)  # to the left: the key becomes the lowest word
    for i in range(len(hashes)):
        offsets[((hashes[i] >> np.uint64(64 - turn)) & np.uint64(KEYS - 1)) + np.uint64(1)] += np.uint32(1)
    for key in range(KEYS):
        offsets[key + 1] += offsets[key]
    places = offsets[:-1].copy()
    for i in range(len(hashes)):
        value = hashes[i]
        if turn < 64:
            value = (value << np.uint64(turn)) | (value >> np.uint64(64 - turn))
        key = value & np.uint64(KEYS - 1)
        place = places[key]
        places[key] += np.uint32(1)
        rest[0][place] = value >> np.uint64(48)
        rest[1][place] = value >> np.uint64(32)
        rest[2][place] = value >> np.uint64(16)


@compiled
def find(offsets, rest, hashes, places):  # type: ignore[no-untyped-def]
    """The places of hashes in the first table, which is sorted, or where each would have to stand."""
    for i in range(len(hashes)):
        key = hashes[i] >> np.uint64(48)
        wanted = hashes[i] & np.uint64((1 << 48) - 1)
        low, high = np.int64(offsets[key]), np.int64(offsets[key + np.uint64(1)])
        while low < high:
            middle = (low + high) // 2
            value = np.uint64(rest[0][middle]) << np.uint64(32)
            value |= np.uint64(rest[1][middle]) << np.uint64(16)
            value |= np.uint64(rest[2][middle])
            if value < wanted:
                low = middle + 1
            else:
                high = middle
        places[i] = low


@compiled
def insert(array, places, values):  # type: ignore[no-untyped-def]
    """Puts each value in before the place of it, in an array with room for them at its end; places rise."""
    end = len(array) - len(places)
    for k in range(len(places) - 1, -1, -1):
        for i in range(end - 1, places[k] - 1, -1):
            array[i + k + 1] = array[i]
        end = places[k]
        array[end + k] = values[k]


@compiled
def raise_starts(starts, places, counts):  # type: ignore[no-untyped-def]
    """Adds to `starts` [n + 1] what was put in at places before: so many each; places rise."""
    k, more = 0, np.uint32(0)
    for i in range(len(starts)):
        while k < len(places) and places[k] < i:
            more += np.uint32(counts[k])
            k += 1
        starts[i] += more


# --- thumbnails ---


@compiled
def too_unlike(ones, others, left, rounding, faint, result):  # type: ignore[no-untyped-def]
    """Which pairs of thumbnails the fit of `duplicates` is certain to refuse, in a fifth of its time.

    It leaves at least the difference in luma that no sum of its columns explains, since it adds a penalty to
    the same least squares, and chroma on top; here are the same columns without penalty, in 64 bits. More
    than its limit and a hundredth, far over what 32 bits round, is refused.
    """
    columns = np.empty((COLUMNS + 1, 256))
    products = np.empty((COLUMNS + 1, COLUMNS + 1))
    for pair in range(len(ones)):
        a, b = ones[pair], others[pair]
        detail = _columns(a, b, columns) + _colour_detail(a, b)
        for i in range(COLUMNS + 1):
            for k in range(i + 1):
                products[i, k] = _dot(columns[i], columns[k])
        limit = rounding + left * left * max(detail, faint)
        result[pair] = _unexplained(products) / 256 > limit * 1.01


@numba.njit(nogil=True, fastmath=True)
def _dot(a, b):  # type: ignore[no-untyped-def]
    """In any order of its terms, so several at once."""
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def _columns(a, b, columns):  # type: ignore[no-untyped-def]
    """Fills in the causes and, last, the difference in luma; the squares of its slopes, mean of a cell."""
    middle, mean = np.empty((16, 16)), 0.0
    for i in range(256):
        middle[i // 16, i % 16] = (np.float64(a[i]) + np.float64(b[i])) / 2
        columns[COLUMNS, i] = np.float64(b[i]) - np.float64(a[i])
        mean += middle[i // 16, i % 16] / 256
    detail = 0.0
    for y in range(16):
        for x in range(16):
            i, contrast = 16 * y + x, middle[y, x] - mean
            left, right, above, below = max(x - 1, 0), min(x + 1, 15), max(y - 1, 0), min(y + 1, 15)
            across = (middle[y, right] - middle[y, left]) / (right - left)
            down = (middle[below, x] - middle[above, x]) / (below - above)
            columns[0, i], columns[1, i] = across, down
            columns[2, i], columns[3, i] = across * (x - 7.5) / 8, down * (y - 7.5) / 8
            columns[4, i], columns[5, i], columns[6, i] = 1, contrast, contrast * contrast / 64
            detail += across * across + down * down
    return detail / 256


@compiled
def _colour_detail(a, b):  # type: ignore[no-untyped-def]
    """Half the squares of the slopes of chroma, mean of a cell."""
    middle, detail = np.empty((8, 8, 2)), 0.0
    for i in range(128):
        middle[i // 16, i // 2 % 8, i % 2] = (np.float64(a[256 + i]) + np.float64(b[256 + i])) / 2
    for y in range(8):
        for x in range(8):
            left, right, above, below = max(x - 1, 0), min(x + 1, 7), max(y - 1, 0), min(y + 1, 7)
            for k in range(2):
                across = (middle[y, right, k] - middle[y, left, k]) / (right - left)
                down = (middle[below, x, k] - middle[above, x, k]) / (below - above)
                detail += across * across + down * down
    return detail / 128


@compiled
def _unexplained(products):  # type: ignore[no-untyped-def]
    """What is left of the last column's square after the others; a Cholesky decomposition in place."""
    for k in range(COLUMNS):
        pivot, whole = products[k, k], 0.0
        for j in range(k):
            whole += products[k, j] * products[k, j]
        if pivot - whole <= TINY * pivot:
            products[k:, k] = 0
            continue
        root = np.sqrt(pivot - whole)
        products[k, k] = root
        for i in range(k + 1, COLUMNS + 1):
            total = products[i, k]
            for j in range(k):
                total -= products[i, j] * products[k, j]
            products[i, k] = total / root
    total = products[COLUMNS, COLUMNS]
    for j in range(COLUMNS):
        total -= products[COLUMNS, j] * products[COLUMNS, j]
    return total
