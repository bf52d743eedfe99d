"""Parameter groups by name, the schedule by hand-computed values, and AdamW's skipped step."""

import pytest
import torch
from toy_task import Regression

from fiber.config.base import OptimConfig
from fiber.training.optim import (
    AdamW,
    build_optimizer,
    decays,
    layer_multipliers,
    learning_rate,
    parameter_groups,
    role,
    set_learning_rate,
    tower_layer,
    weight_decay_factor,
)


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
    optimizer = build_optimizer(task, config)
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


def test_plateau_schedule_falls_with_the_drops() -> None:
    config = OptimConfig(lr=1.0, warmup=4, schedule="plateau", decay=0.1)
    values = [learning_rate(step, 100, config, drops) for step, drops in ((2, 0), (4, 0), (50, 1), (99, 2))]
    assert values == pytest.approx([0.5, 1.0, 0.1, 0.01])


def test_weight_decay_falls_before_each_milestone() -> None:
    config = OptimConfig(schedule="step", milestones=(0.6, 0.9), decay=0.1, decay_drop=0.5, weight_decay=0.02)
    factors = [weight_decay_factor(step, 100, config) for step in (0, 29, 30, 44, 45, 99)]
    assert factors == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    assert weight_decay_factor(99, 100, OptimConfig(schedule="step", milestones=(0.5,))) == 1.0
    optimizer = build_optimizer(Regression(), config)
    for factor in (0.1, 0.01):  # of the configured value, not of the last one
        set_learning_rate(optimizer, 1.0, factor)
        assert sorted({g["weight_decay"] for g in optimizer.param_groups}) == pytest.approx([0.0, 0.02 * factor])


TOWERS = {
    # image: embeddings, blocks 0.0, 1.0, 1.1; text: embeddings, layers 0, 1
    "m.backbone.image.patch_embed.proj.weight": 0.5**4,
    "m.backbone.image.stages.0.blocks.0.attn.qkv.weight": 0.5**3,
    "m.backbone.image.stages.0.merge.reduction.weight": 0.5**2,
    "m.backbone.image.stages.1.blocks.0.fc1.weight": 0.5**2,
    "m.backbone.image.stages.1.blocks.1.fc1.weight": 0.5,
    "m.backbone.image.norm.weight": 1.0,
    "m.backbone.image.stage_norms.0.weight": 1.0,
    "m.backbone.text.embeddings.word.weight": 0.5**3,
    "m.backbone.text.layers.0.query.weight": 0.5**2,
    "m.backbone.text.layers.1.query.lora_up": 0.5,
    "m.backbone.fusion.image_to_text.0.query.weight": 1.0,
    "m.heads.itm.weight": 1.0,
    "m.head.box.weight": 1.0,
}


def test_layers_further_down_learn_more_slowly() -> None:
    assert layer_multipliers(TOWERS, 0.5) == pytest.approx(TOWERS)
    assert set(layer_multipliers(TOWERS, 1.0).values()) == {1.0}
    assert tower_layer("m.backbone.image.stages.0.merge.norm.bias") == ("image", 1, 0)


def test_layer_decay_multiplies_the_other_rates_and_counts_frozen_layers() -> None:
    named = [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in TOWERS]
    named[4][1].requires_grad_(False)  # the last image block
    config = OptimConfig(layer_decay=0.5, cross_modal_multiplier=3, head_multiplier=7, text_multiplier=0.1)
    groups = parameter_groups(named, config)
    found = {name: group["multiplier"] for group in groups for name in group["names"]}
    expected = dict(TOWERS)
    del expected[named[4][0]]
    for name in expected:
        if ".text." in name:
            expected[name] *= 0.1
    expected["m.backbone.fusion.image_to_text.0.query.weight"] = 3
    expected["m.heads.itm.weight"] = expected["m.head.box.weight"] = 7  # image level and region level
    assert found == pytest.approx(expected)
    optimizer = AdamW(groups, lr=0.0)
    rates = set_learning_rate(optimizer, 0.1)
    assert rates == pytest.approx({"lr/base": 0.1, "lr/text_base": 0.005, "lr/cross_modal": 0.3, "lr/head": 0.7})


def test_skip_leaves_weights_and_moments() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], lr=0.1, fused=True)
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
