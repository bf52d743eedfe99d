"""The four commands of docs/custom_data.md, as they stand there, on twenty images: they are learned by heart."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from launcher import REPO, environment, free_port
from torchvision.ops import box_iou

from fiber.data.shapes.world import WORLDS, generate
from small_detector import write_detector


def commands() -> list[str]:
    """Those of the document that say that they are run here."""
    text = (REPO / "docs" / "custom_data.md").read_text()
    (block,) = re.findall(r"<!-- run by the test suite -->\n```\n(.*?)```", text, re.DOTALL)
    return block.strip().splitlines()


def write_images(folder: Path) -> None:
    """Twenty images and annotations.json, as a labelling tool leaves them: the shapes are the classes."""
    world = WORLDS["easy"]
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for sample in generate(world, "train", 20, seed=5):
        number, name = len(images) + 1, f"image {len(images)}.png"
        images.append({"id": number, "file_name": name, "width": 64, "height": 64})
        (folder / "images" / name).write_bytes(sample.images[0][1])
        for box in sample.record["boxes"]:
            x0, y0, x1, y1 = box["box"]
            shape = world.combinations[box["category"] - 1][1]
            entry = {"id": len(annotations), "image_id": number, "category_id": 1 + world.shapes.index(shape)}
            annotations.append(entry | {"bbox": [x0, y0, x1 - x0, y1 - y0]})
    categories = [{"id": 1 + i, "name": shape} for i, shape in enumerate(world.shapes)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(tree))


def write_model(folder: Path) -> None:
    """The export of a small detector that has learned nothing, and a configuration to fine-tune it with."""
    write_detector(folder / "start", ["circle square triangle star cross"], 300, max_text=32)
    twin = yaml.safe_load((REPO / "configs" / "stage2" / "shapes_detect.yaml").read_text())
    twin["optim"] |= {"lr": 2e-3, "gate_multiplier": 20}
    twin["train"] |= {"steps": 500, "global_batch": 4, "micro_batch": 4, "save_every": 500}
    (folder / "mine.yaml").write_text(yaml.safe_dump(twin | {"max_text": 32}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The working folder after the four commands, and what each printed."""
    folder = tmp_path_factory.mktemp("custom data")  # blanks, as users have them
    write_images(folder / "data")
    write_model(folder)
    names = {"DATA": folder / "data", "MODEL": folder / "start" / "export", "RUN": folder / "run"}
    variables = {name: str(path) for name, path in names.items()} | {
        "CONFIG": str(folder / "mine.yaml"),
        "RANKS": "1",
    }
    printed = []
    for command in commands():
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=REPO,
            env=environment(folder) | variables | {"MASTER_PORT": str(free_port())},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed.append(done.stdout)
    return folder, printed


def test_twenty_images_are_learned_by_heart(finished: tuple[Path, list[str]]) -> None:
    folder, printed = finished
    assert len(printed) == 4
    assert json.loads(printed[0].splitlines()[-1])["samples"] == 20
    figures = json.loads(next(line for line in printed[2].splitlines() if line.startswith('{"step"')))
    assert figures["step"] == 500
    assert figures["ap50"] > 0.9
    assert figures["ap50"] == pytest.approx(json.loads((folder / "run" / "summary.json").read_text())["eval"]["ap50"])


def test_what_was_learned_is_found_by_the_command(finished: tuple[Path, list[str]]) -> None:
    """Nearly every labelled object has a box of its name; drawings lie beside the JSON."""
    folder, _ = finished
    tree = json.loads((folder / "data" / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in tree["categories"]}
    found = {
        Path(entry["image"]).name: entry["regions"] for entry in json.loads((folder / "run/found.json").read_text())
    }
    hits = []
    for image in tree["images"]:
        for entry in tree["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = entry["bbox"]
                name = names[entry["category_id"]]
                boxes = [region["box"] for region in found[image["file_name"]] if region["label"] == name]
                overlap = box_iou(torch.tensor(boxes).view(-1, 4), torch.tensor([[x, y, x + width, y + height]]))
                hits.append(bool((overlap > 0.5).any()))
    assert len(hits) > 40
    assert sum(hits) / len(hits) > 0.9
    assert len(list((folder / "run").glob("found-*.png"))) == 20
