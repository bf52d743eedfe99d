"""What launch scripts need: a repository as they see it, warm jobs, data sets in their authors' formats, and small
models to start from, made once."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import raw
from small_sizes import COARSE, HEAD, TOWERS
from warm import write_commands

import make_shards
from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.model import CoarseModel
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.text import load_tokenizer
from fiber.tasks.regions import build_module, export
from fiber.weights.export import write_export, write_run_export
from fiber.weights.export_config import coarse_config

REPO = Path(__file__).resolve().parents[2]
OF_A_JOB = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
)
TEXTS = [
    "What is this? Two guys with shaggy hair look on in the yard. No dog at all. A man on a moped.",
    "the lady with the blue shirt. person. stop sign. toothbrush. acorn. aerosol can. zucchini. fish. jellyfish.",
    "net 2 0 1 3 4 5 6 7 8",
]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository whose scripts, configurations and code are ours, and whose commands start warm jobs."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("launch", "configs", "src", "tools"):
        (folder / name).symlink_to(REPO / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    address = folder / "jobs"
    write_commands(folder / "bin", address)
    paths = {"PYTHONPATH": str(REPO / "src"), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, Path(__file__).with_name("warm.py"), address], env=os.environ | paths)
    while not address.exists():
        assert server.poll() is None
        time.sleep(0.05)
    yield folder
    server.kill()
    server.wait()


@pytest.fixture(scope="session")
def launch(home: Path) -> Callable[..., str]:
    """launch(script, *words, **variables) -> stdout of launch/SCRIPT on one rank."""

    def start(script: str, *words: object, **variables: object) -> str:
        ours = {name: value for name, value in os.environ.items() if name not in OF_A_JOB}  # tests run as ranks, too
        environment = ours | {name: str(value) for name, value in variables.items()}
        environment |= {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(REPO / "src"), "RANKS": "1"}
        command = ["bash", f"launch/{script}", *map(str, words)]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-5000:]}"
        return done.stdout

    return start


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """converted(name, *splits) -> a folder with the data set of that name, read from its authors' files, as every
    split (they are too small to be divided)."""
    done: dict[str, Path] = {}

    def convert(name: str, *splits: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            made = raw.build(name, folder / "raw")
            make_shards.main(made.command(folder / "shards" / "made"))
            done[name] = folder / "shards"
        for split in splits:
            if not (done[name] / split).exists():
                (done[name] / split).symlink_to(done[name] / "made")
        return done[name]

    return convert


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 300, folder)
    return folder


@pytest.fixture(scope="session")
def coarse(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of configs/stage1/fiber_base.yaml, but small, as far as its export goes: weights drawn at random."""
    folder, words = tmp_path_factory.mktemp("coarse"), load_tokenizer(tokenizer)
    config = load_config(Stage1Config, REPO / "configs/stage1/fiber_base.yaml", [*COARSE, f"output={folder}"])
    backbone = build_backbone(config.model, len(words), words.pad_token_id, config.max_text)
    model = CoarseModel(backbone, head_width=config.model.head_width, vocab_size=len(words))
    initialise(model, "fan_in", seed=5)
    write_export(folder / "export", model.state_dict(), coarse_config(config, words), words)
    return folder


@pytest.fixture(scope="session")
def fine(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of configs/stage2/fiber_base.yaml."""
    folder, words = tmp_path_factory.mktemp("fine"), load_tokenizer(tokenizer)
    sizes = [*TOWERS, *HEAD, f"output={folder}", "init_from=null", "data.train=[]"]
    config = load_config(Stage2Config, REPO / "configs/stage2/fiber_base.yaml", sizes)
    task = build_module(config, words)
    write_run_export(config, export(config, words, task, task.state_dict()), {})
    return folder
