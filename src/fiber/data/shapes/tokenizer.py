"""A small tokenizer for a world whose language is tiny; real runs use `roberta-base`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0..3, as RoBERTa has them; <mask> is the last id


def train_bpe(texts: Iterable[str], vocab_size: int, out_dir: str | Path) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE of RoBERTa's form on `texts` and stores it in `out_dir`, where load_tokenizer finds it.

    vocab_size: at least 261, for 256 bytes and five special tokens; the result has at most so many ids. Raises
    ValueError for fewer.
    """
    if vocab_size < 261:
        raise ValueError(f"vocab_size {vocab_size}: a byte-level vocabulary needs at least 261 ids")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # <mask> comes on top
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", SPECIAL.index("</s>")), ("<s>", SPECIAL.index("<s>")), add_prefix_space=False, trim_offsets=True
    )
    mask: Any = AddedToken("<mask>", lstrip=True, special=True)
    marks = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **marks, unk_token="<unk>", mask_token=mask, model_max_length=512
    )
    wrapped.save_pretrained(str(out_dir))
    return wrapped
