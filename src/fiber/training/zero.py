"""Everything that knows DeepSpeed: its JSON from our config, the engine, and fp32 state by parameter name.

At every ZeRO stage each rank owns some fp32 *masters*: whole parameters (stage 0) or flat slices (1, 2, 3). The
functions here read and write them by parameter name, so that checkpoints, averages and exports depend neither on the
stage nor on the number of ranks.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from functools import partial
from typing import Any, Protocol, TypeVar, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber import distributed
from fiber.config.base import OptimConfig, TrainConfig
from fiber.errors import ConfigError
from fiber.training.optim import AdamW, build_optimizer

M = TypeVar("M", bound=nn.Module)

MOMENTS = ("exp_avg", "exp_avg_sq")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NO_CLIPPING = 1e30  # the gradient norm is measured only where DeepSpeed clips


class Engine(Protocol):
    """What the house uses of a DeepSpeedEngine around a task's module."""

    module: nn.Module
    optimizer: Any  # DeepSpeed's around our AdamW: of another class at every ZeRO stage and precision

    def __call__(self, batch: Mapping[str, Any], /) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...
    def backward(self, loss: Tensor, /) -> object: ...
    def step(self) -> None: ...
    def train(self) -> object: ...
    def eval(self) -> object: ...
    def zero_optimization_stage(self) -> int: ...
    def fp16_enabled(self) -> bool: ...
    def get_global_grad_norm(self) -> float | Tensor: ...


def deepspeed_json(train: TrainConfig, clip: float) -> dict[str, Any]:
    """The DeepSpeed configuration of a run. Defaults that changed between releases are written out."""
    # On cards gradients are reduced while the backward pass goes on, in buckets (numbers) of a quarter of a tower.
    on_card = distributed.device().type == "cuda"
    zero: dict[str, Any] = {"stage": train.zero_stage, "contiguous_gradients": True, "overlap_comm": on_card}
    zero |= {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 200_000_000}
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if train.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    result: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": clip or _NO_CLIPPING,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if train.precision == "bf16":
        result["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if train.precision == "fp16":
        result["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}
    return result


def build_engine(task: nn.Module, train: TrainConfig, optim: OptimConfig) -> tuple[Engine, AdamW]:
    """Wrap `task` (on the CPU) -> (DeepSpeed engine on this rank's device, the AdamW inside it). Raises ConfigError
    where the device cannot compute in the precision."""
    import deepspeed
    from deepspeed.runtime import compiler

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    on_card = distributed.device().type == "cuda"
    if train.precision == "fp16" and not on_card:
        raise ConfigError("train.precision: fp16 needs a CUDA card; on the CPU use bf16 or fp32")
    optimizer = build_optimizer(task, optim)
    exact = {name: p.detach().clone() for name, p in task.named_parameters()} if train.precision != "fp32" else None
    with (
        redirect_stdout(io.StringIO()),  # its bf16 optimizer prints memory use
        patch.object(compiler, "compile", lambda *_: lambda f: f),  # of Muon, which is not used: a second of imports
    ):
        engine, *_ = deepspeed.initialize(
            model=task, optimizer=optimizer, config=deepspeed_json(train, optim.clip), dist_init_required=False
        )
    if exact is not None:  # the masters were copied from weights already rounded to 16 bits
        write_weights(engine, exact)
    distributed.set_timeouts(train.hang_timeout_s)
    _start_moments(engine, optimizer)
    return engine, optimizer


def optimizer_step(engine: Engine) -> float:
    """`engine.step()` at the end of an accumulation; -> the norm of the whole gradient before clipping."""
    norm = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed clips but does not report here
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)


# ---------------------------------------------------------------------------------------------- fp32 state


def masters(engine: Engine, optimizer: AdamW) -> list[Tensor]:
    """The fp32 tensors that this rank's AdamW updates: parameters at stage 0, flat slices above."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def read_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """(name, whole fp32 value on the device) of every parameter, trained or frozen. All ranks must iterate."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and engine.zero_optimization_stage() > 0:
            yield name, _deepspeed_utils().safe_get_full_fp32_param(parameter)
        else:
            with _whole(engine, parameter):
                value = parameter.detach().float()
                value = value.clone() if engine.zero_optimization_stage() == 3 else value  # it is about to be cut
            yield name, value


def read_moments(engine: Engine, optimizer: AdamW) -> Iterator[tuple[str, Tensor]]:
    """("exp_avg.NAME" and "exp_avg_sq.NAME", whole value) of every trained parameter. All ranks must iterate."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            for moment in MOMENTS:
                if engine.zero_optimization_stage() > 0:
                    yield f"{moment}.{name}", _deepspeed_utils().safe_get_full_optimizer_state(parameter, moment)
                else:
                    yield f"{moment}.{name}", optimizer.state[parameter][moment]


def write_weights(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Set masters and the weights that the forward pass uses, on all ranks, from whole fp32 values by name."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            _write_slice(engine, parameter, weights[name])
        _write_working_copy(engine, parameter, weights[name])


def _start_moments(engine: Engine, optimizer: AdamW) -> None:
    """Adam's state of no updates. AdamW would make it on the first one, too late to resume or to save before."""
    for tensor in masters(engine, optimizer):
        count = torch.zeros((), device=tensor.device)
        optimizer.state[tensor] = {"step": count} | {moment: torch.zeros_like(tensor) for moment in MOMENTS}
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def write_moments(engine: Engine, optimizer: AdamW, moments: Mapping[str, Tensor], updates: int) -> None:
    """Set Adam's moments from whole values named as `read_moments` names them, and the number of updates in them."""
    for tensor in masters(engine, optimizer):
        optimizer.state[tensor]["step"].fill_(updates)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            for moment in MOMENTS:
                value = moments[f"{moment}.{name}"]
                if engine.zero_optimization_stage() == 0:
                    optimizer.state[parameter][moment].copy_(value)
                _write_slice(engine, parameter, value, moment)


def _write_slice(engine: Engine, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
    """This rank's part of a whole value into the sharded master, or moment, of a parameter (stages 1, 2, 3)."""
    value = value.to(device=distributed.device(), dtype=torch.float32)
    set_whole, set_slice = _deepspeed_utils().safe_set_full_fp32_param, _deepspeed_utils().safe_set_local_fp32_param
    if moment is not None:
        set_whole = partial(_deepspeed_utils().safe_set_full_optimizer_state, optim_state_key=moment)
        set_slice = partial(_deepspeed_utils().safe_set_local_optimizer_state, optim_state_key=moment)
    if engine.zero_optimization_stage() == 3:
        # Cut by hand: DeepSpeed's own way fails on parameters that do not divide by the number of ranks.
        size = getattr(parameter, "ds_tensor").numel()  # noqa: B009 (DeepSpeed adds it)
        padded = F.pad(value.flatten(), (0, size * distributed.world_size() - value.numel()))
        set_slice(parameter, padded[distributed.rank() * size :][:size])
    elif engine.zero_optimization_stage() > 0:
        set_whole(parameter, value)


def updates(engine: Engine, optimizer: AdamW) -> int:
    """How many updates Adam has made (skipped steps do not count)."""
    return int(optimizer.state[masters(engine, optimizer)[0]]["step"].item())


def as_in_training(module: M, precision: str) -> M:
    """The module on this rank's device with the numbers that the engine computes with: figures outside of a run are
    those of the run. (A CPU does not compute in fp16, and no run trains so on it: there it is fp32.)"""
    device = distributed.device()
    return module.to(device, DTYPES["fp32" if (precision, device.type) == ("fp16", "cpu") else precision])


def plain_module(engine: Engine, build: Callable[[], M], precision: str) -> M:
    """The wrapped task where its parameters are whole; at stage 3 a copy that `build` makes, with the same weights
    and buffers, because there every forward is collective and evaluation batches differ by rank."""
    if engine.zero_optimization_stage() < 3:
        return cast(M, engine.module)
    module = as_in_training(build(), precision).train(engine.module.training)
    weights = dict(read_weights(engine)) | dict(engine.module.named_buffers())
    module.load_state_dict({name: weights[name] for name in module.state_dict()})
    return module


def refresh(engine: Engine) -> None:
    """Copy the masters into the weights that the forward pass uses (after masters were changed in place)."""
    if engine.zero_optimization_stage() > 0:
        for (_, value), parameter in zip(read_weights(engine), engine.module.parameters(), strict=True):
            if parameter.requires_grad:
                _write_working_copy(engine, parameter, value)


def _write_working_copy(engine: Engine, parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad(), _whole(engine, parameter, write=True):
        parameter.copy_(value)


def _whole(engine: Engine, parameter: nn.Parameter, write: bool = False) -> AbstractContextManager[object]:
    """A context in which a ZeRO-3 parameter has its whole value; elsewhere it always has."""
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if write else None)


def _deepspeed_utils() -> Any:
    from deepspeed import utils  # imports take seconds: only where a run has started

    return utils


# ---------------------------------------------------------------------------------------------- loss scale


def read_loss_scale(engine: Engine) -> dict[str, float]:
    """The state of fp16's dynamic loss scale; {} at other precisions."""
    if not engine.fp16_enabled():
        return {}
    return {name: value for name, value in vars(engine.optimizer.loss_scaler).items() if type(value) in (int, float)}


def write_loss_scale(engine: Engine, state: Mapping[str, float]) -> None:
    """Go on with a state that `read_loss_scale` gave; nothing where it is {}."""
    for name, value in state.items():
        setattr(engine.optimizer.loss_scaler, name, value)
