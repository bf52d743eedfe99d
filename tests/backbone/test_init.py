"""First gradients of a model from nothing on images that are constant somewhere."""

import pytest
import torch

from fiber.backbone.image import PixelNorm, SwinTower
from fiber.backbone.init import initialise

SIDE = 96
MEAN_COLOUR = (124, 116, 104)  # the byte nearest to the mean of ImageNet


def largest_gradient(scheme: str, images: torch.Tensor, padded: bool = True) -> float:
    """Of any parameter of a fresh tower, for a random linear loss on its last tokens; images (B,3,SIDE,SIDE)."""
    tower = SwinTower(
        embed_dim=16,
        depths=(2, 2, 2, 2),
        heads=(1, 2, 4, 8),
        window=3,
        drop_path=0.0,
        padded=padded,
        stage_norms=padded,
    )
    initialise(tower, scheme, seed=0)
    x, grid = tower.embed(images)
    for stage, index in tower.places:
        x = tower.run_block((stage, index), x, grid)
        merge = tower.stages[stage].merge
        if merge is not None and index + 1 == tower.depths[stage]:
            x, grid = merge(x, grid)
    x = torch.nn.functional.layer_norm(x, x.shape[-1:])
    (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return max(p.grad.abs().max().item() for p in tower.parameters() if p.grad is not None)


def ordinary() -> torch.Tensor:
    """Two smooth random images, normalised."""
    coarse = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 255
    return PixelNorm()(torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear").byte())


def constant(colour: tuple[int, int, int]) -> torch.Tensor:
    return PixelNorm()(torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE))


@pytest.mark.parametrize("scheme", ["normal", "fan_in"])
def test_padding_and_constant_images_give_ordinary_gradients(scheme: str) -> None:
    usual = largest_gradient(scheme, ordinary())
    mixed = ordinary()
    mixed[0, :, 40:] = 0  # as images of other sizes are padded
    mixed[1, :, :, 52:] = 0
    cases = {
        "mixed sizes": mixed,
        "black": torch.cat([ordinary()[:1], constant((0, 0, 0))]),
        "mean colour": torch.cat([ordinary()[:1], constant(MEAN_COLOUR)]),
        "nothing but 0": torch.zeros(2, 3, SIDE, SIDE),
    }
    found = {name: largest_gradient(scheme, images) for name, images in cases.items()}
    assert all(value < 10 * usual for value in found.values()), (usual, found)


def test_weights_of_a_square_tower_stay_as_recorded() -> None:
    """Only a padded tower draws the bias, and after everything else."""
    towers = []
    for padded in (False, True):
        tower = SwinTower(embed_dim=16, depths=(1, 1), heads=(1, 2), window=3, padded=padded)
        initialise(tower, "fan_in", seed=0)
        towers.append(tower.state_dict())
    square, padded = towers
    assert not square["patch_embed.proj.bias"].any()
    assert padded["patch_embed.proj.bias"].all()
    assert all(torch.equal(x, padded[name]) for name, x in square.items() if name != "patch_embed.proj.bias")
