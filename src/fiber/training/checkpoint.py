"""Checkpoints of a run: one format by parameter name, for any ZeRO stage, precision and number of ranks.

`RUN/checkpoints/step_NNNNNN/` holds `model.safetensors` (fp32 masters and buffers), `optimizer.safetensors` (Adam's
moments), `ema.safetensors` where an average is kept, `rng.pt` (one state per rank), `config.yaml`, `state.json`
(step, stream position, counters) and `manifest.json` (size and CRC-32 of the others, written last). A checkpoint is
written aside, synced to disk and renamed; then `latest` moves, a file that holds the name of a checkpoint; then the
oldest go. Evaluation follows: `evaluated.json` joins the checkpoint, and in a run that chooses by a figure `best`
moves, whose checkpoint never goes. Whatever a kill leaves behind is recognised and ignored.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fiber import distributed
from fiber.errors import ConfigError, SaveError
from fiber.training import zero
from fiber.training.ema import Ema
from fiber.training.folder import sync, write_whole
from fiber.training.optim import AdamW
from fiber.training.random_state import rng_state, set_rng_state
from fiber.weights.tensors import write_tensors


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
            write_whole(self.folder / "latest", final.name)
            self._prune(step, best)
        distributed.barrier()
        return final

    def note_evaluation(self, step: int, state: Mapping[str, Any], best: int | None) -> None:
        """Add what the evaluations have said, the one of this checkpoint included, to the checkpoint of `step`, and
        let `best` name the best one. Rank 0 only."""
        path = self.folder / f"step_{step:06d}"
        if path.is_dir():  # not where a run without steps is only evaluated
            write_whole(path / "evaluated.json", json.dumps(dict(state)))
        if best is not None and self.has(best):
            write_whole(self.folder / "best", f"step_{best:06d}")

    def _steps(self) -> list[int]:
        """Steps of the checkpoint folders, whole or not, ascending as numbers: names are as long as they need be."""
        names = (path.name.removeprefix("step_") for path in self.folder.glob("step_*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _prune(self, step: int, best: int | None) -> None:
        """Remove all but the `keep` newest whole checkpoints up to `step`, the one just saved, and the best."""
        whole = [s for s in self._steps() if s <= step and self.has(s)]
        kept = {step, best, *whole[-self.keep :]}
        for old in self._steps():
            if old <= step and old not in kept:
                shutil.rmtree(self.folder / f"step_{old:06d}")

    def clear_after(self, step: int) -> None:
        """Rename the checkpoints of later steps than the one that training goes on with: they are broken, or of a
        past that will be lived again, and would else be taken for newer ones. Remove what interrupted saves have
        left. Rank 0 only, of the one job that has the run."""
        for later in self._steps():
            if later > step:
                source = self.folder / f"step_{later:06d}"
                target = self.folder / f"aside_{source.name}"
                shutil.rmtree(target, ignore_errors=True)
                source.rename(target)
                print(f"{source.name} is later than step {step}: set aside as {target.name}", file=sys.stderr)
        for partial in self.folder.glob(".step_*.partial"):
            print(f"removing {partial.name}: a save was interrupted", file=sys.stderr)
            shutil.rmtree(partial)

    # ---- loading

    def latest(self) -> Path | None:
        """The newest whole checkpoint, the same on all ranks; None in a fresh run. Says what it ignores. Raises
        ConfigError where there have been checkpoints and none is whole: a run does not begin again by itself."""
        chosen, broken = None, False
        if distributed.is_main():
            pointer, steps = self.folder / "latest", self._steps()[::-1]
            named = pointer.read_text(errors="replace").strip() if pointer.exists() else ""
            for step in sorted(steps, key=lambda step: f"step_{step:06d}" != named):  # the named one first
                path = self.folder / f"step_{step:06d}"
                why = damage(path)
                if why is None:
                    chosen = path.name
                    break
                print(f"ignoring {path}: it is not whole ({why})", file=sys.stderr)
            broken = chosen is None and bool(steps or named)
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
        named = pointer.read_text(errors="replace").strip()
        path = next((self.folder / name for s in self._steps() if (name := f"step_{s:06d}") == named), None)
        if path is None or damage(path) is not None:
            raise ConfigError(f"output: {pointer} names {named}, which is not whole; delete it to use the newest")
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
        try:
            record, evaluated = json.loads((path / "state.json").read_text()), path / "evaluated.json"
            step, state, updates, loss_scale = (record[key] for key in ("step", "state", "updates", "loss_scale"))
            if evaluated.exists():  # the evaluation came after the save
                state["record"] = json.loads(evaluated.read_text())
            weights, moments = (load_file(path / f"{name}.safetensors") for name in ("model", "optimizer"))
            average = path / "ema.safetensors"
            averages = load_file(average) if average.exists() and ema is not None else weights
            generators = torch.load(path / "rng.pt", weights_only=True)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, UnpicklingError, SafetensorError) as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise ConfigError(f"{path} is damaged ({why:.200}); move it away to use an older one") from None
        check_shapes(path, weights, engine.module)
        if ema is not None:
            zero.write_weights(engine, averages)
            ema.restart()
        zero.write_weights(engine, weights)
        zero.write_moments(engine, optimizer, moments, updates)
        zero.write_loss_scale(engine, loss_scale)
        for name, buffer in buffers(engine.module):
            buffer.copy_(weights[name])
        if len(generators) == distributed.world_size():
            set_rng_state(generators[distributed.rank()])
        return step, state


def is_whole(path: Path) -> bool:
    """Whether every file of a checkpoint is there with its size: what a kill or a full disk leaves is not."""
    return damage(path, thorough=False) is None


def damage(path: Path, thorough: bool = True) -> str | None:
    """What is wrong with a checkpoint: a file that its manifest lists is missing, has another size or, if `thorough`,
    another CRC-32 (older manifests have only sizes); None where nothing is."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if not {"model.safetensors", "state.json"} <= set(manifest):
            return "manifest.json lists no weights"
        for name, entry in manifest.items():
            size, crc = entry if isinstance(entry, list) else (entry, None)
            file = path / Path(name).name
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if thorough and crc is not None and checksum(file) != crc:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


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
        try:
            write_tensors(path, tensors)
        except SafetensorError as error:  # the disk is full, say
            raise SaveError(f"{path} cannot be written: {error}; the checkpoints before it are whole") from None


def _publish(aside: Path, final: Path) -> None:
    """Manifest, sync, rename: a kill at any point leaves the older checkpoint valid."""
    manifest = {file.name: (file.stat().st_size, checksum(file)) for file in sorted(aside.iterdir())}
    (aside / "manifest.json").write_text(json.dumps(manifest))
    for file in [*aside.iterdir(), aside]:
        sync(file)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    sync(final.parent)
