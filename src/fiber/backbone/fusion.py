"""Fusion in the backbone (FIBER, §3): a Swin tower and a RoBERTa tower joined by gated cross-attention inside
their last M layer pairs.

The backbone is three functions: *prefix* an image, *prefix* a text, and *finish* (unfused, fused, or causal).
Everything that is expensive and does not depend on the pairing is in the prefixes; every use of the model reuses
them in its own way.

Shape letters: B batch, (H,W) grid, N = H*W image tokens, C image channels of a stage, L text length, T text width.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.backbone.attention import attention, causal_bias, merge_heads, padding_bias, split_heads
from fiber.backbone.image import SwinTower
from fiber.backbone.stack import Stack
from fiber.backbone.states import ImageState, TextState
from fiber.backbone.text import KeyValue, RobertaTower
from fiber.backbone.windows import Grid
from fiber.recompute import recomputed


@dataclass(frozen=True)
class Fused:
    """Output of the fusion encoder: image tokens (B,N,C_last) without final norm, text tokens (B,L,T), and, from
    a tower with stage norms, the maps (B,C_s,H_s,W_s) of every stage (the first un-normed)."""

    image: Tensor
    text: Tensor
    stages: tuple[Tensor, ...] = ()


class ImageToText(nn.Module):
    """Image tokens ask the text (i2t): gated residual branch inside an image block.

    Heads and scale are those of the image stage. `query_norm`: LayerNorm of the queries' input; the released stage-2
    weights "v2" lack it, "v3" and stage 1 have it.
    """

    def __init__(self, width: int, heads: int, text_width: int, query_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width) if query_norm else nn.Identity()
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(text_width, 2 * width)
        self.output = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, attended: Tensor, text: Tensor, text_bias: Tensor) -> Tensor:
        """attended (B,N,C) after the block's self-attention, text (B,L,T), bias (B,1,1,L) -> (B,N,C)."""
        q = split_heads(self.query(self.norm(attended)), self.heads)
        k, v = (split_heads(x, self.heads) for x in self.key_value(text).chunk(2, dim=-1))
        return self.gate * self.output(merge_heads(attention(q, k, v, text_bias)))


class TextToImage(nn.Module):
    """Text tokens ask the image (t2i): gated residual branch inside a text layer."""

    def __init__(self, width: int, heads: int, image_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(image_width, width)
        self.value = nn.Linear(image_width, width)
        self.output = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def project(self, image: Tensor) -> KeyValue:
        """Keys and values (B,h,N,d) of image tokens (B,N,C)."""
        return split_heads(self.key(image), self.heads), split_heads(self.value(image), self.heads)

    def forward(self, attended: Tensor, image: KeyValue) -> Tensor:
        """attended (R,L,T) after the layer's self-attention, R/B texts of each image in turn, and projected images
        (B,h,N,d), which are not repeated for them -> (R,L,T)."""
        dropout = self.dropout if self.training else 0.0
        q = self.query(attended).reshape(image[0].shape[0], -1, attended.shape[-1])  # exports cannot vary a len()
        asked = merge_heads(attention(split_heads(q, self.heads), *image, dropout=dropout)).view(attended.shape)
        return self.gate * F.dropout(self.output(asked), dropout)


@dataclass
class DecoderCache:
    """What causal decoding keeps between steps: keys and values of B images per fused layer (B,h,N,d), computed once,
    and of R texts, R/B of each image in turn, per text layer (room,2,R,h,d). The latter is written in place: a new
    tensor at every step would cost more than the products. `room`: tokens that a text may have; 0 keeps nothing, for
    captions of training, which are whole and let gradients through."""

    image: list[KeyValue]
    room: int = 64
    length: int = 0  # tokens so far
    text: list[Tensor] = field(default_factory=list)

    def fresh(self, room: int) -> "DecoderCache":
        """Of the same images, which each step reads as they lie, without texts."""
        image = [(keys.contiguous(), values.contiguous()) for keys, values in self.image] if room else self.image
        return DecoderCache(image, room)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> KeyValue:
        """Keys and values (R,h,L,d) of new tokens in a text layer -> those of all tokens so far (R,h,length+L,d)."""
        if not self.room:
            return keys, values
        new = torch.stack([keys, values]).permute(3, 0, 1, 2, 4)
        if layer == len(self.text):
            self.text.append(new.new_empty(self.room, *new.shape[1:]))
        end = self.length + len(new)
        self.text[layer][self.length : end] = new
        keys, values = self.text[layer][:end].permute(1, 2, 3, 0, 4)
        return keys, values

    def reorder(self, index: Tensor) -> None:
        """Rows `index` (R,) of the texts, in place: beams that survive, each with its image."""
        spare = torch.empty_like(self.text[0])
        for layer, text in enumerate(self.text):
            torch.index_select(text[: self.length], 2, index, out=spare[: self.length])
            self.text[layer], spare = spare, text


class Fusion(nn.Module):
    """The parameters that neither tower has alone: cross-attention of each pair and, for captioning, the maps
    from the final image width to the key/value width of pairs in earlier stages."""

    def __init__(self, image: SwinTower, text: RobertaTower, num_fused: int, query_norm: bool) -> None:
        super().__init__()
        places = image.places[-num_fused:]
        widths = [image.widths[stage] for stage, _ in places]
        self.image_to_text: Stack[ImageToText] = Stack(
            ImageToText(width, image.block(place).attn.heads, text.width, query_norm)
            for width, place in zip(widths, places, strict=True)
        )
        self.text_to_image: Stack[TextToImage] = Stack(
            TextToImage(text.width, text.heads, width, text.dropout) for width in widths
        )
        self.caption_maps = nn.ModuleDict(
            {str(i): nn.Linear(widths[-1], w) for i, w in enumerate(widths) if w != widths[-1]}
        )


class FusionBackbone(nn.Module):
    """Both towers and their fusion in the last `num_fused` pairs of (image block, text layer).

    `query_norm`: see `ImageToText`. `last_text_norm`: whether the last text layer keeps its output LayerNorm in the
    fused pass (stage 2 does; stage 1 does not, as in the release). All gates start at 0: the new model is exactly two
    separate encoders.
    """

    def __init__(
        self,
        image: SwinTower,
        text: RobertaTower,
        num_fused: int = 6,
        query_norm: bool = True,
        last_text_norm: bool = False,
    ) -> None:
        super().__init__()
        blocks, layers = sum(image.depths), len(text.layers)
        if not 1 <= num_fused <= min(blocks, layers):
            raise ValueError(
                f"num_fused = {num_fused} must lie between 1 and the smaller depth: the image tower has {blocks} "
                f"blocks, the text tower {layers} layers"
            )
        self.image, self.text, self.num_fused, self.last_text_norm = image, text, num_fused, last_text_norm
        self.fusion = Fusion(image, text, num_fused, query_norm)

    def gates(self) -> dict[str, Tensor]:
        """Every gate () by fused pair, for reports: `gate/i2t/K` of image blocks, `gate/t2i/K` of text layers. Empty
        where ZeRO-3 has partitioned the parameters."""
        gates = {f"gate/i2t/{k}": part.gate for k, part in enumerate(self.fusion.image_to_text)}
        gates |= {f"gate/t2i/{k}": part.gate for k, part in enumerate(self.fusion.text_to_image)}
        return {name: gate.detach()[0] for name, gate in gates.items() if gate.numel()}

    # ------------------------------------------------------------------------------------------------ prefixes

    def image_prefix(self, images: Tensor) -> ImageState:
        """images (B,3,H,W), normalised -> state before the first fused block."""
        x, grid = self.image.embed(images)
        state = ImageState(x, grid)
        return self._run_image(state, self.image.places[: -self.num_fused])

    def text_prefix(self, ids: Tensor, mask: Tensor, offset: Tensor | None = None) -> TextState:
        """ids and mask (B,L) int64 (mask 1 = token) -> state before the first fused layer. `offset` (R,T),
        R >= L: learned prompt offset added to the embeddings."""
        y = self.text.embeddings(ids, offset=offset)
        bias = padding_bias(mask, y.dtype)
        for index in range(len(self.text.layers) - self.num_fused):
            y = self.text.run_layer(index, y, bias)
        return TextState(y, mask)

    # ------------------------------------------------------------------------------------------------ finishes

    def finish_image(self, state: ImageState) -> Tensor:
        """Unfused image tail with the final LayerNorm: -> (B,N,C_last)."""
        tail = self.image_tail(state)
        return tail if self.image.norm is None else self.image.norm(tail)

    def image_tail(self, state: ImageState) -> Tensor:
        """Unfused image tail without the final LayerNorm (what captioning attends to): -> (B,N,C_last)."""
        return self._run_image(state, self.image.places[-self.num_fused :]).tokens

    def finish_text(self, state: TextState) -> Tensor:
        """Unfused text tail: -> (B,L,T)."""
        y, bias = state.tokens, padding_bias(state.mask, state.tokens.dtype)
        for index in range(len(self.text.layers) - self.num_fused, len(self.text.layers)):
            y = self.text.run_layer(index, y, bias)
        return y

    def fuse(self, image: ImageState, text: TextState) -> Fused:
        """The fused pairs of blocks and layers: row b of both states, image (B,N,C) and text (B,L,T), is one
        image-text pair."""
        y, bias = text.tokens, padding_bias(text.mask, text.tokens.dtype)
        for pair, place in enumerate(self.image.places[-self.num_fused :]):
            if self.training and (how := self.image.checkpointing or self.text.checkpointing):
                x, y = recomputed(how, self.run_pair, pair, image.tokens, image.grid, y, bias)
            else:
                x, y = self.run_pair(pair, image.tokens, image.grid, y, bias)
            image = self._end_block(ImageState(x, image.grid, image.stages, image.stage_grids), place)
        maps: tuple[Tensor, ...] = ()
        if self.image.stage_norms is not None:
            tokens = (*image.stages, image.tokens)
            grids = (*image.stage_grids, image.grid)
            maps = tuple(self.image.stage_map(s, x, g) for s, (x, g) in enumerate(zip(tokens, grids, strict=True)))
        return Fused(image.tokens, y, maps)

    def run_pair(self, pair: int, x: Tensor, grid: Grid, y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Fused pair number `pair`: x (B,N,C) and y (B,L,T), both updated in parallel from the same inputs."""
        block = self.image.block(self.image.places[pair - self.num_fused])
        layer = self.text.layers[pair - self.num_fused]
        ask_text, ask_image = self.fusion.image_to_text[pair], self.fusion.text_to_image[pair]
        a = block.attend(x, grid)
        s = layer.attend(y, bias)
        a = a + ask_text(a, y, bias)
        s = s + ask_image(s, ask_image.project(x))
        keep_norm = self.last_text_norm or pair < self.num_fused - 1
        return block.finish(x, a), layer.finish(y, s, keep_norm)

    # ------------------------------------------------------------------------------------------------ decoder

    def start_decoding(self, image: Tensor, room: int = 64) -> DecoderCache:
        """Empty cache for captions, of `room` tokens at most, of the final un-normed image map (B,N,C_last)."""
        projected = []
        for pair, ask_image in enumerate(self.fusion.text_to_image):
            maps = self.fusion.caption_maps
            projected.append(ask_image.project(maps[str(pair)](image) if str(pair) in maps else image))
        return DecoderCache(projected).fresh(room)

    def decode(self, ids: Tensor, cache: DecoderCache, mask: Tensor | None = None) -> Tensor:
        """Causal text pass that continues `cache` (updated in place) with ids (R,L) -> text tokens (R,L,T). Training
        passes whole captions with their padding `mask` (R,L) and a cache without room, generation the newest token
        only. The last layer keeps its LayerNorm here."""
        y, length = self.text.embeddings(ids, past=cache.length), ids.shape[1]
        # A token alone sees all that were before it.
        bias = None if length == 1 else causal_bias(length, cache.length + length, ids.device, y.dtype)
        if mask is not None:
            padding = padding_bias(mask, y.dtype)
            bias = padding if bias is None else bias + padding
        unfused = len(self.text.layers) - self.num_fused
        for index, layer in enumerate(self.text.layers):
            s = layer.attend(y, bias, partial(cache.extend, index))
            if index >= unfused:
                ask_image = self.fusion.text_to_image[index - unfused]
                s = s + ask_image(s, cache.image[index - unfused])
            y = layer.finish(y, s)
        cache.length += length
        return y

    def _run_image(self, state: ImageState, places: list[tuple[int, int]]) -> ImageState:
        """Unfused blocks and merges at `places`."""
        for place in places:
            x = self.image.run_block(place, state.tokens, state.grid)
            state = self._end_block(ImageState(x, state.grid, state.stages, state.stage_grids), place)
        return state

    def _end_block(self, state: ImageState, place: tuple[int, int]) -> ImageState:
        """After a block: at the end of a stage merge patches, keeping the finished map where stages are read."""
        stage, index = place
        merge = self.image.stages[stage].merge
        if index + 1 < self.image.depths[stage] or merge is None:
            return state
        x, grid = merge(state.tokens, state.grid)
        if self.image.stage_norms is None:
            return ImageState(x, grid)
        return ImageState(x, grid, (*state.stages, state.tokens), (*state.stage_grids, state.grid))
