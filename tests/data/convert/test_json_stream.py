"""Streaming JSON against the standard library, on every awkward window border, and in flat memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fiber.data.convert import json_stream
from fiber.data.convert.items import ConversionError

VALUES = [
    {"id": 1, "image_id": 7, "bbox": [1.5, -2, 3e-7, 12345678901234567890], "text": 'a "quoted" \\ slash, ] } [ {'},
    {"id": 2, "image_id": "x", "text": "Ein Bär \u718a \U0001f43b \ud83d", "none": None, "nested": [[], {}, True]},
    12,
    -0.5,
    "plain",
    None,
    [],
    {"id": 3, "image_id": 7},
]  # fmt: skip


@pytest.fixture(params=[True, False], ids=["ascii", "utf8"])
def path(request, tmp_path):
    values = VALUES if request.param else [{**VALUES[1], "text": "Ein Bär 熊 \U0001f43b"}, *VALUES[2:]]
    whole = {"info": {"a": [1, 2, {"b": "]"}]}, "other": [{"x": 1}, [2]], "wanted": values, "after": "z"}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(whole, indent=1, ensure_ascii=request.param), encoding="utf-8")
    return file


@pytest.mark.parametrize("window", [1, 2, 3, 5, 7, 64, 1 << 20])
def test_equals_the_standard_library_at_any_window(window, path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", window)
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert list(json_stream.iter_array(path, "wanted")) == whole["wanted"]
    assert list(json_stream.iter_array(path, "other")) == whole["other"]
    assert json_stream.count_array(path, "wanted") == len(whole["wanted"])
    assert json_stream.has_array(path, "other")
    assert not json_stream.has_array(path, "absent")


def test_byte_order_mark_and_bare_array(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf [ 1 , 23 ] \n")
    assert list(json_stream.iter_array(file)) == [1, 23]


def test_grouped_joins_in_file_order(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"id": i, "group": int(g), "text": "ü" * int(g)} for i, g in enumerate(rng.integers(0, 9, 200))]
    array, lines = tmp_path / "a.json", tmp_path / "b.json"
    array.write_text(json.dumps({"rows": rows}, ensure_ascii=False), encoding="utf-8")
    lines.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n\n" for r in rows), encoding="utf-8")
    for grouped in (
        json_stream.Grouped(array, "rows", lambda row: row["group"]),
        json_stream.Grouped(lines, None, lambda row: row["group"], lines=True),
    ):
        assert list(grouped) == list(dict.fromkeys(row["group"] for row in rows))
        assert len(grouped) == 9
        for group in range(9):
            assert grouped[group] == [row for row in rows if row["group"] == group]
        assert grouped["nobody"] == []
        assert "nobody" not in grouped


def test_grouped_empty(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"rows": []}')
    grouped = json_stream.Grouped(file, "rows", lambda row: row["id"])
    assert (list(grouped), grouped[1]) == ([], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"wanted": [1, 2', "broken JSON at byte 15"),
        ('{"wanted": [{"a": 1}, {"a": ', "broken JSON at byte 22"),
        ('{"wanted": [1 2]}', "expected ',' or"),
        ('{"wanted": 3}', "'wanted' is not an array"),
        ('{"other": [1]}', "has no array 'wanted'"),
        ("[1]", "expected a JSON object"),
        ("", "the file ends early"),
        ("<html>", "expected a JSON object"),
    ],
)
def test_damage_is_named_with_its_place(content, message, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(ConversionError, match=message) as error:
        list(json_stream.iter_array(file, "wanted"))
    assert str(file) in str(error.value)


def test_damage_early_in_a_large_file_does_not_read_it_all(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_LARGEST", 1 << 12)
    monkeypatch.setattr(json_stream, "_CHUNK", 1 << 10)
    file = tmp_path / "a.json"
    file.write_text('{"wanted": [{"a": 1}, {"a": 1,} ' + "x" * 1_000_000)
    scanner = json_stream._Scanner(file)
    with pytest.raises(ConversionError, match="at byte 22"):
        list(scanner.elements("wanted"))
    assert len(scanner.text) < 100_000


def test_a_broken_line_is_left_out_and_shown(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": \n\n{"a": 1, "b": 2}\n' + "[" * 100_000)
    grouped = json_stream.Grouped(file, None, lambda row: row["a"], lines=True)
    assert (list(grouped), grouped[1]) == ([1], [{"a": 1}, {"a": 1, "b": 2}])
    found = [(drop.reason, drop.detail.partition(": ")[2]) for drop in grouped.malformed("set")]
    assert found == [("annotation malformed", '{"a":'), ("annotation malformed", "[" * 200)]
    file.write_text(json.dumps([{"a": 1}, {"b": [2, 3]}], indent=2))
    (drop,) = json_stream.Grouped(file, None, lambda row: row["a"]).malformed("set")
    assert drop.detail.endswith(': { "b": [ 2, 3 ] }')  # an error that shows it stays one line


MEASURE = """
import resource, sys
from fiber.data.convert.json_stream import Grouped
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grouped = Grouped(sys.argv[1], "annotations", lambda entry: entry["image_id"])
assert len(grouped) == 2000 and len(grouped[7]) == 75
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_flat(tmp_path):
    """150,000 annotations, 54 MB of JSON: some megabytes of places, not gigabytes of objects (measured 13 MB)."""
    file = tmp_path / "a.json"
    polygon = [i + 0.5 for i in range(40)]
    with open(file, "w") as out:
        out.write('{"annotations": [')
        for i in range(150_000):
            entry = {"id": i, "image_id": i * 7919 % 2000, "bbox": [1.5, 2.5, 3.5, 4.5], "segmentation": [polygon]}
            out.write((",\n" if i else "") + json.dumps(entry))
        out.write("]}")
    grown = subprocess.run([sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 30_000  # KB
