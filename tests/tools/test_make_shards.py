"""The conversion engine through its command: resumable, deterministic, parallel, and honest about what is missing."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fiber.cli.shards import names
from fiber.data.convert.items import RawDataset
from fiber.data.shapes import world as shapes
from fiber.data.shards import ShardSet

sys.path += [str(Path(__file__).resolve().parents[2] / place) for place in ("tools", "tests/data/convert")]
import raw

import make_shards

TOOL = make_shards.__file__


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def coco(folder: Path, number: int, size: tuple[int, int] = (64, 48), missing: float = 0.0) -> list[str]:
    """A detection set of ``number`` images, one box each; the arguments that convert it."""
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": size[0], "height": size[1]} for i in range(number)]
    half = [size[0] / 2, size[1] / 2]
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i % 9, 2.0, *half], "area": 9.0}
                   for i in range(number)]  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    raw.put(folder / "annotations" / "instances_val2017.json", content)
    data = [raw.write_image(i, size=size) for i in range(7)]
    for i in range(number):
        if (i * 7) % 10 >= 10 * missing:
            raw.put(folder / "val2017" / f"{i:012d}.jpg", data[i % 7])
    return ["coco_detection", "--split", "val", "--raw", str(folder)]


def run(arguments: list[str], capsys) -> dict:
    assert make_shards.main(arguments) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def fails(arguments: list[str], capsys) -> str:
    assert make_shards.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()
    return next(line for line in error if line.startswith("error: "))


def test_more_shards_than_files_may_be_open(tmp_path, capsys):
    """Objects365 has 1,700 shards, a process usually 1,024 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    try:
        arguments = ["shapes", "--limit", "60", "--shard-samples", "1", "--out", str(tmp_path / "out")]
        assert run(arguments, capsys)["shards"] == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_same_bytes_for_any_number_of_workers_and_any_run(tmp_path, capsys):
    arguments = [*coco(tmp_path / "raw", 95, missing=0.3), "--shard-samples", "20"]
    for name, workers in (("a", "1"), ("b", "2"), ("c", "1")):
        run([*arguments, "--out", str(tmp_path / name), "--workers", workers], capsys)
    assert len(list((tmp_path / "a").glob("*.tar"))) == 5
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")


def test_killed_conversion_ends_with_the_same_bytes(tmp_path, capsys):
    """SIGKILL in the middle, with workers writing: nothing half-done is visible, and a rerun finishes the job."""
    arguments = [*coco(tmp_path / "raw", 600, size=(500, 375)), "--shard-samples", "10"]
    run([*arguments, "--out", str(tmp_path / "whole")], capsys)

    out = tmp_path / "killed"
    command = [sys.executable, TOOL, *arguments, "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (out / ".partial" / "000003").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(out.glob("*.tar"))
    assert not (out / "dataset.json").exists()
    done = sorted(p.name for p in (out / ".partial").iterdir() if p.name.isdigit())
    assert 0 < len(done) < 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # orphans notice and leave
        assert time.monotonic() < deadline
        time.sleep(0.05)

    summary = run([*arguments, "--out", str(out)], capsys)
    assert summary["samples"] == 600
    assert tree(out) == tree(tmp_path / "whole")


def test_killed_while_finishing(tmp_path, capsys, monkeypatch):
    """Some shards already moved to their places, then the end: the rerun moves the rest."""
    arguments = [*coco(tmp_path / "raw", 60), "--shard-samples", "20"]
    run([*arguments, "--out", str(tmp_path / "whole")], capsys)
    moved = []
    replace = os.replace

    def stop_after_two(source, target):
        if str(target).endswith(".tar") and Path(target).parent == tmp_path / "out":
            if len(moved) == 2:
                raise KeyboardInterrupt
            moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_after_two)
    assert make_shards.main([*arguments, "--out", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    run([*arguments, "--out", str(tmp_path / "out")], capsys)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_missing_images_are_counted_and_listed(tmp_path, capsys):
    out = tmp_path / "out"
    summary = run([*coco(tmp_path / "raw", 100, missing=0.3), "--out", str(out)], capsys)
    assert (summary["items"], summary["samples"]) == (100, 70)
    missing = summary["dropped"]["missing image"]
    assert missing["count"] == 30
    assert len(missing["examples"]) == 5
    assert missing["examples"][0] == f"coco_0: {tmp_path / 'raw/val2017/000000000000.jpg'}"
    lines = [json.loads(line) for line in (out / "drops.jsonl").read_text().splitlines()]
    assert [line["subject"] for line in lines] == [f"coco_{i}" for i in range(100) if (i * 7) % 10 < 3]
    assert json.loads((out / "dataset.json").read_text())["dropped"]["missing image"]["count"] == 30


def test_last_line_is_the_summary_and_progress_shows_the_rate(tmp_path):
    command = [
        sys.executable,
        TOOL,
        *coco(tmp_path / "raw", 30),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["samples"] == 30
    assert summary["annotations"] == {"boxes": 30}
    assert done.stderr.startswith("converting coco_detection: 30 of 30 images, ")
    assert " images per second, 0:00:00 left" in done.stderr


@pytest.mark.parametrize("cut", [0.3, 0.999])
def test_truncated_json(cut, tmp_path, capsys):
    arguments = coco(tmp_path / "raw", 50)
    path = tmp_path / "raw" / "annotations" / "instances_val2017.json"
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    error = fails([*arguments, "--out", str(tmp_path / "out")], capsys)
    assert str(path) in error
    assert "broken JSON at byte" in error
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_wrong_places_are_clear_errors(tmp_path, capsys):
    arguments = coco(tmp_path / "raw", 5)
    error = fails([*arguments[:-1], str(tmp_path / "nowhere"), "--out", str(tmp_path / "a")], capsys)
    assert "the file instances_val2017.json not found; looked for" in error
    assert "has no split 'third'" in fails([*arguments, "--split", "third", "--out", str(tmp_path / "b")], capsys)
    images = ["--images", str(tmp_path / "elsewhere")]
    error = fails([*arguments, *images, "--out", str(tmp_path / "c")], capsys)
    assert "none of 5 items could be used: missing image (5 times)" in error
    assert "is --raw (or --images) the right folder?" in error
    assert not (tmp_path / "c" / "dataset.json").exists()
    run([*arguments, "--out", str(tmp_path / "c")], capsys)  # nothing of the failed run is in the way
    with pytest.raises(SystemExit, match="2"):
        make_shards.main(["cocoo", "--raw", "x", "--out", "y"])


def test_entries_in_another_format_are_a_clear_error(tmp_path, capsys):
    arguments = coco(tmp_path / "raw", 5)
    path = tmp_path / "raw" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][3]["bbox"]
    raw.put(path, content)
    summary = run([*arguments, "--out", str(tmp_path / "one")], capsys)
    assert "annotation 3: bbox None" in summary["dropped"]["box malformed"]["examples"][0]
    raw.put(path, {"images": content["images"], "categories": []})
    assert "has no array 'annotations'" in fails([*arguments, "--out", str(tmp_path / "out")], capsys)


def test_finished_and_foreign_folders(tmp_path, capsys):
    arguments, out = coco(tmp_path / "raw", 10), tmp_path / "out"
    first = run([*arguments, "--out", str(out)], capsys)
    before = tree(out)
    again = run([*arguments, "--out", str(out)], capsys)
    assert again["already_complete"]
    assert again["samples"] == first["samples"]
    assert "already holds 'coco_detection'" in fails([*arguments, "--limit", "3", "--out", str(out)], capsys)
    assert tree(out) == before
    assert run([*arguments, "--limit", "3", "--out", str(out), "--overwrite"], capsys)["samples"] == 3
    assert len(ShardSet(out)) == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.tar").write_bytes(b"")
    assert "holds tars of something else" in fails([*arguments, "--out", str(tmp_path / "other")], capsys)


def test_interrupted_run_does_not_go_on_with_other_options(tmp_path, capsys):
    arguments, out = coco(tmp_path / "raw", 10), tmp_path / "out"
    raw.put(out / ".partial" / "plan.json", {"name": "coco_detection", "options": {"limit": 7}})
    error = fails([*arguments, "--out", str(out)], capsys)
    assert "interrupted conversion with other" in error
    assert "options" in error
    assert run([*arguments, "--out", str(out), "--overwrite"], capsys)["samples"] == 10


def test_max_side_shrinks_images_and_boxes(tmp_path, capsys):
    folder = tmp_path / "raw"
    arguments = coco(folder, 4, size=(400, 300))
    raw.put(
        folder / "val2017" / f"{3:012d}.jpg", raw.write_image(3, size=(100, 75))
    )  # already small: bytes unchanged
    run([*arguments, "--max-side", "100", "--out", str(tmp_path / "out")], capsys)
    shards = ShardSet(tmp_path / "out")
    for i in range(4):
        sample = shards.read(i)
        assert (sample.record["width"], sample.record["height"]) == (100, 75)
        assert sample.record["boxes"][0]["box"] == pytest.approx([i / 4, 0.5, (i + 200) / 4, 38.0])
        assert sample.record["boxes"][0]["area"] == pytest.approx(9 / 16)
    assert shards.read(3).images[0][1] == (folder / "val2017" / f"{3:012d}.jpg").read_bytes()
    assert len(shards.read(0).images[0][1]) < (folder / "val2017" / f"{0:012d}.jpg").stat().st_size


def test_images_are_stored_as_they_are_and_decoded_once(tmp_path, capsys):
    folder = tmp_path / "raw"
    arguments = coco(folder, 3)
    raw.put(folder / "val2017" / f"{1:012d}.jpg", raw.write_image(1, raw.TRUNCATED))
    raw.put(folder / "val2017" / f"{2:012d}.jpg", raw.write_image(2, "PNG"))  # a PNG by its bytes
    summary = run([*arguments, "--out", str(tmp_path / "a")], capsys)
    assert summary["dropped"]["broken image"]["count"] == 1
    shards = ShardSet(tmp_path / "a")
    assert [shards.read(i).images[0][0] for i in range(2)] == ["jpg", "png"]
    assert shards.read(0).images[0][1] == (folder / "val2017" / f"{0:012d}.jpg").read_bytes()
    assert run([*arguments, "--no-decode-check", "--out", str(tmp_path / "b")], capsys)["samples"] == 3


def test_turned_photographs_count_as_the_loader_shows_them(tmp_path, capsys):
    import io

    from PIL import Image

    arguments = coco(tmp_path / "raw", 1, size=(48, 64))
    upright = Image.open(io.BytesIO(raw.write_image(0, size=(48, 64))))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown turned by a quarter
    out = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(out, "JPEG", exif=exif)
    raw.put(tmp_path / "raw" / "val2017" / f"{0:012d}.jpg", out.getvalue())
    run([*arguments, "--out", str(tmp_path / "a")], capsys)
    record = ShardSet(tmp_path / "a").record(0)
    assert (record["width"], record["height"]) == (48, 64)


def test_shard_size_target(tmp_path, capsys):
    arguments = coco(tmp_path / "raw", 64, size=(300, 200))
    run([*arguments, "--shard-mb", "0.1", "--out", str(tmp_path / "out")], capsys)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(sizes) > 3
    assert all(50_000 < size < 150_000 for size in sizes[:-1])


def test_leaks_are_reported_and_left_out_on_request(tmp_path, capsys):
    run([*coco(tmp_path / "eval", 6), "--out", str(tmp_path / "test")], capsys)
    listed = raw.put(tmp_path / "ids.txt", "coco_8\nflickr_1\n")
    arguments = [*coco(tmp_path / "raw", 10), "--against", str(tmp_path / "test"), str(listed)]
    summary = run([*arguments, "--out", str(tmp_path / "a")], capsys)
    assert summary["samples"] == 10
    assert summary["noted"]["in an evaluation set"]["count"] == 7
    assert summary["noted"]["in an evaluation set"]["examples"][0] == "coco_0: coco_detection"
    summary = run([*arguments, "--drop-leaks", "--out", str(tmp_path / "b")], capsys)
    assert summary["samples"] == 3
    shards = ShardSet(tmp_path / "b")
    assert [shards.record(i)["image_id"] for i in range(3)] == ["coco_6", "coco_7", "coco_9"]
    error = fails([*arguments, str(tmp_path / "nothing"), "--out", str(tmp_path / "c")], capsys)
    assert "no such evaluation set" in error


@pytest.mark.parametrize(("variant", "generate"), [("scenes", shapes.generate), ("pairs", shapes.generate_pairs)])
def test_shapes_are_the_generators(variant, generate, tmp_path, capsys):
    arguments = ["shapes", "--variant", variant, "--split", "val", "--seed", "3", "--limit", "11"]
    run([*arguments, "--out", str(tmp_path / "out"), "--shard-samples", "4"], capsys)
    shards = ShardSet(tmp_path / "out")
    for i, expected in enumerate(generate(shapes.WORLDS["easy"], "val", 11, 3)):
        sample = shards.read(i)
        assert sample.images == expected.images
        assert sample.record == json.loads(json.dumps(expected.record))
    assert i == len(shards) - 1


def test_shapes_world_and_size(tmp_path, capsys):
    arguments = ["shapes", "--world", "hard", "--image-size", "80", "--limit", "3"]
    run([*arguments, "--out", str(tmp_path / "out")], capsys)
    assert ShardSet(tmp_path / "out").record(0)["width"] == 80
    assert "no world 'flat'" in fails(["shapes", "--world", "flat", "--out", str(tmp_path / "x")], capsys)


def test_every_data_set_is_documented():
    page = (Path(TOOL).parents[1] / "docs" / "data.md").read_text()
    assert all(f"`{name}" in page or f" {name} " in page for name in names())


@pytest.mark.parametrize(
    ("name", "stored"), [("..x", "x"), ("-x", "x"), ("a" * 200, "a" * 80), ("...", "set"), ("my set", "my_set")]
)
def test_the_name_of_a_set_is_one_that_shards_can_have(name, stored):
    assert RawDataset(name, "train", "", {}, []).name == stored
