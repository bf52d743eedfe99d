import pytest

from fiber.evaluation.metrics.absent_rate import absent_class_rate, absent_phrase_rate


def truth(annotated: dict[str, list[int]], **lists: dict[str, list[int]]) -> dict:
    """Images and the categories of their boxes; three categories. `lists`: per image, the categories of that list."""
    images = [
        {"id": i, "neg_category_ids": [], "not_exhaustive_category_ids": []}
        | {name: own[i] for name, own in lists.items() if i in own}
        for i in annotated
    ]
    boxes = [{"image_id": i, "category_id": c, "iscrowd": 0} for i, own in annotated.items() for c in own]
    return {"images": images, "annotations": boxes, "categories": [{"id": c} for c in (1, 2, 7)]}


def rows(*found: tuple[str, int, float]) -> list[dict]:
    return [{"image_id": i, "category_id": c, "score": s} for i, c, s in found]


FOUND = rows(("a", 1, 0.9), ("a", 2, 0.3), ("a", 2, 0.8), ("a", 7, 0.29), ("b", 1, 0.31), ("b", 7, 0.9))


def test_of_all_classes_those_not_annotated_are_absent() -> None:
    """a has class 1, b has 7: absent are (a, 2), (a, 7), (b, 1), (b, 2); claimed are (a, 2), once, and (b, 1)."""
    known = truth({"a": [1, 1], "b": [7]})
    assert absent_class_rate(known, FOUND) == 2 / 4
    assert absent_class_rate(known, FOUND, threshold=0.5) == 1 / 4
    assert absent_class_rate(known, []) == 0


def test_where_classes_were_not_all_looked_for_only_the_listed_ones_are() -> None:
    """LVIS: 2 was looked for in a and not found; nobody says that 1 is absent from b."""
    assert absent_class_rate(truth({"a": [1], "b": [7]}, neg_category_ids={"a": [2]}), FOUND) == 1
    listed = truth({"a": [1], "b": [7]}, neg_category_ids={"a": [7], "b": [1]})
    assert absent_class_rate(listed, FOUND) == 1 / 2
    assert absent_class_rate(truth({"a": [1], "b": [7]}, not_exhaustive_category_ids={"a": [1]}), FOUND) is None


def test_a_listed_class_that_is_annotated_is_not_absent() -> None:
    assert absent_class_rate(truth({"a": [1], "b": [7]}, neg_category_ids={"a": [1, 2]}), FOUND) == 1


@pytest.mark.parametrize(("scores", "expected"), [([0.3, 0.29, 0.0], 1 / 3), ([0.9], 1), ([], None)])
def test_phrases(scores: list[float], expected: float | None) -> None:
    assert absent_phrase_rate({"score": score} for score in scores) == expected
