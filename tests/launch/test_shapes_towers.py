"""launch/shapes_towers.sh in two steps: towers of the sizes that the demo's stage 1 has, which it can begin with."""

from collections.abc import Callable
from pathlib import Path

import yaml
from safetensors.torch import load_file

REPO = Path(__file__).resolve().parents[2]
PACKAGED = REPO / "src/fiber/data/shapes/towers"


def test_the_towers_are_those_of_the_demo(launch: Callable[..., str], tmp_path: Path) -> None:
    launch("shapes_towers.sh", OUT=tmp_path, SCENES=20, SMALL=1)
    for name in ("image.safetensors", "text/model.safetensors"):
        made, packaged = (load_file(folder / name) for folder in (tmp_path / "towers", PACKAGED))
        sizes = {tensor: value.shape for tensor, value in packaged.items() if "word_embeddings" not in tensor}
        assert {tensor: value.shape for tensor, value in made.items() if "word_embeddings" not in tensor} == sizes
    again = tmp_path / "again"
    towers = tmp_path / "towers"
    begun = [f"model.image.pretrained={towers}/image.safetensors", f"model.text.pretrained={towers}/text"]
    small = ["train.steps=2", "train.global_batch=4", "train.micro_batch=4", "pretrain.itc_only_steps=0"]
    words = [f"output={again}", f"tokenizer={tmp_path}/tokenizer", f"data.train.0.path={tmp_path}/shards"]
    said = launch(
        "stage1_coarse.sh", "configs/stage1/shapes_tiny.yaml", *words, *begun, *small, "eval.data=[]", RANKS=1
    )
    assert f"image tower from {towers}/image.safetensors" in said
    assert yaml.safe_load((again / "config.yaml").read_text())["model"]["text"]["pretrained"] == f"{towers}/text"
