"""What a training process imports before its first step is done: half of its start-up is imports."""

import subprocess
import sys

FIRST_STEP = """
import sys
import torch
from torch import nn
import fiber.stage1_coarse
from fiber import distributed
from fiber.config.base import OptimConfig, TrainConfig
from fiber.training import zero
distributed.initialize(60)
engine, optimizer = zero.build_engine(nn.Linear(3, 2), TrainConfig(global_batch=1, micro_batch=1), OptimConfig())
before = engine.module.weight.detach().clone()
for group in optimizer.param_groups:
    group["lr"] = 0.1
engine.backward(engine(torch.ones(1, 3)).sum())
zero.optimizer_step(engine)
assert not torch.equal(engine.module.weight, before)
print(*sorted({"torch._dynamo", "torch._inductor.compile_fx", "torchvision.ops", "sympy"} & set(sys.modules)))
distributed.shutdown()
"""


def test_the_first_step_needs_no_compiler() -> None:
    """torch's compiler with what it brings, 1 to 2.5 s of processor time, is imported by DeepSpeed's Muon, by torch's
    optimizer and by torchvision's operators; a step at image level needs none of these."""
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
