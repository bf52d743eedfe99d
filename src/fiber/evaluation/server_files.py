"""Detections as the COCO and LVIS servers and tools read them, and the truth beside them.

Records carry COCO's number of an image in their `image_id` ("coco_139"), and categories keep the ids of their file.
Files are written only where every image of a set has such a number: one of ours would fit no official annotation.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from fiber.evaluation.predictions import Row, write_results

_NUMBERED = re.compile(r"coco_(\d+)")


def write_server_files(
    truth: Mapping[str, Any], predictions: Iterable[Row], path: Path, per_image: int
) -> list[Path]:
    """Write `path`_results.json, rows {"image_id", "category_id", "bbox" [x, y, w, h] px, "score"} with numeric
    ids, the best `per_image` of each image; and, where the set has boxes, `path`_annotations.json, the truth they
    were scored against. Returns what was written, nothing where the ids are not COCO's.

    truth: as `coco_ap.coco_ground_truth` gives it. predictions: merged rows, an image's together and best first.
    Format: cocodataset.org/#format-results, lvisdataset.org.
    """
    matches = [_NUMBERED.fullmatch(str(image["id"])) for image in truth["images"]]
    if not matches or not all(matches):
        return []
    number = {match[0]: int(match[1]) for match in matches if match}

    def rows() -> Iterator[Row]:
        for identity, own in groupby(predictions, key=lambda row: row["image_id"]):
            for row in islice(own, per_image):
                yield {
                    "image_id": number[identity],
                    "category_id": row["category_id"],
                    "bbox": row["bbox"],
                    "score": row["score"],
                }

    written = [write_results(path.with_name(f"{path.name}_results.json"), rows())]
    if truth["annotations"]:
        annotations = path.with_name(f"{path.name}_annotations.json")
        partial = annotations.with_suffix(".part")
        official = {
            "info": {},
            "licenses": [],
            "images": [image | {"id": number[image["id"]]} for image in truth["images"]],
            "annotations": [entry | {"image_id": number[entry["image_id"]]} for entry in truth["annotations"]],
            "categories": truth["categories"],
        }
        partial.write_text(json.dumps(official))
        os.replace(partial, annotations)
        written.append(annotations)
    return written
