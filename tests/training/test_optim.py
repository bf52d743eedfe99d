"""Parameter groups by name, the schedule by hand-computed values, and AdamW's skipped step."""

import pytest
import torch
from toy_task import Regression

from fiber.config import OptimConfig
from fiber.training.optim import AdamW, build_optimizer, decays, learning_rate, role, set_learning_rate


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.backbone.image.stages.2.blocks.1.attention.qkv.weight", "base"),
        ("model.backbone.text.layers.3.query.bias", "base"),
        ("model.backbone.fusion.image_to_text.0.query.weight", "cross_modal"),
        ("model.backbone.fusion.image_to_text.0.gate", "gate"),
        ("model.heads.cross_modal.text_pooler.weight", "cross_modal"),
        ("model.heads.contrastive.image_transform.weight", "cross_modal"),
        ("model.heads.temperature.value", "base"),
        ("model.heads.mlm.decoder.weight", "head"),
        ("model.heads.itm.bias", "head"),
        ("model.heads.classifiers.vqa.3.weight", "head"),
        ("queue.image", "base"),
    ],
)
def test_role_by_name(name: str, expected: str) -> None:
    assert role(name) == expected


def test_groups_cover_every_trained_parameter_once() -> None:
    task = Regression()
    config = OptimConfig(weight_decay=0.1, cross_modal_multiplier=5, head_multiplier=50, gate_multiplier=20)
    optimizer = build_optimizer(task, config, fused=False)
    rates = set_learning_rate(optimizer, 0.01)
    assert rates == pytest.approx({"lr/base": 0.01, "lr/cross_modal": 0.05, "lr/head": 0.5, "lr/gate": 0.2})
    seen = {name: group for group in optimizer.param_groups for name in group["names"]}
    assert set(seen) == {name for name, p in task.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(seen)
    assert {name for name, group in seen.items() if group["weight_decay"] > 0} == {
        "tower.weight",
        "fusion.mix.weight",
        "heads.mlm.weight",
    }
    assert not decays("a.relative_position_bias", torch.nn.Parameter(torch.zeros(9, 2)))


def test_linear_schedule() -> None:
    config = OptimConfig(lr=1.0, warmup=0.1)
    values = [learning_rate(step, 100, config) for step in (0, 1, 9, 10, 55, 99, 100)]
    assert values == pytest.approx([0.0, 0.1, 0.9, 1.0, 0.5, 1 / 90, 0.0])
    in_steps = OptimConfig(lr=1.0, warmup=10)
    assert [learning_rate(s, 100, in_steps) for s in range(100)] == [
        learning_rate(s, 100, config) for s in range(100)
    ]
    assert learning_rate(0, 10, OptimConfig(lr=2.0, warmup=0)) == 2.0


def test_step_schedule() -> None:
    config = OptimConfig(lr=1.0, warmup=4, warmup_start=0.5, schedule="step", milestones=(0.67, 0.89), decay=0.1)
    values = [learning_rate(step, 100, config) for step in (0, 2, 4, 66, 67, 88, 89, 99)]
    assert values == pytest.approx([0.5, 0.75, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_skip_leaves_weights_and_moments() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], lr=0.1)
    weight.grad = torch.ones(3)
    optimizer.step()
    before, moments = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items()}
    weight.grad = torch.full((3,), torch.nan)
    optimizer.skip = True
    optimizer.step()
    assert torch.equal(weight, before)
    assert all(torch.equal(optimizer.state[weight][k], v) for k, v in moments.items())
    optimizer.skip = False
    weight.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(weight, before)
