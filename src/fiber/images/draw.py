"""Every drawing of the project, with Pillow alone: boxes with labels, sentences with coloured phrases, sheets."""

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]
HIT, MISS = "#1B7837", "#B2182B"  # labels of boxes that agree with the truth, and of those that do not
MAX_SIDE = 1600  # larger images are reduced before drawing
MIN_SIDE = 320  # smaller ones enlarged, or a label would cover them
GAP = 8  # px between the images of a sheet

Box = Sequence[float]  # [x0, y0, x1, y1]
Line = tuple[str, Sequence[tuple[int, int]], Sequence[int]]  # text, spans [start, end) of characters, their colours
Area = tuple[float, float, float, float]


def draw_boxes(
    image: Image.Image,
    size: tuple[int, int],
    boxes: Sequence[Box],
    labels: Sequence[str],
    colours: Sequence[int] | None = None,
    *,
    dashed: Sequence[bool] | None = None,
    hits: Sequence[bool | None] | None = None,
) -> Image.Image:
    """A copy of `image` with boxes [x0, y0, x1, y1], given in pixels of the image of `size` (width, height) that
    `image` shows, and their labels ("" = none).

    `colours`: a number per box (default: by label). `dashed`: boxes with dashed sides (default: none). `hits`: True
    or False puts the label on the colour HIT or MISS, None on that of the box. A label stands at a corner of its box
    where it covers no other label; where all corners are taken, at the nearest free place, with a line to its box.
    """
    canvas = _fit(image)
    if colours is None:
        order = list(dict.fromkeys(labels))
        colours = [order.index(label) for label in labels]
    dashed, hits = dashed or [False] * len(boxes), hits or [None] * len(boxes)
    pen, font = ImageDraw.Draw(canvas), _font(canvas)
    scale_x, scale_y = canvas.width / size[0], canvas.height / size[1]
    width = max(2, round(max(canvas.size) / 400))
    drawn = []
    for box, label, number, dash, hit in zip(boxes, labels, colours, dashed, hits, strict=True):
        x0, x1 = (min(max(x * scale_x, 0), canvas.width - 1) for x in sorted((box[0], box[2])))
        y0, y1 = (min(max(y * scale_y, 0), canvas.height - 1) for y in sorted((box[1], box[3])))
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(((x0, y0, x1, y1), label, colour, dash, colour if hit is None else HIT if hit else MISS))
    # The best box comes first and is drawn last, on top; its label is placed first, and no side crosses a label.
    for corners, _, colour, dash, _ in reversed(drawn):
        if dash:
            _dashed(pen, corners, colour, width)
        else:
            pen.rectangle(corners, outline=colour, width=width)
    _draw_labels(pen, drawn, canvas.size, width, font)
    return canvas


def draw_text(
    image: Image.Image, text: str, spans: Sequence[tuple[int, int]] = (), colours: Sequence[int] | None = None
) -> Image.Image:
    """A copy of `image` with `text` written below it, wrapped; the characters [start, end) of each span lie on a
    patch of that span's colour (default: its number), as in `draw_boxes`."""
    return draw_lines(image, [(text, spans, range(len(spans)) if colours is None else colours)])


def draw_lines(image: Image.Image, lines: Sequence[Line]) -> Image.Image:
    """`draw_text` of several texts, each on lines of its own."""
    fitted = _fit(image)
    return _with_lines(fitted, lines, _font(fitted))


def _with_lines(fitted: Image.Image, lines: Sequence[Line], font: ImageFont.FreeTypeFont) -> Image.Image:
    """`lines` in `font` below an image that keeps its size."""
    measure = ImageDraw.Draw(fitted)
    height = round(font.size * 1.5)
    placed: list[tuple[int, float, str, int, Line]] = []  # row, x, word, first character, its line
    row = -1
    for line in lines:
        row, x, position = row + 1, 4.0, 0
        # A generated text may have line breaks; places of characters stay.
        for word in re.sub(r"\s", " ", line[0]).split(" "):
            width = measure.textlength(word + " ", font=font)
            if x + width > fitted.width and x > 4:
                row, x = row + 1, 4.0
            placed.append((row, x, word, position, line))
            x, position = x + width, position + len(word) + 1
    canvas = Image.new("RGB", (fitted.width, fitted.height + height * (row + 1) + 8), "white")
    canvas.paste(fitted)
    pen = ImageDraw.Draw(canvas)
    for row, x, word, position, (_, spans, colours) in placed:
        y = fitted.height + 4 + row * height
        for (start, end), number in zip(spans, colours, strict=True):
            first, last = max(start - position, 0), min(end - position, len(word))
            if first < last:
                left = x + measure.textlength(word[:first], font=font)
                right = x + measure.textlength(word[:last], font=font)
                pen.rectangle((left - 1, y, right + 1, y + height - 3), fill=COLOURS[number % len(COLOURS)])
        pen.text((x, y), word, fill="black", font=font)
    return canvas


def tile(images: Sequence[Image.Image], columns: int = 4, note: str = "") -> Image.Image:
    """All images in rows on white, none reduced; `note` below them, once, in letters as large as theirs."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(image.height for image in row) for row in rows]
    width = max(sum(image.width + GAP for image in row) for row in rows)
    sheet, y = Image.new("RGB", (width, sum(heights) + GAP * len(rows)), "white"), 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for image in row:
            sheet.paste(image, (x, y))
            x += image.width + GAP
        y += height + GAP
    return _with_lines(sheet, [(note, (), ())], _font(max(images, key=lambda image: image.width))) if note else sheet


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int = 5) -> Image.Image:
    """Images of one size, small ones enlarged, in rows with a label below each."""
    cells = [
        draw_text(ImageOps.pad(image.convert("RGB"), (MIN_SIDE, MIN_SIDE), color="white"), label)
        for image, label in zip(images, labels, strict=True)
    ]
    return tile(cells, columns)


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    drawn: Sequence[tuple[Area, str, str, bool, str]],
    canvas: tuple[int, int],
    width: int,
    font: ImageFont.FreeTypeFont,
) -> None:
    """The label of each box of `drawn` (box, label, its colour, dashed, ground of its label), lines first: none
    crosses a label."""
    taken: list[Area] = []
    patches = []
    for corners, label, colour, _, ground in drawn:
        if not label:
            continue
        label = _shortened(label, canvas[0] - 6, font)
        left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
        area = _place(corners, (right - left + 4, bottom - top + 4), canvas, width, taken)
        taken.append(area)
        patches.append((area, label, ground, (area[0] + 2 - left, area[1] + 2 - top)))
        if (
            area[0] > corners[2] + 3
            or corners[0] > area[2] + 3
            or area[1] > corners[3] + 3
            or corners[1] > area[3] + 3
        ):
            ends = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (area, corners)]
            pen.line(ends, fill=colour, width=width)
    for area, label, ground, at in patches:
        pen.rectangle(area, fill=ground)
        pen.text(at, label, fill=_ink(ground), font=font)


def _place(box: Area, label: tuple[float, float], canvas: tuple[int, int], width: int, taken: Sequence[Area]) -> Area:
    """Where a label of (width, height) covers none of the labels that stand: above its box, inside it, below it, at
    the left or the right, else the nearest place of the canvas, rows of labels tried; on a canvas that is full, where
    it covers least."""
    x0, y0, x1, y1 = box
    wide, high = label
    last = max(canvas[0] - wide - 1, 0), max(canvas[1] - high - 1, 0)

    def area(x: float, y: float) -> Area:
        left, top = round(min(max(x, 0), last[0])), round(y)
        return left, top, left + wide, top + high

    corners = [
        area(x, y)
        for y in (y0 - high - 2, y0 + width, y1 + 2, y1 - high - width)
        for x in (x0, x1 - wide)
        if 0 <= y <= last[1]
    ]
    best = min(corners or [area(x0, 0)], key=lambda one: _covered(one, taken))
    if not _covered(best, taken):
        return best
    rows = range(0, int(last[1]) + 1, max(1, round(high) + 2))
    free = [area(x, y) for y in rows for x in (x0, x1 - wide, *range(0, int(last[0]) + 1, max(1, round(high))))]
    middle = (x0 + x1) / 2, (y0 + y1) / 2
    free = [one for one in free if not _covered(one, taken)]
    return min(
        free, key=lambda one: abs(one[0] + wide / 2 - middle[0]) + abs(one[1] + high / 2 - middle[1]), default=best
    )


def _covered(area: Area, taken: Sequence[Area]) -> float:
    """Pixels of `taken`, and of a rim of one pixel around them, that an area covers."""
    return sum(
        max(0, min(area[2], other[2]) - max(area[0], other[0]) + 2)
        * max(0, min(area[3], other[3]) - max(area[1], other[1]) + 2)
        for other in taken
    )


def _shortened(label: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """The label, cut to `width` px and with an ellipsis where it is longer."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…"


def _dashed(pen: ImageDraw.ImageDraw, box: Area, colour: str, width: int) -> None:
    """A dashed rectangle, on a thin dark one so that it shows on any ground."""
    x0, y0, x1, y1 = box
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        at = 0.0
        while at < length:
            ends = [
                tuple(a + (b - a) * t / length for a, b in zip(start, end, strict=True))
                for t in (at, min(at + 4 * width, length))
            ]
            pen.line(ends, fill="black", width=width + 2)
            pen.line(ends, fill=colour, width=width)
            at += 8 * width


def _fit(image: Image.Image) -> Image.Image:
    """An RGB copy whose long side lies between MIN_SIDE and MAX_SIDE."""
    long = max(image.size)
    scale = min(MAX_SIDE / long, max(1.0, MIN_SIDE / long))
    size = [max(1, round(side * scale)) for side in image.size]
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _font(image: Image.Image) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=max(13, round(max(image.size) / 50)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow ships one
    return font


def _ink(colour: str) -> str:
    """Black or white, whichever reads better on `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
