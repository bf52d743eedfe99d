"""`fiber shards` and `fiber inspect`: instant help, boxes counted as boxes, sets told apart by split."""

import json
import subprocess
import sys
from pathlib import Path

from fiber.cli.main import main
from fiber.cli.shards import names, reader
from fiber.data.convert.writer import write_dataset
from fiber.data.records import Sample
from fiber.data.shards import ShardSet


def test_help_imports_nothing_heavy_and_lists_every_set():
    code = (
        "import sys\nfrom fiber.cli.main import main\n"
        "try:\n    main(['shards', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'yaml', 'tqdm') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    shown = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.strip()}
    assert names().keys() <= shown
    assert {"boxes", "pairs", "coco_captions", "shapes"} <= names().keys()
    assert all(hasattr(reader(name), "SPLITS") for name in names())


def test_boxes_are_counted_not_images(tmp_path, capsys):
    """Three boxes in one image, with and without the counts that a conversion stores."""
    assert main(["shards", "shapes", "--limit", "4", "--out", str(tmp_path / "a")]) == 0
    shards = ShardSet(tmp_path / "a")
    boxes = sum(len(shards.record(i)["boxes"]) for i in range(4))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["annotations"]["boxes"] == boxes > 4
    samples = [shards.read(i) for i in range(4)]
    again = [Sample(sample.key, sample.images, sample.record) for sample in samples]
    write_dataset(again, tmp_path / "b", name="b", split="x", provenance="", licence="", categories=shards.categories)
    for name in "ab":
        assert main(["inspect", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        assert json.loads(said.splitlines()[-1])["annotations"]["boxes"] == boxes
        assert f"{boxes:>10,} boxes\n" in said


def test_the_folder_is_given_once(tmp_path: Path, capsys):
    assert main(["shards", "boxes", "x", "--raw", "y", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: give the folder once: SRC or --raw\n"
