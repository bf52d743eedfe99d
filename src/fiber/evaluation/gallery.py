"""A set of images and a set of texts, each encoded once, and matching of any of their pairs.

Every rank encodes its own share of both sets. Features and text prefixes (small) are gathered; image prefixes (large)
stay with the rank that made them, and that rank scores the pairs of its images.

Shape letters: N images, M texts, n images of this rank, K pairs, H feature width, L text length.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fiber import distributed
from fiber.backbone.states import ImageState, State, TextState
from fiber.coarse.model import CoarseModel
from fiber.evaluation.predictions import RepeatedError
from fiber.evaluation.progress import Progress

S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class PrefixCache:
    """Where prefixes wait. `device` None: the model's; `dtype` None: the model's (bf16 halves the memory)."""

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def put(self, state: S) -> S:
        """The state as it is kept."""
        return state.to(self.device or state.tokens.device, self.dtype or state.tokens.dtype)


@dataclass(frozen=True)
class Images:
    """image_id (N,) and unit contrastive features (N,H) fp32 of all images in the order of their positions;
    `prefixes` of the rows `own` (n,); `place` (N,): where row r lies in `own`, -1 for another rank's."""

    image_id: Tensor
    features: Tensor
    prefixes: ImageState
    own: Tensor
    place: Tensor


@dataclass(frozen=True)
class Texts:
    """image_row (M,): the row of each text's image; unit features (M,H) fp32 and prefixes (M) of all texts, in
    the order of their positions."""

    image_row: Tensor
    features: Tensor
    prefixes: TextState


@torch.no_grad()
def encode_images(model: CoarseModel, batches: Iterable[dict], cache: PrefixCache, progress: Progress) -> Images:
    """This rank's batches {"images" (B,3,S,S), "image_id" (B,), "position" (B,)} -> all images."""
    positions, ids, features, prefixes = [], [], [], []
    device = device_of(model)
    for batch in progress(batches, "images"):
        state = model.image_prefix(batch["images"].to(device))
        features.append(model.image_embedding(state))
        prefixes.append(cache.put(state))
        positions.append(batch["position"].to(device))
        ids.append(batch["image_id"].to(device))
    check_share(len(positions), "images", device)
    position, (image_id, feature) = gather(torch.cat(positions), torch.cat(ids), torch.cat(features))
    own = torch.searchsorted(position, torch.cat(positions))
    place = torch.full_like(position, -1)
    place[own] = torch.arange(len(own), device=device)
    return Images(image_id, feature, ImageState.cat(prefixes), own, place)


@torch.no_grad()
def encode_texts(
    model: CoarseModel, batches: Iterable[dict], image_id: Tensor, cache: PrefixCache, progress: Progress
) -> tuple[Texts, dict[str, Tensor]]:
    """This rank's batches {"ids", "mask" (B,L), "image_id", "position" (B,)} -> all texts, and every further
    integer tensor of the batches, (M,...). `image_id` (N,): the gallery. ValueError where a text's image lacks."""
    positions, features, prefixes = [], [], []
    parts: list[dict[str, Tensor]] = []
    device = device_of(model)
    for batch in progress(batches, "texts"):
        batch = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor) and not v.is_floating_point()}
        state = model.text_prefix(batch["ids"], batch["mask"])
        features.append(model.text_embedding(state))
        prefixes.append(cache.put(state))
        positions.append(batch.pop("position"))
        parts.append(batch)
    check_share(len(positions), "texts", device)
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    state = TextState.cat(prefixes)
    _, gathered = gather(torch.cat(positions), *columns.values(), torch.cat(features), *state.tensors())
    columns = dict(zip(columns, gathered, strict=False))
    feature, tokens, mask = gathered[len(columns) :]
    return Texts(image_rows(image_id, columns["image_id"]), feature, TextState(tokens, mask)), columns


def match_logits(
    model: CoarseModel,
    images: Images,
    texts: TextState,
    image_row: Tensor,
    text_row: Tensor,
    *,
    batch: int,
    progress: Progress,
    what: str = "pairs",
) -> Tensor:
    """Matching logits (K,2) fp32 of the pairs (image_row[k], text_row[k]), on every rank; class 1 = match.
    `texts`: prefixes that `text_row` counts in."""

    text_row = text_row.cpu()

    def score(image: ImageState, pairs: Tensor) -> Tensor:
        return model.match_logits(image, take(texts, text_row[pairs], model))

    return score_pairs(model, images, image_row, score, width=2, batch=batch, progress=progress, what=what)


@torch.no_grad()
def score_pairs(
    model: CoarseModel,
    images: Images,
    image_row: Tensor,
    score: Callable[[ImageState, Tensor], Tensor],
    *,
    width: int,
    batch: int,
    progress: Progress,
    what: str,
) -> Tensor:
    """Scores (K,width) fp32 of pairs of which pair k has the image `image_row[k]`, on every rank.

    The pairs are the same on all ranks; the owner of an image scores its pairs, `batch` at a time, image by image:
    `score` takes the prefixes of a batch and its pair numbers (b,), on the CPU, and gives (b,width).
    """
    device = device_of(model)
    place = images.place.cpu()[image_row.cpu()]  # numbers of rows stay with the host, which would wait for them
    mine = torch.nonzero(place >= 0).squeeze(1)
    mine = mine[torch.sort(place[mine], stable=True).indices]
    scores = torch.empty(len(mine), width, device=device)
    for start in progress(range(0, len(mine), batch), what):
        pairs = mine[start : start + batch]
        scores[start : start + batch] = score(take(images.prefixes, place[pairs], model), pairs)
    return gather(mine.to(device), scores)[1][0]


def gather(position: Tensor, *columns: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Rows of every rank (any number each) put in the order of their positions, on every rank.

    position (n,) int64 and columns (n,...) -> sorted positions (all,), columns (all,...). Raises ValueError on a
    position that comes twice.
    """
    longest = int(distributed.all_reduce_max(torch.tensor([len(position)], device=position.device)))

    def padded(x: Tensor, value: int) -> Tensor:
        return torch.cat([x, x.new_full((longest - len(x), *x.shape[1:]), value)])

    everywhere = distributed.all_gather(padded(position, -1))
    order = torch.sort(everywhere).indices[int((everywhere < 0).sum()) :]
    position_sorted = everywhere[order]
    if bool((position_sorted[1:] == position_sorted[:-1]).any()):
        twice = position_sorted[1:][position_sorted[1:] == position_sorted[:-1]][0]
        raise ValueError(f"position {int(twice)} of the evaluation set came twice: the ranks' shares overlap")
    return position_sorted, [distributed.all_gather(padded(x, 0))[order.to(x.device)] for x in columns]


def image_rows(image_id: Tensor, wanted: Tensor) -> Tensor:
    """Rows (M,) of the ids `wanted` (M,) in `image_id` (N,). Raises ValueError naming an id that is not there,
    RepeatedError one that is there twice."""
    ids, order = torch.sort(image_id)
    if bool((ids[1:] == ids[:-1]).any()):
        twice = int(ids[1:][ids[1:] == ids[:-1]][0])
        raise RepeatedError(f"image id {twice} is in the gallery twice", twice)
    place = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
    if bool((ids[place] != wanted).any()):
        raise ValueError(f"a text belongs to image id {int(wanted[ids[place] != wanted][0])}, not in the gallery")
    return order[place]


def take(state: S, rows: Tensor, model: CoarseModel) -> S:
    """Rows (on the CPU) of a cached state on the model's device and in its dtype; a row asked for often travels
    once."""
    weight = model.heads.itm.weight
    unique, inverse = rows.unique(return_inverse=True)
    kept = state[unique.to(state.tokens.device)].to(weight.device, weight.dtype)
    return kept[inverse.to(weight.device)]


def device_of(model: CoarseModel) -> torch.device:
    """Where the model's weights are."""
    return model.heads.itm.weight.device


def check_share(batches: int, what: str, device: torch.device) -> None:
    """All ranks raise ValueError together where one of them has nothing to encode."""
    smallest = -int(distributed.all_reduce_max(torch.tensor([-batches], device=device)))
    if smallest == 0:
        raise ValueError(f"a rank has no {what} to evaluate: fewer {what} than ranks, or an empty set")
