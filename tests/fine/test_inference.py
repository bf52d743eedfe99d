"""What is found in an image depends on no neighbour, batch, rank, chunk or order of the classes.

Words of a real prompt see each other, so a class's score depends on the classes beside it, as in the release. Here
the text tower is made to read every token by itself: what is left to differ is what must not, the bookkeeping of
prompts, chunks, padding, suppression and merging.
"""

import pytest
import torch
from tiny_detector import LIMIT, tiny_detector
from torch import Tensor
from transformers import RobertaTokenizerFast

from fiber.data.prompts import PromptBuilder
from fiber.fine.inference import Query, run_queries
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import DETECTION, BoxSelection, Detections

NAMES = [f"{colour} {shape}" for colour in ("red", "blue", "green") for shape in ("cat", "dogs", "light", "circle")]
SIZES = [(64, 64), (40, 90), (64, 64), (50, 60), (33, 31)]
ALL = BoxSelection(threshold=DETECTION.threshold, top=10**6, keep=10**6)  # cuts would fall differently on chunks


@pytest.fixture(scope="module")
def model() -> FiberDetector:
    """A real detector, biased to fire, whose tokens see the image but not each other, and whose image sees no
    token."""
    model = tiny_detector().eval()
    backbone = model.backbone
    with torch.no_grad():
        model.head.bias += 4
        model.head.project_text.weight *= 20
        for blind in (backbone.text.embeddings.position, *(layer.output for layer in backbone.text.layers)):
            for parameter in blind.parameters():
                parameter.zero_()
        for pair in backbone.fusion.image_to_text:
            pair.gate.zero_()
    return model


@pytest.fixture(scope="module")
def builder(tokenizer: RobertaTokenizerFast) -> PromptBuilder:
    """With a blank before the first word of a caption as well: a class reads the same wherever it stands."""
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    yield PromptBuilder(tokenizer, LIMIT)
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = False


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in SIZES]


def ask(
    model: FiberDetector,
    builder: PromptBuilder,
    images: list[Tensor],
    names: list[str] = NAMES,
    chunk: int | None = None,
    pairs: int = 8,
    batch: int = 5,
) -> list[dict[str, Detections]]:
    """What is found in each image, by class name, `batch` images a search."""
    prompts, results = builder.chunks(names, chunk), []
    for start in range(0, len(images), batch):
        asked = [Query(x, (x.shape[2] * 2, x.shape[1] * 3), prompts) for x in images[start : start + batch]]
        text = model.encode_prompts(prompts) if pairs > 1 else None  # a reading of one's own, or the search's
        for found in run_queries(model, asked, ALL, pairs=pairs, text=text):
            assert (found.scores.diff() <= 0).all()
            own = [found.labels == label for label in range(len(names))]
            results.append(
                {n: Detections(found.boxes[m], found.scores[m], n) for n, m in zip(names, own, strict=True)}
            )
    return results


def assert_same(results: list[dict[str, Detections]], expected: list[dict[str, Detections]]) -> None:
    for one, other in zip(results, expected, strict=True):
        for name in NAMES:
            torch.testing.assert_close(one[name].scores, other[name].scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(one[name].boxes, other[name].boxes, atol=1e-2, rtol=0)


@pytest.fixture(scope="module")
def expected(model: FiberDetector, builder: PromptBuilder, images: list[Tensor]) -> list[dict[str, Detections]]:
    """Each image for itself, as many classes a prompt as fit it."""
    assert 1 < len(builder.chunks(NAMES)) < len(NAMES)
    found = ask(model, builder, images, batch=1)
    for one in found:
        assert min(len(own.scores) for own in one.values()) > 3
        best = [float(own.scores[0]) for own in one.values()]
        assert max(best) - min(best) > 1e-3  # the words matter
    return found


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunk_size_changes_nothing(model, builder, images, expected, chunk: int) -> None:
    assert_same(ask(model, builder, images, chunk=chunk), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_class_order_changes_nothing(model, builder, images, expected, seed: int) -> None:
    order = torch.randperm(len(NAMES), generator=torch.Generator().manual_seed(seed)).tolist()
    assert_same(ask(model, builder, images, [NAMES[i] for i in order], chunk=3), expected)


@pytest.mark.parametrize(("batch", "pairs"), [(2, 1), (5, 3), (5, 100)])
def test_batches_change_nothing(model, builder, images, expected, batch: int, pairs: int) -> None:
    assert_same(ask(model, builder, images, batch=batch, pairs=pairs), expected)


def test_boxes_lie_in_the_wanted_size_and_limits_hold(model, builder, images, expected) -> None:
    """A prompt gives at most `selection.keep`, their union at most `keep`; a search without prompts finds nothing."""
    prompts = builder.chunks(NAMES, 4)
    asked = [Query(images[1], (900, 400), prompts), Query(images[0], (64, 64), [])]
    few = BoxSelection(threshold=DETECTION.threshold, top=10**6, keep=20)
    found, nothing = run_queries(model, asked, few)
    assert len(found.scores) == 20 * len(prompts)
    assert len(nothing.scores) == 0
    (best,) = run_queries(model, asked[:1], few, keep=30)
    torch.testing.assert_close(best.scores, found.scores[:30])
    torch.testing.assert_close(best.boxes, found.boxes[:30])
    wide = expected[1][NAMES[int(best.labels[0])]]  # the same box at 180 x 120
    torch.testing.assert_close(best.boxes[0], wide.boxes[0] * torch.tensor([5, 400 / 120] * 2), atol=0.1, rtol=0)
