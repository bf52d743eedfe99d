"""Images of what a detector finds: the image with found boxes (solid) and true ones (dashed), below it the caption
with its phrases in the colours of their boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from fiber.data.prompts import PromptBuilder
from fiber.data.records import Record
from fiber.data.shards import ShardSet
from fiber.errors import SampleFault, ShardError
from fiber.evaluation.example_regions import example_samples
from fiber.evaluation.metrics.grounding_recall import iou
from fiber.evaluation.region_images import EvalImage
from fiber.evaluation.regions import Classes, Phrases, predict, questions
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import Detections
from fiber.images.codec import decode_pil
from fiber.images.draw import Box, Line, draw_boxes, draw_lines
from fiber.processor import nms

OVERLAP = 0.6  # IoU above which two boxes stand on one place
MOST = 30  # boxes drawn in an image: with a thousand classes asked for, more would hide it
HIT_OVERLAP = 0.5  # IoU with a true box of its phrase or class from which a found box is a hit
LEGEND = "solid: found, with its score (green: hit, red: wrong); dashed: true (red: missed)"


@dataclass
class Shown:
    """One colour of a figure: characters [start, end) of the text, found boxes with their labels, true boxes; all in
    pixels of the stored image. `every`: each true box is to be found (of a phrase one of them will do)."""

    span: tuple[int, int]
    found: list[Box] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    true: list[Box] = field(default_factory=list)
    every: bool = False


def draw_regions(image: Image.Image, text: str, shown: Sequence[Shown], legend: bool = True) -> Image.Image:
    """The figure of one image; each of `shown` has a colour of its own, up to seven. `legend`: whether it stands
    below, which a sheet of several figures does once for all."""
    drawn: list[tuple[Box, str, int, bool, bool | None]] = []
    for number, one in enumerate(shown):
        hits, met = [False] * len(one.found), [False] * len(one.true)
        if one.found and one.true:
            overlaps = iou(np.array(one.found, float), np.array(one.true, float))
            hits, met = ((overlaps.max(axis) >= HIT_OVERLAP).tolist() for axis in (1, 0))
        if any(hits) and not one.every:
            met = [True] * len(met)
        drawn += [
            (box, label, number, False, hit) for box, label, hit in zip(one.found, one.labels, hits, strict=True)
        ]
        drawn += [(box, "" if hit else "missed", number, True, hit) for box, hit in zip(one.true, met, strict=True)]
    drawn.sort(key=lambda entry: not entry[3])  # first means on top: a true box shows over one that meets it
    boxes, labels, colours, dashed, marks = zip(*drawn, strict=True) if drawn else [()] * 5
    canvas = draw_boxes(image, image.size, boxes, labels, colours, dashed=dashed, hits=marks)
    below: list[Line] = [(text, [one.span for one in shown], range(len(shown)))]
    return draw_lines(canvas, [*below, (LEGEND, (), ())] if legend else below)


def draw_predictions(
    model: FiberDetector,
    builder: PromptBuilder,
    shards: ShardSet,
    field: str,
    image: EvalImage,
    *,
    count: int = 8,
    threshold: float = 0.3,
    chunk_classes: int | None = None,
    legend: bool = True,
) -> list[Image.Image]:
    """Figures of `count` images of a set, evenly spaced; `legend` as in `draw_regions`.

    captions, expressions: the best box of each phrase of the image's first text that has any. boxes: the best
    detection of every place that has one with a score of at least `threshold`, MOST at most. Raises ShardError where
    one of the images cannot be used.
    """
    asked, training, drawn = questions(shards, field, builder, chunk_classes), model.training, []
    model.eval()
    for index in example_samples(shards, field, count):
        try:
            stored = shards.read(index)
            sample = image(stored, field, 0, np.random.default_rng(0))
        except SampleFault as fault:
            raise ShardError("{}/{}, key {!r}: {}".format(shards.where, *shards.place(index), fault)) from None
        ((_, found),) = predict(model, [sample], asked, pairs=8, multi_scale=image.multi_scale)
        if field == "boxes":
            names = {category["id"]: category["name"] for category in shards.categories}
            assert isinstance(asked, Classes)
            text, shown = _classes(stored.record, names, asked.ids, found, threshold)
        else:
            assert isinstance(asked, Phrases)
            text, shown = _phrases(stored.record, field, asked.targets(stored.record), found)
        drawn.append(draw_regions(decode_pil(stored.images[0][1]), text, shown, legend))
    model.train(training)
    return drawn


def _phrases(record: Record, field: str, targets: list, found: Detections) -> tuple[str, list[Shown]]:
    """The first text that is asked about, with its phrases."""
    shown: list[Shown] = []
    if not targets:
        return "", shown
    first = targets[0]
    for place, (identity, text, spans) in enumerate(targets):
        if text != first[1] or identity.get("caption") != first[0].get("caption"):
            break
        if field == "captions":
            boxes = record["captions"][identity["caption"]]["phrases"][identity["phrase"]]["boxes"]
        else:
            boxes = [record["expressions"][place]["box"]]
        one = Shown(tuple(spans[0]), true=[record["boxes"][i]["box"] for i in boxes])
        own = found.labels == place
        if own.any():
            one.found, one.labels = found.boxes[own][:1].tolist(), [f"{found.scores[own][0]:.2f}"]
        shown.append(one)
    return first[1], shown


def _classes(
    record: Record, names: dict[int, str], ids: list[int], found: Detections, threshold: float
) -> tuple[str, list[Shown]]:
    """Every class that is there or found, in the order of the set; of boxes on one place the best, whatever class."""
    sure = found.best(int((found.scores >= threshold).sum()))
    best = nms(sure.boxes, sure.scores, OVERLAP)[:MOST] if len(sure.scores) else torch.zeros(0, dtype=torch.int64)
    boxes, scores = sure.boxes[best], sure.scores[best]
    labels = [ids[label] for label in sure.labels[best].tolist()]
    present = [box["category"] for box in record["boxes"]]
    text, shown = "", []
    for category in sorted({*labels, *present}):
        start = len(text) + (2 if text else 0)
        text = f"{text}, {names[category]}" if text else names[category]
        own = torch.tensor([label == category for label in labels], dtype=torch.bool)
        tags = [f"{names[category]} {score:.2f}" for score in scores[own].tolist()]
        true = [box["box"] for box in record["boxes"] if box["category"] == category]
        shown.append(Shown((start, len(text)), boxes[own].tolist(), tags, true, every=True))
    return text or "nothing", shown
