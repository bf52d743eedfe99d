"""Streaming predictions: the merged file must not depend on ranks, batches or memory."""

import contextlib
import json
import os
import time
import tracemalloc

import numpy as np
import pytest

from fiber.errors import ShardError
from fiber.evaluation.predictions import (
    PredictionWriter,
    by_key,
    check_complete,
    job,
    merge_predictions,
    rank_file,
    read_predictions,
    write_results,
)

ROWS = [{"image_id": int(i) % 17, "n": int(i), "text": "é" * (int(i) % 5), "score": i / 7} for i in range(200)]


def write(folder, rows, world):
    for rank in range(world):
        with PredictionWriter(folder, "boxes", rank, world) as writer:
            for row in rows[rank::world]:
                writer.add(row)


def test_merged_bytes_are_the_same_for_any_number_of_ranks_and_any_chunk(tmp_path):
    merged = set()
    for world, chunk in [(1, 1 << 20), (2, 1 << 20), (3, 500), (5, 1)]:
        shuffled = [ROWS[i] for i in np.random.default_rng(world).permutation(len(ROWS))]
        write(tmp_path / str(world), shuffled, world)
        path = merge_predictions(tmp_path / str(world), "boxes", world, ("image_id", "n"), chunk)
        merged.add(path.read_bytes())
        assert list(read_predictions(path)) == sorted(ROWS, key=lambda row: (row["image_id"], row["n"]))
    assert len(merged) == 1


def test_memory_is_bounded_by_the_chunk(tmp_path):
    with PredictionWriter(tmp_path, "boxes") as writer:
        for n in range(20_000):
            writer.add({"n": -n, "text": "x" * 400})
    tracemalloc.start()
    merged = merge_predictions(tmp_path, "boxes", 1, ("n",), chunk_bytes=500_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert merged.stat().st_size > 8_000_000
    assert not rank_file(tmp_path, "boxes", 0, 1).exists()  # every row once on disk
    assert peak < 3_000_000


def test_a_rank_that_died_is_reported_and_stale_files_do_not_mix_in(tmp_path):
    write(tmp_path, ROWS, 3)  # an earlier run on three ranks
    write(tmp_path, ROWS, 2)
    with contextlib.suppress(MemoryError), PredictionWriter(tmp_path, "boxes", 1, 2) as writer:
        writer.add(ROWS[0])
        raise MemoryError
    with pytest.raises(FileNotFoundError, match=r"1 of 2 ranks are missing .*boxes\.00001-of-00002\.\w+\.jsonl"):
        merge_predictions(tmp_path, "boxes", 2, ("n",))


def test_two_jobs_in_one_folder_do_not_disturb_each_other(tmp_path):
    """A training that evaluates, and `fiber eval` of the same run, here a fork of another name: each merges its
    own rows, though the other writes, merges and ends while its file is open."""
    write(tmp_path, [], 1)  # this job has its name
    with PredictionWriter(tmp_path, "boxes") as writer:
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(Exception):
                job.cache_clear()
                write(tmp_path, [{"n": "theirs"}], 1)
                merged = merge_predictions(tmp_path, "boxes", 1, ("n",))
                status = int(list(read_predictions(merged)) != [{"n": "theirs"}])
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        writer.add({"n": "ours"})
    assert list(read_predictions(merge_predictions(tmp_path, "boxes", 1, ("n",)))) == [{"n": "ours"}]
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.jsonl"]


def test_what_a_killed_job_has_left_goes_after_a_day(tmp_path):
    for age, name in ((90_000, "boxes.00000-of-00001.0a.part"), (60, "boxes.00000-of-00002.0b.jsonl")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write(tmp_path, ROWS, 1)
    merge_predictions(tmp_path, "boxes", 1, ("n",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.00000-of-00002.0b.jsonl", "boxes.jsonl"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"n": 1}, {"n": 2}, {"n": 1}], "two rows with n=1"),
        ([{"n": 1}, {"m": 2}], "{'m': 2} has no field 'n'"),
        ([{"n": 1}, {"n": "1"}], "cannot be sorted by"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_bad_rows_are_named(tmp_path, rows, message, chunk):
    write(tmp_path, rows, 2)
    with pytest.raises(ValueError, match=message):
        merge_predictions(tmp_path, "boxes", 2, ("n",), chunk)
    assert not (tmp_path / "boxes.jsonl").exists()


def test_an_image_that_a_set_holds_twice_is_its_fault(tmp_path):
    """One line that names the set, the image and what to do."""
    write(tmp_path, [{"image_id": "a"}, {"image_id": "b"}, {"image_id": "a"}], 2)
    with pytest.raises(ShardError, match=r"^/data/mine: .* two rows with image_id='a'; .* leave one out"):
        merge_predictions(tmp_path, "boxes", 2, ("image_id",), shards="/data/mine")


def test_rows_that_are_not_plain_finite_json_are_refused(tmp_path):
    with PredictionWriter(tmp_path, "boxes") as writer:
        with pytest.raises(ValueError, match="'score': nan"):
            writer.add({"image_id": 3, "score": float("nan")})
        with pytest.raises(TypeError, match="int64"):
            writer.add({"image_id": np.int64(3)})


def test_results_file_is_one_json_list(tmp_path):
    path = write_results(tmp_path / "deep/results.json", iter(ROWS))
    assert json.loads(path.read_text()) == ROWS
    assert json.loads(write_results(tmp_path / "none.json", []).read_text()) == []


def test_lookup_and_completeness_name_the_key():
    rows = [{"id": 1, "label": True}, {"id": 2, "label": False}]
    assert by_key(rows, "id", "label") == {1: True, 2: False}
    with pytest.raises(ValueError, match="two predictions for id 1"):
        by_key([*rows, rows[0]], "id", "label")
    with pytest.raises(ValueError, match="must have 'id' and 'answer'"):
        by_key(rows, "id", "answer")
    check_complete([1, 2], [2, 1], "things")
    with pytest.raises(ValueError, match=r"things: no prediction for 1 of 3, e\.g\. 3"):
        check_complete([1, 2], [1, 2, 3], "things")
    with pytest.raises(ValueError, match="things: nothing to score"):
        check_complete([], [], "things")


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"n": 1}\n{"n": 2')
    with pytest.raises(ValueError, match=r"x.jsonl, line 2: not JSON"):
        list(read_predictions(tmp_path / "x.jsonl"))
