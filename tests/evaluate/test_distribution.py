"""Distances of sets: known answers, the libraries that define them, and what a jackknife leaves out."""

import numpy as np
import pytest

from evaluate import features
from evaluate.distribution import cmmd, kernel_distance_full, kernel_distance_without, prdc
from evaluate.features import Images
from evaluate.frechet import Moments, frechet, frechet_infinity, frechet_without, ranking

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(300, 16)).astype(np.float32)
MADE = (RNG.normal(size=(240, 16)) * np.linspace(0.5, 1.5, 16) + 0.3).astype(np.float32)
BOTH = Images(MADE, np.arange(240))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts, the last one short, even of these small sets."""
    monkeypatch.setattr(features, "ROWS", 64)


def test_a_set_is_no_way_from_itself() -> None:
    moments = Moments.of(REAL)
    assert frechet(moments, moments) == pytest.approx(0, abs=1e-6)
    assert cmmd(REAL, REAL) == pytest.approx(0, abs=1e-12)
    assert prdc(REAL, REAL) == {
        "precision": 1,
        "recall": 1,
        "density": 1,
        "coverage": 1,
    }  # a ball holds its centre and four nearer than the fifth


def test_shifted_and_stretched_gaussians_are_as_far_as_the_formula_says() -> None:
    # diagonal: |m|² + sum (s - 1)², with the moments given exactly
    scale = np.array([0.5, 1.0, 3.0])
    one = Moments(11, np.zeros(3), np.eye(3) * 10)
    other = Moments(11, np.array([1.0, 2.0, 0.0]), np.diag(scale**2) * 10)
    assert frechet(other, one) == pytest.approx(5 + 0.25 + 4)
    assert frechet(one, other) == pytest.approx(9.25)


def test_moments_are_those_of_numpy_and_parts_add_up_and_come_off() -> None:
    whole = Moments.of(REAL)
    assert np.allclose(whole.mean, REAL.astype(np.float64).mean(0)) and np.allclose(
        whole.cov, np.cov(REAL.astype(np.float64), rowvar=False)
    )
    first, second = Moments.of(REAL[:100]), Moments.of(REAL[100:])
    for found, wanted in ((first + second, whole), (whole - second, first)):
        assert (
            found.n == wanted.n
            and np.allclose(found.mean, wanted.mean)
            and np.allclose(found.scatter, wanted.scatter)
        )


def test_a_large_offset_costs_no_digits() -> None:
    far = REAL.astype(np.float64) + 1e4
    assert np.allclose(Moments.of(far).cov, Moments.of(REAL).cov, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n", [240, 12], ids=["enough", "fewer samples than dimensions"])
def test_the_frechet_distance_is_that_of_clean_fid_and_of_torchmetrics(n: int) -> None:
    import torch
    from scipy import linalg
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = Moments.of(MADE[:n]), Moments.of(REAL)
    ours = frechet(a, b)
    root = linalg.sqrtm(a.cov @ b.cov).real  # not by clean-fid's call, which SciPy 1.18 refuses
    assert ours == pytest.approx(
        ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * root), rel=1e-3
    )
    theirs = FrechetInceptionDistance(feature=flat()).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(REAL), real=True)
    theirs.update(torch.from_numpy(MADE[:n]), real=False)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-3)


def test_the_frechet_distance_is_that_of_clean_fid_where_it_still_runs() -> None:
    fid = pytest.importorskip("cleanfid.fid")
    a, b = Moments.of(MADE), Moments.of(REAL)
    try:
        theirs = fid.frechet_distance(a.mean, a.cov, b.mean, b.cov)
    except TypeError:
        pytest.skip("this SciPy has no sqrtm(disp=)")
    assert frechet(a, b) == pytest.approx(theirs, rel=1e-6)


def test_no_scipy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert frechet(Moments.of(MADE), Moments.of(REAL)) > 0


def test_the_kernel_distance_is_that_of_clean_fid_and_of_torchmetrics() -> None:
    import torch
    from cleanfid.fid import kernel_distance as theirs
    from torchmetrics.image.kid import KernelInceptionDistance

    # one subset of all the samples: no draw is left to differ in
    full = kernel_distance_full(MADE, REAL[:240])
    assert full == pytest.approx(theirs(REAL[:240], MADE, num_subsets=1), rel=1e-3)
    metric = KernelInceptionDistance(feature=flat(), subsets=1, subset_size=240)
    metric.update(torch.from_numpy(REAL[:240]), real=True)
    metric.update(torch.from_numpy(MADE), real=False)
    assert full == pytest.approx(float(metric.compute()[0]), rel=1e-3)


def test_all_pairs_say_what_clean_fids_random_subsets_estimate() -> None:
    from cleanfid.fid import kernel_distance as theirs

    np.random.seed(0)  # clean-fid draws from the global state
    assert kernel_distance_full(MADE, REAL) == pytest.approx(
        theirs(REAL, MADE, num_subsets=100, max_subset_size=100), rel=0.05
    )


def test_equal_distributions_are_no_way_apart_on_average_however_few_are_drawn() -> None:
    rng = np.random.default_rng(1)
    kernel = [kernel_distance_full(*rng.normal(size=(2, 30, 8))) for _ in range(200)]
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(200), "unbiased"
    assert frechet(*(Moments.of(rng.normal(size=(30, 8))) for _ in range(2))) > 0.5, (
        "a Fréchet distance is not"
    )


def cubic_by_hand(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> float:
    """Means over pairs of different prompts."""

    def mean(a: np.ndarray, b: np.ndarray, apart: np.ndarray) -> float:
        return float(((a.astype(np.float64) @ b.T.astype(np.float64) / 16 + 1) ** 3)[apart].mean())

    return (
        mean(x, x, of_x[:, None] != of_x)
        + mean(y, y, of_y[:, None] != of_y)
        - 2 * mean(x, y, of_x[:, None] != of_y)
    )


def test_what_is_left_without_a_block_is_what_the_rest_gives() -> None:
    # three seeds of a prompt, more than one real image of some
    prompt, of_real = np.arange(240) // 3, np.arange(300) % 80
    block = np.arange(80) % 7
    value, kernels = kernel_distance_without(Images(MADE, prompt), Images(REAL, of_real), block)
    distances = frechet_without(Images(MADE, prompt), Images(REAL, of_real), block)
    assert value == pytest.approx(cubic_by_hand(MADE, REAL, prompt, of_real))
    for left in range(7):
        keep, known = block[prompt] != left, block[of_real] != left
        assert kernels[left] == pytest.approx(
            cubic_by_hand(MADE[keep], REAL[known], prompt[keep], of_real[known]), rel=1e-9
        )
        assert distances[left] == pytest.approx(
            frechet(Moments.of(MADE[keep]), Moments.of(REAL[known])), rel=1e-9
        )


def test_an_image_and_the_real_one_of_its_prompt_are_no_independent_draws() -> None:
    rng = np.random.default_rng(4)
    kernel, naive = [], []
    for _ in range(200):
        real = rng.normal(size=(40, 8))
        # follows its prompt, of which there are two seeds
        made = np.repeat(real, 2, axis=0) + rng.normal(size=(80, 8)) / 2
        kernel.append(
            kernel_distance_without(
                Images(made, np.arange(80) // 2), Images(real, np.arange(40)), np.arange(40) % 20
            )[0]
        )
        naive.append(kernel_distance_full(made, real))
    # E (x.y / 8 + 1)^3 of independent Gaussians of variances a and b is 1 + 3 ab / 8
    truth = 3 / 8 * (1.25**2 + 1 - 2 * 1.25)
    assert abs(np.mean(kernel) - truth) < 3 * np.std(kernel) / np.sqrt(200), "unbiased"
    assert abs(np.mean(naive) - truth) > 10 * np.std(naive) / np.sqrt(200), "KID is not"


@pytest.mark.parametrize("blocks", [20, 7])
def test_infinitely_many_samples_are_nearer_than_those_there_are(blocks: int) -> None:
    rng = np.random.default_rng(2)
    scale, number = np.linspace(0.5, 1.5, 24), np.arange(400)
    truth = ((scale - 1) ** 2).sum()
    plain, line = [], []
    for _ in range(20):
        real = rng.normal(size=(400, 24))
        made = scale * (0.8 * real + 0.6 * rng.normal(size=(400, 24)))
        plain.append(frechet(Moments.of(made), Moments.of(real)))
        line.append(frechet_infinity(Images(made, number), Images(real, number), number % blocks)[0])
    assert np.mean(plain) - truth > 0.1 * truth and abs(np.mean(line) - truth) < 0.03 * truth


def test_the_line_to_infinity_goes_through_all_and_through_halves() -> None:
    number, block = np.arange(240), np.arange(240) % 7
    real = REAL[:240]
    value, without = frechet_infinity(Images(MADE, number), Images(real, number), block)
    for left, found in enumerate([value, *without], -1):
        kept = [(block != left) & (block % 2 != other) for other in (-1, 0, 1)]  # all, and halves
        whole, first, second = (frechet(Moments.of(MADE[rows]), Moments.of(real[rows])) for rows in kept)
        x = 1 / kept[0].sum(), (1 / kept[1].sum() + 1 / kept[2].sum()) / 2
        assert found == pytest.approx(np.polyfit(x, [whole, (first + second) / 2], 1)[1], rel=1e-6)


def test_cmmd_is_the_published_formula_on_unit_vectors_and_blind_to_length() -> None:
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (MADE.astype(np.float64), REAL.astype(np.float64))
    ]

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 10**2)).mean())

    wanted = 1000 * (mean(unit[0], unit[0]) + mean(unit[1], unit[1]) - 2 * mean(*unit))
    assert cmmd(MADE, REAL) == pytest.approx(wanted, rel=1e-6)
    assert cmmd(3 * MADE, REAL) == pytest.approx(wanted, rel=1e-6)


def test_precision_and_the_others_are_counted_right() -> None:
    from scipy.spatial.distance import cdist

    k = 3
    reach = [np.sort(cdist(rows, rows), axis=1)[:, k] for rows in (REAL, MADE)]
    apart = cdist(REAL, MADE)
    inside = apart < reach[0][:, None]
    wanted = {
        "precision": inside.any(0).mean(),
        "recall": (apart < reach[1]).any(1).mean(),
        "density": inside.sum() / k / len(MADE),
        "coverage": inside.any(1).mean(),
    }
    assert prdc(REAL, MADE, k=k) == pytest.approx(wanted)


def test_few_kinds_lose_recall_and_noise_loses_precision() -> None:
    rng = np.random.default_rng(3)
    real = np.concatenate([rng.normal(size=(100, 4)), rng.normal(size=(100, 4)) + 20])
    one_kind = prdc(real, rng.normal(size=(200, 4)))
    assert one_kind["precision"] > 0.9 and one_kind["recall"] < 0.6 and one_kind["coverage"] < 0.6
    noise = prdc(real, np.concatenate([real[::2] + 0.1, rng.uniform(-100, 100, size=(100, 4))]))
    assert noise["precision"] == pytest.approx(0.5, abs=0.05)


def test_a_frechet_distance_ranks_only_with_ten_samples_for_each_dimension() -> None:
    assert (ranking(640, 64), ranking(639, 64), ranking(1000, 2048)) == ("fd", "kd", "kd")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Moments.of(np.zeros(5)), "a table of samples and dimensions"),
        (lambda: Moments.of(np.full((4, 2), np.nan)), "4 of 4 samples have features that are not finite"),
        (lambda: frechet(Moments.of(REAL), Moments.of(REAL[:, :3])), "one width, found 16 and 3"),
        (lambda: frechet(Moments.of(REAL[:1]), Moments.of(REAL)), "at least two samples, found 1"),
        (lambda: kernel_distance_full(REAL[:1], REAL), "at least two samples on each side"),
        (lambda: prdc(REAL[:5], REAL), "more than 5 samples on each side, found 5 and 300"),
        (lambda: frechet_infinity(BOTH, BOTH, np.arange(240) % 3), "at least four blocks, found 3"),
        (lambda: kernel_distance_without(BOTH, BOTH, np.zeros(240, int)), "at least two blocks"),
    ],
)
def test_what_has_no_answer_is_one_sentence(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        call()


def flat():  # type: ignore[no-untyped-def]
    """Features that are already there, as an extractor of torchmetrics."""
    import torch

    found = torch.nn.Flatten()
    found.num_features = 16
    return found
