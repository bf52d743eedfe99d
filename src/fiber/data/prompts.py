"""The one prompt builder: class names and phrases -> caption, token map and back, for training, evaluation and
inference alike.

A prompt is a caption whose phrases (class names, or phrases of a sentence) each own a set of tokens. Two rules hold
everywhere: a class name is never split by the text limit, and a class that owns no token is an error, because its
score would silently be 0.

Shape letters: K phrases of a prompt, L text limit in tokens, special tokens included.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fiber.data.records import clean_name
from fiber.data.text import LONGEST_TOKEN

SEPARATOR = ". "
SPECIALS = 2  # <s> and </s>
MAX_NEGATIVES = 85

Span = tuple[int, int]  # [start, end) characters


@dataclass(frozen=True, eq=False)
class Prompt:
    """A caption ready for the model: ids and mask (L,) int64 (mask 1 = token), token_map (K,L) bool with the tokens
    of each phrase, spans per phrase, and `classes`, the class index of each phrase (its number in a sentence). Equal
    only to itself, so that prompts can be keys."""

    text: str
    ids: Tensor
    mask: Tensor
    token_map: Tensor
    spans: list[list[Span]]
    classes: list[int]


class PromptBuilder:
    """Builds prompts with one tokenizer (a fast one: character offsets are needed) and one text limit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int = 256) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} has no character offsets; load the fast tokenizer")
        self.tokenizer, self.limit = tokenizer, limit
        self.budget = limit - SPECIALS
        self._known_costs: dict[str, tuple[int, int]] = {}

    def sentence(self, text: str, spans: Sequence[Sequence[Span]]) -> Prompt:
        """A sentence with phrases, each a list of spans. Phrases beyond the text limit own no token: their row of the
        token map is empty, and the caller drops and counts their boxes."""
        tokens, offsets = self._encode(text)
        rows = [token_row(offsets, phrase, self.limit) for phrase in spans]
        return self._prompt(text, tokens, rows, [list(s) for s in spans], list(range(len(spans))))

    def classes(self, names: Sequence[str], order: Sequence[int] | None = None) -> Prompt:
        """Class names (`in_context`) joined by ". ", in the order of the class indices `order` (all in order if
        None). Raises ValueError if they do not fit the limit or a class owns no token."""
        order = list(range(len(names)) if order is None else order)
        text, spans = "", []
        for index in order:
            before, name, after = in_context(names[index])
            start = len(text) + (len(SEPARATOR) if text else 0) + len(before)
            text += (SEPARATOR if text else "") + before + name + after
            spans.append([(start, start + len(name))])
        tokens, offsets = self._encode(text, truncation=False)
        if len(tokens) > self.limit:
            raise ValueError(
                f"a prompt of {len(order)} classes has {len(tokens)} tokens, the text limit is {self.limit}; "
                "split it (PromptBuilder.chunks) or sample negatives (PromptBuilder.detection)"
            )
        rows = [token_row(offsets, span, self.limit) for span in spans]
        empty = [names[index] for index, row in zip(order, rows, strict=True) if not row.any()]
        if empty:
            raise ValueError(f"class names {empty} own no token in the prompt; rename them")
        return self._prompt(text, tokens, rows, spans, order)

    def chunks(self, names: Sequence[str], max_classes: int | None = None) -> list[Prompt]:
        """Prompts that together hold every class exactly once, in order, each within the text limit and of at
        most `max_classes` classes. Raises ValueError if one name alone is too long."""
        groups: list[list[int]] = []
        room = 0
        for index, name in enumerate(names):
            first, later = self._costs(name)
            if first > self.budget:
                raise ValueError(f"class {name!r:.99} alone has {first} tokens, {self.budget} fit the text limit")
            if not groups or later > room or len(groups[-1]) == max_classes:
                groups.append([])
                room = self.budget - first + later
            groups[-1].append(index)
            room -= later
        return [self.classes(names, group) for group in groups]

    def detection(
        self,
        names: Sequence[str],
        positives: Iterable[int],
        rng: np.random.Generator,
        negatives: Sequence[int] | None = None,
        max_negatives: int = MAX_NEGATIVES,
        most: bool = False,
    ) -> tuple[Prompt, list[int]]:
        """Training prompt of a detection sample and the positive classes that did not fit (their boxes are dropped
        and counted by the caller).

        positives: class indices present in the image, which are shuffled and added while they fit; then negatives,
        drawn from `negatives` (default: all other classes), only those that fit: one (5 %), none (5 %),
        `max_negatives` (50 %), else uniformly 1..max_negatives; always `max_negatives` if `most`. All are shuffled.
        ValueError if no class fits.
        """
        present = set(positives)
        pool = sorted((set(range(len(names))) if negatives is None else set(negatives)) - present)
        costs = {index: self._costs(names[index]) for index in (*present, *pool)}
        # Whichever class comes first after shuffling may cost more there than later.
        room = self.budget - max((max(first - later, 0) for first, later in costs.values()), default=0)

        chosen: list[int] = []
        dropped: list[int] = []
        for index in rng.permutation(sorted(present)).astype(int).tolist():
            fits = costs[index][1] <= room
            (chosen if fits else dropped).append(index)
            room -= costs[index][1] if fits else 0
        wanted = max_negatives if most else number_of_negatives(rng, max_negatives)
        if not chosen:
            wanted = max(wanted, 1)  # a caption needs words
        for index in rng.permutation(pool).astype(int).tolist():
            if wanted and costs[index][1] <= room:
                chosen.append(index)
                room -= costs[index][1]
                wanted -= 1
        if not chosen:
            raise ValueError("a detection prompt has neither a positive nor a negative class that fits its text")
        return self.classes(names, rng.permutation(chosen).tolist()), dropped

    def _costs(self, name: str) -> tuple[int, int]:
        """Tokens that a class takes with its full stop, as the first of a caption and after another class (byte-level
        BPE writes a word after a blank differently)."""
        if name not in self._known_costs:
            end = ("".join(in_context(name)) + SEPARATOR.rstrip())[: LONGEST_TOKEN * self.limit]
            first, later = (self.tokenizer(x, add_special_tokens=False)["input_ids"] for x in (end, " " + end))
            self._known_costs[name] = len(first), len(later)
        return self._known_costs[name]

    def _encode(self, text: str, truncation: bool = True) -> tuple[list[int], np.ndarray]:
        """Ids with special tokens, cut to the limit if so wanted, and their character offsets (n,2)."""
        cut = {"truncation": True, "max_length": self.limit} if truncation else {}
        encoding = self.tokenizer(text[: LONGEST_TOKEN * self.limit], return_offsets_mapping=True, **cut)
        return encoding["input_ids"], np.asarray(encoding["offset_mapping"]).reshape(-1, 2)

    def _prompt(
        self, text: str, tokens: list[int], rows: list[Tensor], spans: list[list[Span]], classes: list[int]
    ) -> Prompt:
        ids = torch.full((self.limit,), self.tokenizer.pad_token_id)
        ids[: len(tokens)] = torch.tensor(tokens)
        mask = (torch.arange(self.limit) < len(tokens)).long()
        token_map = torch.stack(rows) if rows else torch.zeros(0, self.limit, dtype=torch.bool)
        return Prompt(text, ids, mask, token_map, spans, classes)


def in_context(name: str) -> tuple[str, str, str]:
    """What stands before the words of a class, the words, what stands behind. A name may say more than its words,
    which are then in [brackets]: "[penguin], which is black and white"; what is around them stays as it is."""
    marked = re.fullmatch(r"([^\[\]]*)\[([^\[\]]+)\]([^\[\]]*)", name)
    return (marked[1], clean_name(marked[2]), marked[3]) if marked else ("", clean_name(name), "")


def number_of_negatives(rng: np.random.Generator, most: int) -> int:
    """How many negative classes a detection prompt asks for: 5 % one, 5 % none, 50 % `most`, else uniform 1..most."""
    draw = rng.random()
    if draw < 0.05:
        return min(1, most)
    if draw < 0.10 or most == 0:
        return 0
    return most if draw < 0.60 else int(rng.integers(1, most + 1))


def token_row(offsets: np.ndarray, spans: Sequence[Span], limit: int) -> Tensor:
    """(L,) bool: the tokens of a phrase, from the first to the last token of each of its spans.

    offsets (n,2): characters [start, end) of each token, empty for special tokens. A token belongs to a span when
    they share a character, so a blank at an edge of the span moves that edge inwards, and all tokens of a character
    of several bytes belong together. A span cut by truncation keeps the tokens that are left; a span beyond it, or
    of blanks alone, has none.
    """
    row = torch.zeros(limit, dtype=torch.bool)
    low, high = offsets[:, 0], offsets[:, 1]
    for start, end in spans:
        inside = np.flatnonzero((low < end) & (high > start) & (low < high))
        if len(inside):
            row[inside[0] : inside[-1] + 1] = True
    return row
