"""The benchmark as a user runs it, at sizes where only its contract can be judged."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TINY = """
output: runs/benchmark
tokenizer: none
image_size: 32
max_text: 8
model:
  image: {embed_dim: 8, depths: [1, 2], heads: [1, 2], window: 4}
  text: {width: 16, layers: 3, heads: 2, intermediate: 32}
  num_fused: 2
  head_width: 16
data: {workers: 1}
train: {global_batch: 4, micro_batch: 4}
"""
OPTIONS = ["bench.vocabulary=300", "bench.repeats=1", "bench.warmup=0"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def benchmark(monkeypatch, capsys) -> Callable[..., dict]:
    """Runs the tool in this process -> results."""
    monkeypatch.syspath_prepend(REPO / "tools")
    main = importlib.import_module("benchmark").main

    def run(*arguments: object) -> dict:
        main([str(x) for x in arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])["results"]

    return run


def test_step_compares_forms_of_equal_losses(config, tmp_path):
    command = [sys.executable, REPO / "tools/benchmark.py", "step", "--config", config, *OPTIONS]
    done = subprocess.run(
        [*map(str, command), "--json", tmp_path / "out.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found == json.loads(done.stdout.splitlines()[-1])
    assert {"device", "cores", "threads", "torch"} <= found["machine"].keys()
    results = found["results"]
    assert results["largest_loss_difference"] < 1e-5
    assert results["flop_ratio"] == pytest.approx(
        results["five_passes"]["forward_gmac_per_pair"] / results["shared"]["forward_gmac_per_pair"]
    )
    assert results["flop_ratio"] > 1.2
    assert results["time_ratio"] == pytest.approx(results["five_passes"]["seconds"] / results["shared"]["seconds"])
    assert results["processor_time_ratio"] > 0
    for form in ("shared", "five_passes"):
        assert results[form]["pairs_per_second"] == pytest.approx(4 / results[form]["seconds"])
        assert results[form]["peak_memory"] > 1e7
        expected = 6e9 * results[form]["forward_gmac_per_pair"] * results[form]["pairs_per_second"]
        assert results[form]["flops_per_second"] == pytest.approx(expected)
        assert 0 < results[form]["share_of_ceiling"] < 1
    assert "time_ratio" in done.stderr


def test_a_step_in_bf16_is_timed_in_turn_with_the_others(config, benchmark, tmp_path):
    results = benchmark("step", "--config", config, *OPTIONS, "bench.bf16=true")
    seconds = {form: results[form]["seconds"] for form in ("shared", "shared_bf16")}
    assert results["bf16"]["time_ratio"] == pytest.approx(seconds["shared"] / seconds["shared_bf16"])
    assert results["shared_bf16"]["pairs_per_second"] == pytest.approx(4 / seconds["shared_bf16"])
    path = tmp_path / "fine.yaml"
    path.write_text(FINE)
    results = benchmark("step", "--config", path, *OPTIONS, "bench.bf16=true")
    assert results["bf16"]["time_ratio"] == pytest.approx(results["seconds"] / results["bf16"]["seconds"])


def test_rerank_compares_equal_logits(config, benchmark):
    results = benchmark("rerank", "--config", config, "bench.pairs=12", "bench.pair_batch=5", *OPTIONS)
    assert results["largest_logit_difference"] < 1e-4
    assert results["cached"]["pairs_per_second"] == pytest.approx(12 / results["cached"]["seconds"])
    assert results["flop_ratio"] > 1.2


def test_rank_takes_a_gallery_and_half_of_it(config, benchmark):
    results = benchmark("rank", "--config", config, "bench.gallery=40", *OPTIONS)
    assert results.keys() == {"20_images", "40_images"}
    assert all(part["seconds"] > 0 and part["grown_mb"] >= 0 for part in results.values())


def test_loader_is_measured_against_decoding_alone(config, benchmark):
    results = benchmark("loader", "--config", config, "bench.images=40", "bench.samples=60")
    assert 50e3 < results["mean_file_bytes"] < 90e3
    assert results["samples"] == 60
    assert results["workers"] == 1
    assert 0 < results["share_of_decode_resize"] < 1.5
    assert results["resident_memory"]["at_the_end"] > 1e7


def test_opening_a_large_set_does_not_read_its_arrays(config, benchmark):
    results = benchmark("index", "--config", config, "bench.index_samples=300000")
    assert results["samples"] == 300_000
    assert results["index_bytes"] > 80 * 300_000
    for state in ("cold", "warm"):
        found = results[state]
        assert 0 < found["open_seconds"] < found["first_item_seconds"]
        assert found["own_bytes"] < results["index_bytes"]  # a rank that read the arrays would hold all of them


def test_a_bad_key_is_one_line(config, benchmark, capsys):
    with pytest.raises(SystemExit) as exited:
        benchmark("step", "--config", config, "bench.repeat=3")
    message = capsys.readouterr().err
    assert exited.value.code == 2
    assert message.count("\n") == 1
    assert "bench.repeat" in message


def test_caption_decodes_alike_with_and_without_the_cache(config, benchmark):
    results = benchmark("caption", "--config", config, *OPTIONS)
    assert results["largest_logit_difference"] < 1e-5
    assert results["images_per_second"] > 0


FINE = """
output: runs/benchmark
tokenizer: none
max_text: 16
model:
  image: {embed_dim: 8, depths: [1, 1, 2, 1], heads: [1, 2, 2, 4], window: 2}
  text: {width: 16, layers: 3, heads: 2, intermediate: 32}
  num_fused: 2
detector: {channels: 16, head_channels: 8, head_blocks: 1, groups: 4}
regions: {short_sides: [48, 64], max_side: 64}
train: {global_batch: 2, micro_batch: 2}
"""


def test_step_of_a_stage_2_configuration(benchmark, tmp_path):
    path = tmp_path / "fine.yaml"
    path.write_text(FINE)
    results = benchmark("step", "--config", path, *OPTIONS)
    assert (results["batch"], results["side"]) == (2, 64)
    assert results["images_per_second"] == pytest.approx(2 / results["seconds"])
    expected = 6e9 * results["forward_gmac_per_image"] * results["images_per_second"]
    assert results["flops_per_second"] == pytest.approx(expected)
    assert results["peak_memory"] > 1e7
    assert 0 < results["share_of_ceiling"] < 1
