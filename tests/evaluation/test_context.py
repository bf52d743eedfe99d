"""The walk over evaluation sets: names that do not overwrite each other, and the rehearsal on a batch of each."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from fiber.data.convert.writer import ShardWriter, write_dataset
from fiber.data.records import Sample
from fiber.data.shapes.world import WORLDS, generate
from fiber.data.shards import ShardSet
from fiber.errors import DataFaultError
from fiber.evaluation.context import EvalContext, evaluate_sets, unique_names
from fiber.evaluation.loader import EvalLoader


def shards(folder: Path, name: str, split: str, count: int = 6) -> ShardSet:
    write_dataset(
        generate(WORLDS["easy"], "val", count, seed=0), folder, name=name, split=split, provenance="d", licence="none"
    )
    return ShardSet(folder)


def test_sets_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By split, then by folder, then by number; a set alone in its field keeps its name."""
    a, b = shards(tmp_path / "a", "coco", "val"), shards(tmp_path / "b", "coco", "test")
    c, d = shards(tmp_path / "c", "coco", "val"), shards(tmp_path / "x" / "c", "coco", "val")
    assert unique_names([(a, "captions")]) == ["coco"]
    assert unique_names([(a, "captions"), (a, "expressions")]) == ["coco", "coco"]
    assert capsys.readouterr().err == ""
    assert unique_names([(a, "captions"), (b, "captions")]) == ["coco_val", "coco_test"]
    assert "told apart as coco_val, coco_test" in capsys.readouterr().err
    assert unique_names([(a, "captions"), (c, "captions")]) == ["coco_val_a", "coco_val_c"]
    assert unique_names([(c, "captions"), (d, "captions")]) == ["coco_val_c_0", "coco_val_c_1"]
    assert unique_names([(c, "captions"), (c, "captions"), (b, "captions")])[:2] == ["coco_val_c_0", "coco_val_c_1"]


def test_what_only_scoring_reads_is_looked_at_too(tmp_path: Path) -> None:
    """An evaluation at image level takes one text of a record; a label that there is not is found all the same."""
    about = {"image_id": "a", "width": 1, "height": 1, "source": "x"}
    record = about | {
        "hypotheses": [{"text": "it rains", "label": "neutral"}, {"text": "it snows", "label": "maybe"}]
    }
    with ShardWriter(tmp_path, "set") as writer:
        writer.add(Sample("a", [("png", b"")], record))
    batches = EvalLoader(ShardSet(tmp_path), "hypotheses", lambda *_: {"x": 1}, "annotation", 1, 0)
    with pytest.raises(DataFaultError, match=r"key 'a': bad_label: hypotheses\[1\]\.label must be one of"):
        next(iter(batches))


def test_figures_and_files_of_every_set_stay(tmp_path: Path) -> None:
    sets = [(shards(tmp_path / name, "coco", "val", size), "captions") for name, size in (("a", 3), ("b", 5))]
    config = SimpleNamespace(output=str(tmp_path / "run"), eval=SimpleNamespace(batch=2))
    seen: list[EvalContext] = []

    def evaluate(task: nn.Module, context: EvalContext) -> dict[str, float]:
        assert not task.training
        seen.append(context)
        return {"images": len(context.shards)}

    task = nn.Linear(1, 1).train()
    figures = evaluate_sets(evaluate, config, None, task, sets, step=7)
    assert figures == {"coco_val_a/images": 3, "coco_val_b/images": 5}
    assert len({context.folder for context in seen}) == len({context.figures for context in seen}) == 2
    assert task.training


def test_a_rehearsal_takes_one_batch_of_each_set_and_leaves_nothing(tmp_path: Path) -> None:
    shard_set = shards(tmp_path / "a", "coco", "val", 6)
    sets = [(shard_set, field) for field in ("captions", "boxes")]
    config = SimpleNamespace(output=str(tmp_path / "run"), eval=SimpleNamespace(batch=4))
    sizes = []

    def evaluate(task: nn.Module, context: EvalContext) -> dict[str, float]:
        sizes.append((context.field, context.shards.count(context.field), len(context.shards)))
        context.folder.mkdir(parents=True, exist_ok=True)
        (context.folder / "rows.jsonl").write_text("")
        context.draw([(0, {"words": "x"})])
        return {f"{context.field}_count": 1.0}

    figures = evaluate_sets(evaluate, config, None, nn.Linear(1, 1), sets, step=None)
    assert set(figures) == {"captions_count", "boxes_count"}
    for _, annotations, images in sizes:
        assert annotations >= 4  # a batch
        assert images < 6  # and no more than holds it
    assert not list((tmp_path / "run").rglob("*"))
