"""A byte-level BPE trained on the spot."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import RobertaTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> RobertaTokenizerFast:
    """RoBERTa-like: byte-level BPE, <s> 0, <pad> 1, </s> 2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["a red cat. two dogs, traffic light, blue circle on a green square. "] * 20, trainer)
    return RobertaTokenizerFast(tokenizer_object=bpe)
