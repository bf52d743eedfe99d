"""Images of results, drawn with Pillow alone: boxes with labels, a sentence with coloured phrases, captions."""

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]
MAX_SIDE = 1600  # larger images are reduced before drawing
MIN_SIDE = 320  # smaller ones enlarged, or a label would cover them


def draw_boxes(
    image: Image.Image,
    size: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    colours: Sequence[int] | None = None,
) -> Image.Image:
    """A copy of `image` with boxes [x0, y0, x1, y1], given in pixels of the image of `size` (width, height) that
    `image` shows, and their labels. `colours`: a number for each box (default: by label)."""
    canvas = _fit(image)
    if colours is None:
        order = list(dict.fromkeys(labels))
        colours = [order.index(label) for label in labels]
    pen, font = ImageDraw.Draw(canvas), _font(canvas)
    scale_x, scale_y = canvas.width / size[0], canvas.height / size[1]
    line = max(2, round(max(canvas.size) / 400))
    # The best box comes first and is drawn last, on top.
    for box, label, number in reversed(list(zip(boxes, labels, colours, strict=True))):
        colour = COLOURS[number % len(COLOURS)]
        x0, x1 = (min(max(x * scale_x, 0), canvas.width - 1) for x in sorted((box[0], box[2])))
        y0, y1 = (min(max(y * scale_y, 0), canvas.height - 1) for y in sorted((box[1], box[3])))
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=line)
        left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
        x = min(x0, max(canvas.width - (right - left) - 4, 0))
        y = y0 - (bottom - top) - 6 if y0 > bottom - top + 6 else y0 + line
        pen.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=colour)
        pen.text((x + 2 - left, y + 2 - top), label, fill=_ink(colour), font=font)
    return canvas


def draw_text(
    image: Image.Image, text: str, spans: Sequence[tuple[int, int]] = (), colours: Sequence[int] | None = None
) -> Image.Image:
    """A copy of `image` with `text` written below it, wrapped; the characters [start, end) of each span lie on a
    patch of that span's colour (default: its number), as in `draw_boxes`."""
    fitted = _fit(image)
    font, colours = _font(fitted), range(len(spans)) if colours is None else colours
    measure = ImageDraw.Draw(fitted)
    height = round(font.size * 1.5)
    placed: list[tuple[int, float, str, int]] = []  # line, x, word, first character
    line, x, position = 0, 4.0, 0
    text = re.sub(r"\s", " ", text)  # a generated text may have line breaks; places of characters stay
    for word in text.split(" "):
        width = measure.textlength(word + " ", font=font)
        if x + width > fitted.width and x > 4:
            line, x = line + 1, 4.0
        placed.append((line, x, word, position))
        x, position = x + width, position + len(word) + 1
    canvas = Image.new("RGB", (fitted.width, fitted.height + height * (line + 1) + 8), "white")
    canvas.paste(fitted)
    pen = ImageDraw.Draw(canvas)
    for line, x, word, position in placed:
        y = fitted.height + 4 + line * height
        for (start, end), number in zip(spans, colours, strict=True):
            first, last = max(start - position, 0), min(end - position, len(word))
            if first < last:
                left = x + measure.textlength(word[:first], font=font)
                right = x + measure.textlength(word[:last], font=font)
                pen.rectangle((left - 1, y, right + 1, y + height - 3), fill=COLOURS[number % len(COLOURS)])
        pen.text((x, y), word, fill="black", font=font)
    return canvas


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int = 5) -> Image.Image:
    """Thumbnails in rows with a label below each."""
    side = 256
    cells = []
    for image, label in zip(images, labels, strict=True):
        cell = Image.new("RGB", (side, side), "white")
        small = image.copy()
        small.thumbnail((side, side))
        cell.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
        cells.append(draw_text(cell, label))
    columns = min(columns, len(cells))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (columns * cells[0].width, sum(heights)), "white")
    for y, row in zip([sum(heights[:i]) for i in range(len(rows))], rows, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * cell.width, y))
    return sheet


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
