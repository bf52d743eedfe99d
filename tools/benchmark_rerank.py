"""Matching of image-text pairs: prefixes from a cache, as re-ranking does, and full forwards."""

import torch

from benchmark_ceiling import matmul_ceiling
from benchmark_common import DTYPES, BenchConfig, build_model, compare, make_batch, ratios
from fiber import distributed
from fiber.cards import peak_flops
from fiber.evaluation.gallery import PrefixCache, encode_images, encode_texts, match_logits
from fiber.evaluation.progress import Progress
from fiber.tasks.flops import pair_cost


def run(config: BenchConfig) -> dict:
    """Pairs/s, FLOP/s and memory of both; every image meets every text until `bench.pairs` are matched. Encoding the
    cache is not part of its time and is given next to it."""
    options, device = config.bench, distributed.device()
    model = build_model(config).eval()
    side = -(-options.pairs // options.pair_batch)
    size = max(side, options.pair_batch)
    batch = make_batch(config, size)
    image_row, text_row = (x.to(device) for x in pair_rows(options.pairs, size))
    position = {"position": torch.arange(size)}
    images = encode_images(model, [batch | position], PrefixCache(), Progress())
    texts, _ = encode_texts(model, [batch | position], images.image_id, PrefixCache(), Progress())

    def cached() -> torch.Tensor:
        return match_logits(
            model, images, texts.prefixes, image_row, text_row, batch=options.pair_batch, progress=Progress()
        )

    @torch.no_grad()
    def full() -> torch.Tensor:
        parts = zip(image_row.split(options.pair_batch), text_row.split(options.pair_batch), strict=True)
        return torch.cat(
            [
                model.match_logits(
                    model.image_prefix(batch["images"][i]), model.text_prefix(batch["ids"][t], batch["mask"][t])
                )
                for i, t in parts
            ]
        )

    def encode() -> None:
        encode_images(model, [batch | position], PrefixCache(), Progress())

    difference = float((cached() - full()).abs().max())
    timing = compare({"cached": cached, "full": full, "encode_images": encode}, options)
    cost = pair_cost(model, config.image_size, config.max_text, 1)
    ceiling = peak_flops(device) or matmul_ceiling(device, DTYPES[config.train.precision])
    encoding = timing.pop("encode_images")
    for name, flops in (("cached", cost.fusion), ("full", cost.match)):
        speed = flops * options.pairs / timing[name]["seconds"]
        timing[name] |= {"pairs_per_second": options.pairs / timing[name]["seconds"]}
        timing[name] |= {"flops_per_second": speed, "share_of_ceiling": speed / ceiling}
    return timing | {
        **ratios(timing["full"], timing["cached"]),
        "flop_ratio": cost.match / cost.fusion,
        "images_encoded_per_second": size / encoding["seconds"],
        "ceiling_flops_per_second": ceiling,
        "largest_logit_difference": difference,
    }


def pair_rows(pairs: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text rows (pairs,) of a set of `size` each, image by image."""
    number = torch.arange(pairs)
    return number // size % size, number % size
