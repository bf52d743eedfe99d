"""Shared fixtures. Recorded reference data lives outside the repository; tests that need it skip without it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import RobertaTokenizerFast
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from fiber import distributed
from fiber.data.convert.writer import write_dataset
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, answers, categories, generate, generate_pairs

REPO = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


SEVERAL_RANKS = ("tests/e2e/", "tests/golden/", "tests/test_distributed.py")
"""Tests that launch several ranks, which fill the cores by themselves."""
ONE_PROCESS = (
    "tests/e2e/test_custom_data.py",
    "tests/e2e/test_demo.py",
    "tests/e2e/test_every_dataset.py",
    "tests/launch/test_photographs.py",
    "tests/weights/test_program.py",
)
"""Long ones that hardly do: beside those, so that neither of two processes is done long before."""


def several_ranks(nodeid: str) -> bool:
    return nodeid.startswith(SEVERAL_RANKS) and not nodeid.startswith(ONE_PROCESS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What launches several ranks begins first: it takes longest. Then what else is long."""
    items.sort(key=lambda item: (not several_ranks(item.nodeid), not item.nodeid.startswith(ONE_PROCESS)))


class FilesSideBySide(LoadScopeScheduling):
    """Of `pytest -n 2`: a file stays on one process, for its fixtures' sake, and what launches several ranks on one,
    so that no two launches overlap. (The groups of `--dist loadgroup` are lost with pytest 9.)"""

    def _split_scope(self, nodeid: str) -> str:
        return "ranks" if several_ranks(nodeid) else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesSideBySide:
    """Every parallel run is scheduled so, whatever `--dist` says."""
    return FilesSideBySide(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the recorded reference tensors (`parity/`) and real annotation slices (`real/`)."""
    path = Path(os.environ.get("FIBER_SHARED", REPO.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"reference data not found at {path}; set FIBER_SHARED to its folder")
    return path


@pytest.fixture(scope="session")
def tokenizer() -> RobertaTokenizerFast:
    """RoBERTa-like: byte-level BPE, <s> 0, <pad> 1, </s> 2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["a red cat. two dogs, traffic light, blue circle on a green square. "] * 20, trainer)
    return RobertaTokenizerFast(tokenizer_object=bpe)


@pytest.fixture(scope="session")
def alone() -> Iterator[None]:
    """torch.distributed through DeepSpeed with one rank, as an entrypoint without a launcher starts it."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    distributed.initialize(60.0)
    for name in {"RANK", "WORLD_SIZE"} - set(before):  # with them, commands that later tests start would be its ranks
        os.environ.pop(name, None)
    yield
    distributed.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def task_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with answers and categories, pairs, a set of two classes, and a tokenizer."""
    folder, world = tmp_path_factory.mktemp("convert"), WORLDS["easy"]
    about = {"split": "train", "provenance": "drawn", "licence": "none"}
    scenes = list(generate(world, "train", 12, seed=0))
    texts = [caption["text"] for scene in scenes for caption in scene.record["captions"]]
    listed = {"answers": answers(world), "categories": categories(world)}
    write_dataset(scenes, folder / "train", name="scenes", **listed, **about)
    write_dataset(generate_pairs(world, "train", 12, seed=0), folder / "pairs", name="pairs", **about)
    for number, scene in enumerate(scenes):
        scene.record = {k: v for k, v in scene.record.items() if k in ("image_id", "width", "height", "source")}
        scene.record["captions"] = [{"text": ("few", "many")[number % 2]}]
    classes = [{"id": 0, "name": "few"}, {"id": 1, "name": "many"}]
    write_dataset(scenes, folder / "classes", name="classes", categories=classes, **about)
    train_bpe(texts, 400, folder / "tokenizer")
    return folder
