"""Small raw folders in the exact layout of every data set, dirt included, made on the fly.

Each builder writes a folder and says what converting it must give. Used by the converter tests, and by any test that
needs shards of every kind: ``made = build(name, folder)``, then ``make_shards.main(made.command(out))``. This folder
must be on sys.path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raw_boxes import (
    coco_detection,
    flickr30k_entities,
    instances,
    lvis,
    mdetr_flickr,
    mdetr_mixed,
    mdetr_refcoco,
    objects365,
    objects365_tsv,
    odinw,
    refcoco,
)  # fmt: skip
from raw_common import HEIGHT, TRUNCATED, WIDTH, Raw, put, write_image
from raw_texts import (
    cc3m_img2dataset,
    cc3m_tars,
    cc3m_vilt,
    coco_karpathy,
    coco_plain,
    flickr30k,
    nlvr2,
    nocaps,
    sbu,
    snli_ve,
    visual_genome,
    visual_genome_questions,
    vqav2,
)  # fmt: skip

__all__ = ["BUILDERS", "HEIGHT", "TRUNCATED", "WIDTH", "Raw", "build", "instances", "put", "write_image"]

BUILDERS: dict[str, Callable[[Path], Raw]] = {
    build.__name__: build
    for build in (
        coco_karpathy, coco_plain, flickr30k, visual_genome, visual_genome_questions, cc3m_img2dataset, cc3m_tars,
        cc3m_vilt, sbu, nocaps, vqav2, nlvr2, snli_ve, flickr30k_entities, mdetr_flickr, mdetr_mixed, mdetr_refcoco,
        refcoco, coco_detection, lvis, objects365, objects365_tsv, odinw,
    )
}  # fmt: skip


def build(name: str, folder: Path) -> Raw:
    """The raw folder of that name under ``folder``."""
    return BUILDERS[name](folder)
