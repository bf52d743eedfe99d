import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from transformers import RobertaTokenizerFast

from fiber.data.prompts import Prompt, PromptBuilder, number_of_negatives
from fiber.data.records import clean_name

ADJECTIVES = ("red", "blue", "green", "sky-blue", "dog's")
NOUNS = ("cat", "dogs", "light", "circle", "square", "鳥", "trafic sign", "a", "two", "on", "café", "x.y", "9", "b")
LVIS_LIKE = [f"{a}_{n}_({i})" for i in range(19) for a in ADJECTIVES for n in NOUNS]
CLASSES = [f"{name} {i}" for i, name in enumerate(LVIS_LIKE[:1300])]


@pytest.fixture
def builder(tokenizer: RobertaTokenizerFast) -> PromptBuilder:
    return PromptBuilder(tokenizer, limit=64)


def words(builder: PromptBuilder, prompt: Prompt, row: int) -> str:
    """The text of the tokens that a phrase owns."""
    return builder.tokenizer.decode(prompt.ids[prompt.token_map[row]]).strip()


def test_every_class_owns_its_words(builder: PromptBuilder) -> None:
    names = ["cat", "traffic_light", "mouse_(computer_equipment)", "鳥", "dog's bowl", "(thing)"]
    prompt = builder.classes(names)
    assert prompt.text == "cat. traffic light. mouse. 鳥. dog's bowl. thing"
    assert [words(builder, prompt, row) for row in range(6)] == [clean_name(name) for name in names]
    assert prompt.token_map.sum(0).max() == 1  # no token belongs to two classes
    assert prompt.mask.sum() == (prompt.ids != 1).sum() == prompt.mask.argmin()
    assert prompt.ids[0] == 0
    assert prompt.ids[prompt.mask.sum() - 1] == 2


def test_order_moves_classes_and_nothing_else(builder: PromptBuilder) -> None:
    names = ["cat", "two dogs", "circle", "light"]
    prompt = builder.classes(names, [2, 0, 3])
    assert prompt.classes == [2, 0, 3]
    assert [words(builder, prompt, row) for row in range(3)] == ["circle", "cat", "light"]


def test_one_class(builder: PromptBuilder) -> None:
    (prompt,) = builder.chunks(["cat"])
    assert prompt.text == "cat"
    assert words(builder, prompt, 0) == "cat"


def test_a_prompt_is_a_key_and_equal_only_to_itself(builder: PromptBuilder) -> None:
    """Detection encodes each distinct prompt once and finds its row by the prompt."""
    first, second = builder.classes(["cat"]), builder.classes(["cat"])
    assert list(dict.fromkeys([first, second, first])) == [first, second]
    assert first != second


def test_1300_classes_are_covered_exactly_once(builder: PromptBuilder) -> None:
    assert len(CLASSES) == 1300
    prompts = builder.chunks(CLASSES)
    assert [c for p in prompts for c in p.classes] == list(range(1300))
    for prompt in prompts:
        assert prompt.mask.sum() <= 64
        for row, index in enumerate(prompt.classes):
            assert words(builder, prompt, row) == clean_name(CLASSES[index])
    # Greedy: no prompt could have taken the next one's first class.
    for prompt, after in pairwise(prompts):
        longer = prompt.text + ". " + clean_name(CLASSES[after.classes[0]]) + "."
        assert len(builder.tokenizer(longer)["input_ids"]) > 64


def test_chunks_hold_at_most_so_many_classes(builder: PromptBuilder) -> None:
    sizes = [len(p.classes) for p in builder.chunks(["cat", "dogs", "light", "circle", "square"], max_classes=2)]
    assert sizes == [2, 2, 1]


def test_names_that_cannot_be_prompted_are_errors(builder: PromptBuilder) -> None:
    with pytest.raises(ValueError, match="62 fit the text limit"):
        builder.chunks(["cat", "z" * 200])
    with pytest.raises(ValueError, match="is blank"):
        builder.chunks(["cat", " _ "])
    with pytest.raises(ValueError, match="the text limit is 64; split it"):
        builder.classes(CLASSES[:40])

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="fast tokenizer"):
        PromptBuilder(Slow())


def test_spans_take_whole_words_and_bytes(builder: PromptBuilder) -> None:
    text = "a red cat, two 鳥 🐶 on a café"
    phrases = [[(2, 9)], [(15, 16)], [(17, 18)], [(1, 6)], [(24, len(text))], [(2, 5), (15, 16)]]
    prompt = builder.sentence(text, phrases)
    assert [words(builder, prompt, row) for row in range(5)] == ["red cat", "鳥", "🐶", "red", "café"]
    both = (prompt.token_map[3] | prompt.token_map[1]).tolist()
    assert prompt.token_map[5].tolist() == both  # (1, 6) begins and ends with a blank


def test_spans_and_truncation(tokenizer: RobertaTokenizerFast) -> None:
    builder = PromptBuilder(tokenizer, limit=8)
    text = "red cat on a green square. two dogs"
    prompt = builder.sentence(text, [[(0, 7)], [(13, 25)], [(27, 35)], [(3, 4)], [(500, 510)]])
    assert prompt.mask.sum() == 8
    assert prompt.ids[7] == 2
    assert words(builder, prompt, 0) == "red cat"
    assert text[13:25].startswith(words(builder, prompt, 1))
    assert words(builder, prompt, 1)
    assert prompt.token_map[2:].sum() == 0  # beyond the limit, a blank alone, beyond the text


def test_detection_prompt_holds_positives_and_sampled_negatives(builder: PromptBuilder) -> None:
    names = [f"thing {i}" for i in range(100)]
    seen = Counter()
    for seed in range(30):
        prompt, dropped = builder.detection(names, [3, 7, 7], np.random.default_rng(seed))
        assert dropped == []
        assert {3, 7} <= set(prompt.classes)
        assert len(set(prompt.classes)) == len(prompt.classes)
        assert prompt.mask.sum() <= 64
        assert all(words(builder, prompt, row) == names[c] for row, c in enumerate(prompt.classes))
        seen.update(prompt.classes)
        again, _ = builder.detection(names, [7, 3], np.random.default_rng(seed))
        assert again.text == prompt.text  # a function of the classes and the generator alone
    assert len(seen) > 50
    first = [builder.detection(names, [3, 7], np.random.default_rng(s))[0].classes[0] for s in range(30)]
    assert len(set(first)) > 10  # positives do not stand first


def test_positives_that_do_not_fit_are_reported(builder: PromptBuilder) -> None:
    names = [f"long traffic circle name {i}" for i in range(30)]
    prompt, dropped = builder.detection(names, range(30), np.random.default_rng(0))
    assert sorted(prompt.classes + dropped) == list(range(30))
    assert dropped
    assert prompt.mask.sum() <= 64


def test_negatives_come_from_the_given_classes(builder: PromptBuilder) -> None:
    names = [f"c{i}" for i in range(50)]
    for seed in range(20):
        prompt, _ = builder.detection(names, [1], np.random.default_rng(seed), negatives=[1, 4, 9])
        assert set(prompt.classes) <= {1, 4, 9}
    without, _ = builder.detection(names, [1, 2], np.random.default_rng(0), max_negatives=0)
    assert sorted(without.classes) == [1, 2]
    empty, _ = builder.detection(names, [], np.random.default_rng(0), max_negatives=0)
    assert len(empty.classes) == 1  # an image without objects still needs words
    with pytest.raises(ValueError, match="neither a positive nor a negative"):
        builder.detection(names, [], np.random.default_rng(0), negatives=[])


def test_number_of_negatives_has_the_published_shares() -> None:
    rng = np.random.default_rng(0)
    draws = Counter(number_of_negatives(rng, 85) for _ in range(40_000))
    assert draws[0] / 40_000 == pytest.approx(0.05, abs=0.005)
    assert draws[85] / 40_000 == pytest.approx(0.50 + 0.40 / 85, abs=0.01)
    assert draws[1] / 40_000 == pytest.approx(0.05 + 0.40 / 85, abs=0.005)
    assert draws[40] / 40_000 == pytest.approx(0.40 / 85, abs=0.002)
    assert set(draws) == set(range(86))


def test_a_text_of_megabytes_costs_what_a_long_one_does(builder: PromptBuilder) -> None:
    """Of the caption as much is read as the limit can hold; a class of such a name is refused as quickly."""
    caption = "a red circle left of two dogs. " * 170_000
    spans = [[(2, 12)], [(5_000_000, 5_000_010)]]
    start = time.process_time()
    prompt = builder.sentence(caption, spans)
    with pytest.raises(ValueError, match=r"alone has .* tokens, 62 fit") as error:
        builder.chunks(["cat", caption])
    with pytest.raises(ValueError, match=r"a prompt of 1 classes has .* tokens, the text limit is 64"):
        builder.classes([caption])
    assert time.process_time() - start < 3  # 13 s of the caption alone before
    assert len(str(error.value)) < 400
    short = builder.sentence(caption[:20_000], spans)
    assert prompt.ids.equal(short.ids)
    assert prompt.token_map.equal(short.token_map)
    assert words(builder, prompt, 0) == "red circle"
