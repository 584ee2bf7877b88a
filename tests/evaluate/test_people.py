"""People are scored as COCO scores them; the published shortcuts stand beside, with their bugs."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from annotate.skeletons import SKELETONS
from evaluate import people as room
from evaluate.fidelity import Map, compare, pooled
from evaluate.oks import POSITIONS, SIGMAS, THRESHOLDS, area, hits, oks
from evaluate.paper import cosine, person_area

SIZE = [512, 512]


def people(array: np.ndarray, layout: str = "coco_17") -> Map:
    return Map(
        np.asarray(array, np.float32).reshape(-1, len(POSITIONS[layout]) + (layout != "coco_17"), 3),
        {"size": SIZE, "layout": layout},
    )


def person(rng: np.random.Generator, confidence: float = 1.0) -> np.ndarray:
    """Somebody of 60 to 200 pixels, two keypoints missing."""
    at = rng.uniform(0, 300, 2) + rng.uniform(0, 1, (17, 2)) * rng.uniform(60, 200, 2)
    found = np.concatenate([at, np.full((17, 1), confidence)], axis=1)
    found[rng.choice(17, 2, replace=False)] = 0
    return found.astype(np.float32)


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """True people, and what a poor detector makes of them: moved, missed, invented; all scores different."""
    true = [person(rng) for _ in range(rng.integers(0, 4))]
    made = []
    for one in true:
        if rng.random() < 0.85:
            moved = one + np.pad(rng.normal(0, rng.choice([2, 8, 20]), (17, 2)), ((0, 0), (0, 1)))
            made.append(np.where(one[:, 2:] > 0, moved * [1, 1, rng.random()], 0))
    made += [person(rng, rng.random()) for _ in range(rng.integers(0, 2))]
    return np.array(true).reshape(-1, 17, 3).astype(np.float32), np.array(made).reshape(-1, 17, 3).astype(
        np.float32
    )


# --- cocoeval in plain loops ---


def coco_oks(made: np.ndarray, true: np.ndarray) -> float:
    seen = [k for k in range(17) if true[k, 2] > 0]
    box = [
        max(float(true[k, axis]) for k in seen) - min(float(true[k, axis]) for k in seen) for axis in (0, 1)
    ]
    total = 0.0
    for k in seen:
        squared = float(made[k, 0] - true[k, 0]) ** 2 + float(made[k, 1] - true[k, 1]) ** 2
        total += (
            np.exp(-squared / (2 * SIGMAS[k]) ** 2 / (box[0] * box[1] + np.spacing(1)) / 2)
            if made[k, 2] > 0
            else 0
        )
    return total / len(seen)


def coco_ap_ar(pairs: list[tuple[np.ndarray, np.ndarray]], similarity=coco_oks) -> tuple[float, float]:
    """evaluateImg and accumulate of pycocotools, area "all", maxDets 20."""
    precisions, recalls = [], []
    for threshold in THRESHOLDS:
        scored, total = [], 0
        for true, made in pairs:
            total += len(true)
            free = set(range(len(true)))
            score = [one[one[:, 2] > 0, 2].mean() for one in made]
            for i in sorted(range(len(made)), key=lambda i: -score[i])[:20]:
                best, match = min(threshold, 1 - 1e-10), None
                for j in sorted(free):
                    value = similarity(made[i], true[j])
                    if value < best:
                        continue
                    best, match = value, j
                free -= {match}
                scored.append((score[i], match is not None))
        scored.sort(key=lambda row: -row[0])
        recall, precision, tp = [], [], 0
        for rank, (_, good) in enumerate(scored, 1):
            tp += good
            recall.append(tp / total)
            precision.append(tp / rank)
        for i in range(len(precision) - 1, 0, -1):
            precision[i - 1] = max(precision[i - 1], precision[i])
        at = [int(np.searchsorted(recall, wanted, side="left")) for wanted in np.linspace(0, 1, 101)]
        precisions.append(np.mean([precision[i] if i < len(precision) else 0.0 for i in at]))
        recalls.append(recall[-1])
    return float(np.mean(precisions)), float(np.mean(recalls))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [scene(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def counts(pairs):
    return [compare("people", people(true), people(made)).counts for true, made in pairs]


def test_ap_and_ar_of_the_set_are_cocoeval_s(pairs, counts):
    ap, ar = coco_ap_ar(pairs)
    assert pooled("people_ap", counts) == pytest.approx(ap, abs=1e-9)
    assert pooled("people_ar", counts) == pytest.approx(ar, abs=1e-9)
    assert 0.1 < ap < 0.9
    assert pooled("people_ap75", counts) < ap < pooled("people_ap50", counts)


def coco_ap_of_size(pairs: list[tuple[np.ndarray, np.ndarray]], low: float, high: float) -> float:
    """evaluateImg and accumulate of pycocotools with an area range: true people outside come last and are
    ignored, with whom they match.
    """

    def outside(one: np.ndarray) -> bool:
        sides = np.ptp(one[one[:, 2] > 0, :2].astype(np.float64), axis=0)
        return not low <= sides[0] * sides[1] < high

    precisions = []
    for threshold in THRESHOLDS:
        scored, total = [], 0
        for true, made in pairs:
            true = sorted(true, key=outside)
            ignored = [outside(one) for one in true]
            total += ignored.count(False)
            score = [one[one[:, 2] > 0, 2].mean() for one in made]
            matched: set[int] = set()
            for i in sorted(range(len(made)), key=lambda i: -score[i])[:20]:
                best, match = min(threshold, 1 - 1e-10), -1
                for j in range(len(true)):
                    if j in matched:
                        continue
                    if match > -1 and not ignored[match] and ignored[j]:
                        break
                    value = coco_oks(made[i], true[j])
                    if value < best:
                        continue
                    best, match = value, j
                if match > -1:
                    matched.add(match)
                if not (ignored[match] if match > -1 else outside(made[i])):
                    scored.append((score[i], match > -1))
        good = np.array([hit for _, hit in sorted(scored, key=lambda row: -row[0])])
        recall, precision = np.cumsum(good) / total, np.cumsum(good) / np.arange(1, len(good) + 1)
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
        precisions.append(envelope[np.searchsorted(recall, np.linspace(0, 1, 101), side="left")].mean())
    return float(np.mean(precisions))


def test_ap_by_size_is_cocoeval_s_with_its_areas_as_shares_of_the_image(pairs, monkeypatch):
    image = people(pairs[0][0]).meta["size"]
    areas = [area(one) for true, _ in pairs for one in true]
    middle = float(np.median(areas))
    monkeypatch.setattr(
        room, "SIZES", {"medium": (0.0, middle / np.prod(image)), "large": (middle / np.prod(image), np.inf)}
    )
    counts = [compare("people", people(true), people(made)).counts for true, made in pairs]
    found = [pooled(f"people_ap_{size}", counts) for size in ("medium", "large")]
    assert found == pytest.approx(
        [coco_ap_of_size(pairs, 0, middle), coco_ap_of_size(pairs, middle, np.inf)], abs=1e-9
    )
    assert abs(found[0] - found[1]) > 0.01 and sum(
        int(it[f"n_truth_{size}"][0]) for it in counts for size in ("medium", "large")
    ) == len(areas)


def test_oks_is_its_formula_and_a_missing_keypoint_is_infinitely_far():
    rng = np.random.default_rng(1)
    true = person(rng)
    made = true + np.array([3, -2, 0], np.float32)
    made[:3] = 0
    area = np.prod(np.ptp(true[true[:, 2] > 0, :2].astype(np.float64), axis=0))
    assert oks(made[None], true[None], np.array([area]))[0, 0] == pytest.approx(coco_oks(made, true))
    assert oks(true[None], true[None], np.array([area]))[0, 0] == pytest.approx(1.0)


def test_the_surest_takes_the_most_similar_that_is_left():
    similar = np.array([[0.6, 0.9], [0.3, 0.95], [0.7, 0.1]])
    assert hits(similar)[:, 0].tolist() == [1, 0, 1]  # at .50 the second finds its only true person taken
    assert hits(similar)[:, 5].tolist() == [1, 0, 0]  # at .75


def test_only_the_twenty_surest_count_for_ap_and_all_for_the_count_error():
    true = np.tile(person(np.random.default_rng(2)), (1, 1, 1))
    made = np.repeat(true, 30, axis=0)
    made[:, :, 2] *= np.linspace(0.1, 0.9, 30)[:, None]
    compared = compare("people", people(true), people(made))
    assert len(compared.counts["scores"]) == 20 and compared.counts["scores"].min() > 0.3
    assert compared.values["people_pce"] == 20  # 29 too many


def test_the_assignment_of_mean_oks_and_pck_is_the_best_one(pairs):
    checked = 0
    for true, made in pairs:
        if not len(true):
            continue
        values = compare("people", people(true), people(made)).values
        similar = np.array([[coco_oks(d, t) for t in true] for d in made]).reshape(len(made), len(true))
        i, j = linear_sum_assignment(-similar)
        assert values["people_oks"] == pytest.approx(similar[i, j].sum() / len(true))
        near = total = 0
        partner = dict(zip(j.tolist(), i.tolist(), strict=True))
        for number, one in enumerate(true):
            seen = one[:, 2] > 0
            side = max(np.ptp(one[seen, 0]), np.ptp(one[seen, 1]))
            for k in np.flatnonzero(seen):
                total += 1
                other = made[partner[number]][k] if number in partner else np.zeros(3)
                near += other[2] > 0 and np.hypot(*(other[:2] - one[k, :2])) <= 0.1 * side
        assert (
            values["people_pck_10"] == pytest.approx(near / total)
            and values["people_pck_20"] >= values["people_pck_10"]
        )
        assert values["people_pce"] == abs(len(true) - len(made))
        checked += 1
    assert checked > 20


def test_pck_asks_for_a_share_of_the_longer_side_of_the_box():
    true = np.zeros((1, 17, 3))
    true[0, :4] = [[100, 100, 1], [200, 100, 1], [100, 150, 1], [200, 150, 1]]  # 100 wide
    made = true.copy()
    made[0, 0, 0] += 9.9
    made[0, 1, 0] += 10.1
    made[0, 2, 0] += 19.9
    made[0, 3, 0] += 20.1
    values = compare("people", people(true), people(made)).values
    assert (values["people_pck_10"], values["people_pck_20"]) == (0.25, 0.75)


def test_openpose_s_keypoints_are_coco_s_without_the_neck():
    names = SKELETONS["openpose_18"].names
    assert tuple(names[k] for k in POSITIONS["openpose_18"]) == SKELETONS["coco_17"].names
    rng = np.random.default_rng(3)
    body = rng.uniform(10, 500, (1, 18, 3))
    moved = body.copy()
    moved[0, 1] += 200  # the neck
    values = compare("people", people(body, "openpose_18"), people(moved, "openpose_18")).values
    assert values["people_oks"] == pytest.approx(1.0)


def test_a_person_of_whom_only_the_neck_is_seen_is_nobody():
    body = np.zeros((1, 18, 3))
    body[0, 1] = [100, 100, 1]
    assert compare("people", people(body, "openpose_18"), people(body, "openpose_18")).counts[
        "n_truth"
    ].tolist() == [0]


def test_maps_of_two_sizes_are_compared_in_the_condition_s_pixels():
    true = person(np.random.default_rng(4))
    half = Map(true[None] * np.array([0.5, 0.5, 1], np.float32), {"size": [256, 256], "layout": "coco_17"})
    assert compare("people", people(true), half).values["people_oks"] == pytest.approx(1.0)


def test_nobody_found_is_everybody_missed_and_lowers_the_recall_of_the_set():
    true = person(np.random.default_rng(5))
    lost = compare("people", people(true), people(np.empty((0, 17, 3))))
    failed = compare("people", people(true), None)
    assert (
        lost.values
        == failed.values
        == {
            "people_oks": 0.0,
            "people_pck_10": 0.0,
            "people_pck_20": 0.0,
            "people_pce": 1.0,
        }
    )
    kept = compare("people", people(true), people(true))
    assert pooled("people_ar", [kept.counts, lost.counts]) == pytest.approx(0.5)
    # COCO's 101 recalls, of which 0 to .50
    assert pooled("people_ap", [kept.counts, failed.counts]) == pytest.approx(51 / 101)


# --- the published ones ---


def test_ap_of_batches_is_the_mean_of_cocoeval_s_own_over_tens(pairs):
    boxes = [(np.where(t[..., 2:] > 0, t, 0), d) for t, d in pairs]

    def stretched(made: np.ndarray, true: np.ndarray) -> float:
        """OKS with the area of a box that has the missing keypoints in it, at 0 0."""
        area = (true[:, 0].max() - true[:, 0].min()) * (true[:, 1].max() - true[:, 1].min())
        seen = (true[:, 2] > 0) & (made[:, 2] > 0)
        squared = ((made[seen, :2].astype(np.float64) - true[seen, :2]) ** 2).sum(axis=1)
        return float(np.exp(-squared / (2 * SIGMAS[seen]) ** 2 / 2 / area).sum() / (true[:, 2] > 0).sum())

    expected = np.mean([coco_ap_ar(boxes[start : start + 10], stretched)[0] for start in range(0, 40, 10)])
    counts = [compare("people", people(t), people(d)).counts for t, d in pairs]
    assert pooled("people_ap_batches", counts) == pytest.approx(expected, abs=1e-6)
    assert abs(pooled("people_ap_batches", counts) - pooled("people_ap", counts)) > 1e-3


def test_a_missing_keypoint_stretches_the_published_box_to_the_corner():
    one = np.zeros((17, 3))
    one[:2] = [[300, 200, 1], [310, 240, 1]]
    assert person_area(one) == 310 * 240


def test_cap_takes_x_for_y_by_hand():
    # sigmas 1: true x 0 1 2 -> 0 .5 1, y 0 2 1 -> 0 1 .5; each of length sqrt(1.25)
    true = np.zeros((17, 3))
    true[:3] = [[0, 0, 1], [1, 2, 1], [2, 1, 1]]
    made = true.copy()
    ones = np.ones(17)
    # made "y" is made x: (x . x + y . x) / 2 = (1 + (1 * .5 + .5 * 1) / 1.25) / 2 = .9
    assert cosine(true, made, ones) == pytest.approx(0.9)
    made[:, 1] = np.random.default_rng(0).random(17) * 500
    assert cosine(true, made, ones) == pytest.approx(0.9)  # heights never count


def test_cap_does_not_see_a_person_turned_upside_down():
    rng = np.random.default_rng(6)
    true = person(rng)[None]
    seen = true[..., 2] > 0
    turned = true.copy()
    turned[..., 1] = np.where(seen, 500 - true[..., 1], 0)
    upright, upset = (compare("people", people(true), people(made)).counts for made in (true, turned))
    assert pooled("people_cap", [upright]) == pooled("people_cap", [upset]) > 0
    assert pooled("people_ap", [upset]) < 0.5 < pooled("people_ap", [upright])


def test_cap_lets_anybody_match_a_true_person_without_extent():
    true = np.zeros((1, 17, 3))
    true[0, 0] = [100, 100, 1]
    counts = compare("people", people(true), people(person(np.random.default_rng(7)))).counts
    assert np.isnan(cosine(true[0], true[0], SIGMAS))
    assert pooled("people_cap", [counts]) == 1.0 and pooled("people_ap", [counts]) == 0.0


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="blazepose_33"):
        compare(
            "people", Map(np.zeros((1, 33, 3), np.float32), {"size": SIZE, "layout": "blazepose_33"}), None
        )
