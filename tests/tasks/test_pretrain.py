"""A pre-training step against the plain computation that shares nothing, split over micro-steps and over ranks."""

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.itc import sample_columns
from fiber.coarse.mlm import IGNORED
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.config.stage1 import PretrainConfig
from fiber.tasks.pretrain import PretrainTask

L, SIZE, VOCABULARY, QUEUE = 6, 32, 40, 5


def make_model(head_width: int = 12) -> CoarseModel:
    """Merge between the fused pairs, open gates, no dropout."""
    config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), window=4, drop_path=0.0),
        text=TextTowerConfig(width=16, layers=4, heads=2, intermediate=32, dropout=0.0),
        num_fused=3,
    )
    model = CoarseModel(build_backbone(config, VOCABULARY, 1, L), head_width=head_width, vocab_size=VOCABULARY)
    initialise(model, "fan_in", 0)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.6)
    return model


def make_task(**recipe) -> PretrainTask:
    """A task whose queue is partly filled."""
    task = PretrainTask(make_model(), PretrainConfig(**{"queue_size": QUEUE} | recipe))
    features = F.normalize(torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(8)), dim=-1)
    task.queue.enqueue(*features, torch.tensor([100, 2, 101]))
    return task.train()


def make_batch(size: int = 4, step: int = 0) -> dict:
    """The first two captions are of one image."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (size, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    images[: min(size, 2)] = images[0]
    ids = torch.randint(4, VOCABULARY, (size, L), generator=generator)
    ids[1::2, 4:] = 1
    chosen = (torch.rand(size, L, generator=generator) < 0.4) & (ids != 1)
    chosen[:, 2] = True
    image_id = torch.arange(size)
    image_id[: min(size, 2)] = 1
    return {
        "images": images,
        "ids": ids,
        "mask": (ids != 1).long(),
        "masked_ids": torch.where(chosen, VOCABULARY - 1, ids),
        "mlm_labels": torch.where(chosen, ids, IGNORED),
        "image_id": image_id,
        "uniform": torch.rand(size, 2, generator=generator, dtype=torch.float64),
        "step": step,
    }


def part(batch: dict, start: int, stop: int) -> dict:
    return {name: x[start:stop] if isinstance(x, Tensor) else x for name, x in batch.items()}


def plain_losses(task: PretrainTask, batch: dict) -> dict[str, Tensor]:
    """Contrastive, masked-language and matching losses, each from the pixels and ids, negatives encoded again."""
    model, images, size = task.model, batch["images"], len(batch["images"])
    ids, mask = batch["ids"], batch["mask"]

    def fused(images: Tensor, ids: Tensor, mask: Tensor):
        return model.fuse(model.image_prefix(images), model.text_prefix(ids, mask))

    image = model.image_embedding(model.image_prefix(images))
    text = model.text_embedding(model.text_prefix(ids, mask))
    queue, held, tau = task.queue, task.queue.filled(), model.heads.temperature()
    same = batch["image_id"][:, None] == batch["image_id"][None]
    old = batch["image_id"][:, None] == queue.image_id[held][None]
    itc, logits = 0.0, []
    for query, columns, queued in ((image, text, queue.text), (text, image, queue.image)):
        logits.append(query @ columns.detach().T / tau)
        not_own = same & ~torch.eye(size, dtype=torch.bool)
        everything = torch.cat([logits[-1], query @ queued[held].T / tau], 1)
        everything = everything.masked_fill(torch.cat([not_own, old], 1), -torch.inf)
        itc = itc + F.cross_entropy(everything, torch.arange(size)) / 2

    shown = model.heads.mlm(fused(images, batch["masked_ids"], mask).text)
    mlm = F.cross_entropy(shown.flatten(0, 1), batch["mlm_labels"].flatten(), ignore_index=IGNORED)

    weights = [(x.softmax(-1) + 1e-9).masked_fill(same, 0.0) for x in logits]
    (neg_text, _), (neg_image, _) = (sample_columns(w, batch["uniform"][:, k]) for k, w in enumerate(weights))
    match = [
        model.heads.itm(pair.cls)
        for pair in (
            fused(images, ids, mask),
            fused(images, ids[neg_text], mask[neg_text]),
            fused(images[neg_image], ids, mask),
        )
    ]
    itm = F.cross_entropy(torch.cat(match), torch.tensor([1] * size + [0] * 2 * size))
    return {"itc": itc, "mlm": mlm, "itm": itm}


def gradients(task: PretrainTask, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    task.zero_grad()
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def test_shared_prefixes_give_the_losses_and_gradients_of_the_plain_computation():
    task, batch = make_task(), make_batch()
    plain = plain_losses(task, batch)
    expected = gradients(task, plain)
    losses, _ = task(batch)
    found = gradients(task, losses)
    assert losses.keys() == plain.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, plain[name], rtol=1e-6, atol=0)
    assert found.keys() == expected.keys()
    untrained = {name for name, _ in task.named_parameters() if name not in found}
    assert untrained == {n for n, _ in task.named_parameters() if "caption_maps" in n}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_weights_of_the_recipe_scale_the_losses_and_the_report_keeps_them_raw():
    batch = make_batch()
    plain, raw = make_task()(batch)
    weighted, report = make_task(itc_weight=0.5, itm_weight=0.0, mlm_weight=2.0)(batch)
    for name, weight in (("itc", 0.5), ("itm", 0.0), ("mlm", 2.0)):
        torch.testing.assert_close(weighted[name], weight * plain[name])
        assert torch.equal(report[f"loss/{name}"], raw[f"loss/{name}"])
    assert weighted["itm"].requires_grad
    assert not any(value.requires_grad for value in report.values())


def test_four_micro_steps_sum_to_one_for_masked_language_modelling():
    batch = make_batch()
    one, four = (make_task(itc_weight=0.0, itm_weight=0.0) for _ in range(2))
    batch["loss_normalisers"] = {name: float(n) for name, n in one.loss_normalisers(batch).items()}
    expected = gradients(one, {"mlm": one(batch)[0]["mlm"]})
    parts = [part(batch, b, b + 1) for b in range(4)]
    mean = {"mlm": sum(four.loss_normalisers(p)["mlm"] for p in parts) / 4}
    found = gradients(four, {str(b): four(p | {"loss_normalisers": mean})[0]["mlm"] / 4 for b, p in enumerate(parts)})
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_without_any_negative_the_step_is_finite(size):
    """One pair, or captions of one image only."""
    task = make_task()
    losses, report = task(make_batch(size))
    assert all(gradient.isfinite().all() for gradient in gradients(task, losses).values())
    assert all(value.isfinite() for value in report.values())


def test_bf16_step_is_finite_and_near_fp32():
    batch = make_batch()
    expected, _ = make_task()(batch)
    task = make_task().bfloat16()
    losses, _ = task(batch)
    assert all(gradient.isfinite().all() for gradient in gradients(task, losses).values())
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(float(expected[name].detach()), rel=0.1)


def test_contrastive_warm_up_touches_every_parameter_with_weight_zero():
    task = make_task(itc_only_steps=2)
    losses, _ = task(make_batch(step=1))
    assert set(losses) == {"itc", "fused"}
    assert float(losses["fused"].detach()) == 0.0
    warm = gradients(task, losses)
    later = gradients(task, task(make_batch(step=2))[0])
    assert warm.keys() == later.keys()
    assert warm["model.heads.mlm.decoder.weight"].abs().sum() == 0


def test_random_negatives_until_their_step_then_hard_ones():
    losses = {}
    for name, step in (("random", 1), ("hard", 2)):
        losses[name] = make_task(random_negative_steps=2)(make_batch(8, step))[0]["itm"]
    assert torch.equal(losses["hard"], make_task()(make_batch(8, 2))[0]["itm"])
    assert not torch.equal(losses["random"], losses["hard"])


def test_features_are_queued_in_training_and_not_in_evaluation():
    task, batch = make_task(), make_batch()
    task.eval()(batch)
    assert task.queue.enqueued == 3
    task.train()(batch)
    assert task.queue.enqueued == 7
    assert task.queue.image_id.tolist() == [2, 3, 101, 1, 1]
    expected = task.model.image_embedding(task.model.image_prefix(batch["images"]))
    torch.testing.assert_close(task.queue.image[[3, 4, 0, 1]], expected.detach())


def test_a_task_with_the_published_queue_stores_less_than_100_mb_beside_its_weights():
    """Features at head width 768 and no pixels, so the image size does not matter."""
    task = PretrainTask(make_model(head_width=768), PretrainConfig())
    stored = sum(x.numel() * x.element_size() for x in task.buffers())
    assert 2 * 4096 * 768 * 4 <= stored < 100e6


# ---------------------------------------------------------------------------------------------- ranks


def _rank(rank: int, world: int, folder: str, recipe: dict) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    task, batch = make_task(**recipe), make_batch()
    size = 4 // world
    loss_normalisers = {"mlm": task.loss_normalisers(batch)["mlm"] / world}
    losses, _ = task(part(batch, rank * size, (rank + 1) * size) | {"loss_normalisers": loss_normalisers})
    found = {"losses": {k: v.detach() for k, v in losses.items()}, "gradients": gradients(task, losses)}
    torch.save(found | {"queue": dict(task.queue.named_buffers())}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_compute_the_step_of_one(tmp_path):
    recipe = {"gather_gradient": True}
    mp.spawn(_rank, (2, str(tmp_path), recipe), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    task, batch = make_task(**recipe), make_batch()
    losses, _ = task(batch)
    expected = gradients(task, losses)
    for name, loss in losses.items():
        mean = sum(half["losses"][name] for half in halves) / 2
        torch.testing.assert_close(mean, loss.detach(), rtol=1e-5, atol=0)
    for name, gradient in expected.items():
        mean = sum(half["gradients"][name] for half in halves) / 2
        # A small entry may be the rest of large terms (up to 14 here), which float32 rounds by 1e-7 of themselves.
        limit = 1e-6 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=limit, msg=lambda m, n=name: f"{n}: {m}")
    for name, buffer in task.queue.named_buffers():
        assert torch.equal(halves[0]["queue"][name], halves[1]["queue"][name])
        torch.testing.assert_close(halves[0]["queue"][name], buffer)
