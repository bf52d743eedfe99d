"""The order and the loaders: pure, complete, the same for any split, exact on resume, and honest about faults."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from shard_sets import CAPTIONS, jpeg, make_sample, write_shards

from fiber.data.collate import collate
from fiber.data.convert.writer import ShardWriter
from fiber.data.loader import eval_loader, make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.records import Sample, annotation_text, image_hash
from fiber.data.shards import ShardSet
from fiber.data.workers import stack
from fiber.errors import DataFaultError, ShardError
from fiber.images.resize import load_image


def take(sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
    """An image's grey level, which annotation it is, its text, and some chance."""
    return {
        "shade": load_image(sample.images[0][1], 8)[0, 0, :1],
        "annotation": annotation,
        "text": annotation_text(sample.record, field, annotation),
        "chance": torch.from_numpy(rng.random(2)),
    }


def first(loader: Iterator[dict], steps: int) -> list[dict]:
    batches = list(itertools.islice(loader, steps))
    loader.close()
    return batches


def same(a: list[dict], b: list[dict]) -> bool:
    """Equal but for the time it took."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        for name in x.keys() | y.keys() - {"data_seconds"}:
            if name == "data_seconds":
                continue
            equal = torch.equal(x[name], y[name]) if isinstance(x[name], torch.Tensor) else x[name] == y[name]
            if not equal:
                return False
    return True


def join(batches: list[dict]) -> dict[str, Any]:
    """Batches one after the other as one batch."""
    tensors = [k for k in batches[0] if isinstance(batches[0][k], torch.Tensor)]
    lists = [k for k in batches[0] if isinstance(batches[0][k], list)]
    return {k: torch.cat([b[k] for b in batches]) for k in tensors} | {
        k: [value for batch in batches for value in batch[k]] for k in lists
    }


def items(stream: MixedStream, positions: range) -> list[tuple[int, int, int]]:
    return [tuple(stream.item(p)) for p in positions]


# --- order ---


def test_an_epoch_walks_every_annotation_once_in_a_new_order(many: ShardSet) -> None:
    everything = {(0, s, a) for s in range(60) for a in range(CAPTIONS[s % 10])}
    for window in (1, 2, 6):
        stream = MixedStream([Source(many)], seed=3, global_batch=8, window_shards=window)
        assert stream.steps_per_epoch == 15
        epochs = [items(stream, range(120 * e, 120 * (e + 1))) for e in range(3)]
        assert all(len(epoch) == 120 and set(epoch) == everything for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        for epoch in epochs:  # each window's items come from its shards alone
            ends = list(itertools.accumulate(20 for _ in range(6)))[window - 1 :: window]
            for start, end in itertools.pairwise([0, *ends]):
                assert len({many.shard_of(s) for _, s, _ in epoch[start:end]}) == window


def test_the_order_is_pure(many: ShardSet) -> None:
    """Any position, asked in any order and by a fresh object, gives what a walk from the start gives."""
    walk = items(MixedStream([Source(many)], seed=1, global_batch=7, window_shards=2), range(400))
    stream = MixedStream([Source(many)], seed=1, global_batch=7, window_shards=2)
    for position in np.random.default_rng(0).permutation(400)[:150].tolist():
        assert tuple(stream.item(position)) == walk[position]
    other = MixedStream([Source(many)], seed=2, global_batch=7, window_shards=2)
    assert items(other, range(400)) != walk


def test_shuffling_is_even(many: ShardSet) -> None:
    """Over many epochs every sample stands in every eighth of the epoch equally often."""
    stream = MixedStream([Source(many, per="image")], seed=0, global_batch=60, window_shards=2)
    places = [(p % 60) // 15 for p in range(60 * 150) if stream.item(p).sample == 17]
    assert chisquare(np.bincount(places, minlength=4)).pvalue > 1e-4


def test_per_image_takes_each_image_once_with_any_of_its_captions(many: ShardSet) -> None:
    stream = MixedStream([Source(many, per="image")], seed=0, global_batch=10)
    chosen = Counter()
    for epoch in range(100):
        walk = items(stream, range(60 * epoch, 60 * (epoch + 1)))
        assert sorted(s for _, s, _ in walk) == list(range(60))
        chosen.update(a for _, s, a in walk if s == 2)
    assert set(chosen) == {0, 1, 2}
    assert chisquare(list(chosen.values())).pvalue > 1e-4


def test_a_partial_last_batch_is_dropped_and_reported(uneven: ShardSet) -> None:
    stream = MixedStream([Source(uneven)], seed=0, global_batch=5)
    assert (stream.steps_per_epoch, stream.dropped) == (2, 2)
    assert stream.epoch(9) == (0, 9)
    assert stream.epoch(10) == (1, 0)
    assert len(set(items(stream, range(10)))) == 10


def test_sources_without_weights_join_into_one_epoch(many: ShardSet, uneven: ShardSet) -> None:
    stream = MixedStream([Source(many), Source(uneven)], seed=0, global_batch=12, window_shards=3)
    walk = items(stream, range(132))
    assert len(set(walk)) == 132
    assert Counter(s for s, _, _ in walk) == {0: 120, 1: 12}


def test_weights_hold_in_every_block_and_each_source_goes_round(many: ShardSet, uneven: ShardSet) -> None:
    sources = [Source(many, weight=3.0), Source(uneven, weight=1.0)]
    stream = MixedStream(sources, seed=0, global_batch=16, window_shards=2)
    walk = items(stream, range(8192))
    for block in (walk[:4096], walk[4096:]):
        assert Counter(s for s, _, _ in block) == {0: 3072, 1: 1024}
    assert {sum(s for s, _, _ in walk[i : i + 64]) for i in range(0, 8192, 64)} - {16}, (
        "mixed by chance, not in turns"
    )
    second = [item for item in walk if item[0] == 1]
    for start in range(0, 2040, 12):
        assert len(set(second[start : start + 12])) == 12, "every annotation once in each of its epochs"
    fresh = MixedStream(sources, seed=0, global_batch=16, window_shards=2)
    assert [tuple(fresh.item(p)) for p in (8000, 5, 4096)] == [walk[p] for p in (8000, 5, 4096)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda s: [Source(s, weight=1.0), Source(s)], "weight to every source"),
        (lambda s: [Source(s, weight=-1.0)], "positive"),
        (lambda s: [Source(s, "questions")], "no questions"),
        (lambda s: [Source(s, "caption")], "not an annotation field"),
    ],
)
def test_unusable_sources_are_told(uneven: ShardSet, build: Callable[[ShardSet], list[Source]], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        MixedStream(build(uneven), seed=0, global_batch=4)


def test_too_little_data_is_told(uneven: ShardSet) -> None:
    with pytest.raises(ShardError, match="12 samples, less than one batch of 13"):
        MixedStream([Source(uneven)], seed=0, global_batch=13)


# --- loading ---


def test_batches_follow_the_order_whatever_the_split(many: ShardSet) -> None:
    """1 rank of 8, 2 ranks of 4, 2 ranks with 2 x 2 accumulated: the same global batches in the same order."""
    stream = MixedStream([Source(many)], seed=0, global_batch=8, window_shards=2)
    whole = join(first(make_loader(stream, take, collate, micro_batch=8), 20))
    assert whole["position"].tolist() == list(range(160))
    expected = [stream.item(p) for p in range(160)]
    assert whole["keys"] == [f"s{i.sample:04d}" for i in expected]
    assert whole["text"] == [f"s image {i.sample} caption {i.annotation}" for i in expected]
    assert whole["annotation"].tolist() == [i.annotation for i in expected]
    assert (whole["shade"][:, 0] - torch.tensor([i.sample for i in expected])).abs().max() <= 1
    assert whole["image_id"].tolist() == [image_hash(f"s_{i.sample}") for i in expected]
    for micro, accumulation in ((4, 1), (2, 2), (1, 4)):
        ranks = [
            first(
                make_loader(
                    stream, take, collate, micro_batch=micro, accumulation=accumulation, rank=r, world=2, workers=r
                ),
                20 * accumulation,
            )
            for r in range(2)
        ]
        together = join([batch for pair in zip(*ranks, strict=True) for batch in pair])
        together["data_seconds"] = whole["data_seconds"] = 0
        assert same([together], [whole])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(many: ShardSet, workers: int) -> None:
    """Also with a consumer so slow that every worker is as far ahead as it can be, and buffers come round again."""
    stream = MixedStream([Source(many)], seed=0, global_batch=4, window_shards=2)
    alone = first(make_loader(stream, take, collate, micro_batch=4), 40)
    loader = make_loader(stream, take, collate, micro_batch=4, workers=workers)
    batches = []
    for number, batch in enumerate(itertools.islice(loader, 40)):
        batches.append(batch)
        if number % 8 == 0:
            time.sleep(0.1)
    loader.close()
    assert same(alone, batches)


def test_resuming_anywhere_equals_never_having_stopped(many: ShardSet) -> None:
    stream = MixedStream([Source(many)], seed=0, global_batch=6, window_shards=2)
    whole = first(make_loader(stream, take, collate, micro_batch=3, accumulation=2, workers=1), 60)
    for step in (1, 7, 19, 20, 29):
        state = json.loads(json.dumps(stream.state(step)))
        again = MixedStream([Source(ShardSet(many.path))], seed=0, global_batch=6, window_shards=2)
        start = again.resume(state)
        rest = first(make_loader(again, take, collate, micro_batch=3, accumulation=2, start_step=start), 2)
        assert same(rest, whole[2 * step : 2 * step + 2])


def test_resuming_other_data_is_refused(many: ShardSet, uneven: ShardSet) -> None:
    state = MixedStream([Source(many)], seed=0, global_batch=6).state(5)
    for change in ({"seed": 1}, {"global_batch": 8}, {"window_shards": 2}):
        options = {"seed": 0, "global_batch": 6} | change
        with pytest.raises(ShardError, match="cannot resume the data stream"):
            MixedStream([Source(many)], **options).resume(state)
    with pytest.raises(ShardError, match="shards, sources or window"):
        MixedStream([Source(uneven)], seed=0, global_batch=6).resume(state)


def test_chance_belongs_to_the_position(many: ShardSet) -> None:
    stream = MixedStream([Source(many)], seed=0, global_batch=8)
    batches = join(first(make_loader(stream, take, collate, micro_batch=8), 300))
    for numbers in (batches["uniform"], batches["chance"]):
        assert len(numbers.unique(dim=0)) == 2400
        assert numbers.mean(0).sub(0.5).abs().max() < 5 / (12 * 2400) ** 0.5
    assert (batches["uniform"].dtype, batches["uniform"].shape) == (
        torch.float64,
        (2400, 2),
    )  # per negative of matching
    other = MixedStream([Source(many)], seed=1, global_batch=8)
    assert not torch.equal(
        join(first(make_loader(other, take, collate, micro_batch=8), 1))["uniform"], batches["uniform"][:8]
    )


def test_the_models_random_numbers_are_not_touched(many: ShardSet) -> None:
    stream = MixedStream([Source(many)], seed=0, global_batch=8)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for workers in (0, 1):
        first(make_loader(stream, take, collate, micro_batch=8, workers=workers), 2)
        assert torch.equal(torch.get_rng_state(), state)


def test_uneven_shards_give_every_rank_the_same_batches(uneven: ShardSet) -> None:
    """5 + 5 + 2 samples on two ranks with two workers each: two epochs, every sample once in each."""
    stream = MixedStream([Source(uneven)], seed=0, global_batch=4, window_shards=1)
    ranks = [
        first(make_loader(stream, take, collate, micro_batch=2, rank=r, world=2, workers=2), 6) for r in range(2)
    ]
    for epoch in range(2):
        keys = [k for batches in ranks for b in batches[3 * epoch : 3 * epoch + 3] for k in b["keys"]]
        assert sorted(keys) == [f"s{i:04d}" for i in range(12)]


def test_wrong_batch_arithmetic_is_told(many: ShardSet) -> None:
    stream = MixedStream([Source(many)], seed=0, global_batch=8)
    with pytest.raises(ShardError, match="2 x accumulation 2 x ranks 3"):
        make_loader(stream, take, collate, micro_batch=2, accumulation=2, world=3)


def test_remote_shards_stream_in_the_same_order(
    many: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a pipe with our index, and through a list of tars that nobody has indexed."""
    monkeypatch.setenv("FIBER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fiber.data.remote.WAIT_S", 0)
    options = {"seed": 0, "global_batch": 4, "window_shards": 2}
    local = first(make_loader(MixedStream([Source(many)], **options), take, collate, micro_batch=4), 40)
    indexed = ShardSet(f"pipe:cat {many.path}/{{}}")
    bare = ShardSet(f"pipe:cat {many.path}/s{{0..5}}-000000.tar")
    for remote in (indexed, bare):
        stream = MixedStream([Source(remote)], **options)
        assert same(first(make_loader(stream, take, collate, micro_batch=4, workers=2), 40), local)
    assert indexed.fingerprint == many.fingerprint
    with pytest.raises(ShardError, match=r"/nowhere/index\.json .*cannot be read"):
        ShardSet("pipe:cat /nowhere/{} 2>/dev/null")


def test_a_remote_shard_that_is_gone_is_a_fault(
    many: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIBER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fiber.data.remote.WAIT_S", 0)
    remote = ShardSet(f"pipe:cat {many.path}/{{}} 2>/dev/null")
    (many.path / "s3-000000.tar").unlink()
    stream = MixedStream([Source(remote)], seed=0, global_batch=4, window_shards=2)
    batches = first(make_loader(stream, take, collate, micro_batch=4, max_fault_share=0.5), 30)
    faults = [fault for batch in batches for fault in batch["faults"]]
    assert {fault.reason for fault in faults} == {"unreadable_shard"}
    assert {fault.shard.rpartition("/")[2] for fault in faults} == {"s3-000000.tar"}
    assert all(len(batch["keys"]) == 4 for batch in batches)


# --- faults ---


def faulty(folder: Path) -> ShardSet:
    """Forty samples in four tars; eight of them, and the end of one tar, are unusable in different ways."""
    for shard in range(4):
        with ShardWriter(folder, f"f{shard}") as writer:
            for number in range(10 * shard, 10 * shard + 10):
                sample = make_sample(number)
                if number == 3:
                    sample.images = [("jpg", jpeg(3)[:200])]
                if number == 14:
                    sample.images = [("png", b"not an image at all")]
                if number == 15:
                    sample.record["captions"][0]["text"] = " "
                if number == 16:
                    del sample.record["captions"][0]["text"]
                if number == 17:
                    del sample.record["captions"]
                if number == 18:
                    del sample.record["image_id"]
                writer.add(sample)
    with tarfile.open(folder / "f2-000000.tar", "w") as tar:  # a member is missing: number 25 has no JSON
        for number in range(20, 30):
            sample = make_sample(number)
            for name, content in ((f"{sample.key}.jpg", sample.images[0][1]), (f"{sample.key}.json", sample.record)):
                if name != "s0025.json":
                    path = folder / name
                    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
                    tar.add(path, name)
                    path.unlink()
    for path in folder.glob("index.*"):
        path.unlink()
    shards = ShardSet(folder)
    os.truncate(folder / "f3-000000.tar", int(shards.index.record[37].sum()) + 10)  # 38 and 39 are lost
    return ShardSet(folder)


EXPECTED_FAULTS = {
    "s0003": "undecodable_image",
    "s0014": "undecodable_image",
    "s0015": "empty_text",
    "s0016": "missing_field",
    "s0017": "missing_field",
    "s0018": "missing_field",
    "s0025": "missing_json",
    "s0038": "truncated_shard",
    "s0039": "truncated_shard",
}


def test_faults_are_replaced_counted_and_named(tmp_path: Path) -> None:
    shards = faulty(tmp_path)
    stream = MixedStream([Source(shards)], seed=0, global_batch=4, window_shards=2)
    batches = first(make_loader(stream, take, collate, micro_batch=4, max_fault_share=0.5), 10)
    faults = [fault for batch in batches for fault in batch["faults"]]
    assert {fault.key: fault.reason for fault in faults} == EXPECTED_FAULTS
    assert {Path(fault.shard).name for fault in faults} == {f"f{i}-000000.tar" for i in range(4)}
    seen = Counter(key for batch in batches for key in batch["keys"])
    good = {f"s{i:04d}" for i in range(40)} - EXPECTED_FAULTS.keys()
    assert set(seen) == good
    assert seen.total() == 40
    assert all(len(set(batch["keys"])) == 4 for batch in batches), "a substitute does not come from its own batch"
    assert [p for batch in batches for p in batch["position"].tolist()] == list(range(40))


def test_substitutes_are_the_same_for_any_ranks_and_workers(tmp_path: Path) -> None:
    shards = faulty(tmp_path)
    stream = MixedStream([Source(shards)], seed=0, global_batch=4, window_shards=2)
    options = {"max_fault_share": 0.5}
    whole = first(make_loader(stream, take, collate, micro_batch=4, workers=2, **options), 25)
    halves = [
        first(make_loader(stream, take, collate, micro_batch=2, rank=r, world=2, workers=r, **options), 25)
        for r in range(2)
    ]
    together = [join(list(pair)) | {"data_seconds": 0} for pair in zip(*halves, strict=True)]
    for batch in (*whole, *together):
        batch["faults"] = sorted(batch["faults"])
    assert same(whole, together)


def test_substitutes_come_from_the_same_source(tmp_path: Path, uneven: ShardSet) -> None:
    sources = [Source(faulty(tmp_path / "faulty"), weight=1.0), Source(uneven, weight=1.0)]
    stream = MixedStream(sources, seed=0, global_batch=4)
    for position in range(50):
        found = {stream.item(position, attempt).source for attempt in range(5)}
        assert len(found) == 1
        assert len({stream.item(position, attempt) for attempt in range(5)}) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_faults_stop_the_run_naming_shard_and_key(tmp_path: Path, workers: int) -> None:
    shards = faulty(tmp_path)
    stream = MixedStream([Source(shards)], seed=0, global_batch=4)
    loader = make_loader(stream, take, collate, micro_batch=4, workers=workers, max_fault_share=0.005)
    with pytest.raises(DataFaultError) as error:
        first(loader, 100)
    assert "more than the tolerated 0.50%" in str(error.value)
    assert f"shard {tmp_path}/f" in str(error.value)
    assert any(f"key '{key}'" in str(error.value) for key in EXPECTED_FAULTS)
    assert "\n" not in str(error.value)


def test_nothing_but_faults_stops_at_once(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "bad") as writer:
        for number in range(100):
            writer.add(Sample(f"s{number}", [("jpg", b"junk")], make_sample(number).record))
    stream = MixedStream([Source(ShardSet(tmp_path))], seed=0, global_batch=4)
    with pytest.raises(DataFaultError, match=r"64 in a row .*undecodable_image"):
        next(make_loader(stream, take, collate, micro_batch=4, max_fault_share=1.0))


def test_a_tar_cut_before_it_was_indexed_is_reported_once(tmp_path: Path) -> None:
    write_shards(tmp_path, (8, 8), lambda _: 1)
    os.truncate(tmp_path / "s1-000000.tar", (tmp_path / "s1-000000.tar").stat().st_size // 2)
    stream = MixedStream([Source(ShardSet(tmp_path))], seed=0, global_batch=4)
    ranks = [first(make_loader(stream, take, collate, micro_batch=2, rank=r, world=2), 5) for r in range(2)]
    faults = [fault for batches in ranks for batch in batches for fault in batch["faults"]]
    assert faults == [(f"{tmp_path}/s1-000000.tar", "", "damaged_shard")]


def test_a_bug_in_a_task_is_not_a_fault(many: ShardSet) -> None:
    def broken(*_: object) -> dict:
        raise KeyError("oops")

    stream = MixedStream([Source(many)], seed=0, global_batch=4)
    with pytest.raises(KeyError, match="oops"):
        next(make_loader(stream, broken, collate, micro_batch=4, max_fault_share=1.0))


# --- evaluation ---


@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluation_sees_everything_once_in_order(many: ShardSet, world: int) -> None:
    found = {}
    for rank in range(world):
        batches = list(
            eval_loader(many, "captions", take, collate, batch=7, rank=rank, world=world, workers=rank % 2)
        )
        positions = [p for b in batches for p in b["position"].tolist()]
        assert positions == list(range(rank, 120, world))
        assert all(len(b["keys"]) == 7 for b in batches[:-1])
        for batch in batches:
            found |= dict(zip(batch["position"].tolist(), batch["text"], strict=True))
    expected = [f"s image {s} caption {a}" for s in range(60) for a in range(CAPTIONS[s % 10])]
    assert [found[p] for p in range(120)] == expected


def test_evaluation_per_image(many: ShardSet) -> None:
    batches = join(list(eval_loader(many, "captions", take, collate, batch=16, per="image")))
    assert batches["keys"] == [f"s{i:04d}" for i in range(60)]
    assert not batches["annotation"].any()


def test_evaluation_is_strict_unless_told_otherwise(tmp_path: Path) -> None:
    shards = faulty(tmp_path)
    remedy = f"; pack {tmp_path} again, or leave it out of eval.data (eval.data=[]: no evaluation)"
    with pytest.raises(DataFaultError, match=f"all are needed .*s0003.*{re.escape(remedy)}$"):
        list(eval_loader(shards, "captions", take, collate, batch=4))
    batches = list(eval_loader(shards, "captions", take, collate, batch=1, max_fault_share=0.5))
    assert len(batches) == 40
    assert sum(len(b["keys"]) for b in batches) == 40 - len(EXPECTED_FAULTS)
    assert {f.key: f.reason for b in batches for f in b["faults"]} == EXPECTED_FAULTS


# --- processes ---

PREEMPTED = """
import os, signal, sys, time
import torch
from fiber.data.shards import ShardSet
from fiber.data.loader import make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.workers import stack

signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told\\n"))  # print may be at work
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"told\\n"))  # print may be at work

def take(sample, field, annotation, rng):
    time.sleep(0.01)
    return {"x": torch.ones(3)}

loader = make_loader(
    MixedStream([Source(ShardSet(sys.argv[1]))], seed=0, global_batch=4),
    take, lambda samples: {"x": stack([s["x"] for s in samples])}, micro_batch=4, workers=2,
)
for number in range(20):
    batch = next(loader)
    if number == 3:
        print("ready", flush=True)
        time.sleep(0.5)
if sys.argv[2] == "leave":
    raise SystemExit(3)
if sys.argv[2] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("end", "code"), [("leave", 3), ("die", -9)])
def test_workers_outlast_a_preemption_and_end_with_their_process(many: ShardSet, end: str, code: int) -> None:
    """SIGTERM and SIGUSR1 reach the whole process group, as a scheduler sends them; only the parent acts on them."""
    command = [sys.executable, "-c", PREEMPTED, str(many.path), end]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGUSR1)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)  # returns when the last holder of the pipe, worker or not, is gone
    assert process.returncode == code
    assert output.splitlines() == ["told", "told"]


def test_memory_stays_flat(many: ShardSet) -> None:
    """Hundreds of batches of large tensors, with a worker: the resident memory of both processes does not grow."""

    def big(sample: Sample, field: str, annotation: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"x": torch.zeros(1 << 16, dtype=torch.uint8), "n": annotation}

    def resident() -> int:
        pids = [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096

    def together(samples: list[dict]) -> dict:
        return {"x": stack([s["x"] for s in samples])}

    stream = MixedStream([Source(many)], seed=0, global_batch=8)
    loader = make_loader(stream, big, together, micro_batch=8, workers=1)
    for _ in range(50):
        next(loader)
    before = resident()
    for _ in range(600):
        next(loader)
    grown = resident() - before
    loader.close()
    assert grown < 16e6, f"{grown / 1e6:.1f} MB more after {600 * 8} samples, {600 * 8 * 65536 / 1e6:.0f} MB of them"
