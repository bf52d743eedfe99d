"""What a process imports before its work is done: half of the start-up of a short one is imports."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

from small_detector import write_detector

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


COMMAND = """
import sys
from fiber.cli.main import main
assert main(sys.argv[2:]) == 0
print("imported", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


def imported(names: str, *words: object) -> list[str]:
    """Those of the modules `names` that a command of `fiber` has imported in the end."""
    command = [sys.executable, "-c", COMMAND, names, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_a_detector_answers_without_the_compiler_and_boxes_are_packed_without_torch(tmp_path: Path) -> None:
    """torchvision's operators bring the compiler along, its library alone does not."""
    (tmp_path / "own" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "own/images/0.png")
    (tmp_path / "own" / "labels").mkdir()
    (tmp_path / "own/labels/0.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "own/data.yaml").write_text("train: images\nnames: [circle]\n")
    sides = {"short_sides": [64], "test_side": 64, "max_side": 64}
    write_detector(tmp_path / "run", ["circle square"], 300, max_text=32, regions=sides)
    images = ("--image", tmp_path / "own/images/0.png", "--out", tmp_path / "found.json")
    asked = ("detect", "--model", tmp_path / "run", "--text", "circle, square", "--threshold", "0", *images)
    # Nor are the files of all models looked through for the tokenizer's class, which it names itself.
    assert imported("torch,torch._dynamo,torchvision.ops,transformers.models", *asked) == ["torch"]
    assert imported("torch,transformers", "shards", "boxes", tmp_path / "own", "--out", tmp_path / "out") == []
