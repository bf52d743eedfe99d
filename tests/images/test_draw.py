"""Drawings show boxes where they are, in the colour of their label, and colour the right words."""

import numpy as np
import pytest
from PIL import Image, ImageColor
from scipy import ndimage

from fiber.images.draw import COLOURS, HIT, contact_sheet, draw_boxes, draw_text, tile

WHITE = Image.new("RGB", (400, 400), "white")


def count(image: Image.Image, colour: str) -> np.ndarray:
    """Rows and columns of the pixels of exactly this colour."""
    return np.argwhere((np.asarray(image) == ImageColor.getrgb(colour)).all(-1))


def test_a_box_is_drawn_where_it_is_whatever_the_size_of_the_image():
    # The image has 800 x 800 pixels; the image at hand is half of that.
    drawn = draw_boxes(WHITE, (800, 800), [[200, 300, 600, 700]], ["dog"])
    found = count(drawn, COLOURS[0])
    inside = found[found[:, 0] > 155]  # below the label, which stands on the upper edge
    assert (inside[:, 1].min(), inside[:, 1].max(), inside[:, 0].max()) == (100, 300, 350)
    assert len(count(drawn.crop((110, 160, 290, 340)), "#FFFFFF")) == 180 * 180  # nothing inside


def test_equal_labels_share_a_colour_and_odd_boxes_do_no_harm():
    boxes = [[10, 20, 60, 90], [100, 100, 150, 150], [300, 300, 280, 290], [-50, -50, 900, 900]]
    drawn = draw_boxes(WHITE, (400, 400), boxes, ["a", "b", "a", "a very long label that does not fit at all"])
    assert all(len(count(drawn, COLOURS[i])) for i in range(3))
    assert not len(count(drawn, COLOURS[3]))
    assert np.array_equal(np.asarray(WHITE), np.full((400, 400, 3), 255))  # the input stays as it is


def test_labels_cover_no_other_label_and_no_side_crosses_one():
    """Six boxes in one place: each label is whole, as large as where it stands alone."""
    size, box = (640, 480), [200, 200, 400, 300]
    ground = Image.new("RGB", size, "white")

    def patch(drawn: Image.Image, number: int) -> int:
        """Height of the largest run of a colour in rows at least 20 px wide."""
        pixels = (np.asarray(drawn) == ImageColor.getrgb(COLOURS[number])).all(-1)
        return int((pixels.sum(1) >= 20).sum())

    labels = [f"label {number}" for number in range(6)]
    boxes = [[x + 3 * number for x in box] for number in range(6)]
    together = draw_boxes(ground, size, boxes, labels)
    for number in range(6):
        alone = draw_boxes(ground, size, [boxes[number]], [labels[number]], [number])
        assert patch(together, number) >= patch(alone, number) - 4, number


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 480), (3840, 2160)])
def test_labels_are_readable_apart_and_whole_at_any_size(width, height):
    """Twelve objects in two heaps, one of them at the upper right corner. The labels' patches, the only ones of their
    colour, are as many connected areas as there are labels: none meets another, none is cut by the border."""
    random = np.random.default_rng(0)
    corners = np.concatenate([random.uniform(0.3, 0.4, (6, 2)), random.uniform(0.8, 0.85, (6, 2)) * (1, 0)])
    boxes = np.concatenate([corners, corners + 0.15], 1) * (width, height, width, height)
    labels = [f"cat {number / 12:.2f}" for number in range(12)]
    drawn = draw_boxes(Image.new("RGB", (width, height), "white"), (width, height), boxes.tolist(), labels,
                       hits=[True] * 12)  # fmt: skip
    patches, found = ndimage.label((np.asarray(drawn) == ImageColor.getrgb(HIT)).all(-1))
    large = [s for s in ndimage.find_objects(patches) if s[1].stop - s[1].start > 30]
    assert len(large) == 12
    widest = max(columns.stop - columns.start for _, columns in large)
    for rows, columns in large:
        assert rows.stop - rows.start >= 9 + 4  # letters of 9 px and the patch around them
        assert rows.stop - rows.start >= max(drawn.size) / 60  # and no smaller part of a large image
        # Whole: a patch cut by the border would be narrower than the others.
        assert columns.stop - columns.start >= widest - 6
    assert found < 12 * 12  # holes of letters at most


def test_a_label_longer_than_the_image_is_cut_with_an_ellipsis():
    drawn = draw_boxes(WHITE, (400, 400), [[300, 100, 390, 200]], ["a label that never ends " * 9], hits=[True])
    columns = count(drawn, HIT)[:, 1]
    assert columns.max() - columns.min() > 300
    # Its end is on the image: to the right of the last letter is a rim of the patch, and three dots before it.
    text = np.asarray(drawn.convert("L"))[85:99, 380:] > 200
    assert not text[:, -2:].any()
    assert text.any()


def test_a_sheet_has_its_note_once_in_letters_as_large_as_those_of_its_images():
    cell = Image.new("RGB", (320, 100), "grey")
    sheet, noted = tile([cell] * 8), tile([cell] * 8, note="dashed: true")
    assert noted.width == sheet.width
    assert noted.crop((0, 0, *sheet.size)).tobytes() == sheet.tobytes()
    rows = np.flatnonzero((np.asarray(noted.convert("L"))[sheet.height :] < 100).any(1))
    assert 9 <= rows.max() - rows.min() + 1 <= 16


def test_labels_stay_on_images_that_are_lower_than_a_label():
    drawn = draw_boxes(Image.new("RGB", (3200, 8), "white"), (3200, 8), [[0, 0, 3200, 8]], ["a wide river"])
    assert drawn.size == (1600, 4)


def test_no_boxes_and_empty_labels_draw_no_label():
    assert draw_boxes(WHITE, (400, 400), [], []).tobytes() == WHITE.tobytes()
    drawn = draw_boxes(WHITE, (400, 400), [[100, 100, 200, 200]], [""], dashed=[True])
    colour = count(drawn, COLOURS[0])
    assert colour.min() >= 98
    assert colour.max() <= 202


def test_line_breaks_of_a_generated_text_are_drawn_as_blanks():
    assert draw_text(WHITE, "a red\nring\ttop").tobytes() == draw_text(WHITE, "a red ring top").tobytes()


def test_text_is_wrapped_below_and_spans_are_coloured():
    sentence = "a red circle left of " + "many other things and " * 6 + "dogs"
    drawn = draw_text(WHITE, sentence, [(2, 12), (len(sentence) - 4, len(sentence))])
    assert drawn.width == 400
    assert drawn.height > 460  # several lines
    first, second = count(drawn, COLOURS[0]), count(drawn, COLOURS[1])
    assert first[:, 0].min() >= 400
    assert first[:, 0].max() < second[:, 0].min()  # the last word stands on a later line
    assert not len(count(draw_text(WHITE, sentence), COLOURS[0]))


def test_contact_sheets_hold_every_image():
    colours = ["red", "green", "blue"]
    sheet = contact_sheet([Image.new("RGB", (50, 80), c) for c in colours], colours, columns=2)
    assert all(len(count(sheet, c)) > 1000 for c in colours)
