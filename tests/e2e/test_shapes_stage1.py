"""launch/shapes_stage1.sh in a few steps: order first, then places, then everything, then figures of four sets."""

import json
import subprocess
from pathlib import Path

from launcher import REPO, environment, free_port


def test_the_longer_stage_1_learns_order_first_and_goes_on_from_there(tmp_path: Path) -> None:
    variables = {"OUT": "shapes", "RUN": "run", "SCENES": 40, "HELD_OUT": 20, "MASTER_PORT": free_port()}
    variables = {k: str(tmp_path / v) if k in ("OUT", "RUN") else str(v) for k, v in variables.items()}
    small = ["train.steps=4", "train.global_batch=8", "train.micro_batch=4", "train.log_every=1", "eval.batch=8"]
    small += ["eval.every=4", "eval.rerank_k=3", "pretrain.itc_only_steps=1", "pretrain.random_negative_steps=2"]
    run = subprocess.run(
        [REPO / "launch" / "shapes_stage1.sh", *small],
        env=environment(tmp_path) | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    order, places, last = (tmp_path / name for name in ("run_order", "run_places", "run"))
    for folder in (order, places, last):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss/itc" in row] == [0, 1, 2, 3]
        assert "loss/itm" in next(row for row in rows if row["step"] == 3)
        assert (folder / "export" / "model.safetensors").stat().st_size > 0
    assert "eval/t2i_r1" in rows[-1]
    assert f"weights of {order}\n" in run.stdout
    assert f"weights of {places}\n" in run.stdout
    for split, images in (("test", 20), ("compositional", 10), ("arranged_test", 6), ("paired_test", 6)):
        found = json.loads((last / "figures" / split / "stage1.json").read_text())["retrieval"]
        assert found["images"] == images
        assert {"swap_accuracy", "contrastive_swap_accuracy", "reranked_t2i_r1"} <= found.keys()
