"""Caption decoding with five beams: keys and values from the cache and weights packed for few rows, and the whole
prefix computed at every step, padded to the length limit as in the release (the image encoded once in both)."""

import copy

import torch

from benchmark_common import PAD, BenchConfig, build_model, compare, make_batch, ratios
from fiber import distributed
from fiber.coarse.decoding import SpecialTokens, beam_search, next_logits
from fiber.processor import pack

BEAMS = 5


def run(config: BenchConfig) -> dict:
    """Seconds and images/s of a whole beam search (image encoded once, `max_text` tokens), and of the decoder's steps
    alone on the same token ids, cached and recomputed; their largest difference in logits."""
    plain = build_model(config).eval()
    model = copy.deepcopy(plain)
    pack([model.backbone.text, model.backbone.fusion, model.heads])  # as a predictor does, once
    batch = make_batch(config, 1)
    # The end token is forbidden, so that every search runs to the length limit.
    special_tokens = SpecialTokens(start=0, end=config.bench.vocabulary, forbidden=(0, 1, 2))
    ids = batch["ids"].repeat(BEAMS, 1)

    def search() -> None:
        with torch.no_grad():
            tail = model.backbone.image_tail(model.image_prefix(batch["images"]))
            beam_search(model, tail, special_tokens, config.max_text, BEAMS)

    with torch.no_grad():
        image = model.backbone.image_tail(model.image_prefix(batch["images"])).repeat(BEAMS, 1, 1)

    @torch.no_grad()
    def cached() -> torch.Tensor:
        cache = model.backbone.start_decoding(image, config.max_text)
        return torch.stack([next_logits(model, ids[:, t], cache) for t in range(config.max_text - 1)])

    @torch.no_grad()
    def recomputed() -> torch.Tensor:
        logits = []
        for length in range(1, config.max_text):
            padded = ids.masked_fill(torch.arange(config.max_text, device=ids.device) >= length, PAD)
            tokens = plain.caption_tokens(padded, None, plain.backbone.start_decoding(image, room=0))
            logits.append(plain.heads.mlm(tokens[:, length - 1]).float())
        return torch.stack(logits)

    difference = float((cached() - recomputed()).abs().max())
    timing = compare({"cached": cached, "recomputed": recomputed, "beam_search": search}, config.bench)
    if distributed.device().type != "cuda":
        for row in timing.values():  # the process's high-water mark cannot tell the forms apart
            row.pop("peak_memory")
    return timing | {
        **ratios(timing["recomputed"], timing["cached"]),
        "images_per_second": 1 / timing["beam_search"]["seconds"],
        "largest_logit_difference": difference,
    }
