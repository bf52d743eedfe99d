"""Multi-scale test by hand: which boxes a size answers for, mirroring, voting; and one size alone changes nothing."""

from types import SimpleNamespace

import pytest
import torch
from test_regions import detector, scenes, tokenizer  # noqa: F401 (fixtures)

from fiber.config.stage2 import RegionConfig, RegionEvalConfig
from fiber.data.prompts import PromptBuilder
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.evaluation.multi_scale import (
    RELEASE_SCALES,
    MultiScale,
    Scale,
    in_range,
    stored_pixels,
    views,
    vote_boxes,
)
from fiber.evaluation.predictions import read_predictions
from fiber.evaluation.region_images import EvalImage
from fiber.evaluation.regions import evaluate_regions
from fiber.fine.postprocess import Detections

IMAGE = torch.arange(3 * 20 * 40, dtype=torch.float32).view(3, 20, 40).to(torch.uint8)


def found(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))


def test_the_numbers_are_the_releases() -> None:
    """TEST.SCALES, RANGES, MAX_SIZE, FLIP and TH of its defaults.py."""
    shorts = (400, 500, 600, 640, 700, 900, 1000, 1100, 1200, 1300, 1400, 1800)
    low = (96, 96, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0)
    high = (10000,) * 7 + (256, 256, 192, 192, 96)
    assert tuple((s.short, s.low, s.high) for s in RELEASE_SCALES) == tuple(zip(shorts, low, high, strict=True))
    assert (MultiScale().longest, MultiScale().flip, MultiScale().overlap) == (2500, True, 0.6)


def test_a_size_answers_for_areas_strictly_between_its_limits() -> None:
    """Corners are inclusive: [0, 0, 3, 3] has 4 x 4 pixels."""
    squares = found(*(([0.0, 0, side, side], 0.5, side) for side in range(2, 9)))
    assert in_range(squares, Scale(64, low=4, high=8)).labels.tolist() == [4, 5, 6]
    wide = found(([0.0, 0, 1, 24], 0.5, 0), ([0.0, 0, 1, 6], 0.5, 1))  # 2 x 25 and 2 x 7
    assert in_range(wide, Scale(64, low=4, high=8)).labels.tolist() == [0]


def test_views_keep_the_aspect_and_the_longest_side() -> None:
    how = MultiScale((Scale(10), Scale(40)), longest=60)
    seen = [(tuple(pixels.shape[1:]), scale.short, mirrored) for pixels, scale, mirrored in views(IMAGE, how)]
    assert seen == [((10, 20), 10, False), ((10, 20), 10, True), ((30, 60), 40, False), ((30, 60), 40, True)]
    whole, mirrored = (pixels for pixels, *_ in views(IMAGE, MultiScale((Scale(20),))))
    assert torch.equal(whole, IMAGE)
    assert torch.equal(mirrored, IMAGE.flip(2))


def test_the_sizes_of_a_run_take_the_place_of_the_releases() -> None:
    def asked(**keys: object) -> MultiScale | None:
        config = SimpleNamespace(regions=RegionConfig(), eval=RegionEvalConfig(**keys))  # type: ignore[arg-type]
        return EvalImage.of(config).multi_scale  # type: ignore[arg-type]

    assert asked() is None
    assert asked(multi_scale=True) == MultiScale()
    assert asked(scales=(288, 320)) == MultiScale((Scale(288), Scale(320)), longest=1333)


def test_boxes_come_back_from_the_mirror_and_the_size() -> None:
    """On a view of 80 x 40 the columns 10 to 19 are, unmirrored, 60 to 69; the stored image is half as large."""
    box = found(([10.0, 4, 19, 8], 0.5, 0))
    assert stored_pixels(box, (80, 40), IMAGE, True).boxes.tolist() == [[30, 2, 34.5, 4]]
    assert stored_pixels(box, (80, 40), IMAGE, False).boxes.tolist() == [[5, 2, 9.5, 4]]
    pixel = torch.zeros(1, 4, 8)
    pixel[0, 1, 2] = 1  # a box drawn on the mirrored image covers the same pixel of the image
    seen = pixel.flip(2)[0].nonzero()[0].tolist()
    row, column = seen
    back = stored_pixels(found(([float(column), row, column, row], 1.0, 0)), (8, 4), pixel, True).boxes
    assert back.tolist() == [[2, 1, 2, 1]]


def test_boxes_of_a_class_vote_by_their_scores() -> None:
    """10 x 10 pixels against 10 x 8: IoU 0.8. The mean of y1, by scores 0.6 and 0.2: (0.6 * 9 + 0.2 * 7) / 0.8."""
    merged = vote_boxes(
        found(
            ([0.0, 0, 9, 7], 0.2, 3),
            ([0.0, 0, 9, 9], 0.6, 3),
            ([0.0, 0, 9, 9], 0.5, 1),  # another class
            ([50.0, 0, 59, 9], 0.55, 3),  # another place
        ),
        0.8,
    )
    assert merged.scores.tolist() == pytest.approx([0.6, 0.55, 0.5])
    assert merged.labels.tolist() == [3, 3, 1]
    assert merged.boxes.tolist() == [pytest.approx(b) for b in ([0, 0, 9, 8.5], [50, 0, 59, 9], [0, 0, 9, 9])]
    apart = vote_boxes(found(([0.0, 0, 9, 7], 0.2, 3), ([0.0, 0, 9, 9], 0.6, 3)), 0.81)
    assert apart.boxes.tolist() == [[0, 0, 9, 9], [0, 0, 9, 7]]
    nothing = vote_boxes(Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)), 0.6)
    assert len(nothing.scores) == 0


@pytest.mark.parametrize("field", ["boxes", "captions"])
def test_one_size_alone_is_the_plain_evaluation(scenes, tokenizer, tmp_path, field: str) -> None:  # noqa: F811
    words, shards = load_tokenizer(tokenizer), ShardSet(scenes)
    model, builder = detector(len(words)), PromptBuilder(words, 48)
    alone = MultiScale((Scale(64, high=1e5),), longest=128, flip=False, vote=False)
    figures, rows = [], []
    for name, how in (("plain", None), ("multi", alone)):
        folder = tmp_path / name
        figures.append(
            evaluate_regions(model, builder, shards, field, EvalImage(64, 128, how), folder=folder, batch=4)
        )
        rows.append(list(read_predictions(folder / f"scenes_{field}.jsonl")))
    assert figures[0] == pytest.approx(figures[1], abs=1e-9)
    assert len(rows[0]) == len(rows[1]) > 10
    if field == "boxes":
        for plain, multi in zip(*rows, strict=True):
            assert plain["bbox"] == pytest.approx(multi["bbox"], abs=0.011)


def test_mirrored_and_larger_views_find_what_they_show(scenes, tokenizer, tmp_path) -> None:  # noqa: F811
    """With both: still boxes within the image, each class once a place, and other figures than without."""
    words, shards = load_tokenizer(tokenizer), ShardSet(scenes)
    model, builder = detector(len(words)), PromptBuilder(words, 48)
    image = EvalImage(64, 128, MultiScale((Scale(48), Scale(64)), longest=128))
    figures = evaluate_regions(model, builder, shards, "boxes", image, folder=tmp_path)
    assert 0 <= figures["ap"] <= 1
    sizes = {shards.record(i)["image_id"]: shards.record(i) for i in range(len(shards))}
    for row in read_predictions(tmp_path / "scenes_boxes.jsonl"):
        record, (x, y, width, height) = sizes[row["image_id"]], row["bbox"]
        assert x >= -0.01
        assert y >= -0.01
        assert x + width <= record["width"] + 0.01
        assert y + height <= record["height"] + 0.01
