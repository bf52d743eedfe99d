"""The recorded image of Flickr30k Entities."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from fiber.evaluation.metrics.grounding_recall import Phrase


@pytest.fixture(scope="module")
def entities(shared):
    """Phrases with boxes of the recorded image, and its recorded predictions as rows."""
    real = shared / "real/flickr30k_entities"
    chains: dict[str, list[list[int]]] = {}
    for item in ElementTree.parse(real / "Annotations/1000092795.excerpt.xml").iter("object"):
        if (box := item.find("bndbox")) is not None:
            corners = [int(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]
            for name in item.iter("name"):
                chains.setdefault(name.text, []).append(corners)
    phrases = []
    for caption, line in enumerate((real / "Sentences/1000092795.txt").read_text().splitlines()):
        mentions = [m for m in re.findall(r"\[/EN#(\d+)/(\S+) [^\]]*\]", line) if m[0] in chains]
        phrases += [Phrase(1000092795, caption, number, np.array(chains[chain], float), tuple(types.split("/")))
                    for number, (chain, types) in enumerate(mentions)]  # fmt: skip
    recorded = json.loads((real / "expected_recall_any_vs_merged.json").read_text())
    rows = [
        {"image_id": entry["image_id"], "caption": entry["sentence_id"], "phrase": number, "boxes": boxes}
        for entry in recorded["predictions"]
        for number, boxes in enumerate(entry["boxes"])
    ]
    return phrases, rows, recorded
