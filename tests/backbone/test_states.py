"""States behave as their tensors do."""

import pytest
import torch

from fiber.backbone.states import ImageState, TextState


def image_state(rows: int, start: int = 0) -> ImageState:
    tokens = torch.arange(start, start + rows).float()[:, None, None].expand(rows, 4, 3) + 0.5
    return ImageState(tokens, (2, 2), (tokens.repeat(1, 4, 1),), ((4, 4),))


def text_state(rows: int, start: int = 0) -> TextState:
    numbers = torch.arange(start, start + rows)[:, None].expand(rows, 5)
    return TextState(numbers[..., None].float().expand(rows, 5, 2), numbers)


def rows(state: ImageState | TextState) -> list[list[float]]:
    """The row numbers that every tensor of the state holds."""
    return [x.flatten(1)[:, 0].floor().tolist() for x in state.tensors()]


@pytest.mark.parametrize("make", [image_state, text_state])
def test_index_cat_and_repeat_move_all_tensors_together(make):
    state = make(4)
    assert len(state) == 4
    assert rows(state[1:3]) == [[1, 2]] * 2
    assert rows(state[torch.tensor([3, 0, 3])]) == [[3, 0, 3]] * 2
    assert rows(state[[2]]) == [[2]] * 2
    assert rows(state.repeat_interleave(2)) == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2
    together = type(state).cat([state, make(2, start=7), state[:1]])
    assert rows(together) == [[0, 1, 2, 3, 7, 8, 0]] * 2
    assert type(together) is type(state)


def test_grids_travel_with_the_state():
    state = ImageState.cat([image_state(1), image_state(2)])[torch.tensor([2, 0])]
    assert (state.grid, state.stage_grids) == ((2, 2), ((4, 4),))
    assert [tuple(x.shape) for x in state.tensors()] == [(2, 4, 3), (2, 16, 3)]


def test_gradients_reach_the_rows_that_were_taken():
    tokens = torch.ones(3, 4, 2, requires_grad=True)
    state = ImageState(tokens, (2, 2))
    ImageState.cat([state, state[torch.tensor([1, 1])]]).tokens.sum().backward()
    assert tokens.grad[:, 0, 0].tolist() == [1, 3, 1]


@pytest.mark.parametrize("arguments", [("cpu", torch.bfloat16), (torch.bfloat16,)])
def test_to_casts_floats_and_leaves_masks_whole(arguments):
    state = text_state(2).to(*arguments)
    assert state.tokens.dtype == torch.bfloat16
    assert state.mask.dtype == torch.int64
    moved = text_state(2).to("meta")
    assert moved.mask.device.type == moved.tokens.device.type == "meta"
    assert text_state(2).to(device="meta", dtype=torch.float16).mask.device.type == "meta"


def test_different_grids_of_equal_token_counts_do_not_concatenate():
    wide = ImageState(torch.zeros(1, 4, 3), (1, 4), (torch.zeros(1, 16, 3),), ((4, 4),))
    with pytest.raises(ValueError, match="different grids"):
        ImageState.cat([image_state(1), wide])
