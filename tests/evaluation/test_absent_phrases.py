"""Phrases that an image does not show are asked of it, and what is claimed of them is counted."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fiber.data.convert.writer import write_dataset
from fiber.data.prompts import PromptBuilder
from fiber.data.records import Sample
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.evaluation.predictions import read_predictions
from fiber.evaluation.region_images import EvalImage
from fiber.evaluation.regions import evaluate_regions
from fiber.fine.postprocess import Detections

SHOWN = ("red circle", "wooden chair", "tall tree")


class Claims(nn.Module):
    """Finds what it is asked for: chairs with a score of 0.9, everything else with 0.29, below the threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def detect(self, images, sizes, prompts, selection, **_) -> list[Detections]:
        results = []
        for own in prompts:
            pairs = [(p.text[slice(*span[0])], c) for p in own for span, c in zip(p.spans, p.classes, strict=True)]
            scores = torch.tensor([0.9 if "chair" in text else 0.29 for text, _ in pairs])
            boxes = torch.tensor([[1.0, 1, 9, 9]]).repeat(len(pairs), 1)
            results.append(Detections(boxes, scores, torch.tensor([c for _, c in pairs])))
        return results


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of one thing each, and a tokenizer."""
    folder, stream = tmp_path_factory.mktemp("shown"), io.BytesIO()
    Image.new("RGB", (40, 40)).save(stream, "PNG")
    samples = []
    for number, text in enumerate(SHOWN):
        record = {"image_id": f"i{number}", "width": 40, "height": 40, "source": "test"}
        record["boxes"] = [{"box": [1, 1, 9, 9]}]
        record["captions"] = [{"text": f"{text} here", "phrases": [{"span": [[0, len(text)]], "boxes": [0]}]}]
        record["expressions"] = [{"text": text, "box": 0}]
        samples.append(Sample(f"i{number}", [("png", stream.getvalue())], record))
    write_dataset(samples, folder / "set", name="shown", split="test", provenance="", licence="")
    train_bpe([f"{text} here." for text in SHOWN], 300, folder / "tokenizer")
    return folder


@pytest.mark.parametrize(("field", "name"), [("captions", "grounding"), ("expressions", "referring")])
def test_claims_of_absent_phrases_are_counted(shown: Path, tmp_path: Path, field: str, name: str) -> None:
    """Each image is asked for the two things of the others: of six pairs the two with a chair are claimed. The
    figures of what is there do not see it."""
    builder = PromptBuilder(load_tokenizer(shown / "tokenizer"), 48)
    figures = evaluate_regions(
        Claims(), builder, ShardSet(shown / "set"), field, EvalImage(40, 40), folder=tmp_path, batch=2
    )
    assert figures[f"{name}_absent_false_rate"] == pytest.approx(2 / 6)
    assert figures["grounding_r1" if field == "captions" else "referring_p1"] == 1
    asked = [(row["image_id"], row["phrase"]) for row in read_predictions(tmp_path / f"shown_{field}_absent.jsonl")]
    assert sorted(asked) == [(f"i{n}", text) for n in range(3) for text in sorted(SHOWN) if text != SHOWN[n]]


def test_phrases_that_the_text_limit_cuts_off_are_not_asked(shown: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(shown / "tokenizer")
    limit = max(len(tokenizer(f"{text} here")["input_ids"]) for text in SHOWN)
    builder = PromptBuilder(tokenizer, limit)
    evaluate_regions(Claims(), builder, ShardSet(shown / "set"), "captions", EvalImage(40, 40), folder=tmp_path)
    asked = [row["phrase"] for row in read_predictions(tmp_path / "shown_captions_absent.jsonl")]
    assert len(asked) == 3
