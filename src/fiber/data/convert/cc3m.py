"""Conceptual Captions 3M: images fetched with img2dataset or in ViLT's layout, captions from Google's TSV.

The TSV has no header and two columns, caption then URL. Many URLs are dead; what is missing is counted and listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fiber.data.convert import web_pairs
from fiber.data.convert.items import Drop, RawDataset, Request
from fiber.data.convert.json_stream import open_text

SPLITS = ("train", "val")

LICENCE = "captions and list: freely usable for any purpose with acknowledgement (Google); images: their owners'"
FILES = {"train": "Train_GCC-training*.tsv", "val": "Validation_GCC-*.tsv"}


def read(request: Request) -> RawDataset:
    """One record an image with its caption."""
    raw, split = request.raw, request.split
    lists = [request.annotations] if request.annotations else sorted(raw.glob(FILES[split]))
    images = request.images or next((p for p in (raw / f"images_{split}", raw / split) if p.is_dir()), raw)
    rows = captions(lists[0]) if lists else None
    annotations = [raw / f"{split}_annot.json", images / f"{split}_annot.json"]
    layout, items = web_pairs.find(images, "cc3m", annotations, rows)
    total = sum(1 for _ in captions(lists[0])) if lists else None
    provenance = {"converter": "cc3m", "layout": layout, "list": lists[0].name if lists else None, "rows": total}
    return RawDataset("cc3m", split, LICENCE, provenance, items, total, placeholders=True)


def captions(path: Path) -> Iterator[str | Drop]:
    """First columns of the TSV; of a line that has not two columns, that."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            columns = line.rstrip("\r\n").split("\t")
            if len(columns) == 2:
                yield columns[0]
            else:
                yield Drop(
                    "row malformed", "cc3m", f"line {number}: {len(columns)} columns, expected caption<TAB>url"
                )
