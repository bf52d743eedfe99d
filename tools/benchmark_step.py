"""A pre-training step, forward and backward: prefixes shared, and as five passes that share nothing."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from benchmark_ceiling import matmul_ceiling
from benchmark_common import DTYPES, BenchConfig, build_model, compare, make_batch, ratios
from fiber import distributed
from fiber.cards import peak_flops
from fiber.coarse.itc import itc_loss, negative_weights, sample_columns
from fiber.coarse.itm import itm_loss
from fiber.coarse.mlm import mlm_loss
from fiber.coarse.model import FusedFeatures
from fiber.tasks.flops import pair_cost
from fiber.tasks.pretrain import PretrainTask

Losses = dict[str, Tensor]


def run(config: BenchConfig) -> dict:
    """Seconds, pairs/s, FLOP/s and memory of both forms and their ratios. Raises RuntimeError where their losses
    differ."""
    size = config.train.micro_batch
    task, batch = PretrainTask(build_model(config), config.pretrain), make_batch(config, size)
    difference = check_equal(task, batch)
    task.train()

    def backward(losses: Losses) -> None:
        task.zero_grad()
        sum(losses.values()).backward()

    forms: dict[str, Callable[[], None]] = {
        "shared": lambda: backward(task(batch)[0]),
        "five_passes": lambda: backward(five_passes(task, batch)),
    }
    if config.bench.bf16:
        half = copy.deepcopy(task).bfloat16()
        forms["shared_bf16"] = lambda: sum(half(batch)[0].values()).backward()
    timing = compare(forms, config.bench)
    masked = round(int(task.loss_normalisers(batch)["mlm"]) / size)
    cost = pair_cost(task.model, config.image_size, config.max_text, masked)
    device = distributed.device()
    ceiling = peak_flops(device) or matmul_ceiling(device, DTYPES[config.train.precision])
    for name, row in timing.items():
        forward = cost.five_passes if name == "five_passes" else cost.shared
        speed = 3 * forward * size / row["seconds"]
        row |= {"pairs_per_second": size / row["seconds"], "forward_gmac_per_pair": forward / 2e9}
        row |= {"flops_per_second": speed, "share_of_ceiling": speed / ceiling}
    return timing | {
        "batch": size,
        **ratios(timing["five_passes"], timing["shared"]),
        **({"bf16": ratios(timing["shared"], timing["shared_bf16"])} if config.bench.bf16 else {}),
        "flop_ratio": cost.five_passes / cost.shared,
        "ceiling_flops_per_second": ceiling,
        "largest_loss_difference": difference,
    }


@torch.no_grad()
def check_equal(task: PretrainTask, batch: dict) -> float:
    """Largest relative difference of the losses of both forms with dropout off."""
    task.eval()
    shared, plain = task(batch)[0], five_passes(task, batch)
    difference = max(float((shared[k] - plain[k]).abs() / plain[k].abs()) for k in plain)
    if difference > 1e-4 and task.model.heads.itm.weight.dtype == torch.float32:
        raise RuntimeError(f"the shared and the five-pass step differ: {shared} and {plain}")
    return difference


def five_passes(task: PretrainTask, batch: dict) -> Losses:
    """The losses of `PretrainTask` on one rank by the published procedure: the contrastive pass, the
    masked-language pass and each third of matching begin at the pixels and ids."""
    model, images, ids, mask = task.model, batch["images"], batch["ids"], batch["mask"]

    def fused(images: Tensor, ids: Tensor, mask: Tensor) -> FusedFeatures:
        return model.fuse(model.image_prefix(images), model.text_prefix(ids, mask))

    features = model.image_embedding(model.image_prefix(images)), model.text_embedding(model.text_prefix(ids, mask))
    temperature = model.heads.temperature()
    itc, contrast = itc_loss(*features, batch["image_id"], temperature, task.queue, task.recipe.gather_gradient)
    if task.training:
        task.queue.enqueue(*(x.detach() for x in features), batch["image_id"])
    mlm, _ = mlm_loss(model.heads.mlm, fused(images, batch["masked_ids"], mask).text, batch["mlm_labels"])
    drawn = [
        sample_columns(negative_weights(logits, contrast.same_image, hard=True), batch["uniform"][:, k])
        for k, logits in enumerate((contrast.image_to_text, contrast.text_to_image))
    ]
    (text, valid_text), (image, valid_image) = drawn
    pairs = (images, ids, mask), (images, ids[text], mask[text]), (images[image], ids, mask)
    logits = torch.cat([model.heads.itm(fused(*pair).cls) for pair in pairs]).float()
    losses = {"itc": itc, "mlm": mlm, "itm": itm_loss(logits, valid_text, valid_image)}
    recipe = task.recipe
    weights = {"itc": recipe.itc_weight, "mlm": recipe.mlm_weight, "itm": recipe.itm_weight}
    return {name: weights[name] * loss for name, loss in losses.items()}
