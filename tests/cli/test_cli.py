"""The `fiber` command: every task on every kind of image, JSON and drawings out, errors that help."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fiber.cli.main import main
from tiny_exports import ANSWERS, coarse_export, fine_export, images


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Folder with the exports `coarse`, `fine` and a folder `images`."""
    folder = tmp_path_factory.mktemp("world")
    coarse_export(folder / "coarse", vqa=len(ANSWERS))
    fine_export(folder / "fine")
    images(folder / "images")
    return folder


TASKS = {
    "caption": ("coarse", [], "captions"),
    "answer": ("coarse", ["--text", "two dogs"], "answers"),
    "match": ("coarse", ["--text", "a red circle"], "probability"),
    "ground": ("fine", ["--text", "a red circle left of two dogs"], "regions"),
    "refer": ("fine", ["--text", "the left circle"], "regions"),
    "detect": ("fine", ["--text", "circle, blue square", "--threshold", "0.01"], "regions"),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_a_folder_of_odd_images(world, tmp_path, capsys, task):
    model, options, key = TASKS[task]
    options = [*options, "--out", str(tmp_path / "found.png"), "--out", str(tmp_path / "found.json")]
    assert main([task, "--model", str(world / model), "--image", str(world / "images"), *options]) == 0
    assert capsys.readouterr().out == ""  # it went to the file
    found = json.loads((tmp_path / "found.json").read_text())
    assert [Path(result["image"]).name for result in found] == sorted(p.name for p in (world / "images").iterdir())
    assert all(key in result for result in found)
    drawn = sorted(tmp_path.glob("found-*.png"))
    assert [path.stem.split("-", 2)[2] for path in drawn] == [Path(result["image"]).stem for result in found]
    for path in drawn:
        with Image.open(path) as image:
            assert max(image.size) >= 320


def test_one_image_prints_one_line_of_json_and_draws_one_file(world, tmp_path, capsys):
    image = str(world / "images" / "rgb.jpg")
    out = tmp_path / "new" / "drawn.png"
    argv = ["ground", "--model", str(world / "fine"), "--image", image, "--text", "a [circle] left of a [dog]"]
    assert main([*argv, "--out", str(out)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["sentence"] == "a circle left of a dog"
    assert [(r["label"], r["span"]) for r in result["regions"]] == [("circle", [2, 8]), ("dog", [19, 22])]
    assert out.is_file()


@pytest.mark.parametrize(("verb", "model"), [("match", "coarse"), ("ground", "fine")])
def test_heat_is_drawn_where_it_is_asked_for(world, tmp_path, capsys, verb, model):
    """One cell for the image and one per word (match) or phrase (ground); of several images a sheet each."""
    before = sorted((world / "images").iterdir())
    image, text = str(world / "images" / "rgb.jpg"), "a [circle] left of a [dog]"
    argv = [verb, "--model", str(world / model), "--text", text if verb == "ground" else "two dogs", "--heat"]
    assert main([*argv, str(tmp_path / "new" / "h.png"), "--image", image]) == 0
    with Image.open(tmp_path / "new" / "h.png") as sheet:
        assert sheet.width == 3 * (320 + 8)
    both = [image, str(world / "images" / "grey.png")]
    assert main([*argv, str(tmp_path / "h.png"), "--image", *both, "--out", str(tmp_path / "x.json")]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["h-000-rgb.png", "h-001-grey.png"]
    assert sorted((world / "images").iterdir()) == before
    capsys.readouterr()
    assert main([*argv, str(tmp_path / "h.gif"), "--image", image]) == 1
    assert "h.gif: give a name ending in .png" in capsys.readouterr().err


def test_retrieve_searches_a_folder_with_its_index_or_ranks_texts_for_an_image(world, tmp_path, capsys):
    argv = ["retrieve", "--model", str(world / "coarse"), "--index", str(tmp_path / "index.npz")]
    folder, texts = str(world / "images"), ["a red circle", "two dogs", "a blue square"]
    for encoded in (10, 0):
        assert main([*argv, "--image", folder, "--text", *texts[:2], "--top", "3"]) == 0
        said = capsys.readouterr()
        assert f"{encoded} of them encoded now" in said.err
        results = [json.loads(line) for line in said.out.splitlines()]
        assert [result["text"] for result in results] == texts[:2]
        assert all(len(result["images"]) == 3 for result in results)
    assert (
        main([*argv, "--image", folder, "--text", texts[0], "--rerank", "4", "--out", str(tmp_path / "s.png")]) == 0
    )
    assert (tmp_path / "s.png").is_file()
    capsys.readouterr()
    assert main([*argv, "--image", str(world / "images" / "rgb.jpg"), "--text", *texts]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {entry["text"] for entry in result["texts"]} == set(texts)
    scores = [entry["score"] for entry in result["texts"]]
    assert scores == sorted(scores, reverse=True)


def test_the_marked_place_of_a_phrase_is_grounded(world, capsys):
    """Not the first place with the same words."""
    argv = ["ground", "--model", str(world / "fine"), "--image", str(world / "images" / "rgb.jpg"), "--text"]
    assert main([*argv, "a triangle and [a triangle]"]) == 0
    assert [r["span"] for r in json.loads(capsys.readouterr().out)["regions"]] == [[15, 25]]


def test_retrieve_skips_an_unreadable_image_of_a_list_too(world, tmp_path, capsys):
    for name in ("rgb.jpg", "grey.png"):
        (tmp_path / name).write_bytes((world / "images" / name).read_bytes())
    (tmp_path / "bad.jpg").write_bytes(b"?")
    argv = ["retrieve", "--model", str(world / "coarse"), "--text", "two dogs", "--image"]
    assert main([*argv, str(tmp_path / "*.*")]) == 0
    said = capsys.readouterr()
    assert {Path(hit["image"]).name for hit in json.loads(said.out)["images"]} == {"rgb.jpg", "grey.png"}
    assert "skipped" in said.err
    assert "bad.jpg" in said.err
    (tmp_path / "grey.png").unlink()  # one is left that can be read: still a search, not texts for an image
    assert main([*argv, str(tmp_path / "*.*")]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 1
    assert main([*argv, str(tmp_path / "bad.jpg")]) == 1
    assert "bad.jpg" in capsys.readouterr().err


def test_unreadable_images_among_others_are_skipped_and_named(world, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"?")
    argv = ["caption", "--model", str(world / "coarse"), "--method", "greedy", "--image"]
    assert main([*argv, str(world / "images" / "rgb.jpg"), str(tmp_path / "bad.jpg")]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "skipped" in said.err
    assert "bad.jpg" in said.err
    assert main([*argv, str(tmp_path / "bad.jpg")]) == 1
    assert "error" in capsys.readouterr().err


def test_errors_say_what_to_do(world, tmp_path, capsys):
    image = str(world / "images" / "rgb.jpg")
    cases = (
        (["caption", "--model", str(world / "fine"), "--image", image], "it can: ground, refer, detect"),
        (["caption", "--model", str(tmp_path), "--image", image], "no config.json"),
        (["caption", "--model", str(tmp_path / "absent"), "--image", image], "no folder"),
        (["caption", "--model", str(world / "coarse"), "--image", str(tmp_path / "x.png")], "x.png"),
        (["caption", "--model", str(world / "coarse"), "--image", image, "--out", "x.gif"], ".json or .png"),
        (["ground", "--model", str(world / "fine"), "--image", image, "--text", "of"], "no phrases found"),
    )
    for argv, message in cases:
        assert main(argv) == 1
        said = capsys.readouterr()
        assert message in said.err
        assert len(said.err.strip().splitlines()) == 1
    with pytest.raises(SystemExit) as wrong:
        main(["answer", "--model", str(world / "coarse"), "--image", image])
    assert wrong.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as wrong:
        main(["detect", "--model", str(world / "fine"), "--image", image, "--threshold", "30"])
    assert wrong.value.code == 2
    assert "30 is not a number from 0 to 1" in capsys.readouterr().err


def test_a_program_is_written_per_size(world, tmp_path, capsys, monkeypatch):
    wrote = []
    write = lambda _, path, size: wrote.append((path.name, size)) or 1e-7  # noqa: E731
    monkeypatch.setattr("fiber.weights.program.export_onnx", write)
    argv = ["convert", str(world / "coarse"), str(tmp_path / "m.onnx")]
    assert main([*argv, "--size", "64x64", "64x96"]) == 0
    assert main([*argv, "--size", "128x128"]) == 0
    assert main(argv) == 0
    assert wrote == [
        ("m-64x64.onnx", (64, 64)),
        ("m-64x96.onnx", (64, 96)),
        ("m.onnx", (128, 128)),
        ("m.onnx", None),
    ]
    for wrong in ("64", "64x", "0x64", "64x-1"):
        with pytest.raises(SystemExit) as end:
            main([*argv, "--size", wrong])
        assert end.value.code == 2
        assert f"'{wrong}' is no HEIGHTxWIDTH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"detector": {"foo": 1}}, "detector.foo: unknown key"),
        ({"detector": {"groups": 0}}, "detector.groups: must be at least 1"),
        ({"max_text": 0}, "max_text: must be at least 1"),
        ({"detector": {"groups": 5}}, "cannot be converted"),
        ({"pad_id": 10**8}, "cannot be converted"),
    ],
)
def test_a_damaged_export_is_converted_to_one_line(world, tmp_path, capsys, change, said):
    folder = shutil.copytree(world / "fine", tmp_path / "damaged")
    tree = json.loads((folder / "config.json").read_text())
    detector = tree["detector"] | change.get("detector", {})
    (folder / "config.json").write_text(json.dumps(tree | change | {"detector": detector}))
    assert main(["convert", str(folder), str(tmp_path / "m.pt2")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder}")
    assert said in line


def test_a_detector_of_default_sizes_goes_back_to_the_release_s_form(world, tmp_path):
    """Its export need not say them."""
    assert "strides" not in json.loads((world / "fine" / "config.json").read_text())["detector"]
    assert main(["convert", str(world / "fine"), str(tmp_path / "m.pth")]) == 0


def test_the_console_script_runs(world):
    command = Path(sys.executable).with_name("fiber")
    argv = [
        "match",
        "--model",
        str(world / "coarse"),
        "--image",
        str(world / "images" / "rgb.jpg"),
        "--text",
        "dogs",
    ]
    done = subprocess.run([command, *argv], capture_output=True, text=True, check=True)
    assert 0 <= json.loads(done.stdout)["probability"] <= 1
