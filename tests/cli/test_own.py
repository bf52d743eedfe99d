"""Settings for one's own data: what follows from what, by sets and machines made for it."""

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fiber.cli import own
from fiber.cli.own_facts import Machine, SetSizes, split_sets
from fiber.cli.own_sizes import between
from fiber.config.loading import apply_override, load_config, to_yaml
from fiber.config.stage1 import Stage1Config, validate
from fiber.config.stage2 import Stage2Config, validate_stage2
from fiber.data.convert.writer import ShardWriter, write_dataset
from fiber.data.order import MixedStream, Source
from fiber.data.records import Sample
from fiber.data.shards import ShardSet
from fiber.errors import ConfigError, KnownError
from fiber.tasks.table import task_of
from small_detector import write_detector
from tiny_exports import coarse_export

REPO = Path(__file__).resolve().parents[2]
GIB = 2**30
SIDES = {"short_sides": [64], "test_side": 64, "max_side": 64}


def write_set(folder: Path, count: int, side: int = 64, texts: int = 0, grey: int = 90) -> Path:
    """`count` grey images of `side` x 2 `side` px with a "big" box of half the side, a "tiny" one of a quarter of it,
    or `texts` captions each."""
    path = folder / "image.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2 * side, side), grey).save(path)
    categories = [{"id": 1, "name": "big"}, {"id": 2, "name": "tiny"}]
    image = ("png", path.read_bytes())
    path.unlink()
    (folder / "dataset.json").write_text(json.dumps({"name": "mine"} | ({} if texts else {"categories": categories})))
    with ShardWriter(folder, "mine") as writer:
        for number in range(count):
            record = {"image_id": str(number), "width": 2 * side, "height": side, "source": "mine"}
            boxes = [{"box": [0, 0, side / n, side / n], "category": c} for c, n in ((1, 2), (2, 4))]
            captions = [{"text": f"a grey image number {number} {i}"} for i in range(texts)]
            record |= {"captions": captions} if texts else {"boxes": boxes}
            writer.add(Sample(f"{number:05d}", [image], record))
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a small detector, with an export."""
    folder = tmp_path_factory.mktemp("model")
    return write_detector(folder, ["big tiny"], 300, max_text=32, regions=SIDES).parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are put into an empty folder."""
    monkeypatch.chdir(tmp_path)


def on(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(own.Machine, "here", lambda ranks: machine)


def tree(overrides: list[str]) -> dict:
    """What overrides say."""
    out: dict = {}
    for override in overrides:
        apply_override(out, override)
    return out


def test_a_set_in_numbers(tmp_path: Path) -> None:
    sizes = SetSizes.of(str(write_set(tmp_path / "s", 7)), "boxes")
    assert (sizes.images, sizes.annotations, sizes.classes) == (7, 14, ("big", "tiny"))
    assert (sizes.side, sizes.aspect, sizes.smallest, sizes.object_share) == (64, 2.0, "tiny", 0.25)
    few = SetSizes.of(str(write_set(tmp_path / "few", 2)), "boxes")  # no class has five boxes
    assert (few.smallest, few.object_share) == ("tiny", 0.25)
    pairs = SetSizes.of(str(write_set(tmp_path / "p", 3, texts=2)), "captions")
    assert (pairs.annotations, len(pairs.texts), pairs.object_share) == (6, 6, 1.0)


def test_a_set_without_classes_or_boxes_is_refused(tmp_path: Path) -> None:
    described = write_set(tmp_path / "s", 3) / "dataset.json"
    for content in ('{"name": "s"}', None):
        described.unlink() if content is None else described.write_text(content)
        with pytest.raises(ConfigError, match=r"data: .*s lists no categories"):
            SetSizes.of(str(tmp_path / "s"), "boxes")
    image = io.BytesIO()
    Image.new("L", (64, 64)).save(image, "PNG")
    record = {"image_id": "0", "width": 64, "height": 64, "source": "none", "boxes": []}
    samples = [Sample("0", [("png", image.getvalue())], record)]
    classes = [{"id": 1, "name": "big"}]
    write_dataset(samples, tmp_path / "n", name="n", split="x", provenance="", licence="", categories=classes)
    with pytest.raises(ConfigError, match=r"data: no image of .*n has a box"):
        SetSizes.of(str(tmp_path / "n"), "boxes")
    record["boxes"] = [{"box": [0, 0, 9, 9], "category": 1, "crowd": True}]
    write_dataset(samples, tmp_path / "c", name="c", split="x", provenance="", licence="", categories=classes)
    with pytest.raises(ConfigError, match=r"data: no image of .*c has a box \(crowd regions aside\)"):
        SetSizes.of(str(tmp_path / "c"), "boxes")


def test_splits_are_found_and_what_is_no_set_is_said(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_set(tmp_path / "S" / split, 1)
    assert split_sets("S") == {"train": "S/train", "val": "S/val"}
    assert split_sets("S/val") == {"train": "S/val"}
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match=r"data: images has no shards to train on; `fiber shards boxes FOLDER"):
        split_sets("images")
    with pytest.raises(ConfigError, match="data: no folder nowhere"):
        split_sets("nowhere")


@pytest.mark.parametrize(
    ("images", "ranks", "batch"), [(5, 1, 4), (3, 1, 3), (5, 2, 4), (205, 1, 4), (500, 1, 8), (500, 3, 6)]
)
def test_the_batch_follows_from_the_set_and_is_shared_by_the_ranks(
    images: int, ranks: int, batch: int, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Machine(ranks, 8 * GIB))
    write_set(tmp_path / "S", images)
    overrides, lines = own.expand("own_detector", ["data=S", f"init_from={detector}"])
    train = tree(overrides)["train"]
    assert train["global_batch"] == batch == train["micro_batch"] * train["accumulation"] * ranks
    config = load_config(Stage2Config, REPO / "configs/stage2/own_detector.yaml", overrides, own.inherited_sizes)
    validate_stage2(config, ranks)
    assert f"{images} training images of S with {2 * images} boxes of 2 classes" in lines[0]
    assert "no val beside it" in lines[0]
    assert config.regions.test_side == 64  # not larger than the images are


def test_what_the_user_gives_wins_and_the_rest_follows_from_it(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Machine(1, 8 * GIB))
    write_set(tmp_path / "S", 40)
    given = ["train={micro_batch: 3, steps: 50}", "regions.test_side=96", "data.train.0.weight=1.0", "output=here"]
    overrides, lines = own.expand("own_detector", ["data=S", f"init_from={detector}", *given])
    out = tree(overrides)
    assert out["train"]["global_batch"] == out["train"]["micro_batch"] == 3
    assert out["train"]["steps"] == 50
    assert out["eval"]["every"] == 25
    assert max(out["regions"]["short_sides"]) == out["regions"]["test_side"] == 96
    assert out["data"]["train"] == [{"path": "S", "field": "boxes", "weight": 1.0}]
    assert out["output"] == "here"
    assert not any("test_side=" in line or "micro_batch=" in line for line in lines)


@pytest.mark.parametrize(
    ("memory", "micro", "again"), [(9000, 8, False), (1350, 2, False), (1090, 4, True), (50, 1, True)]
)
def test_little_memory_means_smaller_passes_then_recomputation(
    memory: int, micro: int, again: bool, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of 1,000 bytes, 100 of an image, 20 with recomputation."""
    on(monkeypatch, Machine(1, memory))
    needs = lambda config, *_: (1000, 20 if config.model.checkpointing else 100)  # noqa: E731
    monkeypatch.setattr(own, "detector_bytes", needs)
    write_set(tmp_path / "S", 500)
    out = tree(own.expand("own_detector", ["data=S", f"init_from={detector}"])[0])
    assert (out["train"]["micro_batch"], out["train"]["accumulation"]) == (micro, 8 // micro)
    assert out.get("model", {}).get("checkpointing", False) == again


def test_a_run_of_other_settings_gets_a_number_and_the_same_goes_on(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Machine(1, 8 * GIB))
    monkeypatch.setattr(own, "detector_bytes", lambda *_: (1000, 100))
    write_set(tmp_path / "S", 9)
    words = ["data=S", f"init_from={detector}"]

    def run(*more: str) -> tuple[str, str]:
        overrides, lines = own.expand("own_detector", [*words, *more])
        out = tree(overrides)
        Path(out["output"]).mkdir(parents=True, exist_ok=True)
        (Path(out["output"]) / "config.yaml").write_text(yaml.safe_dump(out))
        return out["output"], "\n".join(lines)

    assert run()[0] == "runs/own_detector"
    assert run()[0] == "runs/own_detector"
    folder, said = run("train.steps=7")
    assert folder == "runs/own_detector_2"
    assert "runs/own_detector is of other settings" in said
    assert run("train.steps=7")[0] == "runs/own_detector_2"


def test_a_run_of_data_that_was_packed_again_gets_a_number(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Machine(1, 8 * GIB))
    write_set(tmp_path / "S", 9)
    words = ["data=S", f"init_from={detector}"]
    overrides, _ = own.expand("own_detector", words)
    config = load_config(Stage2Config, REPO / "configs/stage2/own_detector.yaml", overrides, own.inherited_sizes)
    stream = MixedStream(
        [Source(ShardSet("S"), "boxes", None, task_of(config).per(config))],
        seed=config.seed,
        global_batch=config.train.global_batch,
        window_shards=config.data.window_shards,
    )
    checkpoint = tmp_path / "runs/own_detector/checkpoints/step_000003"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest").write_text("step_000003")
    (checkpoint / "state.json").write_text(json.dumps({"step": 3, "state": {"stream": stream.state(3)}}))
    (tmp_path / "runs/own_detector/config.yaml").write_text(to_yaml(config))
    assert 'output="runs/own_detector"' in own.expand("own_detector", words)[0]
    shutil.rmtree(tmp_path / "S")
    write_set(tmp_path / "S", 9, grey=91)
    overrides, lines = own.expand("own_detector", words)
    assert 'output="runs/own_detector_2"' in overrides
    assert any("S has been made again since" in line for line in lines)


def test_a_run_without_evaluations_is_saved_on_its_way(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """501 images are more than are evaluated on themselves: a tenth of the steps, not the last step alone."""
    on(monkeypatch, Machine(1, 8 * GIB))
    write_set(tmp_path / "S", 501)
    for steps, every in ((100, 10), (30_000, 1000), (5, 1)):
        out = tree(own.expand("own_detector", ["data=S", f"init_from={detector}", f"train.steps={steps}"])[0])
        assert (out["eval"]["every"], out["train"]["save_every"]) == (0, every)


@pytest.mark.parametrize("name", ["own_retrieval", "own_caption", "own_pretrain"])
def test_pairs_start_from_a_model_of_image_level(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, Machine(1, 8 * GIB))
    write_set(tmp_path / "S" / "train", 20, texts=2)
    write_set(tmp_path / "S" / "val", 5, texts=2)
    model = coarse_export(tmp_path / "m" / "export")
    overrides, lines = own.expand(name, ["data=S", f"init_from={model}"])
    config = load_config(Stage1Config, REPO / f"configs/stage1/{name}.yaml", overrides, own.inherited_sizes)
    validate(config, 1)
    assert config.train.global_batch == 8
    assert config.eval.data[0].path == "S/val"
    assert config.train.best == own.FIGURES[{"own_retrieval": 1, "own_pretrain": 2, "own_caption": 3}[name]]
    assert config.image_size == 64  # as the model was trained
    assert "20 training images of S/train with 40 captions; evaluated on S/val" in lines[0]


def test_a_processor_that_multiplies_bfloat16_trains_pairs_in_it_but_no_detector(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Machine(1, 8 * GIB, bf16=True))
    write_set(tmp_path / "S", 20, texts=2)
    write_set(tmp_path / "B", 20)
    model = coarse_export(tmp_path / "m" / "export")
    pairs, lines = own.expand("own_retrieval", ["data=S", f"init_from={model}"])
    boxes, _ = own.expand("own_detector", ["data=B", f"init_from={detector}"])
    plain, _ = own.expand("own_retrieval", ["data=S", f"init_from={model}", "train.zero_stage=0"])
    assert 'train.precision="bf16"' in pairs
    assert 'train.precision="fp32"' in plain  # half precision needs ZeRO
    assert 'train.precision="fp32"' in boxes
    assert any("what this machine computes fast and safely" in line for line in lines)


@pytest.mark.parametrize(("card", "channels", "tokenizer"), [(False, 24, "tokenizer"), (True, 128, "roberta-base")])
def test_without_a_model_pairs_start_from_nothing_or_from_towers(
    card: bool, channels: int, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Machine(1, 72 * GIB, card, card))
    write_set(tmp_path / "S", 30, side=300, texts=1)
    overrides, _ = own.expand("own_pretrain", ["data=S"])
    config = load_config(Stage1Config, REPO / "configs/stage1/own_pretrain.yaml", overrides, own.inherited_sizes)
    validate(config, 1)
    assert config.model.image.embed_dim == channels
    assert bool(config.model.image.pretrained) == bool(config.model.text.pretrained) == card
    assert Path(config.tokenizer or "").name == tokenizer
    assert config.image_size == (384 if card else 128)
    assert config.train.precision == ("bf16" if card else "fp32")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("own_detector", ["init_from=m"], "data: give the folder that `fiber shards boxes|pairs` wrote: fiber train"),
        ("own_detector", ["data=S"], "init_from: own_detector starts from a model: a run directory, an export or a"),
        ("own_detector", ["data=P", "init_from={model}"], "data: P has no boxes; it has captions: use own_retrieval"),
        ("own_retrieval", ["data=S", "init_from={model}"], "data: S has no captions; it has boxes: use own_detector"),
        ("own_detector", ["data=S", "init_from=gone"], "no folder gone, and it is not a hub id"),
    ],
)
def test_what_is_missing_is_one_line(
    name: str, words: list[str], message: str, detector: Path, tmp_path: Path
) -> None:
    write_set(tmp_path / "S", 2)
    write_set(tmp_path / "P", 2, texts=1)
    with pytest.raises(KnownError) as error:
        own.expand(name, [word.format(model=detector) for word in words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_page_on_numbers_of_images_has_the_rules(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of docs/custom_data/how_much.md, without making 50,000 images."""
    on(monkeypatch, Machine(1, 8 * GIB))
    monkeypatch.setattr(own, "detector_bytes", lambda *_: (1000, 100))
    write_set(tmp_path / "S", 5)
    small = SetSizes.of("S", "boxes")
    rows = 0
    for line in (REPO / "docs/custom_data/how_much.md").read_text().splitlines():
        cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].isdigit():
            images, batch, seen, steps = int(cells[0]), int(cells[1]), int(cells[2].split()[0]), int(cells[3])
            monkeypatch.setattr(own.SetSizes, "of", lambda *_, n=images: SetSizes(**vars(small) | {"images": n}))
            train = tree(own.expand("own_detector", ["data=S", f"init_from={detector}", "output=x"])[0])["train"]
            assert (train["global_batch"], train["steps"]) == (batch, steps)
            assert round(batch * steps / images) == seen
            rows += 1
    assert rows == 5


def test_rates_lie_between_those_of_small_and_large_models() -> None:
    assert [between(c, 1e-3, 1e-4) for c in (16, 24, 128, 192)] == [1e-3, 1e-3, 1e-4, 1e-4]
    assert 1e-4 < between(64, 1e-3, 1e-4) < 1e-3


def test_the_end_says_whether_training_helped(tmp_path: Path) -> None:
    overrides = [
        "output=run",
        "data.train=[{path: S/train, field: boxes}]",
        "eval.data=[{path: S/val, field: boxes}]",
    ]
    assert own.closing("own_detector", overrides) == []  # interrupted
    write_set(tmp_path / "S" / "test", 1)
    (tmp_path / "run").mkdir()
    for before, after, worse in ((0.1, 0.4, False), (0.5, 0.4, True)):
        (tmp_path / "run/start.json").write_text(json.dumps({"ap": before}))
        (tmp_path / "run/summary.json").write_text(json.dumps({"steps": 5, "eval": {"ap": after, "ap50": 0.9}}))
        lines = own.closing("own_detector", overrides)
        assert lines[0].startswith("model: run/export")
        assert f"ap on S/val: {after:.3f}, before training {before:.3f}" in lines[1]
        assert ("WORSE" in lines[1]) == worse
        assert lines[2] == "figures to report: fiber eval run data=S/test"
        assert lines[3].startswith("next: fiber detect --model run")
