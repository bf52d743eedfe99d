"""Images of what a detector finds: the image with found boxes (solid) and true ones (dashed), below it the caption
with its phrases in the colours of their boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import nms

from fiber.data.prompts import PromptBuilder
from fiber.data.records import Record
from fiber.data.shards import ShardSet
from fiber.evaluation.regions import Classes, EvalImage, Phrases, predict, questions
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import Detections
from fiber.images.codec import decode_pil
from fiber.images.draw import COLOURS, draw_boxes, draw_text

OVERLAP = 0.6  # IoU above which two boxes stand on one place
MOST = 30  # boxes drawn in an image: with a thousand classes asked for, more would hide it
LEGEND = "solid: found, with its score; dashed: true"
Box = Sequence[float]


@dataclass
class Shown:
    """One colour of a figure: characters [start, end) of the text, found boxes with their labels, true boxes; all in
    pixels of the stored image."""

    span: tuple[int, int]
    found: list[Box] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    true: list[Box] = field(default_factory=list)


def draw_regions(image: Image.Image, text: str, shown: Sequence[Shown]) -> Image.Image:
    """The figure of one image; each of `shown` has a colour of its own, up to seven."""
    boxes = [box for one in shown for box in one.found]
    labels = [label for one in shown for label in one.labels]
    colours = [number for number, one in enumerate(shown) for _ in one.found]
    canvas = draw_boxes(image, image.size, boxes, labels, colours)
    scale = canvas.width / image.width
    for number, one in enumerate(shown):
        for box in one.true:
            _dashed(canvas, [side * scale for side in box], COLOURS[number % len(COLOURS)])
    return draw_text(draw_text(canvas, text, [one.span for one in shown]), LEGEND)


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
) -> list[Image.Image]:
    """Figures of `count` images of a set, evenly spaced.

    captions, expressions: the best box of each phrase of the image's first text that has any. boxes: the best
    detection of every place that has one with a score of at least `threshold`, MOST at most.
    """
    asked, training, drawn = questions(shards, field, builder, chunk_classes), model.training, []
    usable = np.flatnonzero(shards.counts(field))
    chosen = usable[np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)] if count else []
    model.eval()
    for index in map(int, chosen):
        stored = shards.read(index)
        sample = image(stored, field, 0, np.random.default_rng(0))
        ((_, found),) = predict(model, [sample], asked, pairs=8)
        if field == "boxes":
            names = {category["id"]: category["name"] for category in shards.categories}
            assert isinstance(asked, Classes)
            text, shown = _classes(stored.record, names, asked.ids, found, threshold)
        else:
            assert isinstance(asked, Phrases)
            text, shown = _phrases(stored.record, field, asked.targets(stored.record), found)
        drawn.append(draw_regions(decode_pil(stored.images[0][1]), text, shown))
    model.train(training)
    return drawn


def tile(images: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """All images in rows on white, none reduced."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(image.height for image in row) for row in rows]
    width = max(sum(image.width + 8 for image in row) for row in rows)
    sheet, y = Image.new("RGB", (width, sum(heights) + 8 * len(rows)), "white"), 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for image in row:
            sheet.paste(image, (x, y))
            x += image.width + 8
        y += height + 8
    return sheet


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
        shown.append(Shown((start, len(text)), boxes[own].tolist(), tags, true))
    return text or "nothing", shown


def _dashed(canvas: Image.Image, box: Box, colour: str) -> None:
    """A dashed rectangle, on a thin dark one so that it shows on any ground."""
    pen, width = ImageDraw.Draw(canvas), max(2, round(max(canvas.size) / 200))
    dash = 4 * width
    x0, y0, x1, y1 = box
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        for at in np.arange(0, length, 2 * dash):
            ends = [
                tuple(a + (b - a) * t / length for a, b in zip(start, end, strict=True))
                for t in (at, min(at + dash, length))
            ]
            pen.line(ends, fill="black", width=width + 2)
            pen.line(ends, fill=colour, width=width)
