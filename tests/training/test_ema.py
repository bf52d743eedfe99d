"""The average against its definition, on the masters of several ZeRO stages."""

import pytest
import torch
from toy_task import Regression, batch_of

from fiber.config.base import OptimConfig, TrainConfig
from fiber.training import zero
from fiber.training.ema import Ema
from fiber.training.optim import set_learning_rate


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (3, "fp32")])
@pytest.mark.usefixtures("alone")
def test_average_by_its_definition(stage: int, precision: str) -> None:
    train = TrainConfig(global_batch=4, micro_batch=4, zero_stage=stage, precision=precision)
    engine, optimizer = zero.build_engine(Regression(), train, OptimConfig(lr=0.05))
    ema = Ema(0.75, engine, optimizer)
    expected = {name: weight.clone() for name, weight in zero.read_weights(engine)}
    for step in range(3):
        set_learning_rate(optimizer, 0.05)
        engine.backward(sum(engine(batch_of(step))[0].values()))
        zero.optimizer_step(engine)
        ema.update()
        for name, weight in zero.read_weights(engine):
            expected[name] = 0.75 * expected[name] + 0.25 * weight
    trained = {name: weight.clone() for name, weight in zero.read_weights(engine)}
    with torch.no_grad():
        before = engine(batch_of(9))[1]["loss/fit"].item()
        with ema.averaged():
            inside = engine(batch_of(9))[1]["loss/fit"].item()
            for name, weight in zero.read_weights(engine):
                torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)
        assert engine(batch_of(9))[1]["loss/fit"].item() == before
    assert inside != before
    assert all(torch.equal(weight, trained[name]) for name, weight in zero.read_weights(engine))
