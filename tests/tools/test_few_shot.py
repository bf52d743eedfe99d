"""Few-shot subsets: the quota of every class, one rule for any number of shots, shards that are whole."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from few_shot_sets import choose, labels
from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.world import WORLDS, categories, generate
from fiber.data.shards import ShardSet

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import few_shot


def images(seed: int, count: int = 80) -> list[set[int]]:
    """Long-tailed labels of up to four classes of twelve, some images without any."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 13)
    return [set(rng.choice(12, rng.integers(0, 5), p=share / share.sum()).tolist()) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_quotas_hold_for_any_set(seed: int) -> None:
    shown = images(seed)
    total = Counter(one for own in shown for one in own)
    smaller: set[int] = set()
    for shots in (1, 3, 5, 10, 1000):
        kept = choose(shown, shots, seed)
        found = Counter(one for i in kept for one in shown[i])
        assert kept == sorted(set(kept)) == choose(shown, shots, seed)
        assert all(found[one] >= min(shots, total[one]) for one in total)
        assert all(shown[i] for i in kept)
        assert smaller <= set(kept)
        smaller = set(kept)
        # No more images than the quotas together ask for.
        assert len(kept) <= sum(min(shots, count) for count in total.values())
    assert smaller == {i for i, own in enumerate(shown) if own}
    assert choose(shown, 1, seed) != choose(shown, 1, seed + 100)


def test_by_hand() -> None:
    """One shot, every order of three images: {1, 2} alone will do if it is first, else two or three images."""
    found = {tuple(choose([{1}, {2}, {1, 2}], 1, seed)) for seed in range(40)}
    assert found == {(2,), (0, 1), (0, 2), (1, 2)}
    assert choose([{1}] * 6, 2, 0) == sorted(np.random.default_rng(0).permutation(6)[:2].tolist())
    assert labels({"boxes": [{"category": 3}, {"category": 4, "crowd": True}, {"box": []}]}) == {3}


def test_the_tool_writes_whole_shards(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    world, about = WORLDS["novel"], {"provenance": "drawn", "licence": "none"}
    scenes = list(generate(world, "train", 60, seed=0))
    write_dataset(scenes, tmp_path / "all", name="n", split="train", categories=categories(world), **about)
    few_shot.main([str(tmp_path / "all"), "--shots", "2", "--seed", "3", "--out", str(tmp_path / "few")])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    few, whole = ShardSet(tmp_path / "few"), ShardSet(tmp_path / "all")
    by_key = {scene.key: scene for scene in scenes}
    assert summary["samples"] == len(few) < len(whole)
    read = [few.read(i) for i in range(len(few))]
    assert all(one.images == by_key[one.key].images and one.record == by_key[one.key].record for one in read)
    counts = Counter(one for sample in read for one in labels(sample.record))
    names = {entry["id"]: entry["name"] for entry in categories(world)}
    assert summary["images"] == {name: counts[one] for one, name in names.items()}
    assert summary["images"]["pink crescent"] == 0  # held out of train
    assert few.categories == whole.categories
    assert few.info["split"] == "train_2_3"
    assert few.info["provenance"]["few_shot"]["fingerprint"] == whole.fingerprint
    for arguments, message in (
        ([str(tmp_path / "all"), "--shots", "0"], "--shots: 0 is not a whole number of at least 1"),
        ([str(tmp_path / "all"), "--shots", "2"], "already holds shards"),
        ([str(tmp_path / "none"), "--shots", "2"], "no such folder"),
    ):
        with pytest.raises(SystemExit):
            few_shot.main([*arguments, "--out", str(tmp_path / "few")])
        assert message in capsys.readouterr().err
