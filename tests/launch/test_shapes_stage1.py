"""launch/shapes_stage1.sh in a few steps: order first, then places, then everything, then figures of four sets."""

import json
from collections.abc import Callable
from pathlib import Path


def test_the_longer_stage_1_learns_order_first_and_goes_on_from_there(
    launch: Callable[..., str], tmp_path: Path
) -> None:
    variables = {"OUT": tmp_path / "shapes", "RUN": tmp_path / "run", "SCENES": 40, "HELD_OUT": 20}
    small = ["train.steps=4", "train.global_batch=8", "train.micro_batch=8", "train.log_every=1", "eval.batch=8"]
    small += ["eval.every=4", "eval.rerank_k=3", "pretrain.itc_only_steps=1", "pretrain.random_negative_steps=2"]
    said = launch("shapes_stage1.sh", *small, **variables)
    order, places, last = (tmp_path / name for name in ("run_order", "run_places", "run"))
    for folder in (order, places, last):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss/itc" in row] == [0, 1, 2, 3]
        assert "loss/itm" in next(row for row in rows if row["step"] == 3)
        assert (folder / "export" / "model.safetensors").stat().st_size > 0
    assert "eval/t2i_r1" in rows[-1]
    assert f"weights of {order}\n" in said
    assert f"weights of {places}\n" in said
    for split, images in (("test", 20), ("compositional", 10), ("arranged_test", 6), ("paired_test", 6)):
        found = json.loads((last / "figures" / split / "stage1.json").read_text())["retrieval"]
        assert found["images"] == images
        assert {"swap_accuracy", "contrastive_swap_accuracy", "reranked_t2i_r1"} <= found.keys()
