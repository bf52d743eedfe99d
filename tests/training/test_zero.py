"""DeepSpeed's JSON, and fp32 state by name: read, written into a fresh engine, and carried on exactly."""

import pytest
import torch
from toy_task import Regression, batch_of

from fiber.config.base import OptimConfig, TrainConfig
from fiber.errors import ConfigError
from fiber.training import zero
from fiber.training.optim import AdamW, set_learning_rate

OPTIM = OptimConfig(lr=0.01, clip=1.0)


def engine_of(stage: int, precision: str) -> tuple[zero.Engine, AdamW]:
    train = TrainConfig(global_batch=4, micro_batch=4, zero_stage=stage, precision=precision)
    return zero.build_engine(Regression(), train, OPTIM)


def steps(engine: zero.Engine, optimizer: AdamW, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        set_learning_rate(optimizer, 0.01)
        total = sum(engine(batch_of(step))[0].values())
        engine.backward(total)
        zero.optimizer_step(engine)
        losses.append(total.item())
    return losses


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
)
@pytest.mark.usefixtures("alone")
def test_state_by_name_goes_on_exactly_in_a_fresh_engine(stage: int, precision: str) -> None:
    engine, optimizer = engine_of(stage, precision)
    initial = dict(Regression().named_parameters())
    for name, weight in zero.read_weights(engine):
        if initial[name].requires_grad:  # masters keep the digits that bf16 weights drop
            assert torch.equal(weight, initial[name]), name
    steps(engine, optimizer, 0, 3)
    weights = {name: weight.clone() for name, weight in zero.read_weights(engine)}
    moments = {name: moment.clone() for name, moment in zero.read_moments(engine, optimizer)}
    assert zero.updates(engine, optimizer) == 3
    expected = steps(engine, optimizer, 3, 6)
    fresh, fresh_optimizer = engine_of(stage, precision)
    zero.write_weights(fresh, weights)
    zero.write_moments(fresh, fresh_optimizer, moments, 3)
    assert steps(fresh, fresh_optimizer, 3, 6) == expected
    if stage == 3:
        plain = zero.plain_module(fresh, Regression, "fp32")
        assert {name: tuple(p.shape) for name, p in plain.named_parameters()} == {
            name: tuple(p.shape) for name, p in initial.items()
        }


@pytest.mark.usefixtures("alone")
def test_first_update_equals_plain_adamw_with_clipping() -> None:
    task = Regression()
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in task.parameters() if p.ndim > 1 and p.requires_grad], "weight_decay": 0.01},
            {"params": [p for p in task.parameters() if p.ndim == 1 and p.requires_grad], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.98),
    )
    sum(task(batch_of(0))[0].values()).backward()
    norm = torch.nn.utils.clip_grad_norm_([p for p in task.parameters() if p.requires_grad], 1.0)
    reference.step()
    train = TrainConfig(global_batch=4, micro_batch=4, zero_stage=2)
    same_rate = OptimConfig(lr=0.01, clip=1.0, cross_modal_multiplier=1, head_multiplier=1)
    engine, optimizer = zero.build_engine(Regression(), train, same_rate)
    set_learning_rate(optimizer, 0.01)
    engine.backward(sum(engine(batch_of(0))[0].values()))
    assert zero.optimizer_step(engine) == pytest.approx(float(norm), rel=1e-6)
    for name, weight in zero.read_weights(engine):
        torch.testing.assert_close(weight, dict(task.named_parameters())[name].data, rtol=1e-6, atol=1e-7)


def test_json_says_everything_that_defaults_changed() -> None:
    train = TrainConfig(global_batch=64, micro_batch=4, accumulation=2, zero_stage=3, precision="bf16", offload="all")
    made = zero.deepspeed_json(train, clip=0.0)
    assert made["gradient_clipping"] > 1e9  # 0 would leave the norm unmeasured, nothing would clip at 1.0
    assert made["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert made["data_types"] == {"grad_accum_dtype": "fp32"}
    assert made["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert (made["train_batch_size"], made["gradient_accumulation_steps"]) == (64, 2)
    fp16 = zero.deepspeed_json(TrainConfig(precision="fp16"), clip=1.0)
    assert fp16["fp16"]["loss_scale"] == 0  # dynamic
    assert "offload_optimizer" not in fp16["zero_optimization"]


@pytest.mark.usefixtures("alone")
def test_fp16_on_a_cpu_is_one_line() -> None:
    train = TrainConfig(global_batch=4, micro_batch=4, precision="fp16")
    with pytest.raises(ConfigError, match=r"^train\.precision: fp16 needs a CUDA card; on the CPU use bf16 or fp32$"):
        zero.build_engine(Regression(), train, OptimConfig())
