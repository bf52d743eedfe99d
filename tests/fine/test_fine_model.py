"""The detector and its task as wholes: padding, shared prefixes, variants, tuning, degenerate batches, ranks."""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tiny_detector import LIMIT, detections, tiny_detector
from torch.nn import functional as F
from transformers import RobertaTokenizerFast

from fiber import distributed
from fiber.backbone.image import IMAGENET_MEAN, IMAGENET_STD
from fiber.cli.launcher import free_port
from fiber.data.prompts import PromptBuilder
from fiber.fine.losses import LossWeights
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import REFERRING, BoxSelection
from fiber.tasks.regions import GroundingTask

SIZES = torch.tensor([[50, 64], [64, 41]])


def pixels() -> torch.Tensor:
    """Two uint8 images in a 64x64 batch; what lies beyond SIZES is noise that must not matter."""
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(4, 300, (2, LIMIT), generator=draw), torch.ones(2, LIMIT, dtype=torch.int64)
    mask[0, 9:], mask[1, 20:] = 0, 0
    ids[mask == 0] = 1
    return ids, mask


def batch(boxes: list, images: list) -> dict:
    ids, mask = texts()
    tokens = torch.zeros(len(boxes), LIMIT, dtype=torch.bool)
    for row in range(len(boxes)):
        tokens[row, 1 + row : 3 + row] = True
    packed = {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "box_image": torch.tensor(images).long(),
        "box_tokens": tokens,
    }
    return {"images": pixels(), "sizes": SIZES, "ids": ids, "mask": mask, **packed}


BOXES = [[4.0, 4, 30, 40], [20, 10, 60, 45], [2, 30, 38, 60]]


# ------------------------------------------------------------------------------------------------ images


def test_uint8_is_normalised_and_padding_is_zero_after_it() -> None:
    model = tiny_detector().eval()
    by_hand = torch.zeros(2, 3, 64, 64)
    for row, (height, width) in enumerate(SIZES.tolist()):
        for channel in range(3):
            values = pixels()[row, channel, :height, :width] / 255
            by_hand[row, channel, :height, :width] = (values - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
    ids, mask = texts()
    from_bytes, _ = model(pixels(), SIZES, ids, mask)
    from_floats, _ = model(by_hand, SIZES, ids, mask)
    torch.testing.assert_close(from_bytes.tokens, from_floats.tokens)


def test_anchors_over_padding_are_kept_and_need_no_forward_pass() -> None:
    model = tiny_detector(strides=(8, 16, 32, 64), anchor_sizes=(24, 48, 96, 192)).eval()
    images = torch.zeros(1, 3, 72, 100)  # sides that are no multiple of any stride but 4
    output, anchors = model(images, torch.tensor([[10, 10]]), *(x[:1] for x in texts()))
    assert [len(a) for a in anchors] == [9 * 13, 5 * 7, 3 * 4, 2 * 2]
    assert [t.shape[1] for t in output.tokens] == [len(a) for a in anchors]
    assert all(torch.equal(a, b) for a, b in zip(anchors, model.anchors(images), strict=True))


def test_detections_stay_in_the_unpadded_image(tokenizer: RobertaTokenizerFast) -> None:
    model, builder = tiny_detector().eval(), PromptBuilder(tokenizer, LIMIT)
    prompt = builder.classes(["red cat", "dogs"])
    for found, (height, width) in zip(model.detect(pixels(), SIZES, [[prompt]] * 2, REFERRING), SIZES, strict=True):
        assert len(found.boxes) > 5
        assert found.boxes.min() >= 0
        assert found.boxes[:, 0::2].max() <= width - 1
        assert found.boxes[:, 1::2].max() <= height - 1


# ------------------------------------------------------------------------------------------------ inference


def test_detect_shares_prefixes_and_equals_one_pass_per_prompt(tokenizer: RobertaTokenizerFast) -> None:
    """Chunks of two images, of different lengths, against an unshared pass at full text length."""
    model, builder = tiny_detector().eval(), PromptBuilder(tokenizer, LIMIT)
    names = ["red cat", "dogs", "traffic light", "square", "blue circle", "two"]
    chunks = builder.chunks(names, max_classes=2)
    assert len(chunks) == 3
    sentence = builder.sentence("two dogs on a square", [[(0, 8)], [(14, 20)]])
    prompts = [chunks, [sentence, chunks[1]]]
    selection = BoxSelection(threshold=0.0, keep=7)
    together = model.detect(pixels(), SIZES, prompts, selection, pairs=2)
    for row, own in enumerate(prompts):
        found = []
        for prompt in own:
            output, anchors = model(
                pixels()[row : row + 1], SIZES[row : row + 1], prompt.ids[None], prompt.mask[None]
            )
            (one,) = detections(output, anchors, [prompt.token_map], SIZES[row : row + 1], selection)
            labels = [prompt.classes[label] for label in one.labels.tolist()]
            found += zip(one.scores.tolist(), labels, one.boxes.tolist(), strict=True)
        found.sort(key=lambda x: -x[0])
        assert len(found) == len(together[row].scores) == 7 * len(own)
        assert together[row].scores.tolist() == pytest.approx([s for s, _, _ in found], abs=1e-5)
        for (score, label, box), ours_label, ours_box in zip(
            found, together[row].labels, together[row].boxes, strict=True
        ):
            if sum(abs(score - s) < 1e-5 for s, _, _ in found) == 1:  # ties may come in any order
                assert label == ours_label
                assert box == pytest.approx(ours_box.tolist(), abs=1e-2)
    cut = model.detect(pixels(), SIZES, prompts, selection, keep=5)
    assert [len(d.scores) for d in cut] == [5, 5]
    torch.testing.assert_close(cut[0].scores, together[0].scores[:5])


@pytest.mark.parametrize("count", [1, 1300])
def test_one_class_and_1300_classes(tokenizer: RobertaTokenizerFast, count: int) -> None:
    model, builder = tiny_detector().eval(), PromptBuilder(tokenizer, LIMIT)
    prompts = builder.chunks([f"dogs {i}" for i in range(count)])
    (found,) = model.detect(
        pixels()[:1], SIZES[:1], [prompts], BoxSelection(threshold=0.0, keep=300), keep=2000, pairs=64
    )
    labels = set(found.labels.tolist())
    assert labels <= set(range(count))
    assert len(labels) > count / 2
    assert len(found.scores) > count / 2
    assert found.scores.isfinite().all()


# ------------------------------------------------------------------------------------------------ variants


def test_query_norm_is_a_layer_norm_of_the_query_only() -> None:
    """Variant v3: the same weights with a norm; attention of one pair by hand."""
    model = tiny_detector(query_norm=True)
    ask = model.backbone.fusion.image_to_text[0]
    torch.nn.init.normal_(ask.norm.weight)
    torch.nn.init.normal_(ask.norm.bias)
    attended, text = torch.randn(2, 6, ask.query.in_features), torch.randn(2, 5, 16)
    width, heads = ask.query.in_features, ask.heads
    query = ask.query(F.layer_norm(attended, (width,), ask.norm.weight, ask.norm.bias, 1e-5))
    key, value = ask.key_value(text).split(width, -1)
    parts = []
    for q, k, v in zip(*(x.chunk(heads, -1) for x in (query, key, value)), strict=True):
        parts.append((q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(-1) @ v)
    expected = ask.gate * ask.output(torch.cat(parts, -1))
    torch.testing.assert_close(ask(attended, text, torch.zeros(2, 1, 1, 5)), expected)
    plain = {n for n, _ in tiny_detector().named_parameters()}
    added = {n for n, _ in model.named_parameters()} - plain
    assert added == {f"backbone.fusion.image_to_text.{i}.norm.{w}" for i in range(2) for w in ("weight", "bias")}


def trainable(model: FiberDetector) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_tuning_modes() -> None:
    model = tiny_detector(prompt_tuning=True)
    assert model.prompt.abs().sum() == 0
    model.tune("prompt")
    assert trainable(model) == {"prompt"}
    losses, _ = GroundingTask(model)(batch(BOXES, [0, 0, 1]))
    sum(losses.values()).backward()
    reached = model.prompt.grad.abs().sum(1) > 0
    assert reached[:20].all()  # the longer text
    assert not reached[LIMIT:].any()
    model.tune("linear")
    projections = {f"head.{m}.{w}" for m in ("box", "centerness", "project_text") for w in ("weight", "bias")}
    assert trainable(model) == projections | {"head.log_scale", "head.token_bias", "head.bias"}
    model.tune("frozen_towers")
    names = {name for name, _ in model.named_parameters()}
    towers = {n for n in names if n.startswith(("backbone.image.", "backbone.text."))}
    norms = {n for n in towers if n.startswith("backbone.image.stage_norms.")}
    assert norms
    assert trainable(model) == names - towers | norms
    model.tune("full", frozen_stages=1)
    frozen = {name for name, _ in model.named_parameters()} - trainable(model)
    assert frozen == {n for n, _ in model.named_parameters() if ".patch_embed." in n or ".stages.0." in n}
    with pytest.raises(ValueError, match="prompt_tuning=True"):
        tiny_detector().tune("prompt")


def test_levels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one size per stride"):
        tiny_detector(anchor_sizes=(24, 48), strides=(8, 16, 32))
    with pytest.raises(ValueError, match="strides 8, 16, 32"):
        tiny_detector(anchor_sizes=(24, 48, 96), strides=(4, 8, 16))


# ------------------------------------------------------------------------------------------------ the task


def test_weighted_losses_and_report() -> None:
    model = tiny_detector()
    plain, report = GroundingTask(model)(batch(BOXES, [0, 0, 1]))
    heavy, _ = GroundingTask(model, LossWeights(token=3.0, box=1.0, centerness=0.5))(batch(BOXES, [0, 0, 1]))
    for name, weight in (("token", 1.0), ("box", 2.0), ("centerness", 1.0)):
        assert plain[name].item() == pytest.approx(weight * report[f"loss/{name}"].item())
    for name, weight in (("token", 3.0), ("box", 1.0), ("centerness", 0.5)):
        assert heavy[name].item() == pytest.approx(weight * report[f"loss/{name}"].item(), rel=1e-5)
    assert not any(value.requires_grad for value in report.values())
    assert report["assignment/positives_per_image"] > 1
    assert report["assignment/boxes_without_anchor"] == 0


@pytest.mark.parametrize(
    ("boxes", "images"),
    [([], []), ([[5.0, 5, 5, 5]], [1]), ([[-40.0, -30, 500, 300]], [0]), ([[300.0, 300, 400, 400]], [0])],
)
def test_no_boxes_points_and_boxes_out_of_the_image_train(boxes: list, images: list) -> None:
    task = GroundingTask(tiny_detector()).train()
    losses, report = task(batch(boxes, images))
    assert losses["token"] > 0
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    unused = {n for n, p in task.named_parameters() if p.grad is None}
    assert all("caption_maps" in name for name in unused)  # captioning's own weights
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)
    assert report["assignment/boxes_without_anchor"] == float(bool(boxes) and boxes[0][0] in (5.0, 300.0))


def split(row: int, whole: dict) -> dict:
    """Image `row` of a batch with its boxes."""
    own = whole["box_image"] == row
    part = {name: whole[name][row : row + 1] for name in ("images", "sizes", "ids", "mask")}
    boxes = {name: whole[name][own] for name in ("boxes", "box_tokens")}
    return part | boxes | {"box_image": whole["box_image"][own] - row}


def _rank(rank: int, port: int, folder: str, cases: list) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    results = []
    for boxes, images in cases:
        task = GroundingTask(tiny_detector()).train()
        losses, _ = task(split(rank, batch(boxes, images)))
        sum(losses.values()).backward()
        gradients = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
        mean = distributed.all_reduce_mean
        results.append(({n: mean(x) for n, x in losses.items()}, {n: mean(g) for n, g in gradients.items()}))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_and_two_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    """Losses and gradients of the undivided batch: on two gloo processes, also when one has no boxes, and as two
    micro-batches whose totals the loop averages."""
    cases = [(BOXES, [0, 0, 1]), (BOXES, [1, 1, 1])]
    port = free_port()
    mp.spawn(_rank, (port, str(tmp_path), cases), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case, (boxes, images) in enumerate(cases):
        task = GroundingTask(tiny_detector()).train()
        expected, _ = task(batch(boxes, images))
        sum(expected.values()).backward()
        gradients = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
        assert expected["box"] > 0.1

        task.zero_grad()
        parts = [split(row, batch(boxes, images)) for row in range(2)]
        items = [task.loss_normalisers(part) for part in parts]
        means = {name: sum(i[name] for i in items) / 2 for name in items[0]}
        losses = [task(part | {"loss_normalisers": means})[0] for part in parts]
        (sum(sum(x.values()) for x in losses) / 2).backward()
        accumulated = (
            {name: (losses[0][name] + losses[1][name]) / 2 for name in expected},
            {n: p.grad for n, p in task.named_parameters() if p.grad is not None},
        )
        for found_losses, found_gradients in (ranks[0][case], ranks[1][case], accumulated):
            for name, value in expected.items():
                assert found_losses[name].item() == pytest.approx(value.item(), rel=1e-5)
            for name, gradient in gradients.items():
                assert (found_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-6, name
