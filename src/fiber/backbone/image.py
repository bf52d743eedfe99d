"""Swin tower (Swin Transformer; FIBER §3) whose blocks open between attention and MLP, so that fusion can
add to the attention output of any block.

One tower serves two uses. Squares (stage 1): a window shrinks to a feature map that is not larger than itself and
is then not shifted. Any size (stage 2, `padded`): the window is fixed, maps are zero-padded to a multiple of it
after the first norm, padded tokens are attended, odd blocks always shift.

Shape letters: B batch, (H, W) grid, N = H*W tokens, C channels, h heads, w window side, n windows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.backbone.attention import attention
from fiber.backbone.stack import Stack
from fiber.backbone.windows import Grid, partition, region_mask, relative_index, unpartition
from fiber.recompute import Checkpointing, recomputed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH = 4  # side of a token in pixels


class SwinTower(nn.Module):
    """Shifted-window transformer: patch embedding, stages of blocks, patch merging at the end of a stage.

    `embed_dim` channels of the first stage (doubled by every merge), `depths` blocks and `heads` heads per stage,
    `window` side in tokens, `drop_path` rate of the last block (linear from 0), `padded` as above, `stage_norms`: a
    LayerNorm for the output of each stage but the first, instead of one final norm. Raises ValueError on sizes that
    do not fit together.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 128,
        depths: tuple[int, ...] = (2, 2, 18, 2),
        heads: tuple[int, ...] = (4, 8, 16, 32),
        window: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        padded: bool = False,
        stage_norms: bool = False,
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        if len(depths) != len(heads):
            raise ValueError(f"depths {tuple(depths)} and heads {tuple(heads)} must name the same stages")
        self.depths, self.padded, self.checkpointing = tuple(depths), padded, checkpointing
        self.widths = [embed_dim * 2**s for s in range(len(depths))]
        for s, (width, h) in enumerate(zip(self.widths, heads, strict=True)):
            if width % h:
                raise ValueError(f"width {width} of image stage {s + 1} is not a multiple of its {h} heads")
        self.patch_embed = PatchEmbed(embed_dim)
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        self.stages: Stack[SwinStage] = Stack()
        for s, depth in enumerate(depths):
            size, of_stage = (self.widths[s], heads[s], window), rates[sum(depths[:s]) :]
            blocks = [
                SwinBlock(*size, shifted=i % 2 == 1, mlp_ratio=mlp_ratio, drop_path=of_stage[i], padded=padded)
                for i in range(depth)
            ]
            merge = PatchMerge(self.widths[s]) if s + 1 < len(depths) else None
            self.stages.append(SwinStage(blocks, merge))
        self.norm = None if stage_norms else nn.LayerNorm(self.widths[-1])
        self.stage_norms = Stack[nn.LayerNorm](nn.LayerNorm(w) for w in self.widths[1:]) if stage_norms else None

    @property
    def places(self) -> list[tuple[int, int]]:
        """(stage, block) of every block in order."""
        return [(s, i) for s, depth in enumerate(self.depths) for i in range(depth)]

    def block(self, place: tuple[int, int]) -> "SwinBlock":
        """The block at (stage, block)."""
        return self.stages[place[0]].blocks[place[1]]

    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """images (B,3,H,W) float, normalised -> tokens (B,N,C), grid. Height and width that are no multiple of the
        patch are zero-padded at the bottom and right in padded mode; otherwise they raise ValueError."""
        pad_h, pad_w = -images.shape[2] % PATCH, -images.shape[3] % PATCH
        if pad_h or pad_w:
            if not self.padded:
                raise ValueError(f"image size {tuple(images.shape[2:])} must be a multiple of {PATCH}")
            images = F.pad(images, (0, pad_w, 0, pad_h))
        return self.patch_embed(images), (images.shape[2] // PATCH, images.shape[3] // PATCH)

    def run_block(self, place: tuple[int, int], x: Tensor, grid: Grid) -> Tensor:
        """One unfused block, (B,N,C) -> (B,N,C), recomputed in backward when checkpointing."""
        block = self.block(place)
        if self.checkpointing and self.training:
            return recomputed(self.checkpointing, block, x, grid)
        return block(x, grid)

    def stage_map(self, stage: int, x: Tensor, grid: Grid) -> Tensor:
        """Output norm of a stage and back to a map: (B,N,C_s) -> (B,C_s,H,W); the first stage has no norm."""
        if stage and self.stage_norms is not None:
            x = self.stage_norms[stage - 1](x)
        return x.transpose(1, 2).unflatten(2, grid)


class PixelNorm(nn.Module):
    """RGB bytes to the ImageNet-normalised values that every tower of ours takes."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B,3,H,W) -> float (B,3,H,W)."""
        return (images.float() / 255 - self.mean) / self.std


class PatchEmbed(nn.Module):
    """4x4 patches to tokens: convolution, then LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,H/4*W/4,C)."""
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))


class PatchMerge(nn.Module):
    """Halves the grid: the four pixels of a 2x2 cell in the order (0,0), (1,0), (0,1), (1,1) as (row, column),
    LayerNorm, linear without bias to twice the width. Odd sides are zero-padded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B,N,C), grid -> (B,ceil(H/2)*ceil(W/2),2C), its grid."""
        x = x.unflatten(1, grid)
        if grid[0] % 2 or grid[1] % 2:
            x = F.pad(x, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        x = torch.cat([x[:, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))], dim=-1)
        return self.reduction(self.norm(x.flatten(1, 2))), (x.shape[1], x.shape[2])


class SwinStage(nn.Module):
    """Blocks of one resolution and the merge that ends them (none after the last stage)."""

    def __init__(self, blocks: list["SwinBlock"], merge: PatchMerge | None) -> None:
        super().__init__()
        self.blocks: Stack[SwinBlock] = Stack(blocks)
        self.merge = merge


class SwinBlock(nn.Module):
    """Pre-norm block in two halves: `attend` (up to and including the attention's output projection) and
    `finish` (residual, MLP). Fusion adds its cross-attention between the two."""

    def __init__(
        self, width: int, heads: int, window: int, *, shifted: bool, mlp_ratio: float, drop_path: float, padded: bool
    ) -> None:
        super().__init__()
        self.shifted, self.padded, self.drop_path = shifted, padded, drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(B,N,C) -> (B,N,C)."""
        return self.finish(x, self.attend(x, grid))

    def attend(self, x: Tensor, grid: Grid) -> Tensor:
        """Window self-attention of the normed tokens, (B,N,C) -> (B,N,C); no residual. Raises ValueError on a grid
        that windows do not divide, unless padded."""
        window, shift = self._window(grid)
        x = self.norm1(x).unflatten(1, grid)
        pad = (-grid[0] % window[0], -grid[1] % window[1])
        if any(pad):
            if not self.padded:
                raise ValueError(
                    f"a {grid[0]}x{grid[1]} feature map is not a multiple of the {window[0]}x{window[1]} window; "
                    "choose image_size = 32 x window (or a multiple), or a padded tower"
                )
            x = F.pad(x, (0, 0, 0, pad[1], 0, pad[0]))
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        size = (x.shape[1], x.shape[2])
        x = self.attn(partition(x, window), window, region_mask(size, window, shift, x.device))
        x = unpartition(x, window, size)
        if any(shift):
            x = x.roll(shift, (1, 2))
        return x[:, : grid[0], : grid[1]].flatten(1, 2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual of x (B,N,C) and the attention output, then the MLP half."""
        x = x + self._drop_path(attended)
        return x + self._drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def _window(self, grid: Grid) -> tuple[Grid, Grid]:
        """Window sides and shifts for a grid: shrunk to the map, and then not shifted, unless padded."""
        w = self.attn.window
        shift = w // 2 if self.shifted else 0
        if self.padded:
            return (w, w), (shift, shift)
        shifts = shift if grid[0] > w else 0, shift if grid[1] > w else 0
        return (min(w, grid[0]), min(w, grid[1])), shifts

    def _drop_path(self, x: Tensor) -> Tensor:
        """Drop the branch of whole samples, rescaled; identity in evaluation."""
        if not self.training or not self.drop_path:
            return x
        keep = 1 - self.drop_path
        return x * (x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learned bias for each relative position:
    bias row of (query, key) = (Δrow + w-1)(2w-1) + (Δcol + w-1), Δ = query - key, w the configured side."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, x: Tensor, window: Grid, region_mask: Tensor | None) -> Tensor:
        """x (B*n,w²,C), region_mask (n,w²,w²) or None -> (B*n,w²,C)."""
        length = x.shape[1]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        index = relative_index(window, self.window, x.device)
        # Selected by column: the keys of a head then stand side by side, as fused kernels want them.
        bias = self.relative_position_bias.T.index_select(1, index).unflatten(1, (length, length))[None]
        if region_mask is not None:
            bias = bias + region_mask[:, None].to(bias.dtype)
        return self.proj(attention(q, k, v, bias).transpose(1, 2).flatten(2))
