"""How cards compute, without a card."""

from collections.abc import Iterator

import pytest
import torch

from fiber.cards import card_peak, choose_kernels, exact_products

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def settings() -> Iterator[None]:
    """Put back what a test sets for the whole process."""
    cudnn, products = torch.backends.cuda.cudnn_sdp_enabled(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def now() -> tuple[bool, str, bool]:
    tf32 = torch.backends.cudnn.allow_tf32
    return torch.backends.cuda.cudnn_sdp_enabled(), torch.get_float32_matmul_precision(), tf32


@pytest.mark.usefixtures("settings")
def test_kernels_of_a_card_and_of_parity() -> None:
    before = now()
    choose_kernels(CPU)
    assert now() == before
    choose_kernels(CUDA)
    assert now() == (False, "high", True)
    choose_kernels(CUDA, exact=True)
    assert now() == (False, "highest", False)


@pytest.mark.usefixtures("settings")
def test_exact_products_end_with_their_block_even_by_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    within = []

    def fail() -> None:
        with exact_products():
            within.append(torch.get_float32_matmul_precision())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (within, torch.get_float32_matmul_precision()) == (["highest"], "high")


def test_cards_of_one_family_are_told_apart() -> None:
    names = ("NVIDIA GH200 480GB", "NVIDIA H20", "NVIDIA A40-48Q", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 5090")
    assert [card_peak(name) for name in names] == [989.0, 148.0, 150.0, 155.0, 209.0]
    assert card_peak("NVIDIA H2000") is None
