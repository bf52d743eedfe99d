"""Captions of a whole set by beam search, scored by the COCO protocol, and the reward of caption training.

Every rank describes its own share of the images and streams rows to disk; one rank merges and scores them, so that
neither the number of ranks nor the batch size can change a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from fiber import distributed
from fiber.coarse.decoding import Caption, SpecialTokens, beam_search
from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import CaptionConfig
from fiber.data.samples.text import ImageTransform
from fiber.data.shards import ShardSet
from fiber.errors import ConfigError
from fiber.evaluation.caption_samples import CaptionEvalSample, all_texts
from fiber.evaluation.context import EXAMPLES, EvalContext, Example
from fiber.evaluation.loader import EvalLoader
from fiber.evaluation.metrics import caption_scores as metrics
from fiber.evaluation.metrics.caption_scores import (
    DocumentFrequency,
    best_constant,
    cider_d,
    coco_tools_missing,
    tokenize,
)
from fiber.evaluation.predictions import PredictionWriter, Row, merge_predictions, read_predictions
from fiber.processor import packed
from fiber.training.task import Figures

END = "<eos>"
"""How reward corpora write the end of a caption: without it, captions that break off are not worse."""


def evaluate_captions(model: CoarseModel, context: EvalContext) -> Figures:
    """The best caption of every image by beam search -> figures; a few images are drawn with their
    captions.

    `FOLDER/captions.jsonl` has the caption beside the references, `FOLDER/captions.json` is what the servers of COCO
    and NoCaps take. Figures, the same on every machine: `cider` (CIDEr-D; 1.444 is printed as 144.4), `bleu_1` ...
    `bleu_4`, `rouge_l`, `constant_cider` (the best caption said of every other image), `images`; where the COCO tools
    can run, theirs beside them (`coco_tools_cider`, ..., `meteor`, which they alone have). Of a set with domains
    (NoCaps) these are "entire", and the scores of each domain have its name before them. A set without references (a
    test set) is only described.

    Every rank must call. `model` is in evaluation mode, without gradient.
    """
    config, shards = context.config, context.shards
    special_tokens, length = SpecialTokens.of(context.tokenizer), config.caption.max_new_tokens + 1
    sample = CaptionEvalSample(ImageTransform.of(config, training=False))
    counts = shards.counts("captions")
    scored = bool(counts.any())
    per: Literal["image", "every_image"] = "image" if scored else "every_image"
    loader = EvalLoader(shards, "captions", sample, per, config.eval.batch, config.data.workers)
    writer = PredictionWriter(context.folder, "captions", distributed.rank(), distributed.world_size())
    with writer, packed([model.backbone.text, model.backbone.fusion, model.heads]):
        for batch in context.progress(loader, "captions"):
            image = model.backbone.image_tail(model.image_prefix(batch["images"].to(distributed.device())))
            captions = beam_search(model, image, special_tokens, length, config.caption.beam)
            for number, beams in enumerate(captions):
                writer.add(_row(batch, number, str(context.tokenizer.decode(beams[0].ids, skip_special_tokens=True))))
    distributed.barrier()
    figures = None
    if distributed.is_main():
        world = distributed.world_size()
        path = merge_predictions(context.folder, "captions", world, ("image_id",), shards=shards.where)
        rows = list(read_predictions(path))
        metrics.write_submission(context.folder / "captions.json", [row["image_id"] for row in rows], rows)
        figures = {"images": len(rows)} | (score(rows) if scored else {})
        context.draw(_examples(rows, np.flatnonzero(counts) if scored else np.arange(len(shards))))
    return distributed.broadcast_object(figures)


def score(rows: Sequence[Row]) -> Figures:
    """Figures of rows `{"image_id", "caption", "references", "domain"}`; see `evaluate_captions`."""
    references = {row["image_id"]: row["references"] for row in rows}
    figures = _scored(rows, references, coco_tools=False)
    missing = coco_tools_missing()
    if missing is not None:
        print(f"captions: METEOR and the original tokeniser are left out: {missing}")
    else:
        figures |= _scored(rows, references, coco_tools=True)
    truth = [[tokenize(text) for text in texts] for texts in references.values()]
    return figures | {"constant_cider": best_constant(truth)}


def _scored(rows: Sequence[Row], references: dict[Any, list[str]], coco_tools: bool) -> Figures:
    """Figures by one scorer under its own names: METEOR only one has, the others differ by the tokeniser."""
    if all(row["domain"] for row in rows):
        domains = {row["image_id"]: row["domain"] for row in rows}
        parts = metrics.evaluate_domains(rows, references, domains, coco_tools)
    else:
        parts = {"entire": metrics.evaluate(rows, references, coco_tools)}
    figures: Figures = {}
    for domain, scores in parts.items():
        for name, value in scores.items():
            key = f"coco_tools_{name}" if coco_tools and name != "METEOR" else name
            figures[key.lower() if domain == "entire" else f"{domain}/{key.lower()}"] = value
    return figures


def _row(batch: dict[str, Any], number: int, text: str) -> Row:
    return {
        "image_id": server_id(batch["image"][number]),
        "caption": " ".join(text.split()),
        "references": batch["references"][number],
        "domain": batch["domain"][number],
        "position": int(batch["position"][number]),
    }


def server_id(image_id: str) -> int | str:
    """How the servers of COCO and NoCaps know an image: the number of coco_N and nocaps_N; other ids as they are."""
    source, _, number = image_id.rpartition("_")
    return int(number) if source in ("coco", "nocaps") and number.isdecimal() else image_id


def _examples(rows: Sequence[Row], samples: np.ndarray) -> list[Example]:
    """Images spread evenly over the set; `samples`: the sample number of each position."""
    rows = sorted(rows, key=lambda row: row["position"])
    chosen = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int).tolist()
    words = [{"caption": rows[i]["caption"], "references": " | ".join(rows[i]["references"])} for i in chosen]
    return [(int(samples[rows[i]["position"]]), shown) for i, shown in zip(chosen, words, strict=True)]


# ---------------------------------------------------------------------------------------------- the training reward


class CiderReward:
    """CIDEr-D of drawn captions with the document frequencies of a training corpus. Where the corpus counts the end
    mark `END`, so does the reward: references end with it, and so does a caption that was ended."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, frequency: DocumentFrequency) -> None:
        self.tokenizer, self.frequency = tokenizer, frequency
        self.end = f" {END}" if (END,) in frequency.counts else ""

    def __call__(self, captions: Sequence[Caption], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Captions and the texts of each one's image -> (N,) float64 on the scale 0..10."""
        spoken = [str(self.tokenizer.decode(caption.ids, skip_special_tokens=True)) for caption in captions]
        words = [
            tokenize(text) + (self.end if caption.ended else "")
            for text, caption in zip(spoken, captions, strict=True)
        ]
        return cider_d(words, [[tokenize(text) + self.end for text in texts] for texts in references], self.frequency)


def caption_reward(
    recipe: CaptionConfig, tokenizer: PreTrainedTokenizerBase, corpus: Sequence[ShardSet], run: Path
) -> CiderReward | None:
    """The reward of objective "cider" (None for the others), with the counts of `recipe.document_frequency`, or,
    where that is null, of the training captions `corpus`, which one rank counts into `RUN/document_frequency.json`.
    Every rank must call. Raises ConfigError."""
    if recipe.objective != "cider":
        return None
    path = Path(recipe.document_frequency or run / "document_frequency.json")
    if recipe.document_frequency is None:
        if distributed.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            ended = ([f"{tokenize(text)} {END}" for text in texts] for texts in all_texts(corpus))
            DocumentFrequency.of(ended).prune_singletons().save(path)
        distributed.barrier()
    try:
        return CiderReward(tokenizer, DocumentFrequency.load(path).prune_singletons())
    except (OSError, ValueError) as error:
        raise ConfigError(f"caption.document_frequency: {error}") from None
