"""Drawings show boxes where they are, in the colour of their label, and colour the right words."""

import numpy as np
from PIL import Image, ImageColor

from fiber.images.draw import COLOURS, contact_sheet, draw_boxes, draw_text

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
