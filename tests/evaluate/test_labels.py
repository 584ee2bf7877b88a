"""mIoU is of one confusion matrix, however many samples and weights it is made of."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from evaluate.fidelity import Map, compare, pooled

META = {"label_space": "ade20k_150"}


def labels(array: object, dtype: type = np.uint8) -> Map:
    return Map(np.asarray(array, dtype), META)


def from_confusion(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> tuple[float, float]:
    """mIoU over classes that occur, and pixel accuracy, from torchmetrics' confusion matrix."""
    truth, made = (
        torch.from_numpy(np.concatenate([pair[k].ravel() for pair in pairs]).astype(np.int64)) for k in (0, 1)
    )
    matrix = multiclass_confusion_matrix(made, truth, classes, ignore_index=255).numpy().astype(float)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float((np.diag(matrix)[union > 0] / union[union > 0]).mean()), float(
        np.trace(matrix) / matrix.sum()
    )


def test_by_hand():
    truth = labels([[0, 0, 1, 1], [2, 2, 255, 255]])
    made = labels([[0, 1, 1, 1], [3, 2, 0, 2]])
    compared = compare("labels", truth, made)
    # 0: 1/2, 1: 2/3, 2: 1/2, 3 occurs only where it is wrong: 0
    miou = (1 / 2 + 2 / 3 + 1 / 2 + 0) / 4
    assert compared.values == {"pixel_accuracy": pytest.approx(4 / 6), "miou_sample": pytest.approx(miou)}
    assert pooled("miou", [compared.counts]) == pytest.approx(miou)
    assert pooled("pixel_accuracy_pooled", [compared.counts]) == pytest.approx(4 / 6)


def test_of_a_set_it_is_the_confusion_matrix_s_and_not_the_mean_over_images():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(12):
        truth = rng.choice(7, p=rng.dirichlet(np.ones(7) / 3), size=(20, 30))
        made = np.where(rng.random((20, 30)) < 0.7, truth, rng.integers(0, 7, (20, 30)))
        truth[rng.random((20, 30)) < 0.1] = 255
        pairs.append((truth, made))
    compared = [compare("labels", labels(t), labels(m)) for t, m in pairs]
    counts = [it.counts for it in compared]
    miou, accuracy = from_confusion(pairs, 7)
    assert pooled("miou", counts) == pytest.approx(miou)
    assert pooled("pixel_accuracy_pooled", counts) == pytest.approx(accuracy)
    assert abs(np.mean([it.values["miou_sample"] for it in compared]) - miou) > 0.01


def test_void_is_left_out_of_the_condition_and_wrong_in_the_re_reading():
    compared = compare("labels", labels([[0, 0, 255]]), labels([[0, 255, 1]]))
    assert compared.values["pixel_accuracy"] == 0.5
    assert pooled("miou", [compared.counts]) == 0.5
    assert 255 not in compared.counts["classes"]


def test_sixteen_bit_labels_above_255_are_classes():
    compared = compare("labels", labels([[300, 300, 7]], np.uint16), labels([[300, 7, 7]], np.uint16))
    assert compared.counts["classes"].tolist() == [7, 300]
    assert pooled("miou", [compared.counts]) == 0.5


def test_a_re_reading_that_failed_has_all_of_the_truth_in_its_union():
    truth = labels([[0, 0, 1, 1]])
    good, failed = compare("labels", truth, truth), compare("labels", truth, None)
    assert failed.values == {"pixel_accuracy": 0.0, "miou_sample": 0.0}
    assert (
        pooled("miou", [good.counts, failed.counts])
        == pooled("pixel_accuracy_pooled", [good.counts, failed.counts])
        == 0.5
    )


def test_labels_of_two_spaces_are_refused():
    with pytest.raises(ValueError, match="coco_stuff_171"):
        compare(
            "labels", labels([[0, 1]]), Map(np.zeros((1, 2), np.uint8), {"label_space": "coco_stuff_171"})
        )
