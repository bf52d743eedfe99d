"""Tokenisers, fixed-length encoding and masking for masked-language modelling."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

IGNORE = -100
"""Label of positions that a cross-entropy leaves out."""

LONGEST_TOKEN = 256
"""Characters: more than any token of a vocabulary has."""

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers fork after the tokeniser was used


def load_tokenizer(path_or_hub: str | Path) -> PreTrainedTokenizerFast:
    """A fast tokeniser from a folder or a hub name. Raises ValueError naming it where there is none."""
    try:
        tokenizer = _reader(path_or_hub).from_pretrained(str(path_or_hub), use_fast=True, trust_remote_code=False)
    except Exception as error:  # a damaged file makes the library raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise ValueError(f"no tokenizer at {path_or_hub!s} (a folder or a hub name is expected): {reason}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.mask_token_id is None:
        raise ValueError(f"the tokenizer at {path_or_hub!s} is not a fast one with a <mask> token")
    return tokenizer


def _reader(path_or_hub: str | Path) -> Any:
    """The class that reads it. `AutoTokenizer` finds it for any, but looks through the files of every model of the
    library first, 0.8 s of a processor: not where a folder names the general class."""
    settings = Path(path_or_hub) / "tokenizer_config.json"
    general = r'"tokenizer_class":\s*"(PreTrainedTokenizerFast|TokenizersBackend)"'
    if settings.is_file() and re.search(general, settings.read_text(errors="replace")):
        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def encode(tokenizer: PreTrainedTokenizerFast, text: str, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask (1 = token), both int64 (max_length,): <s> ... </s>, cut or padded to max_length."""
    backend = tokenizer.backend_tokenizer  # a tenth of the time that calling the wrapper takes
    backend.no_truncation()
    backend.no_padding()
    # A text of megabytes would take seconds and gigabytes.
    ids = backend.encode(text[: LONGEST_TOKEN * max_length]).ids
    if len(ids) > max_length:
        ids = [*ids[: max_length - 1], ids[-1]]  # keeps </s>, as the wrapper's truncation does
    padded = np.full(max_length, tokenizer.pad_token_id, dtype=np.int64)
    padded[: len(ids)] = ids
    mask = np.zeros(max_length, dtype=np.int64)
    mask[: len(ids)] = 1
    return padded, mask


def mask_tokens(
    ids: np.ndarray,
    special: np.ndarray,
    vocab: int,
    mask_id: int,
    rng: np.random.Generator,
    probability: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking of one text: (masked_ids, labels), int64 (L,); labels are IGNORE where nothing is predicted.

    Every token that is not special is chosen with `probability`, one at random where chance chose none. Of those,
    80 % become mask_id, 10 % a random ordinary token, 10 % stay. A text of special tokens alone stays as it is.

    special: int64 (K,) distinct ids that are neither chosen nor drawn. vocab: number of ids.
    """
    # Python lists, not arrays: for a caption's few tokens a dozen array operations take several times as long.
    barred, tokens = set(special.tolist()), ids.tolist()
    place, action, draw = rng.random((3, len(tokens))).tolist()
    ordinary = [i for i, token in enumerate(tokens) if token not in barred]
    chosen = [i for i in ordinary if place[i] < probability]
    if ordinary and not chosen:
        chosen = [min(ordinary, key=place.__getitem__)]
    masked, labels = ids.copy(), np.full_like(ids, IGNORE)
    for i in chosen:
        labels[i] = tokens[i]
        if action[i] < 0.8:
            masked[i] = mask_id
        elif action[i] < 0.9:
            masked[i] = _ordinary_id(draw[i], vocab, barred)
    return masked, labels


def _ordinary_id(draw: float, vocab: int, barred: set[int]) -> int:
    """The id that a number in [0, 1) stands for among those that are not barred."""
    token = int(draw * (vocab - len(barred)))
    for special in sorted(barred):
        token += token >= special
    return token
