"""Every launch script from end to end: data in its authors' format, the real configuration with nothing but sizes,
paths and the card's precision changed, a few steps, and what a user gets in the end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from raw import put, write_image
from small_sizes import COARSE, HEAD, IMAGES, REGIONS, STEPS

import make_shards
import odinw_table
from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, categories, generate, vocabulary_texts

Launch = Callable[..., str]
Convert = Callable[..., Path]


def last(printed: str) -> dict:
    """The figures that a job prints at the end."""
    return json.loads([line for line in printed.splitlines() if line.startswith('{"step"')][-1])


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary(run: Path) -> dict:
    """The run's summary; what it has predicted, of whatever kind, is in its report."""
    report = (run / "report" / "data.js").read_text()
    parts = json.loads(report.removeprefix("const REPORT = ").removesuffix(";\n"))["parts"]
    assert parts, run
    assert all(part["items"] for part in parts), run
    return json.loads((run / "summary.json").read_text())


def paths(train: Path | list[Path], evaluate: Path) -> list[str]:
    trains = train if isinstance(train, list) else [train]
    return [f"data.train.{i}.path={p}" for i, p in enumerate(trains)] + [f"eval.data.0.path={evaluate}"]


# ---------------------------------------------------------------------------------------------- pre-training


def test_stage1_coarse(launch: Launch, converted: Convert, tokenizer: Path, tmp_path: Path) -> None:
    """The five sets of coarse pre-training."""
    coco, flickr = converted("coco_karpathy") / "made", converted("flickr30k") / "made"
    sets = [
        coco,
        coco,
        converted("visual_genome") / "made",
        converted("sbu") / "made",
        converted("cc3m_vilt") / "made",
    ]
    words = [*STEPS, *COARSE, f"tokenizer={tokenizer}", "pretrain.queue_size=4", "eval.rerank_k=2"]
    launch("stage1_coarse.sh", "configs/stage1/fiber_base.yaml", f"output={tmp_path}", *paths(sets, flickr), *words)
    assert summary(tmp_path)["steps"] == 2
    assert "t2i_r1" in summary(tmp_path)["eval"]
    assert (tmp_path / "export" / "config.json").exists()


def test_stage2_fine(launch: Launch, converted: Convert, tokenizer: Path, coarse: Path, tmp_path: Path) -> None:
    """The three sets of fine pre-training, from a stage-1 run."""
    flickr, mixed = converted("flickr30k_entities") / "made", converted("mdetr_mixed") / "made"
    sets = [flickr, mixed, converted("objects365") / "made"]
    boxes = f"eval.data.1.path={converted('coco_detection') / 'made'}"
    words = [*REGIONS, *HEAD, f"tokenizer={tokenizer}", f"init_from={coarse}", *paths(sets, flickr), boxes]
    launch("stage2_fine.sh", "configs/stage2/fiber_base.yaml", f"output={tmp_path}", *words)
    assert {"grounding_r1", "ap", "absent_false_rate"} <= set(summary(tmp_path)["eval"])
    assert (tmp_path / "export" / "config.json").exists()


# ---------------------------------------------------------------------------------------------- image level


@pytest.mark.parametrize(
    ("script", "data", "figure", "words"),
    [
        ("vqa.sh", "vqav2", "accuracy", []),
        ("nlvr2.sh", "nlvr2", "accuracy", []),
        ("snli_ve.sh", "snli_ve", "accuracy", []),
        ("retrieval.sh", "coco_karpathy", "r_mean", ["pretrain.queue_size=4"]),
        ("classification.sh", "classes", "top1", []),
    ],
)
def test_image_tasks(
    script: str, data: str, figure: str, words: list[str], launch: Launch, converted: Convert, tokenizer: Path,
    coarse: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Fine-tuned, then the weights of the best evaluation scored again on TEST."""
    folder = class_folders(tmp_path / "classes") if data == "classes" else converted(data) / "made"
    several = [folder, folder] if data == "coco_karpathy" else folder
    words = [*IMAGES, *words, f"tokenizer={tokenizer}", *paths(several, folder)]
    printed = launch(script, *words, STAGE1=coarse, OUT=tmp_path / "run", TEST=folder)
    assert summary(tmp_path / "run")["best"]["figure"] == figure
    assert 0 <= last(printed)[figure] <= 1
    assert last(printed)["step"] == 2
    assert any((tmp_path / "run" / "predictions").iterdir())


def class_folders(folder: Path) -> Path:
    """A shard set of two class folders of two images."""
    for number, name in enumerate(("sea lion", "sea lion", "moped", "moped")):
        put(folder / "raw" / "train" / name / f"{number}.jpg", write_image(number))
    make_shards.main(
        ["class_folders", "--raw", str(folder / "raw"), "--split", "train", "--out", str(folder / "made")]
    )
    return folder / "made"


def test_caption(launch: Launch, converted: Convert, tokenizer: Path, coarse: Path, tmp_path: Path) -> None:
    """Cross-entropy, GOLD and CIDEr-D, each from the one before, then the test set."""
    coco = converted("coco_karpathy") / "made"
    small = ["caption.max_new_tokens=3", "caption.beam=2"]
    words = [*IMAGES, *small, f"tokenizer={tokenizer}", *paths([coco, coco], coco)]
    places = {"STAGE1": coarse, "OUT": tmp_path, "TEST": coco, "GOLD": "optim.lr=1e-4 optim.warmup=0"}
    printed = launch("caption.sh", *words, **places)
    assert {"cider", "constant_cider", "rouge_l"} <= set(last(printed))
    trained = {name: metrics(tmp_path / name)[0] for name in ("mle", "gold", "cider")}
    assert {"loss/gold", "gold/weight"} <= set(trained["gold"])
    assert trained["gold"]["lr/base"] == 1e-4
    assert {"loss/mle", "loss/reinforce", "reward/cider", "sampled/ended"} <= set(trained["cider"])
    images = last(printed)["images"]
    assert (
        json.loads((tmp_path / "cider/document_frequency.json").read_text())["images"] == 2 * images
    )  # trained on the set twice
    written = json.loads((tmp_path / "cider/predictions/captions.json").read_text())
    assert len(written) == images
    assert set(written[0]) == {"image_id", "caption"}
    for objective, before in (("mle", coarse), ("gold", tmp_path / "mle"), ("cider", tmp_path / "gold")):
        assert summary(tmp_path / objective)["best"]["figure"] == "cider"
        assert f"init_from: {before}\n" in (tmp_path / objective / "config.yaml").read_text()


# ---------------------------------------------------------------------------------------------- region level


@pytest.mark.parametrize(("name", "split"), [("coco_detection", "val"), ("lvis", "minival")])
def test_detection(
    name: str, split: str, launch: Launch, converted: Convert, tokenizer: Path, fine: Path, tmp_path: Path
) -> None:
    """Figures before and after, of another set (KEEP) too, and the server's files."""
    shards, other = converted(name, "train", split), converted("objects365") / "made"
    places = {"MODEL": fine, "OUT": tmp_path, "SHARDS": shards, "KEEP": other}
    launch("detection.sh", name, *REGIONS, f"tokenizer={tokenizer}", **places)
    before, after = (json.loads((tmp_path / f"{when}.json").read_text()) for when in ("before", "after"))
    assert (before["step"], after["step"]) == (0, 2)
    figures = {"fixed_ap" if name == "lvis" else "ap", "absent_false_rate"}
    assert set(before) == set(after) >= {f"{name}/{figure}" for figure in figures} | {"objects365/ap"}
    assert [path.parent.name for path in (tmp_path / "predictions").glob("*/*_boxes_results.json")] == [name]


@pytest.mark.parametrize("name", ["refcoco", "refcoco_plus", "refcocog"])
def test_refcoco(name: str, launch: Launch, converted: Convert, tokenizer: Path, fine: Path, tmp_path: Path) -> None:
    splits = ("val", "test") if name == "refcocog" else ("val", "testA", "testB")
    shards = converted("refcoco", "train", *splits)
    places = {"MODEL": fine, "OUT": tmp_path, "SHARDS": shards}
    printed = launch("refcoco.sh", name, *REGIONS, f"tokenizer={tokenizer}", **places)
    assert sum(key.endswith("referring_p1") for key in last(printed)) == len(splits)
    assert summary(tmp_path)["best"]["figure"] == "referring_p1"


def test_grounding(launch: Launch, converted: Convert, tokenizer: Path, fine: Path, tmp_path: Path) -> None:
    flickr = converted("flickr30k_entities") / "made"
    words = [word for word in REGIONS if not word.startswith(("train.", "eval.every"))] + [f"tokenizer={tokenizer}"]
    sets = [f"eval.data.{i}.path={flickr}" for i in range(2)]
    printed = launch("grounding.sh", *words, *sets, f"output={tmp_path}", "train.precision=fp32", MODEL=fine)
    assert sum(key.endswith("grounding_r1") for key in last(printed)) == 2


def test_odinw(
    launch: Launch, converted: Convert, tokenizer: Path, fine: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Zero-shot, one image a class, and full, chosen on val, reported on both; the table reads the runs."""
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "Aquarium").symlink_to(converted("odinw", "train", "val", "test"))
    words = [word for word in REGIONS if not word.startswith("eval.every")]
    places = {"MODEL": fine, "SHARDS": tmp_path / "sets", "OUT": tmp_path / "out", "SHOTS": "0 1 full", "SEEDS": "3"}
    launch("odinw.sh", "Aquarium", "--", *words, f"tokenizer={tokenizer}", **places)
    assert "ap" in json.loads((tmp_path / "out" / "Aquarium" / "zero_shot" / "figures.json").read_text())
    for run in ("1_shot_full_3", "full_full"):
        assert summary(tmp_path / "out" / "Aquarium" / run)["best"]["figure"] == "ap"
    assert odinw_table.main([str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    columns = {"zero-shot", "1-shot full", "full full"}
    assert columns | {f"{column}, test" for column in columns} == set(json.loads(table.splitlines()[-1]))
    assert "not the published ones: Aquarium/1_3" in table


def test_coarse_to_fine(launch: Launch, tmp_path: Path) -> None:
    """A short stage 1, then stage 2 from nothing, from it and from a longer one; a table of both figures."""
    shapes, easy = tmp_path / "shapes", WORLDS["easy"]
    about = {"categories": categories(easy), "provenance": "drawn", "licence": "none", "name": "shapes"}
    for split, count in (("train", 16), ("val", 4)):
        write_dataset(generate(easy, split, count, seed=0), shapes / split, split=split, **about)
    for split in ("arranged", "paired"):
        (shapes / split).symlink_to(shapes / "train")
    train_bpe(vocabulary_texts(easy, 40), 400, shapes / "tokenizer")
    small = "train.global_batch=4 train.micro_batch=4 data.workers=0 train.log_every=1 train.precision=fp32"
    places = {"SHAPES": shapes, "OUT": tmp_path / "out", "STAGE1": tmp_path / "out" / "stage1_short"}
    words = [*small.split(), "train.steps=2", "eval.every=1", "regions.figures=0"]
    launch("coarse_to_fine.sh", *words, COARSE=small, SHORT=4, SEEDS="0", **places)
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(start in table for start in ("from nothing", "after 4 steps of stage 1", "after the longer stage 1"))
    assert (tmp_path / "out" / "coarse_to_fine.png").exists()
    assert summary(tmp_path / "out" / "longer_0")["steps"] == 2
