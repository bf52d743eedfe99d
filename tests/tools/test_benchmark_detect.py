"""`benchmark.py detect` as a user runs it, at a size where only its contract can be judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TINY = """
output: runs/benchmark
tokenizer: none
max_text: 256
model:
  image: {embed_dim: 8, depths: [1, 1, 2, 1], heads: [1, 2, 2, 4], window: 4}
  text: {width: 16, layers: 3, heads: 2, intermediate: 32}
  num_fused: 2
detector:
  {channels: 16, head_channels: 16, head_blocks: 1, groups: 4, anchor_sizes: [24, 48, 96], strides: [8, 16, 32]}
regions: {short_sides: [64], test_side: 64, max_side: 64}
eval: {batch: 4}
"""


def test_both_forms_find_the_same(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    command = [sys.executable, REPO / "tools/benchmark.py", "detect", "--config", config]
    options = ["bench.vocabulary=300", "bench.repeats=1", "bench.warmup=0", "train.precision=fp32"]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    assert results["prompts"] == 31
    assert results["detections"] > 100
    assert results["largest_score_difference"] < 1e-4
    assert results["largest_box_difference"] < 1e-2
    for form in ("shared", "rerun"):
        assert results[form]["images_per_second"] == pytest.approx(1 / results[form]["seconds"])
    assert results["time_ratio"] == pytest.approx(results["rerun"]["seconds"] / results["shared"]["seconds"])
