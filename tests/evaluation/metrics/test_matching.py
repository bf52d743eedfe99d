"""What becomes of detections, by hand."""

import numpy as np
import pytest

from fiber.evaluation.metrics.matching import ImageObjects, best_threshold, match, one_per_place


def objects(*entries: tuple[list[float], str], crowd: tuple[bool, ...] = ()) -> ImageObjects:
    return ImageObjects(np.array([box for box, _ in entries], float).reshape(-1, 4), [c for _, c in entries], crowd)


CAT, DOG = ([0, 0, 10, 10], "cat"), ([50, 50, 70, 70], "dog")


def test_every_fate() -> None:
    found = objects(
        ([0, 0, 10, 9], "cat"),  # IoU 0.9
        ([50, 50, 70, 69], "cat"),  # a dog
        ([0, 30, 10, 40], "owl"),  # nothing there
        ([80, 0, 90, 4], "owl"),  # IoU 0.4
    )
    truth = objects(CAT, DOG, ([80, 0, 90, 10], "owl"), ([20, 20, 30, 30], "dog"))
    result = match(found, truth)
    assert result.found == ["hit", "confused", "false", "low"]
    assert result.true == ["hit", "confused", "low", "missed"]
    assert result.partner == [0, 1, -1, 2]
    assert result.mistakes == 4


def test_a_hit_comes_before_a_confusion_whatever_the_scores() -> None:
    """The better detection names the cat a dog; the cat belongs to the one that names it right."""
    result = match(objects(([0, 0, 10, 10], "dog"), ([0, 0, 10, 8], "cat")), objects(CAT))
    assert result.found == ["false", "hit"]


def test_crowds_are_neither_right_nor_wrong() -> None:
    result = match(objects(([10, 10, 20, 20], "cat"), ([10, 10, 20, 20], "dog")),
                   objects(([0, 0, 100, 100], "cat"), crowd=(True,)))  # fmt: skip
    assert (result.found, result.true, result.mistakes) == (["crowd", "false"], ["crowd"], 1)


@pytest.mark.parametrize("one", [objects(), objects(CAT)])
def test_nothing_found_and_nothing_there(one: ImageObjects) -> None:
    assert match(one, objects()).found == ["false"] * len(one.classes)
    assert match(objects(), one).true == ["missed"] * len(one.classes)


def test_one_label_per_place() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [30, 0, 40, 10]], float)
    assert one_per_place(boxes).tolist() == [0, 2, 3]
    assert one_per_place(np.zeros((0, 4))).tolist() == []


def test_the_best_threshold_by_hand() -> None:
    """Two objects; right at 0.9 and 0.5, wrong at 0.7 and 0.2: F1 is 2/3, 1/2, 4/5, 2/3 from the top."""
    found = objects(CAT, ([20, 0, 30, 10], "cat"), DOG, ([90, 90, 99, 99], "dog"))
    scores = np.array([0.9, 0.7, 0.5, 0.2])
    assert best_threshold([(found, scores, objects(CAT, DOG))]) == (0.5, pytest.approx(0.8))
    tied = np.array([0.9, 0.5, 0.5, 0.5])  # 0.5 keeps all three
    assert best_threshold([(found, tied, objects(CAT, DOG))]) == (0.9, pytest.approx(2 / 3))
    assert best_threshold([(objects(), np.zeros(0), objects(CAT))]) is None
    assert best_threshold([(found, scores, objects())]) is None
