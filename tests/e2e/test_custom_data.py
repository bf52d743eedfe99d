"""The commands of docs/custom_data/*.md, as they stand there, on twenty images of one's own, of each form."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from launcher import REPO, environment
from PIL import Image

from fiber.data.records import Record
from fiber.data.shapes.world import WORLDS, generate
from fiber.data.shards import ShardSet
from small_detector import write_detector

WORLD = WORLDS["easy"]
PAGES = ("boxes", "contact_sheet", "pairs", "how_much")


def commands(page: str) -> list[str]:
    """Those of a page that say that they are run here."""
    text = (REPO / "docs" / "custom_data" / f"{page}.md").read_text()
    blocks = re.findall(r"<!-- run by the test suite -->\n```\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def shape(category: int) -> int:
    """The shape of a class of the world, from 0: the shapes are the classes here."""
    return WORLD.shapes.index(WORLD.combinations[category - 1][1])


def write_coco(folder: Path, records: list[Record]) -> None:
    images, annotations = [], []
    for number, record in enumerate(records):
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        for box in record["boxes"]:
            x0, y0, x1, y1 = box["box"]
            entry = {"id": len(annotations), "image_id": number, "category_id": 1 + shape(box["category"])}
            annotations.append(entry | {"bbox": [x0, y0, x1 - x0, y1 - y0]})
    categories = [{"id": 1 + i, "name": name} for i, name in enumerate(WORLD.shapes)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(tree))


def write_voc(folder: Path, records: list[Record]) -> None:
    (folder / "Annotations").mkdir()
    for number, record in enumerate(records):
        objects = ""
        for box in record["boxes"]:
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box["box"], strict=True)
            places = "".join(f"<{name}>{round(value)}</{name}>" for name, value in corners)
            name = WORLD.shapes[shape(box["category"])]
            objects += f"<object><name>{name}</name><bndbox>{places}</bndbox></object>"
        text = f"<annotation><filename>{number}.png</filename>{objects}</annotation>"
        (folder / "Annotations" / f"{number}.xml").write_text(text)


def write_yolo(folder: Path, records: list[Record]) -> None:
    (folder / "labels").mkdir()
    for number, record in enumerate(records):
        lines = []
        for box in record["boxes"]:
            x0, y0, x1, y1 = (value / 64 for value in box["box"])
            lines.append(f"{shape(box['category'])} {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n")
        (folder / "labels" / f"{number}.txt").write_text("".join(lines))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(WORLD.shapes))
    (folder / "data.yaml").write_text(f"train: images\nnames:\n{names}")


def write_pairs(folder: Path, records: list[Record]) -> None:
    with (folder / "captions.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for number, record in enumerate(records):
            rows.writerows([f"images/{number}.png", caption["text"]] for caption in record["captions"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The working folder after all commands of the pages, and what each said."""
    folder = tmp_path_factory.mktemp("custom data")  # blanks, as users have them
    samples = list(generate(WORLD, "train", 20, seed=5))
    records = [sample.record for sample in samples]
    forms = {
        "my_coco": ("images", write_coco),
        "my_voc": ("JPEGImages", write_voc),
        "my_yolo": ("images", write_yolo),
        "my_pairs": ("images", write_pairs),
    }
    for name, (images, write) in forms.items():
        (folder / name / images).mkdir(parents=True)
        for number, sample in enumerate(samples):
            (folder / name / images / f"{number}.png").write_bytes(sample.images[0][1])
        write(folder / name, records)
    sides = {"short_sides": [64], "test_side": 64, "max_side": 64}
    texts = ["circle square triangle star cross"]
    start = write_detector(folder / "start", texts, 300, max_text=32, regions=sides)
    variables = environment(folder) | {"MODEL": str(start.parent)}  # a run directory
    said = {}
    for command in (line for page in PAGES for line in commands(page)):
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[command] = done.stdout + done.stderr
    return folder, said


def of(said: dict[str, str], *words: str) -> str:
    """What the one command with these words said."""
    (text,) = (text for command, text in said.items() if all(word in command for word in words))
    return text


def test_all_forms_of_boxes_give_the_same_records(finished: tuple[Path, dict[str, str]]) -> None:
    folder, _ = finished

    def boxes(name: str) -> dict[str, list]:
        shards = ShardSet(folder / "shards" / name / "train")
        assert set(shards.facts.names) == set(WORLD.shapes)
        found = {}
        for record in map(shards.record, range(len(shards))):
            named = [(shards.facts.names[shards.facts.index[b["category"]]], b["box"]) for b in record["boxes"]]
            found[record["image_id"].rpartition("_")[2]] = sorted(
                (name, [round(v) for v in box]) for name, box in named
            )
        return found

    assert len(boxes("voc")) == 20
    assert boxes("voc") == boxes("yolo")


def test_a_fifth_is_kept_back_and_a_run_says_what_it_has_brought(finished: tuple[Path, dict[str, str]]) -> None:
    folder, said = finished
    assert [len(ShardSet(folder / "shards/coco" / split)) for split in ("train", "val")] == [16, 4]
    text, run = of(said, "train own_detector", "shards/coco"), folder / "runs/own_detector"
    assert "own_detector: 16 training images of shards/coco/train" in text
    start, end = (json.loads((run / name).read_text()) for name in ("start.json", "summary.json"))
    assert start["ap"] < 0.05 < end["eval"]["ap"]  # from a model that has learned nothing
    assert f"ap on shards/coco/val: {end['eval']['ap']:.3f}, before training {start['ap']:.3f}" in text
    assert "next: fiber detect --model runs/own_detector" in text
    evaluated = of(said, "fiber eval runs/own_detector").splitlines()
    figures = json.loads(next(line for line in evaluated if line.startswith('{"step"')))
    assert figures["ap50"] == pytest.approx(end["eval"]["ap50"])


def test_the_images_are_learned_and_every_one_is_asked_and_drawn(finished: tuple[Path, dict[str, str]]) -> None:
    folder, _ = finished
    lines = map(json.loads, (folder / "runs/own_detector/metrics.jsonl").read_text().splitlines())
    losses = [line["loss/token"] for line in lines if "loss/token" in line]
    assert losses[-1] < 0.1 * losses[0]
    answers = json.loads((folder / "found.json").read_text())
    assert sorted(Path(entry["image"]).name for entry in answers) == sorted(f"{i}.png" for i in range(20))
    assert {region["label"] for entry in answers for region in entry["regions"]} <= set(WORLD.shapes)
    assert len(list(folder.glob("found-*.png"))) == 20


def test_pairs_of_a_table_train_a_model_from_nothing_and_its_successors(
    finished: tuple[Path, dict[str, str]],
) -> None:
    folder, said = finished
    text = of(said, "train own_pretrain")
    assert "a small model from nothing" in text
    assert (folder / "runs/own_pretrain/tokenizer/tokenizer.json").is_file()
    for name, figure in (("pretrain", "r_mean"), ("retrieval", "reranked_r_mean"), ("caption", "cider")):
        summary = json.loads((folder / f"runs/own_{name}/summary.json").read_text())
        assert summary["steps"] == 10
        assert figure in summary["eval"]
    assert "next: fiber train own_retrieval data=shards/pairs init_from=runs/own_pretrain" in text


def test_five_images_train(finished: tuple[Path, dict[str, str]]) -> None:
    folder, said = finished
    text = of(said, "train own_detector", "shards/five")
    assert "own_detector: 5 training images" in text
    assert "evaluated on the training images, which shows only that learning works" in text
    assert json.loads((folder / "runs/five/summary.json").read_text())["steps"] == 5


def test_contact_sheets_are_images(finished: tuple[Path, dict[str, str]]) -> None:
    folder, _ = finished
    for name in ("sheet.png", "pairs.png"):
        assert min(Image.open(folder / name).size) > 100
    shutil.rmtree(folder / "runs")
