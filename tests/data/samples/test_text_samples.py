"""Samples of the fine-tuned tasks: targets, labels, mirrors, what is left out, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from shard_sets import jpeg

from fiber.data.collate import collate
from fiber.data.convert.writer import write_dataset
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.records import LABELS, Sample
from fiber.data.samples.text import EvalTextSample, ImageTransform, TextSample
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shards import ShardSet
from fiber.errors import DataFaultError, SampleFault
from fiber.images.resize import load_image
from fiber.tasks.classifier import LabelledSample
from fiber.tasks.vqa import VqaSample

ANSWERS = {"yes": 0, "no": 1, "red": 2}
PLAIN = ImageTransform(32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return train_bpe(["is it red? the dog is left of a tree"], 280, tmp_path_factory.mktemp("tokenizer"))


def sample(images: int = 1, **fields: list) -> Sample:
    record = {"image_id": "p_1", "width": 30, "height": 20, "source": "test"} | fields
    return Sample("p1", [("jpg", jpeg(40 + 100 * i)) for i in range(images)], record)


def question(*answers: tuple[str, float], text: str = "is it red?", **more: object) -> dict:
    return {"id": 1, "question": text, "answers": [{"answer": a, "score": s} for a, s in answers]} | more


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_soft_targets_stand_at_the_class_of_their_answer_and_others_are_counted(tokenizer) -> None:
    made = VqaSample(tokenizer, PLAIN, 8, answers=ANSWERS)(
        sample(questions=[question(("red", 0.9), ("crimson", 0.3), ("no", 0.3))]), "questions", 0, rng()
    )
    torch.testing.assert_close(made["targets"], torch.tensor([0.0, 0.3, 0.9]))
    assert made["answers_outside"] == 1
    assert made["images"].shape == (3, 32, 32)
    assert made["ids"].shape == made["mask"].shape == (8,)


CLASSES_OF = {"hypotheses": LABELS, "statements": (False, True)}


@pytest.mark.parametrize(("field", "label", "number"), [("hypotheses", "entailment", 2), ("statements", True, 1)])
def test_labels_are_numbers_in_class_order_and_a_pair_has_two_images(tokenizer, field, label, number) -> None:
    images = 2 if field == "statements" else 1
    made = LabelledSample(tokenizer, PLAIN, 8, images, classes=CLASSES_OF[field])(
        sample(images, **{field: [{"text": "a red dog", "label": label, "id": "x"}]}), field, 0, rng()
    )
    assert made["labels"] == number
    if images == 2:
        assert made["images"].shape == (2, 3, 32, 32)
        assert made["images"][0].float().mean() < made["images"][1].float().mean()  # first, second


def test_evaluation_gets_the_annotation_itself(tokenizer) -> None:
    asked = question(("yes", 1.0), raw_answers=["yes"] * 10)
    made = EvalTextSample(tokenizer, PLAIN, 8)(sample(questions=[asked]), "questions", 0, rng())
    assert made["annotation"] == asked
    assert made["image"] == "p_1"


FAULTS = {
    "vqa": (
        lambda t: VqaSample(t, PLAIN, 8, answers=ANSWERS),
        "questions",
        question(("blue", 1.0)),
        "no_known_answer",
    ),
    "vqa without answers": (
        lambda t: VqaSample(t, PLAIN, 8, answers=ANSWERS),
        "questions",
        {"id": 1, "question": "is it?"},
        "no_known_answer",
    ),
    "empty question": (
        lambda t: VqaSample(t, PLAIN, 8, answers=ANSWERS),
        "questions",
        question(("yes", 1.0), text=" "),
        "empty_text",
    ),
    "entailment": (
        lambda t: LabelledSample(t, PLAIN, 8, classes=LABELS),
        "hypotheses",
        {"text": "a", "label": "-"},
        "no_label",
    ),
    "nlvr2 without label": (
        lambda t: LabelledSample(t, PLAIN, 8, 2, classes=(False, True)),
        "statements",
        {"text": "a", "id": "x"},
        "no_label",
    ),
    "nlvr2 with one image": (
        lambda t: LabelledSample(t, PLAIN, 8, 2, classes=(False, True)),
        "statements",
        {"text": "a", "id": "x", "label": True},
        "missing_image",
    ),
    "retrieval": (lambda t: TextSample(t, PLAIN, 8), "captions", {"caption": "no text"}, "missing_field"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_be_used_has_a_reason(tokenizer, case: str) -> None:
    make, field, annotation, reason = FAULTS[case]
    with pytest.raises(SampleFault) as fault:
        make(tokenizer)(sample(**{field: [annotation]}), field, 0, rng())
    assert fault.value.reason == reason


@pytest.mark.parametrize("augmented", [False, True])
def test_a_damaged_image_is_a_fault_of_every_sample(tokenizer, augmented: bool) -> None:
    broken = sample(captions=[{"text": "a dog"}])
    broken.images[0] = ("jpg", jpeg(3)[:100])
    with pytest.raises(SampleFault) as fault:
        TextSample(tokenizer, ImageTransform(32, augmented=augmented), 8)(broken, "captions", 0, rng())
    assert fault.value.reason == "undecodable_image"


def halves() -> bytes:
    """A dark left and a light right half."""
    return simplejpeg.encode_jpeg(np.repeat([[[10] * 3] * 32 + [[240] * 3] * 32], 64, axis=0).astype(np.uint8))


@pytest.mark.parametrize(
    ("text", "flip_sides", "mirrored"),
    [("the dog is left of a tree", False, False), ("the dog is left of a tree", True, True), ("a dog", False, True)],
)
def test_mirrors_respect_left_and_right_unless_told_otherwise(text: str, flip_sides: bool, mirrored: bool) -> None:
    image, data = ImageTransform(64, augmented=True, flip_sides=flip_sides), halves()
    lighter = []
    for seed in range(40):
        pixels = image(data, text, np.random.default_rng(seed)).float()
        lighter.append(bool(pixels[:, :, :16].mean() > pixels[:, :, -16:].mean()))
    assert any(lighter) == mirrored
    assert not all(lighter)


def test_without_augmentation_the_image_is_only_resized(tokenizer) -> None:
    data = halves()
    for pil_resize in (False, True):
        assert torch.equal(
            ImageTransform(48, pil_resize=pil_resize)(data, "a dog", rng()), load_image(data, 48, pil_resize)
        )
    augmented = [
        ImageTransform(48, pil_resize=pil_resize, augmented=True)(data, "a dog", rng())
        for pil_resize in (False, True)
    ]
    assert (augmented[0].float() - augmented[1].float()).abs().mean() < 2  # two decoders, one crop
    assert not torch.equal(augmented[0], load_image(data, 48))


# ---------------------------------------------------------------------------------------------- in the stream


def questions_set(folder: Path, make: Callable[[int], dict], count: int, name: str) -> ShardSet:
    samples = []
    for i in range(count):
        one = sample(questions=[make(i)])
        samples.append(Sample(f"{name}{i}", one.images, one.record | {"image_id": f"{name}_{i}"}))
    about = {"split": "train", "provenance": "drawn", "licence": "none", "answers": list(ANSWERS)}
    write_dataset(samples, folder / name, name=name, **about)
    return ShardSet(folder / name)


def test_questions_without_a_known_answer_are_left_out_and_reported_but_stop_nothing(tokenizer, tmp_path) -> None:
    known = questions_set(tmp_path, lambda i: question(("yes" if i % 3 else "azure", 1.0)), 30, "q")
    stream = MixedStream([Source(known, "questions")], seed=0, global_batch=10)
    loader = make_loader(stream, VqaSample(tokenizer, PLAIN, 8, answers=ANSWERS), collate, micro_batch=10,
                         max_fault_share=0.0)  # fmt: skip
    batches = [next(loader) for _ in range(3)]
    assert all(float(batch["targets"][:, 0].min()) == 1.0 for batch in batches)
    left_out = {(fault.key, fault.reason) for batch in batches for fault in batch["faults"]}
    assert left_out >= {(f"q{i}", "no_known_answer") for i in range(0, 30, 3)}
    unknown = questions_set(tmp_path, lambda i: question(("azure", 1.0)), 12, "u")
    stream = MixedStream([Source(unknown, "questions")], seed=0, global_batch=4)
    with pytest.raises(DataFaultError, match=r"in a row .*no_known_answer"):
        next(make_loader(stream, VqaSample(tokenizer, PLAIN, 8, answers=ANSWERS), collate, micro_batch=4))


def test_questions_of_another_set_mix_in_by_weight(tokenizer, tmp_path) -> None:
    """As those of Visual Genome do: one answer a question, its own vocabulary larger."""
    main = questions_set(tmp_path, lambda i: question(("yes", 0.9), ("no", 0.3)), 30, "vqa")
    other = questions_set(tmp_path, lambda i: question(("red" if i % 2 else "sailboats", 1.0)), 20, "vg")
    stream = MixedStream([Source(main, "questions", 3.0), Source(other, "questions", 1.0)], seed=0, global_batch=64)
    loader = make_loader(stream, VqaSample(tokenizer, PLAIN, 8, answers=ANSWERS), collate, micro_batch=64)
    batches = [next(loader) for _ in range(4)]
    keys = [key for batch in batches for key in batch["keys"]]
    targets = torch.cat([batch["targets"] for batch in batches])
    mixed = torch.tensor([key.startswith("vg") for key in keys])
    assert 0.15 < float(mixed.float().mean()) < 0.35
    assert (targets[mixed] == torch.tensor([0.0, 0.0, 1.0])).all()
    torch.testing.assert_close(targets[~mixed], torch.tensor([0.9, 0.3, 0.0]).expand(int((~mixed).sum()), 3))
