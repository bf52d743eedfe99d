"""Steps of the fine-tuned tasks against the plain computation, split over ranks, and what they leave alone."""

from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.itc import sample_columns
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.tasks.classifier import ClassifyTask
from fiber.tasks.retrieval import RetrievalItcTask, RetrievalItmTask
from fiber.tasks.vqa import VqaTask

L, SIZE, VOCABULARY, B = 6, 32, 40, 8
ANSWERS = ["yes", "no", "2", "red", "a dog"]


def make_model(**classifiers: int) -> CoarseModel:
    """Merge between the fused pairs, open gates, no dropout."""
    config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), window=4, drop_path=0.0),
        text=TextTowerConfig(width=16, layers=4, heads=2, intermediate=32, dropout=0.0),
        num_fused=3,
    )
    backbone = build_backbone(config, VOCABULARY, 1, L)
    model = CoarseModel(backbone, head_width=12, vocab_size=VOCABULARY, classifiers=classifiers, vectors={"nlvr2": 4})
    initialise(model, "fan_in", 0)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.6)
    return model


TASKS: dict[str, Callable[[], nn.Module]] = {
    "vqa": lambda: VqaTask(make_model(vqa=len(ANSWERS)), ANSWERS),
    "nlvr2": lambda: ClassifyTask(make_model(nlvr2=2), "nlvr2"),
    "entailment": lambda: ClassifyTask(make_model(entailment=3), "entailment"),
    "retrieval_itc": lambda: RetrievalItcTask(make_model(), queue_size=0, gather_gradient=True),
    "retrieval_itm": lambda: itm_task(hard=False),
    "retrieval_itm_hard": lambda: itm_task(hard=True),
    "retrieval_itm_and_itc": lambda: itm_task(hard=True, itc_weight=0.5),
}


def itm_task(hard: bool, itc_weight: float = 0.0) -> RetrievalItmTask:
    return RetrievalItmTask(make_model(), hard=hard, itc_weight=itc_weight, gather_gradient=True)


def make_batch(name: str) -> dict:
    """The first two texts are of one image."""
    draw = torch.Generator().manual_seed(2)
    shape = (B, 2, 3, SIZE, SIZE) if name == "nlvr2" else (B, 3, SIZE, SIZE)
    images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    images[1] = images[0]
    ids = torch.randint(4, VOCABULARY, (B, L), generator=draw)
    ids[1::2, 4:] = 1
    targets = torch.rand(B, len(ANSWERS), generator=draw) * (torch.rand(B, len(ANSWERS), generator=draw) < 0.4)
    return {
        "images": images,
        "ids": ids,
        "mask": (ids != 1).long(),
        "targets": targets,
        "answers_outside": torch.tensor([0, 1] * (B // 2)),
        "labels": torch.arange(B) % 2,
        "image_id": torch.arange(B).clamp(min=1),
        "position": torch.arange(B) + 4,
        "uniform": torch.rand(B, 2, generator=draw, dtype=torch.float64),
        "step": 0,
    }


def gradients(task: nn.Module, batch: dict, scale: float = 1.0) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses as numbers, gradients by name (summed over calls)."""
    losses, report = task.train()(batch)
    (sum(losses.values()) * scale).backward()
    assert not any(value.requires_grad for value in report.values())
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    return {name: float(loss.detach()) for name, loss in losses.items()}, found


@pytest.mark.parametrize("name", TASKS)
def test_what_is_trainable_is_what_a_step_reaches(name: str) -> None:
    """Nothing else may be: ZeRO stages treat a parameter without gradient differently."""
    task = TASKS[name]()
    _, found = gradients(task, make_batch(name))
    assert found.keys() == {n for n, p in task.named_parameters() if p.requires_grad}
    unused_parameters = {
        n
        for n, _ in task.model.named_parameters()
        if any(fnmatchcase(n, pattern) for pattern in task.unused_parameters)
    }
    assert any("heads.mlm" in n for n in unused_parameters)
    assert {f"model.{n}" for n in unused_parameters}.isdisjoint(found)


def test_vqa_sums_the_cross_entropy_of_each_answer_with_its_soft_target() -> None:
    task, batch = TASKS["vqa"](), make_batch("vqa")
    losses, report = task(batch)
    image, text = task.model.image_prefix(batch["images"]), task.model.text_prefix(batch["ids"], batch["mask"])
    p = task.model.heads.classifiers["vqa"](task.model.fuse(image, text).cls).sigmoid()
    t = batch["targets"]
    by_hand = -(t * p.log() + (1 - t) * (1 - p).log()).mean() * len(ANSWERS)
    torch.testing.assert_close(losses["vqa"], by_hand)
    best = p.argmax(1)
    assert float(report["accuracy/vqa"]) == pytest.approx(float(t[torch.arange(B), best].mean()))
    assert float(report["answers/outside"]) == 0.5
    smooth = VqaTask(task.model, ANSWERS, label_smoothing=0.1)(batch)[0]["vqa"]
    s = 0.9 * t + 0.1 / len(ANSWERS)
    torch.testing.assert_close(smooth, -(s * p.log() + (1 - s) * (1 - p).log()).sum() / B)


def test_a_pair_of_images_is_two_fused_passes_in_their_order() -> None:
    task, batch = TASKS["nlvr2"](), make_batch("nlvr2")
    text = task.model.text_prefix(batch["ids"], batch["mask"])
    cls = [task.model.fuse(task.model.image_prefix(batch["images"][:, side]), text).cls for side in range(2)]
    logits = task.model.heads.classifiers["nlvr2"](torch.cat(cls, dim=1))
    torch.testing.assert_close(task.logits(batch), logits)
    losses, report = task(batch)
    torch.testing.assert_close(losses["nlvr2"], F.cross_entropy(logits, batch["labels"]))
    assert float(report["accuracy/nlvr2"]) == float((logits.argmax(1) == batch["labels"]).float().mean())


def test_entailment_is_a_softmax_over_three_classes_and_smoothing_moves_its_target() -> None:
    task, batch = TASKS["entailment"](), make_batch("entailment")
    log_p = task.logits(batch).log_softmax(1)
    assert log_p.shape == (B, 3)
    target = F.one_hot(batch["labels"], 3).float()
    torch.testing.assert_close(task(batch)[0]["entailment"], -(target * log_p).sum(1).mean())
    smooth = ClassifyTask(task.model, "entailment", label_smoothing=0.3)(batch)[0]["entailment"]
    torch.testing.assert_close(smooth, -((0.7 * target + 0.1) * log_p).sum(1).mean())


def matching_by_hand(task: RetrievalItmTask, batch: dict) -> tuple[Tensor, list[int]]:
    """Loss from pairs drawn and encoded one by one, and the image or text that each pair got."""
    model, same = task.model, batch["image_id"][:, None] == batch["image_id"][None]
    image = model.image_embedding(model.image_prefix(batch["images"]))
    text = model.text_embedding(model.text_prefix(batch["ids"], batch["mask"]))
    scores = (text @ image.T / model.heads.temperature(), image @ text.T / model.heads.temperature())
    loss, drawn = 0.0, []
    for b in range(B):
        rows, turn = [b, b], int(batch["position"][b]) % 4
        if turn in (1, 3):
            side = (1, 3).index(turn)
            weights = scores[side][b].softmax(0) + 1e-9 if task.hard else torch.ones(B)
            weights = weights.masked_fill(same[b], 0.0)[None]
            rows[side] = int(sample_columns(weights, batch["uniform"][b : b + 1, side])[0])
            assert not same[b, rows[side]]
        drawn.append(rows[0] if turn == 1 else rows[1])
        i, t = slice(rows[0], rows[0] + 1), slice(rows[1], rows[1] + 1)
        logits = model.match_logits(
            model.image_prefix(batch["images"][i]), model.text_prefix(batch["ids"][t], batch["mask"][t])
        )
        loss = loss + F.cross_entropy(logits, torch.tensor([int(turn % 2 == 0)])) / B
    return loss, drawn


@pytest.mark.parametrize("hard", [False, True])
def test_matching_sees_half_true_pairs_and_a_quarter_of_each_false_kind(hard: bool) -> None:
    task, batch = itm_task(hard), make_batch("retrieval_itm")
    expected, drawn = matching_by_hand(task, batch)
    assert [d == b for b, d in enumerate(drawn)] == [True, False] * (B // 2)
    losses, _ = task(batch)
    torch.testing.assert_close(losses["itm"], expected, rtol=1e-5, atol=1e-6)


def test_pairs_of_one_image_alone_leave_false_pairs_out() -> None:
    task, batch = itm_task(hard=False), make_batch("retrieval_itm")
    batch["image_id"] = torch.zeros(B, dtype=torch.int64)
    true = task.model.match_logits(
        task.model.image_prefix(batch["images"]), task.model.text_prefix(batch["ids"], batch["mask"])
    )[::2]
    expected = F.cross_entropy(true, torch.ones(B // 2, dtype=torch.int64)) / 2
    torch.testing.assert_close(task(batch)[0]["itm"], expected)


# ---------------------------------------------------------------------------------------------- ranks, micro-batches


def part(batch: dict, start: int, stop: int) -> dict:
    return {name: x[start:stop] if isinstance(x, Tensor) else x for name, x in batch.items()}


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found, size = {}, B // world
    for name, make in TASKS.items():
        losses, grads = gradients(make(), part(make_batch(name), rank * size, (rank + 1) * size))
        found[name] = {"losses": losses, "gradients": grads}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", TASKS)
def test_two_ranks_compute_the_step_of_one(name: str, ranks: list[dict]) -> None:
    losses, expected = gradients(TASKS[name](), make_batch(name))
    halves = [rank[name] for rank in ranks]
    for loss, value in losses.items():
        assert sum(half["losses"][loss] for half in halves) / 2 == pytest.approx(value, rel=1e-5)
    for parameter, gradient in expected.items():
        mean = sum(half["gradients"][parameter] for half in halves) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=parameter: f"{n}: {m}")


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "entailment"])
def test_micro_steps_sum_to_the_whole(name: str) -> None:
    losses, expected = gradients(TASKS[name](), make_batch(name))
    task, total = TASKS[name](), 0.0
    for start in range(0, B, 2):
        found, grads = gradients(task, part(make_batch(name), start, start + 2), scale=1 / 4)
        total += found[name] / 4
    assert total == pytest.approx(losses[name], rel=1e-5)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(grads[parameter], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_bf16_step_is_finite_and_near_fp32(name: str) -> None:
    expected, _ = gradients(TASKS[name](), make_batch(name))
    losses, found = gradients(TASKS[name]().bfloat16(), make_batch(name))
    assert losses == pytest.approx(expected, rel=0.1)
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_the_queue_of_the_dual_encoder_fills_in_training_alone() -> None:
    task, batch = RetrievalItcTask(make_model(), queue_size=12, gather_gradient=False), make_batch("retrieval_itc")
    task.eval()(batch)
    assert int(task.queue.enqueued) == 0
    first = float(task.train()(batch)[0]["itc"].detach())
    assert int(task.queue.enqueued) == B
    assert float(task(batch | {"image_id": batch["image_id"] + 100})[0]["itc"].detach()) > first  # more columns
