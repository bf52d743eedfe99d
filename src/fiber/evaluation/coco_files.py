"""Detections and their truth as files that pycocotools, FiftyOne and other COCO readers load.

`COCO(ground_truth.json).loadRes(coco_results.json)`, scored by COCOeval, gives the AP of the evaluation: the files
hold the same detections (the best ones of each image), and numbers of images in the order in which we score them,
which decides between equal scores.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fiber.evaluation.metrics.coco_ap import read_detections, sorted_ids
from fiber.evaluation.predictions import Row, write_results

RESULTS, TRUTH = "coco_results.json", "ground_truth.json"
_NUMBERED = re.compile(r"coco_(\d+)")


def write_coco_files(
    truth: Mapping[str, Any],
    predictions: Iterable[Row],
    folder: Path,
    per_image: int,
    file_names: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `folder`/coco_results.json and `folder`/ground_truth.json, and return their paths.

    truth: as `coco_ap.coco_ground_truth` gives it. predictions: merged rows, of which the best `per_image` of each
    image are kept. file_names: the file of each image id, where there is one. Image ids become COCO's own numbers
    where all of them have one (`coco_139`), else 1, 2, ...; ground_truth.json keeps ours as "fiber_id".
    """
    ids, categories = sorted_ids(truth, "images"), sorted_ids(truth, "categories")
    official = [_NUMBERED.fullmatch(str(identity)) for identity in ids]
    numbers = [int(m[1]) if m and all(official) else n for n, m in enumerate(official, 1)]
    number_of = dict(zip(ids, numbers, strict=True))
    # Category ids may be texts; COCO's readers want numbers.
    plain = all(isinstance(category, int) for category in categories)
    category_of = {category: category if plain else n for n, category in enumerate(categories, 1)}
    found = read_detections(predictions, ids, categories, per_image=per_image)
    results = write_results(
        folder / RESULTS,
        (
            {
                "image_id": numbers[found.image[row]],
                "category_id": category_of[categories[found.category[row]]],
                "bbox": found.boxes[row].tolist(),
                "score": float(found.scores[row]),
            }
            for row in range(len(found))
        ),
    )
    images = [
        {
            "id": number_of[image["id"]],
            "width": image["width"],
            "height": image["height"],
            "file_name": (file_names or {}).get(image["id"], str(image["id"])),
            "fiber_id": image["id"],
        }
        for image in truth["images"]
    ]
    objects = [
        entry | {"image_id": number_of[entry["image_id"]], "category_id": category_of[entry["category_id"]]}
        for entry in truth["annotations"]
    ]
    names = [category | {"id": category_of[category["id"]]} for category in truth["categories"]]
    content = {"info": {}, "licenses": [], "images": images, "annotations": objects, "categories": names}
    partial = folder / f"{TRUTH}.part"
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, folder / TRUTH)
    return [results, folder / TRUTH]
