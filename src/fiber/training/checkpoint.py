"""Checkpoints of a run: one format by parameter name, for any ZeRO stage, precision and number of ranks.

`RUN/checkpoints/step_NNNNNN/` holds `model.safetensors` (fp32 masters and buffers), `optimizer.safetensors` (Adam's
moments), `ema.safetensors` where an average is kept, `rng.pt` (one state per rank), `config.yaml`, `state.json`
(step, stream position, counters) and `manifest.json` (sizes of the others, written last). A checkpoint is written
aside, synced to disk and renamed; then `latest` moves, a file that holds the name of a checkpoint; then the oldest
go. Evaluation follows: `evaluated.json` joins the checkpoint, and in a run that chooses by a figure `best` moves,
whose checkpoint never goes. Whatever a kill leaves behind is recognised and ignored.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fiber import distributed
from fiber.errors import ConfigError
from fiber.training import zero
from fiber.training.ema import Ema
from fiber.training.optim import AdamW


class Checkpoints:
    """The checkpoints of one run directory, which all ranks must see (a shared file system between machines)."""

    def __init__(self, run: str | Path, keep: int, config: str = "") -> None:
        """`config`: the run's configuration as text, saved with each checkpoint."""
        self.folder, self.keep, self.config = Path(run) / "checkpoints", keep, config

    # ---- saving

    def save(
        self,
        step: int,
        engine: zero.Engine,
        optimizer: AdamW,
        ema: Ema | None,
        state: Mapping[str, Any],
        best: int | None = None,
    ) -> Path:
        """Save everything that training needs to go on with `step`, the next one to run. All ranks must call.

        `state` is plain data (stream position, counters) that `load` gives back. `best`: the step of the checkpoint
        that is the best so far and stays.
        """
        final = self.folder / f"step_{step:06d}"
        aside = self.folder / f".step_{step:06d}.partial"
        if distributed.is_main():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        _save_tensors(aside / "model.safetensors", zero.read_weights(engine), buffers(engine.module))
        _save_tensors(aside / "optimizer.safetensors", zero.read_moments(engine, optimizer))
        if ema is not None:
            with ema.averaged():
                _save_tensors(aside / "ema.safetensors", zero.read_weights(engine))
        rng = distributed.gather_objects(rng_state())
        updates, loss_scale = zero.updates(engine, optimizer), zero.read_loss_scale(engine)
        if distributed.is_main():
            torch.save(rng, aside / "rng.pt")
            record = {"step": step, "updates": updates, "loss_scale": loss_scale, "state": dict(state)}
            (aside / "state.json").write_text(json.dumps(record))
            (aside / "config.yaml").write_text(self.config)
            _publish(aside, final)
            _point(self.folder / "latest", final)
            self._prune(step, best)
        distributed.barrier()
        return final

    def note_evaluation(self, step: int, state: Mapping[str, Any], best: int | None) -> None:
        """Add what the evaluations have said, the one of this checkpoint included, to the checkpoint of `step`, and
        let `best` name the best one. Rank 0 only."""
        path = self.folder / f"step_{step:06d}"
        if path.is_dir():  # not where a run without steps is only evaluated
            aside = path / ".evaluated.json"
            aside.write_text(json.dumps(dict(state)))
            _sync(aside)
            os.replace(aside, path / "evaluated.json")
        if best is not None and self.has(best):
            _point(self.folder / "best", self.folder / f"step_{best:06d}")

    def _steps(self) -> list[int]:
        """Steps of the checkpoint folders, whole or not, ascending as numbers: names are as long as they need be."""
        names = (path.name.removeprefix("step_") for path in self.folder.glob("step_*"))
        return sorted(int(name) for name in names if name.isdigit())

    def _prune(self, step: int, best: int | None) -> None:
        """Remove all but the `keep` newest whole checkpoints up to `step`, the one just saved, and the best."""
        whole = [s for s in self._steps() if s <= step and self.has(s)]
        kept = {step, best, *whole[-self.keep :]}
        for old in self._steps():
            if old <= step and old not in kept:
                shutil.rmtree(self.folder / f"step_{old:06d}")

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints of later steps than the one that training goes on with: they are of a past that will
        be lived again, and would else be taken for newer ones. Rank 0 only."""
        for later in self._steps():
            if later > step:
                source = self.folder / f"step_{later:06d}"
                target = self.folder / f"aside_{source.name}"
                shutil.rmtree(target, ignore_errors=True)
                source.rename(target)
                print(f"{source.name} is later than step {step}: set aside as {target.name}", file=sys.stderr)

    # ---- loading

    def latest(self) -> Path | None:
        """The newest whole checkpoint, the same on all ranks; None in a fresh run. Says what it ignores. Raises
        ConfigError where there are checkpoints and none of them is whole: a run does not begin again by itself."""
        chosen, broken = None, False
        if distributed.is_main():
            pointer = self.folder / "latest"
            named = [self.folder / pointer.read_text().strip()] if pointer.exists() else []
            others = [self.folder / f"step_{step:06d}" for step in reversed(self._steps())]
            for candidate in dict.fromkeys([*named, *others]):
                if is_whole(candidate):
                    chosen = candidate.name
                    break
                print(f"ignoring {candidate}: it is not whole", file=sys.stderr)
            for partial in self.folder.glob(".step_*.partial"):
                print(f"ignoring {partial.name}: a save was interrupted", file=sys.stderr)
            broken = chosen is None and bool(others)
        chosen, broken = distributed.broadcast_object((chosen, broken))
        if broken:
            raise ConfigError(
                f"output: none of the checkpoints in {self.folder} is whole; restore one, or remove that folder to "
                "begin again"
            )
        return None if chosen is None else self.folder / chosen

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step is here and whole."""
        return is_whole(self.folder / f"step_{step:06d}")

    def best(self) -> Path | None:
        """The best checkpoint, where the run chooses one. Raises ConfigError where it is not whole."""
        pointer = self.folder / "best"
        if not pointer.exists():
            return None
        path = self.folder / pointer.read_text().strip()
        if not is_whole(path):
            raise ConfigError(
                f"output: {pointer} names {path.name}, which is not whole; remove that file to use the newest"
            )
        return path

    @staticmethod
    def weights(path: Path) -> dict[str, Tensor]:
        """The fp32 weights and buffers of a checkpoint by name, averaged ones where the run keeps an average."""
        weights, average = load_file(path / "model.safetensors"), path / "ema.safetensors"
        return weights | (load_file(average) if average.exists() else {})

    def load(self, path: Path, engine: zero.Engine, optimizer: AdamW, ema: Ema | None) -> tuple[int, dict[str, Any]]:
        """Restore model, optimizer, average and random states -> (step to go on with, the saved `state`).

        The number of ranks, the ZeRO stage and the precision may differ from those of the save. Raises ConfigError
        where the checkpoint is of another model, or not visible from this machine.
        """
        if not is_whole(path):
            raise ConfigError(f"output: rank {distributed.rank()} cannot read {path}; all machines must share it")
        record = json.loads((path / "state.json").read_text())
        weights = load_file(path / "model.safetensors")
        check_shapes(path, weights, engine.module)
        if ema is not None:
            average = path / "ema.safetensors"
            zero.write_weights(engine, load_file(average) if average.exists() else weights)
            ema.restart()
        zero.write_weights(engine, weights)
        moments = load_file(path / "optimizer.safetensors")
        zero.write_moments(engine, optimizer, moments, record["updates"])
        zero.write_loss_scale(engine, record["loss_scale"])
        for name, buffer in buffers(engine.module):
            buffer.copy_(weights[name])
        states = torch.load(path / "rng.pt", weights_only=True)
        if len(states) == distributed.world_size():
            set_rng_state(states[distributed.rank()])
        state, evaluated = record["state"], path / "evaluated.json"
        if evaluated.exists():  # the evaluation came after the save
            state["record"] = json.loads(evaluated.read_text())
        return record["step"], state


def is_whole(path: Path) -> bool:
    """Whether every file that the manifest lists has its size."""
    try:
        sizes = json.loads((path / "manifest.json").read_text())
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Persistent buffers by name, such as the feature queue: the same on all ranks."""
    kept = module.state_dict().keys()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in kept]


def check_shapes(path: Path, weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raises ConfigError naming the first parameter or buffer that `weights` lacks or has in another shape."""
    for name, tensor in [*module.named_parameters(), *buffers(module)]:
        shape = tuple(getattr(tensor, "ds_shape", tensor.shape))  # ZeRO-3 leaves an empty tensor in place
        if name not in weights:
            raise ConfigError(f"{path} has no {name}: it is of another model")
        if tuple(weights[name].shape) != shape:
            raise ConfigError(f"{path}: {name} is {tuple(weights[name].shape)}, this model's is {shape}")


def collect(*sources: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Named whole tensors, such as zero.read_weights yields at any ZeRO stage, on the host of rank 0; {} elsewhere.
    All ranks must call."""
    tensors = {}
    for name, tensor in chain.from_iterable(sources):
        if distributed.is_main():
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors


def _save_tensors(path: Path, *sources: Iterable[tuple[str, Tensor]]) -> None:
    tensors = collect(*sources)
    if distributed.is_main():
        save_file(tensors, path)


def _publish(aside: Path, final: Path) -> None:
    """Manifest, sync, rename: a kill at any point leaves the older checkpoint valid."""
    sizes = {file.name: file.stat().st_size for file in sorted(aside.iterdir())}
    (aside / "manifest.json").write_text(json.dumps(sizes))
    for file in [*aside.iterdir(), aside]:
        _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    _sync(final.parent)


def _point(pointer: Path, path: Path) -> None:
    """Let the file `pointer` name the checkpoint `path`, in one step."""
    pointer.with_suffix(".new").write_text(path.name)
    _sync(pointer.with_suffix(".new"))
    os.replace(pointer.with_suffix(".new"), pointer)
    _sync(pointer.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------- random states


def seed_all(seed: int) -> None:
    """Seed every generator of this process; ranks differ, so that their dropout masks do."""
    seed = seed * 1_000_003 + distributed.rank()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """Python, NumPy, torch and CUDA generators of this process as plain data and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(keys, np.ndarray)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if distributed.device().type == "cuda" else None,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and distributed.device().type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
