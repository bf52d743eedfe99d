"""How often a detector claims what is not there.

The unit is a pair (image, class or phrase) where the class or phrase was asked of the image and is known to be absent
from it. The rate is the share of such pairs with at least one detection whose score reaches the threshold, wherever
its box lies. AP and recall hardly see this: AP ranks detections against each other, recall asks for what is there.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from fiber.evaluation.predictions import Row

THRESHOLD = 0.3  # the score from which `fiber detect` shows a box


def absent_class_rate(
    ground_truth: Mapping[str, Any], predictions: Iterable[Row], threshold: float = THRESHOLD
) -> float | None:
    """The rate of classes, all of which were asked of every image; None where no class is known to be absent.

    ground_truth: the content of a COCO or LVIS annotation file. Absent is a class without any object (crowds are
    objects) in an image. If the images list negative or not exhaustively annotated classes, most classes were never
    looked for: then the listed negatives alone are absent. predictions: rows `{"image_id", "category_id", "score"}`.
    """
    images = ground_truth["images"]
    present: dict[Hashable, set[int]] = defaultdict(set)
    for entry in ground_truth["annotations"]:
        present[entry["image_id"]].add(entry["category_id"])
    everything = {category["id"] for category in ground_truth["categories"]}
    listed = ("neg_category_ids", "not_exhaustive_category_ids")
    if any(image.get(name) for image in images for name in listed):
        negatives = {image["id"]: set(image.get(listed[0], ())) - present[image["id"]] for image in images}
    else:
        negatives = {}
    asked = sum(
        len(negatives[image["id"]]) if negatives else len(everything) - len(present[image["id"]]) for image in images
    )
    claimed = set()
    for row in predictions:
        image, category = row["image_id"], row["category_id"]
        absent = category in negatives[image] if negatives else category not in present[image]
        if absent and row["score"] >= threshold:
            claimed.add((image, category))
    return len(claimed) / asked if asked else None


def absent_phrase_rate(predictions: Iterable[Row], threshold: float = THRESHOLD) -> float | None:
    """The rate of phrases; None where none was asked. predictions: one row `{"score"}` per absent phrase asked of an
    image, the best score of its detections, 0 where there is none."""
    claims = [row["score"] >= threshold for row in predictions]
    return sum(claims) / len(claims) if claims else None
