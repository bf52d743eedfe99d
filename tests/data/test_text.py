"""Tokenising and masking, against the tokenisers' own calls and the statistics of BERT's rule."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, RobertaTokenizerFast

from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.text import IGNORE, encode, load_tokenizer, mask_tokens

TEXTS = ["a red cube left of a blue ball", "two green stars above a très small circle"] * 20
SPECIAL = np.array([0, 1, 2, 3, 99])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 320, path)
    return path


def test_a_trained_tokenizer_loads_with_robertas_ids(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.mask_token_id == len(tokenizer) - 1 <= 319
    ids = tokenizer("Any text, même ☃")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Any text, même ☃"
    assert len(tokenizer("red cube")["input_ids"]) < len("red cube")


def test_the_general_class_reads_what_the_other_ways_read(folder: Path, shared: Path, tmp_path: Path) -> None:
    """A folder that names the general class is read past `AutoTokenizer`; RoBERTa's own files by it. All agree."""
    real = shared / "real/roberta_tokenizer"
    roberta = RobertaTokenizerFast(str(real / "vocab.json"), str(real / "merges.txt"), model_max_length=512)
    roberta.save_pretrained(tmp_path / "named")
    shutil.copytree(tmp_path / "named", tmp_path / "general")
    settings = json.loads((tmp_path / "named/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "RobertaTokenizer"
    general = json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
    (tmp_path / "general/tokenizer_config.json").write_text(general)
    asked = [*TEXTS[:2], "", "unseen wörds ☃", "a <mask> ball.<mask>", "  two  spaces\n", "<s>in</s>"]
    marks = ("all_special_ids", "mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id", "model_max_length")
    for ours, theirs in (
        (load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)),
        (load_tokenizer(tmp_path / "named"), roberta),
        (load_tokenizer(tmp_path / "general"), roberta),
    ):
        assert [getattr(ours, name) for name in marks] == [getattr(theirs, name) for name in marks]
        assert ours.get_vocab() == theirs.get_vocab()
        for text in asked:
            ids = theirs(text)["input_ids"]
            assert ours(text)["input_ids"] == ids
            assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("settings", ["{", "[]", '{"tokenizer_class": "TokenizersBackend"}', "\xff"])
def test_damaged_settings_end_in_one_line(settings: str, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings, encoding="latin-1")
    with pytest.raises(ValueError, match=f"tokenizer at {tmp_path}") as raised:  # none, or one without <mask>
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("length", [4, 8, 40])
def test_encode_equals_the_wrapper(folder: Path, length: int) -> None:
    tokenizer = load_tokenizer(folder)
    for text in [*TEXTS[:2], "", "unseen wörds"]:
        theirs = tokenizer(text, truncation=True, max_length=length, padding="max_length")
        ids, mask = encode(tokenizer, text, length)
        assert ids.tolist() == theirs["input_ids"]
        assert mask.tolist() == theirs["attention_mask"]
        assert ids.dtype == mask.dtype == np.int64


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no tokenizer at {tmp_path}"):
        load_tokenizer(tmp_path)


def test_masking_follows_bert() -> None:
    """15 % chosen; of these 80/10/10; special ids neither chosen nor drawn. Bounds are five standard deviations."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([[0], np.tile(np.arange(4, 99), 40), [2, 1, 1]])
    chosen = masked = kept = drawn = 0
    for _ in range(20):
        new, labels = mask_tokens(ids, SPECIAL, 100, 99, rng)
        where = labels != IGNORE
        assert (new[~where] == ids[~where]).all()
        assert (labels[where] == ids[where]).all()
        assert not where[np.isin(ids, SPECIAL)].any()
        assert not np.isin(new[where & (new != 99)], SPECIAL).any()
        chosen += where.sum()
        masked += (new[where] == 99).sum()
        kept += (new[where] == ids[where]).sum()
        drawn += ((new != 99) & (new != ids)).sum()
    total = 95 * 40 * 20
    assert chosen / total == pytest.approx(0.15, abs=5 * (0.15 * 0.85 / total) ** 0.5)
    assert masked / chosen == pytest.approx(0.8, abs=5 * (0.16 / chosen) ** 0.5)
    assert drawn / chosen == pytest.approx(0.1 * 94 / 95, abs=5 * (0.09 / chosen) ** 0.5)
    assert masked + kept + drawn == chosen


def test_drawn_ids_cover_all_ordinary_ones_evenly() -> None:
    rng = np.random.default_rng(1)
    ids = np.full(4000, 50)
    drawn = np.concatenate([mask_tokens(ids, np.array([0, 7, 9]), 10, 9, rng, 1.0)[0] for _ in range(20)])
    counts = np.bincount(drawn[drawn < 9], minlength=10)
    assert set(np.flatnonzero(counts)) == {1, 2, 3, 4, 5, 6, 8}
    assert counts[counts > 0] == pytest.approx(8000 / 7, abs=5 * (8000 / 7) ** 0.5)


def test_at_least_one_token_is_masked_where_possible() -> None:
    rng = np.random.default_rng(0)
    short = np.array([0, 50, 51, 2, 1])
    places = []
    for _ in range(400):
        _, labels = mask_tokens(short, SPECIAL, 100, 99, rng, 0.0)
        assert (labels != IGNORE).sum() == 1
        places.append(int(np.flatnonzero(labels != IGNORE)[0]))
    assert places.count(1) == pytest.approx(200, abs=50)
    new, labels = mask_tokens(np.array([0, 2, 1]), SPECIAL, 100, 99, rng)
    assert new.tolist() == [0, 2, 1]
    assert (labels == IGNORE).all()
