"""inspect_shards: right numbers, every kind of damage found, boxes drawn where they are."""

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from fiber.data.convert.shard_statistics import histogram
from fiber.data.convert.writer import ShardWriter, write_dataset
from fiber.data.records import Sample
from fiber.data.shards import ShardSet
from fiber.images.draw import COLOURS

sys.path += [str(Path(__file__).resolve().parents[2] / place) for place in ("tools", "tests/data/convert")]
import raw

import inspect_shards
import make_shards


def inspected(arguments: list, capsys) -> tuple[int, dict, str]:
    """(exit status, summary, all of stdout)."""
    code = inspect_shards.main([str(a) for a in arguments])
    out = capsys.readouterr().out
    return code, json.loads(out.splitlines()[-1]), out


@pytest.fixture
def shapes(tmp_path, capsys) -> Path:
    make_shards.main(["shapes", "--limit", "12", "--shard-samples", "5", "--out", str(tmp_path / "s")])
    capsys.readouterr()
    return tmp_path / "s"


def test_counts_and_histograms(shapes, capsys):
    code, summary, out = inspected([shapes, "--verify"], capsys)
    assert code == 0
    assert (summary["samples"], summary["shards"], summary["wrong"]) == (12, 3, {})
    records = [ShardSet(shapes).record(i) for i in range(12)]
    assert summary["annotations"]["boxes"] == sum(len(record["boxes"]) for record in records)
    assert "verified: no fault found" in out
    assert "long side (px)\n                64         12 ####" in out
    assert "words in captions" in out
    assert "boxes per image" in out


def test_histogram_adds_up():
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 5, 100), rng.normal(size=300) * 50):
        lines = histogram(values)
        assert sum(int(line.split()[1].replace(",", "")) for line in lines) == len(values)
        assert max(line.count("#") for line in lines) == 40
    assert histogram([]) == ["  (none)"]


def test_flipped_byte_is_found(shapes, capsys):
    path = shapes / "shapes_easy-000001.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 255
    path.write_bytes(bytes(data))
    code, summary, out = inspected([shapes, "--verify"], capsys)
    assert code == 1
    assert summary["wrong"]["damaged shard"] == 1
    assert "damaged shard: shapes_easy-000001.tar: bytes differ from the index" in out
    assert inspected([shapes], capsys)[0] == 0  # only --verify reads everything


def test_truncated_shard_is_found(shapes, capsys):
    path = shapes / "shapes_easy-000002.tar"
    path.write_bytes(path.read_bytes()[:6000])
    code, summary, _ = inspected([shapes, "--verify"], capsys)
    assert code == 1
    assert summary["wrong"]["damaged shard"] == 1
    assert summary["wrong"]["truncated_shard"] >= 1


def test_bad_samples_are_found_and_named(tmp_path, capsys):
    def sample(key: str, data: bytes, **more) -> Sample:
        record = {
            "image_id": key,
            "width": raw.WIDTH,
            "height": raw.HEIGHT,
            "source": "t",
            "captions": [{"text": "x"}],
        }
        return Sample(key, [("jpg", data)], {**record, **more})

    with ShardWriter(tmp_path / "s", "s") as writer:
        writer.add(sample("good", raw.write_image(0)))
        writer.add(sample("cut", raw.write_image(0, raw.TRUNCATED)))
        writer.add(sample("large", raw.write_image(0), width=640))
        writer.add(sample("outside", raw.write_image(0), boxes=[{"box": [0, 0, 900, 9]}]))
        writer.add(sample("blank", raw.write_image(0), captions=[{"text": " "}]))
    code, summary, out = inspected([tmp_path / "s", "--verify"], capsys)
    assert code == 1
    assert summary["wrong"] == {"undecodable_image": 1, "wrong_size": 1, "bad_box": 1, "empty_text": 1}
    for key in ("cut", "large", "outside", "blank"):
        assert f"s-000000.tar {key}: " in out


@pytest.mark.parametrize("damage", ["{xx", '{"image_id": "b"}', "[]"])
def test_a_damaged_record_is_reported_and_hides_nothing(damage: str, tmp_path: Path, capsys) -> None:
    """Where dataset.json does not count the boxes either. The verdict comes first, whatever becomes of the sheet."""
    record = {
        "width": raw.WIDTH,
        "height": raw.HEIGHT,
        "source": "t",
        "boxes": [{"box": [0, 0, 9, 9], "category": 1}],
    }
    with ShardWriter(tmp_path / "s", "s") as writer:
        for key in "abc":
            writer.add(Sample(key, [("jpg", raw.write_image(0))], record | {"image_id": key}))
    offset, size = ShardSet(tmp_path / "s").index.record[1].tolist()
    tar = tmp_path / "s/s-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:offset] + damage.ljust(size).encode() + content[offset + size :])
    for index in (tmp_path / "s").glob("index.*"):
        index.unlink()
    (tmp_path / "s/dataset.json").write_text('{"categories": [{"id": 1, "name": "x"}]}')
    code, summary, _ = inspected([tmp_path / "s"], capsys)
    assert (code, summary["samples"], summary["annotations"]) == (0, 3, {"boxes": 2})
    code, summary, _ = inspected([tmp_path / "s", "--verify", "--contact-sheet", tmp_path / "sheet.png"], capsys)
    assert (code, sum(summary["wrong"].values())) == (1, 1)
    assert (tmp_path / "sheet.png").is_file()
    with contextlib.suppress(OSError):
        inspect_shards.main([str(tmp_path / "s"), "--verify", "--contact-sheet", str(tmp_path / "no/sheet.png")])
    assert "verified: faults" in capsys.readouterr().out


def test_no_shards_is_a_clear_error(tmp_path, capsys):
    assert inspect_shards.main([str(tmp_path / "nowhere")]) == 1
    assert "no such folder of shards" in capsys.readouterr().err


def test_contact_sheet_draws_boxes_where_they_are(tmp_path, capsys):
    """A grey image of 64 x 48 shown 320 wide: its box comes out five times as large, with its label above."""
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (128, 128, 128)).save(out, "PNG")
    record = {"image_id": "x", "width": 64, "height": 48, "source": "t", "boxes": [{"box": [10.0, 8.0, 50.0, 40.0]}]}
    write_dataset([Sample("a", [("png", out.getvalue())], record)], tmp_path / "s", name="s", split="x",
                  provenance="", licence="")  # fmt: skip
    code, _, _ = inspected([tmp_path / "s", "--contact-sheet", tmp_path / "sheet.png", "--side", "320"], capsys)
    assert code == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    drawn = np.argwhere((sheet[:240, :320] == ImageColor.getrgb(COLOURS[0])).all(-1))
    sides = drawn[drawn[:, 0] >= 40]
    assert sides.min(0).tolist() == [40, 50]
    assert sides.max(0).tolist() == [200, 250]
    label = drawn[drawn[:, 0] < 38]
    assert label.size
    assert label[:, 1].min() == 50


@pytest.mark.parametrize("name", ["nlvr2", "vqav2", "snli_ve", "mdetr_mixed", "visual_genome", "lvis", "coco_plain"])
def test_contact_sheets_of_every_kind_of_annotation(name, tmp_path, capsys):
    made = raw.build(name, tmp_path / "raw")
    assert make_shards.main(made.command(tmp_path / "out")) == 0
    capsys.readouterr()
    code, summary, _ = inspected([tmp_path / "out", "--verify", "--contact-sheet", tmp_path / "sheet.png"], capsys)
    assert (code, summary["wrong"]) == (0, {})
    assert Image.open(tmp_path / "sheet.png").height > 150
