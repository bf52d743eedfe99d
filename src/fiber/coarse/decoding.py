"""Captions from an image: greedy, beam and nucleus decoding, and sampling for training, over the key/value cache of
the causal text pass.

Every step feeds one new token per row; keys and values of the text so far and of the image are kept. A caption's
score is its mean log-probability per generated token, the end token included (length-normalised, FIBER §4).

Shape letters: B images, K beams, R rows (B, or B*K), N image tokens, C image width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fiber import distributed
from fiber.backbone.fusion import DecoderCache
from fiber.coarse.itc import sample_columns
from fiber.coarse.model import CoarseModel
from fiber.processor import largest


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that steer decoding: `start` begins a caption, `end` ends it, `forbidden` are never generated."""

    start: int
    end: int
    forbidden: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """Those of a RoBERTa-like tokenizer; start, padding and mask tokens are forbidden inside a caption."""
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls(start, end, (start, tokenizer.pad_token_id, tokenizer.mask_token_id))


@dataclass(frozen=True)
class Caption:
    """Generated ids without special tokens, their mean log-probability, and whether the end token was generated (a
    caption that met the length limit has none)."""

    ids: list[int]
    score: float
    ended: bool


@torch.no_grad()
def greedy(model: CoarseModel, image: Tensor, special_tokens: SpecialTokens, max_length: int) -> list[Caption]:
    """The likeliest token at every step. image (B,N,C) from `backbone.image_tail`; `max_length` tokens at most, both
    special tokens included -> one caption per image."""
    return [beams[0] for beams in beam_search(model, image, special_tokens, max_length, beams=1)]


@torch.no_grad()
def nucleus(
    model: CoarseModel,
    image: Tensor,
    special_tokens: SpecialTokens,
    max_length: int,
    *,
    top_p: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[Caption]:
    """Tokens drawn from the smallest set that holds `top_p` (0..1] of the probability (Holtzman et al. 2020) after
    division of the logits by `temperature`; scores are those of the untempered model. image (B,N,C), `max_length` as
    for `greedy`, `generator` on the image's device -> one caption per image. Raises ValueError."""
    if not 0 < top_p <= 1 or temperature <= 0:
        raise ValueError(f"top_p {top_p} must lie in (0, 1] and temperature {temperature} above 0")

    cache = model.backbone.start_decoding(image, max_length)
    newest = torch.full((len(image),), special_tokens.start, device=image.device)
    live = torch.ones_like(newest, dtype=torch.bool)
    chosen, gained, alive = [], [], []
    for step in range(1, max_length):
        log_probability = _next(model, newest, cache, special_tokens)
        ordered, tokens = (log_probability / temperature).softmax(-1).sort(dim=-1, descending=True)
        # A token stays if those before it do not yet hold top_p: the likeliest always does.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
        newest = tokens.gather(1, torch.multinomial(ordered, 1, generator=generator))[:, 0]
        chosen.append(newest)
        gained.append(log_probability.gather(1, newest[:, None])[:, 0])
        alive.append(live)
        live = live & (newest != special_tokens.end)
        if _look(step, image.device) and not live.any():
            break
    lengths = torch.stack(alive, 1).sum(1)
    scores = (torch.stack(gained, 1) * torch.stack(alive, 1)).sum(1) / lengths
    rows = (x.tolist() for x in (torch.stack(chosen, 1), lengths, scores, live))  # live: cut off by the limit
    return [Caption(x[: n if cut else n - 1], score, not cut) for x, n, score, cut in zip(*rows, strict=True)]


@torch.no_grad()
def beam_search(
    model: CoarseModel, image: Tensor, special_tokens: SpecialTokens, max_length: int, beams: int = 5
) -> list[list[Caption]]:
    """The best captions of each image, best first, at most `beams` and all distinct. image (B,N,C) from
    `backbone.image_tail`; `max_length` tokens at most, both special tokens included.

    Each step ranks all continuations of the live beams by total log-probability; those of the first K that end are
    finished, the first K that go on live. The search of an image is over when K have finished or the length is
    reached, where live beams count as captions without end."""
    size, device, last = len(image), image.device, max_length - 1
    cache = model.backbone.start_decoding(image, max_length)
    # Only the first of an image's equal beams lives at the start.
    total = torch.full((size, beams), -torch.inf, device=device)
    total[:, 0] = 0.0
    ids = torch.full((size * beams, 1), special_tokens.start, device=device)
    finished = _Finished(size, beams, last, device)
    for step in range(1, max_length):
        log_probability = _next(model, ids[:, -1], cache, special_tokens)
        vocabulary = log_probability.shape[1]
        ranked = (total.view(-1, 1) + log_probability).view(size, -1)
        score, index = largest(ranked, min(2 * beams, ranked.shape[1]))
        beam, token = index // vocabulary, index % vocabulary
        ends = token == special_tokens.end
        rows = beam + torch.arange(size, device=device)[:, None] * beams
        finished.add(ids, score, rows, ends)
        if _look(step, device) and bool((finished.count >= beams).all()):
            break
        # The first K continuations that go on, in order; each beam ends in one way, so 2K hold at least K of them.
        going = ends.to(torch.int64).argsort(dim=-1, stable=True)[:, :beams]
        total = score.masked_fill(ends, -torch.inf).gather(1, going)
        rows = rows.gather(1, going).flatten()
        ids = torch.cat([ids[rows], token.gather(1, going).view(-1, 1)], dim=1)
        cache.reorder(rows)
    captions = finished.read(ids.view(size, beams, -1)[..., 1:], total)
    return [sorted(of_image, key=lambda caption: -caption.score)[:beams] for of_image in captions]


@torch.no_grad()
def sample(
    model: CoarseModel, images: DecoderCache, special_tokens: SpecialTokens, draws: Tensor, pad_id: int
) -> Tensor:
    """Captions drawn token by token from the model's own distribution, forbidden tokens left out.

    images: of `start_captions`, which stay as they are. draws (R,T) in [0,1), R/B of each image in turn: token
    t is where the cumulative probability passes draws[:, t], so a caption depends on its own row alone. -> ids
    (R,1+t), t at most T: the start token, the tokens, the end token unless T cut it off, padding. All ranks must
    call: they stop together, because under ZeRO-3 every step is collective."""
    cache = images.fresh(1 + draws.shape[1])
    ids = [torch.full((len(draws),), special_tokens.start, device=draws.device)]
    live = torch.ones_like(ids[0], dtype=torch.bool)
    alive = []  # whether any row of any rank went on after a step
    for step, uniform in enumerate(draws.T, 1):
        probability = _next(model, ids[-1], cache, special_tokens).exp()
        token = sample_columns(probability, uniform)[0]  # inversion of the cumulative weights, whatever they weigh
        ids.append(token.where(live, pad_id))
        live = live & (token != special_tokens.end)
        alive.append(distributed.all_reduce_max(live.any().float()[None]))
        if _look(step, draws.device) and not alive[-1].item():
            break
    return torch.stack(ids, 1)[:, : 2 + int(torch.cat(alive).sum())]  # what follows the last end is only padding


def next_logits(model: CoarseModel, newest: Tensor, cache: DecoderCache) -> Tensor:
    """Logits (R,V) fp32 of the token that follows the newest ids (R,); `cache` grows by one position."""
    return model.heads.mlm(model.caption_tokens(newest[:, None], None, cache)[:, -1]).float()


def _next(model: CoarseModel, newest: Tensor, cache: DecoderCache, special_tokens: SpecialTokens) -> Tensor:
    """Log-probabilities (R,V) of the allowed tokens; -inf at the forbidden ones."""
    logits = next_logits(model, newest, cache)
    for token in special_tokens.forbidden:  # one by one: a list of them would be sent to the card at every step
        logits[:, token] = -torch.inf
    return logits.log_softmax(-1)


class _Finished:
    """The captions of a beam search that have ended, on the device: of B images the first K, in the order in which
    they ended and, of one step, of their score. `count` (B,); entry K of every table is of no use."""

    def __init__(self, images: int, beams: int, last: int, device: torch.device) -> None:
        self.count, self.beams = torch.zeros(images, dtype=torch.int64, device=device), beams
        self.ids = torch.zeros(images, beams + 1, last, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(images, beams + 1, dtype=torch.int64, device=device)
        self.scores = torch.zeros(images, beams + 1, device=device)

    def add(self, ids: Tensor, score: Tensor, rows: Tensor, ends: Tensor) -> None:
        """The continuations among the first K of each image that end now: score, rows, ends (B,2K), rows in
        ids (R,1+n)."""
        ending = (ends & score.isfinite())[:, : self.beams]
        place = (self.count[:, None] + ending.cumsum(1) - 1).masked_fill(~ending, self.beams).clamp(max=self.beams)
        said = ids[rows[:, : self.beams], 1:]
        self.ids[..., : said.shape[-1]].scatter_(1, place[..., None].expand_as(said), said)
        self.lengths.scatter_(1, place, ids.shape[1])
        self.scores.scatter_(1, place, score[:, : self.beams])
        self.count = (self.count + ending.sum(1)).clamp(max=self.beams)

    def read(self, ids: Tensor, total: Tensor) -> list[list[Caption]]:
        """All of them, and of images that have fewer than K the live beams: ids (B,K,n), total (B,K)."""
        captions: list[list[Caption]] = []
        ended = zip(self.ids.tolist(), self.lengths.tolist(), self.scores.tolist(), self.count.tolist(), strict=True)
        for (said, lengths, scores, count), live, totals in zip(ended, ids.tolist(), total.tolist(), strict=True):
            parts = zip(said[:count], lengths, scores, strict=False)
            captions.append([Caption(x[: n - 1], score / n, True) for x, n, score in parts])
            if count < self.beams and ids.shape[-1]:
                unended = [(x, score) for x, score in zip(live, totals, strict=True) if score > -torch.inf]
                captions[-1] += [Caption(x, score / len(x), False) for x, score in unended]
        return captions


def _look(step: int, device: torch.device) -> bool:
    """Whether to ask if all captions have ended: on a card every eighth token, because asking waits for it."""
    return device.type == "cpu" or step % 8 == 0
