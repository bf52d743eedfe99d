"""Collating, and the sample of pre-training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shard_sets import make_sample

from fiber.data.collate import collate
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.text import IGNORE
from fiber.data.workers import LARGE, OwnCopies, SharedBuffers
from fiber.errors import SampleFault
from fiber.images.resize import load_image
from fiber.tasks.pretrain import PretrainSample


def test_collate_stacks_what_has_a_shape_and_lists_the_rest() -> None:
    samples = [{"a": np.full(3, i), "b": torch.ones(2, 2) * i, "n": i, "ok": i > 0, "s": str(i)} for i in range(4)]
    batch = collate(samples)
    assert batch["a"].tolist() == [[i] * 3 for i in range(4)]
    assert batch["b"].shape == (4, 2, 2)
    assert batch["n"].tolist() == [0, 1, 2, 3]
    assert batch["ok"].dtype == torch.bool
    assert batch["s"] == ["0", "1", "2", "3"]


def test_uneven_shapes_name_the_field() -> None:
    with pytest.raises(ValueError, match="boxes has the shapes"):
        collate([{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(2, 4)}])


def test_buffers_come_round_after_their_turns_and_grow() -> None:
    buffers = SharedBuffers(2)
    places = []
    for batch in range(6):
        buffers.next_batch()
        images, ids = buffers.take((4, 3), torch.uint8), buffers.take((2 + batch // 4, 5), torch.int64)
        assert images.is_shared()
        assert ids.shape == (2 + batch // 4, 5)
        places.append((images.data_ptr(), ids.data_ptr()))
        if batch < 4:
            assert len({*places[-1]}) == 2
    assert places[0] == places[2]
    assert places[1] == places[3]
    assert places[0] != places[1]
    assert places[4][0] == places[0][0], "only the buffer that is too small is replaced"
    assert places[4][1] != places[0][1]


def test_a_copy_is_the_consumers_own() -> None:
    shared = torch.arange(4).share_memory_()
    plain = torch.arange(4)
    batch = OwnCopies().copy({"x": shared, "list": [shared, "text"], "plain": plain})
    shared.zero_()
    assert batch["x"].tolist() == batch["list"][0].tolist() == [0, 1, 2, 3]
    assert batch["plain"] is plain
    assert batch["list"][1] == "text"


def test_memory_of_a_copy_is_used_again_once_the_copy_is_gone() -> None:
    copies, shared = OwnCopies(), torch.arange(LARGE).share_memory_()
    first = copies.copy({"x": shared})
    view = first["x"][5:10]
    second = copies.copy({"x": shared})
    place = first["x"].data_ptr()
    assert second["x"].data_ptr() != place
    del first
    assert copies.copy({"x": shared})["x"].data_ptr() != place, "a view keeps the whole"
    assert view.tolist() == [5, 6, 7, 8, 9]
    del view
    assert copies.copy({"x": shared})["x"].data_ptr() == place
    smaller = copies.copy({"x": shared[: LARGE // 2].clone().share_memory_()})["x"]
    assert smaller.tolist() == list(range(LARGE // 2))
    larger = copies.copy({"x": torch.ones(2 * LARGE).share_memory_()})["x"]
    assert larger.sum() == 2 * LARGE
    assert len(copies.blocks) == 3, "second, smaller and larger"
    del second, smaller, larger
    assert torch.equal(copies.copy([shared])[0], shared)


def test_a_pretraining_sample_is_what_the_coarse_task_takes(tmp_path: Path) -> None:
    tokenizer = train_bpe(["s image 3 caption 0"] * 5, 300, tmp_path)
    sample = make_sample(3, 2)
    made = PretrainSample(tokenizer, 32, 24)(sample, "captions", 1, np.random.default_rng(0))
    assert made["text"] == "s image 3 caption 1"
    assert torch.equal(made["images"], load_image(sample.images[0][1], 32))
    assert tokenizer.decode(made["ids"][made["mask"] == 1], skip_special_tokens=True) == made["text"]
    predicted = made["mlm_labels"] != IGNORE
    assert predicted.any()
    assert (made["mlm_labels"][predicted] == made["ids"][predicted]).all()
    assert (made["masked_ids"][~predicted] == made["ids"][~predicted]).all()
    batch = collate([made, made])
    assert batch["images"].shape == (2, 3, 32, 32)
    assert all(batch[name].shape == (2, 24) for name in ("ids", "mask", "masked_ids", "mlm_labels"))
    assert {batch[name].dtype for name in ("ids", "mask", "masked_ids", "mlm_labels")} == {torch.int64}


def test_exact_samples_use_pillow(tmp_path: Path) -> None:
    tokenizer = train_bpe(["text"] * 5, 300, tmp_path)
    sample = make_sample(3)
    made = PretrainSample(tokenizer, 32, 24, pil_resize=True)(sample, "captions", 0, np.random.default_rng(0))
    assert torch.equal(made["images"], load_image(sample.images[0][1], 32, pil_resize=True))


@pytest.mark.parametrize(
    ("captions", "reason"), [([{"text": " "}], "empty_text"), ([{}], "missing_field"), ([], "missing_field")]
)
def test_bad_captions_are_faults(tmp_path: Path, captions: list, reason: str) -> None:
    tokenizer = train_bpe(["text"] * 5, 300, tmp_path)
    sample = make_sample(3)
    sample.record["captions"] = captions
    with pytest.raises(SampleFault) as fault:
        PretrainSample(tokenizer, 32, 24)(sample, "captions", 0, np.random.default_rng(0))
    assert fault.value.reason == reason
