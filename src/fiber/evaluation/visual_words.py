"""Does the model look? Visual words masked one at a time and predicted with the true image and with a wrong one.

Letters: N images, K masked words, L text length.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fiber.backbone.states import ImageState
from fiber.coarse.mlm import IGNORED
from fiber.coarse.model import CoarseModel
from fiber.evaluation.gallery import (
    Images,
    PrefixCache,
    check_share,
    device_of,
    encode_images,
    gather,
    image_rows,
    score_pairs,
)
from fiber.evaluation.progress import Progress


@torch.no_grad()
def evaluate_visual_words(
    model: CoarseModel,
    images: Iterable[dict],
    texts: Iterable[dict],
    tokenizer: PreTrainedTokenizerFast,
    groups: Mapping[str, Sequence[str]],
    *,
    batch: int,
    cache: PrefixCache | None = None,
    progress: Progress | None = None,
) -> dict:
    """Accuracy on the words of `groups` (kind -> words, each of one kind) with the true and with a wrong image.

    `images`, `texts`: this rank's batches as `evaluate_retrieval` takes them, the texts with "text" (list of B str).
    Every occurrence of a word is masked alone, all its tokens at once; it is right if every one of them is the most
    probable. The wrong image is the next of the set. A gap between the two is what the model has from the image;
    the second is the baseline of the language. `batch`: pairs a fused pass.

    -> {"true_image", "wrong_image" (fractions), "words" (K), "by_group": {kind: the same three}}, the same on every
    rank for any number of ranks. Raises ValueError without any such word or with fewer than two images.
    """
    progress, training = progress or Progress(), model.training
    model.eval()
    gallery = encode_images(model, images, cache or PrefixCache(), progress)
    if len(gallery.image_id) < 2:
        raise ValueError("a wrong image needs at least two images in the evaluation set")
    ids, mask, labels, group, image_id = masked_words(texts, tokenizer, groups, device_of(model))
    row = image_rows(gallery.image_id, image_id)
    right = {}
    for name, rows in (("true_image", row), ("wrong_image", (row + 1) % len(gallery.image_id))):
        right[name] = _predicted(model, gallery, rows, (ids, mask, labels), batch, progress)
    model.train(training)

    def summary(chosen: Tensor) -> dict[str, float]:
        return {name: float(hits[chosen].mean()) for name, hits in right.items()} | {"words": int(chosen.sum())}

    kinds = {kind: summary(group == i) for i, kind in enumerate(groups) if bool((group == i).any())}
    return summary(torch.ones_like(group, dtype=torch.bool)) | {"by_group": kinds}


def masked_words(
    texts: Iterable[dict],
    tokenizer: PreTrainedTokenizerFast,
    groups: Mapping[str, Sequence[str]],
    device: torch.device,
) -> list[Tensor]:
    """Every occurrence of a word of `groups` in every rank's texts, in order: masked ids, mask, labels (K,L) int64
    (labels IGNORED but at the word), group number and image id (K,). Words beyond the text limit are left out."""
    kind = {word: i for i, words in enumerate(groups.values()) for word in words}
    longest_first = sorted(map(re.escape, kind), key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(longest_first)})\b")
    rows, batches = [], 0
    for batch in texts:
        batches += 1
        length = batch["ids"].shape[1]
        for b, text in enumerate(batch["text"]):
            encoding = tokenizer(text, truncation=True, max_length=length)
            for found in pattern.finditer(text):
                first, last = encoding.char_to_token(found.start()), encoding.char_to_token(found.end() - 1)
                if first is None or last is None:
                    continue
                ids, labels = batch["ids"][b].clone(), torch.full_like(batch["ids"][b], IGNORED)
                labels[first : last + 1] = ids[first : last + 1]
                ids[first : last + 1] = tokenizer.mask_token_id
                key = batch["position"][b] * length + first
                kind_and_image = torch.tensor(kind[found[1]]), batch["image_id"][b]
                rows.append((key, ids, batch["mask"][b], labels, *kind_and_image))
    check_share(batches, "texts", device)
    empty, no_text = torch.empty(0, dtype=torch.int64), torch.empty(0, length, dtype=torch.int64)
    columns = [empty, no_text, no_text, no_text, empty, empty]
    if rows:
        columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    key, columns = gather(*(column.to(device) for column in columns))
    if not len(key):
        raise ValueError(f"no text of the evaluation set has a word of {', '.join(groups)}")
    return columns


def _predicted(
    model: CoarseModel, images: Images, image_row: Tensor, texts: Sequence[Tensor], batch: int, progress: Progress
) -> Tensor:
    """1.0 where all masked tokens of a text are predicted with its image, (K,). texts: masked ids, mask, labels."""
    ids, mask, labels = texts

    def score(image: ImageState, pairs: Tensor) -> Tensor:
        fused = model.fuse(image, model.text_prefix(ids[pairs], mask[pairs]))
        wanted = labels[pairs]
        right = torch.ones_like(wanted, dtype=torch.bool)
        masked = wanted != IGNORED
        right[masked] = model.heads.mlm(fused.text[masked]).argmax(-1) == wanted[masked]
        return right.all(1, keepdim=True).float()

    return score_pairs(model, images, image_row, score, width=1, batch=batch, progress=progress, what="words")[:, 0]
