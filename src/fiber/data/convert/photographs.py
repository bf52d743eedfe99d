"""Eight real photographs out of scikit-image, described by hand (fiber.data.photographs): no files needed."""

from __future__ import annotations

from functools import partial

from fiber.data import photographs
from fiber.data.convert.items import ConversionError, Made, RawDataset, Request
from fiber.data.records import Sample

SPLITS = ("all",)
OPTIONS = ()

LICENCE = "images: public domain and CC0, as listed in scikit-image's data/README; descriptions: this project"


def read(request: Request) -> RawDataset:
    """One record a photograph with captions, boxes, expressions, questions and hypotheses."""
    try:
        samples = list(photographs.photographs())
    except (ImportError, FileNotFoundError) as error:
        raise ConversionError(str(error)) from None
    return RawDataset(
        "photographs",
        request.split,
        LICENCE,
        {"converter": "photographs"},
        (Made(sample.record["image_id"], partial(_as_it_is, sample)) for sample in samples),
        len(samples),
        categories=photographs.categories(),
        answers=photographs.answers(),
    )


def _as_it_is(sample: Sample) -> Sample:
    return sample
