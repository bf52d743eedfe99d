"""Gathers and row exchange on three real gloo processes, against plain indexing of the concatenated tensor."""

import os

import pytest
import torch
import torch.multiprocessing as mp

from fiber import distributed as fd
from fiber.cli.launcher import free_port

WORLD, ROWS, ASKED = 3, 4, 5


def _tensors() -> tuple[list, list, list]:
    """Per rank: x (4, 2, 3), the global rows it asks for (5,), the loss weights of what arrives (5, 2, 3)."""
    draw = torch.Generator().manual_seed(0)
    x = [torch.randn(ROWS, 2, 3, generator=draw) for _ in range(WORLD)]
    index = [torch.randint(0, WORLD * ROWS, (ASKED,), generator=draw) for _ in range(WORLD)]
    index[1] = torch.full((ASKED,), 2)  # one row five times, from one other rank; rank 2's rows unasked by it
    weight = [torch.randn(ASKED, 2, 3, generator=draw) for _ in range(WORLD)]
    return x, index, weight


def exchanged(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return fd.exchange_rows(x, fd.Exchange(index, len(x)))


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    xs, indices, weights = _tensors()
    x, index, weight = xs[rank].requires_grad_(), indices[rank], weights[rank]
    out = {"exchanged": exchanged(x, index)}
    (out["exchanged"] * weight).sum().backward()
    out["exchange_grad"], x.grad = x.grad, None
    out["gathered"] = fd.all_gather_with_grad(x)
    (out["gathered"] * (rank + 1.0)).square().sum().backward()
    out["gather_grad"] = x.grad
    out["plain"] = fd.all_gather(x)
    out["mask"] = exchanged(torch.arange(ROWS) + 10 * rank, index)
    out["half"] = exchanged(x.detach().bfloat16(), index)
    value = torch.tensor([float(rank)])
    out["sum"], out["mean"], out["max"] = (
        fd.all_reduce_sum(value),
        fd.all_reduce_mean(value),
        fd.all_reduce_max(value),
    )
    out["untouched"] = value
    out["objects"] = fd.gather_objects({"rank": rank})
    out["broadcast"] = fd.broadcast_object(f"from {rank}", source=1)
    try:
        exchanged(x, torch.full((ASKED,), WORLD * ROWS))
    except IndexError as error:
        out["refused"] = str(error)
    fd.barrier()
    torch.save(out, f"{folder}/{rank}.pt")
    fd.shutdown()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    port = free_port()
    mp.spawn(_rank, (port, str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(WORLD)]


def test_exchange_equals_indexing_the_concatenation(results: list[dict]) -> None:
    xs, indices, weights = _tensors()
    whole = torch.cat(xs).requires_grad_()
    total = sum((whole[i] * w).sum() for i, w in zip(indices, weights, strict=True))
    total.backward()
    for r, out in enumerate(results):
        assert torch.equal(out["exchanged"], whole[indices[r]])
        torch.testing.assert_close(out["exchange_grad"], whole.grad[r * ROWS : (r + 1) * ROWS])
        numbers = torch.cat([torch.arange(ROWS) + 10 * k for k in range(WORLD)])
        assert torch.equal(out["mask"], numbers[indices[r]])
        assert torch.equal(out["half"], whole.detach().bfloat16()[indices[r]])
        assert "not all in 0..11" in out["refused"]


def test_gathers_keep_rank_order_and_sum_gradients(results: list[dict]) -> None:
    whole = torch.cat(_tensors()[0])
    expected = 2 * whole * sum((r + 1.0) ** 2 for r in range(WORLD))  # d/dx of the sum over ranks of ((r+1) x)^2
    for r, out in enumerate(results):
        assert torch.equal(out["gathered"], whole)
        assert torch.equal(out["plain"], whole)
        assert not out["plain"].requires_grad
        torch.testing.assert_close(out["gather_grad"], expected[r * ROWS : (r + 1) * ROWS])


def test_scalars_and_objects(results: list[dict]) -> None:
    for r, out in enumerate(results):
        assert (out["sum"].item(), out["mean"].item(), out["max"].item()) == (3.0, 1.0, 2.0)
        assert out["untouched"].item() == r
        assert out["objects"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert out["broadcast"] == "from 1"


def test_one_process_without_torch_distributed() -> None:
    x = torch.randn(4, 2, requires_grad=True)
    index = torch.tensor([3, 0, 3])
    assert (fd.rank(), fd.world_size(), fd.is_main()) == (0, 1, True)
    assert torch.equal(exchanged(x, index), x[index])
    assert torch.equal(fd.all_gather_with_grad(x), x)
    assert torch.equal(fd.all_reduce_mean(x), x)
    assert fd.gather_objects(3) == [3]
    assert fd.broadcast_object("a") == "a"
    fd.barrier()
    with pytest.raises(IndexError):
        exchanged(x, torch.tensor([4]))
