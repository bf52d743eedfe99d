"""The verbs over many images: tables that other tools read, what a killed run leaves, names of what is left out."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import fiber
from fiber.cli.main import main
from fiber.predict.image import CoarsePredictor
from tiny_exports import CATEGORIES, coarse_export, fine_export, images

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Folder with the exports `coarse`, `fine`, a folder `images` and `many` with 60 small images in two folders."""
    folder = tmp_path_factory.mktemp("world")
    coarse_export(folder / "coarse")
    fine_export(folder / "fine")
    images(folder / "images")
    rng = np.random.default_rng(0)
    for number in range(60):
        path = folder / "many" / f"part{number // 40}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24 + number % 3, 3), np.uint8)).save(path)
    return folder


def run(world: Path, verb: str, *options: object) -> int:
    model = "fine" if verb in ("detect", "label", "ground", "refer") else "coarse"
    return main([verb, "--model", str(world / model), "--device", "cpu", *map(str, options)])


KILLED = """
import os, signal, sys
from fiber.predict.image import CoarsePredictor
from fiber.cli.main import main
features, batches = CoarsePredictor.features, []
def dies(self, images):
    batches.append(len(images))
    if len(batches) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return features(self, images)
CoarsePredictor.features = dies
main(sys.argv[1:])
"""


def test_embed_goes_on_after_kill_9_and_encodes_only_the_rest(world, tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / "out.npz", tmp_path / "whole.npz"
    (world / "many" / "part0" / "broken.jpg").write_bytes(b"?")
    options = ["--image", world / "many", "--batch", "8", "--workers", "2"]
    argv = ["embed", "--model", world / "coarse", "--device", "cpu", *options, "--out", out]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, argv)], capture_output=True, timeout=120)
    assert killed.returncode == -9
    assert not out.exists()

    encoded = []
    features = CoarsePredictor.features
    monkeypatch.setattr(CoarsePredictor, "features", lambda self, i: (encoded.extend(i), features(self, i))[1])
    assert run(world, "embed", *options, "--out", out) == 0
    assert len(encoded) == 60 - 5 * 8
    said = capsys.readouterr().err
    assert f"{out}: 60 images, 20 of them encoded now" in said
    assert "skipped" in said
    assert "broken.jpg" in said
    assert run(world, "embed", *options, "--out", whole) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "whole.npz"]
    with np.load(out) as saved:
        assert saved["names"].tolist() == [f"part{n // 40}/{n:02d}.png" for n in range(60)]
        model = fiber.load(world / "coarse", device="cpu")
        expected = model.embed_images(world / "many" / name for name in saved["names"].tolist())
        np.testing.assert_allclose(saved["features"], expected.numpy(), atol=1e-5)
    (world / "many" / "part0" / "broken.jpg").unlink()


def test_embed_of_tars_of_texts_and_to_parquet(world, tmp_path, capsys):
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        tar.add(world / "many", ".")
    for name, source in (("a.npz", world / "many"), ("b.npz", tmp_path / "many.tar"), ("c.parquet", world / "many")):
        assert run(world, "embed", "--image", source, "--out", tmp_path / name) == 0
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    order = [[Path(name).name for name in saved["names"].tolist()] for saved in (a, b)]
    rows = [order[1].index(name) for name in order[0]]
    np.testing.assert_allclose(a["features"], b["features"][rows], atol=1e-6)
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "c.parquet").to_pydict()
    assert parquet["image"] == a["names"].tolist()
    assert np.array_equal(np.array(parquet["features"], np.float32), a["features"])

    capsys.readouterr()
    texts = ["a red circle", "two dogs"]
    assert run(world, "embed", "--text", *texts, "--out", tmp_path / "texts.npz") == 0
    saved = np.load(tmp_path / "texts.npz")
    assert saved["names"].tolist() == texts
    # What was embedded is an index of retrieval, and tells the same.
    index = ["--index", tmp_path / "b.npz", "--top", "60"]
    assert run(world, "retrieve", "--image", tmp_path / "many.tar", *index, "--text", texts[0]) == 0
    said = capsys.readouterr()
    assert "60 images, 0 of them encoded now" in said.err
    found = {Path(hit["image"]).name: hit["score"] for hit in json.loads(said.out)["images"]}
    scores = a["features"] @ saved["features"][0]
    assert [found[name] for name in order[0]] == pytest.approx(scores.tolist(), abs=1e-4)
    sheet = tmp_path / "sheet.png"
    assert run(world, "retrieve", "--image", tmp_path / "many.tar", *index, "--text", "dogs", "--out", sheet) == 0
    assert sheet.is_file()


def test_detections_of_a_folder_are_a_coco_file_lines_a_list_and_parquet(world, tmp_path, capsys):
    outs = [tmp_path / f"found.{ending}" for ending in ("coco.json", "jsonl", "json", "parquet")]
    options = [option for out in outs for option in ("--out", out)]
    assert run(world, "detect", "--image", world / "images", "--threshold", "0.2", *options) == 0
    lines = [json.loads(line) for line in outs[1].read_text().splitlines()]
    assert json.loads(outs[2].read_text()) == lines
    table = pytest.importorskip("pyarrow.parquet").read_table(outs[3]).to_pylist()
    for row in table:
        row["regions"] = [{k: v for k, v in region.items() if v is not None} for region in row["regions"]]
    assert table == lines
    with Image.open(world / "images" / "turned.jpg") as image:
        sideways = image.size
    coco = COCO(str(outs[0]))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == CATEGORIES
    assert len(coco.imgs) == len(lines)
    for image, line in zip(coco.imgs.values(), lines, strict=True):
        assert image["file_name"] == Path(line["image"]).name  # relative to the folder
        assert (image["width"], image["height"]) == (line["width"], line["height"])
        if image["file_name"] == "turned.jpg":
            assert (image["width"], image["height"]) == sideways[::-1]
        found = coco.imgToAnns[image["id"]]
        assert len(found) == len(line["regions"])
        for annotation, region in zip(found, line["regions"], strict=True):
            x, y, w, h = annotation["bbox"]
            assert [x, y, x + w, y + h] == pytest.approx(region["box"])
            assert annotation["area"] == pytest.approx(w * h, abs=0.01)
            assert CATEGORIES[annotation["category_id"] - 1] == region["label"]
            assert annotation["score"] == region["score"]
    numbers = [number for line in lines for region in line["regions"] for number in region["box"]]
    assert numbers
    assert all(round(number, 1) == number for number in numbers)  # a tenth of a pixel
    assert all(round(region["score"], 4) == region["score"] for line in lines for region in line["regions"])

    draft = tmp_path / "draft.coco.json"
    assert run(world, "label", "--image", world / "images", "--threshold", "0.2", "--out", draft) == 0
    assert json.loads(draft.read_text()) == json.loads(outs[0].read_text())
    assert run(world, "label", "--image", world / "images", "--out", tmp_path / "draft.json") == 1
    assert "give --out FILE.coco.json" in capsys.readouterr().err


def test_captions_and_phrases_are_coco_files_too(world, tmp_path, capsys):
    out = tmp_path / "found.coco.json"
    assert run(world, "caption", "--image", world / "images", "--method", "greedy", "--out", out) == 0
    found = json.loads(out.read_text())
    assert [a["image_id"] for a in found["annotations"]] == [image["id"] for image in found["images"]]
    assert all(isinstance(a["caption"], str) for a in found["annotations"])
    assert run(world, "ground", "--image", world / "images", "--text", "[two dogs] and [a hat]", "--out", out) == 0
    found = json.loads(out.read_text())
    assert {c["name"] for c in found["categories"]} == {"two dogs", "a hat"}
    assert len(found["annotations"]) == 2 * len(found["images"])
    assert run(world, "match", "--image", world / "images", "--text", "dogs", "--out", out) == 1
    assert "COCO's format has no place for what `match` finds" in capsys.readouterr().err


def test_a_broken_off_run_of_any_verb_goes_on(world, tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / "found.jsonl", tmp_path / "whole.jsonl"
    options = ["--image", world / "many", "--text", "two dogs", "--batch", "7"]
    match, calls = CoarsePredictor.match, []

    def dies(self, images, text):
        calls.append(len(images))
        if len(calls) == 4:
            raise SystemError  # nothing that the command expects
        return match(self, images, text)

    with monkeypatch.context() as patched:
        patched.setattr(CoarsePredictor, "match", dies)
        with pytest.raises(SystemError):
            run(world, "match", *options, "--out", out)
    assert not out.exists()
    changed = [*options[:3], "another text", *options[4:]]
    assert run(world, "match", *changed, "--out", out) == 1
    assert "was begun with other text: delete it to start again" in capsys.readouterr().err
    calls[:] = [0] * 10
    monkeypatch.setattr(CoarsePredictor, "match", dies)
    assert run(world, "match", *options, "--out", out) == 0
    assert calls[10:] == [7] * 5 + [4]
    monkeypatch.undo()
    assert run(world, "match", *options, "--out", whole) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.jsonl", "whole.jsonl"]


def test_names_of_any_bytes_and_letters(world, tmp_path, capsys):
    names = ["Füße.png", os.fsdecode(b"odd\xff.png")]
    for name in names:
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    outs = [tmp_path / "found.json", tmp_path / "found.jsonl"]
    options = ["--text", "dogs", "--out", outs[0], "--out", outs[1]]
    assert run(world, "match", "--image", tmp_path, *options) == 0
    assert [Path(row["image"]).name for row in json.loads(outs[0].read_text())] == names
    assert "Füße.png" in outs[1].read_text()
    assert run(world, "match", "--image", tmp_path, *options[:2]) == 0
    assert [Path(json.loads(line)["image"]).name for line in capsys.readouterr().out.splitlines()] == names
    assert run(world, "embed", "--image", tmp_path, "--out", tmp_path / "features.npz") == 0
    assert np.load(tmp_path / "features.npz")["names"].tolist() == names


def test_every_command_and_line_of_the_page_runs(world, tmp_path, monkeypatch, capsys):
    page = (REPO / "docs/use.md").read_text()
    demo = tmp_path / "runs" / "demo"
    demo.mkdir(parents=True)
    (demo / "stage1").symlink_to(world / "coarse")
    (demo / "stage2").symlink_to(world / "fine")
    for number in range(8):
        path = world / "many" / "part0" / f"{number:02d}.png"
        (demo / "images").mkdir(exist_ok=True)
        (demo / "images" / f"{number}.png").write_bytes(path.read_bytes())
    (demo / "shards" / "test").mkdir(parents=True)
    with tarfile.open(demo / "shards" / "test" / "shapes_easy-000000.tar", "w") as tar:
        tar.add(demo / "images", "scenes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIBER_CACHE", str(tmp_path / "cache"))
    commands = "".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).splitlines()
    assert len(commands) >= 8
    for command in commands:
        program, *argv = shlex.split(command)
        assert (program, main(argv)) == ("fiber", 0), command
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, {})
    assert "runs/demo/images/" in capsys.readouterr().out
    assert sorted(path.name for path in (demo / "images").iterdir()) == [f"{n}.png" for n in range(8)]


def test_classes_are_chosen_without_training(world, capsys):
    image = world / "images" / "rgb.jpg"
    assert run(world, "classify", "--image", image, "--text", "circle, square, dog", "--top", "2") == 0
    found = json.loads(capsys.readouterr().out)["classes"]
    assert len(found) == 2
    assert 1 / 3 <= found[0]["score"] <= 1
    assert run(world, "classify", "--image", image) == 1
    assert "no classification head: say which classes" in capsys.readouterr().err


def test_many_unreadable_images_are_named_up_to_a_number(world, tmp_path, capsys):
    for number in range(14):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"?")
    data = io.BytesIO()
    Image.new("RGB", (9, 9)).save(data, "PNG")
    (tmp_path / "20.jpg").write_bytes(data.getvalue())  # names lie
    assert run(world, "match", "--image", tmp_path, "--text", "dogs") == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert len(said.err.splitlines()) == 11
    assert said.err.splitlines()[-1] == "skipped 4 more, 14 in all"


def test_a_text_that_names_no_class_or_is_not_utf8_is_refused(world, capsys):
    for verb in ("detect", "classify"):
        for text, why in (("", "names no class"), (",,,", "names no class"), ("caf\udce9", "not in UTF-8")):
            assert run(world, verb, "--image", world / "many", "--text", text) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: --text ")
            assert why in line


def test_drawings_are_not_written_among_the_images(world, tmp_path, capsys):
    for image, out in (
        (world / "many", "found.png"),
        (world / "many", "new/found.png"),
        (f"{world}/many/*", "x.png"),
    ):
        assert run(world, "detect", "--image", image, "--out", world / "many" / out) == 1
        assert "would take the drawings for images: write them elsewhere" in capsys.readouterr().err
    assert not (world / "many" / "new").exists()
