"""CIDEr-D per image against the recorded output of the COCO tools and of the training-reward code; BLEU and ROUGE-L
against that of the COCO tools; tokens against the recorded Stanford tokeniser; the optional tools, where installed,
against their recorded output."""

import json
import math
import pickle
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from fiber.evaluation.metrics import caption_scores as caption
from fiber.evaluation.metrics.caption_scores import DocumentFrequency, cider_d, tokenize
from fiber.evaluation.metrics.overlap import bleu, rouge_l


@pytest.fixture(scope="module")
def real(shared):
    folder = shared / "real/cider_official"
    data = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    tokens, order = data["abstract_ptb_tokenized"], data["expected"]["per_image"]["order"]
    references: dict[str, list[str]] = {}
    for entry in data["abstract_refs_5x200"]:
        references.setdefault(entry["image_id"], []).append(entry["caption"])
    corpus: dict[str, list[str]] = {}
    for entry in data["abstract_df_corpus_tokenized"]:
        corpus.setdefault(entry["image_id"], []).append(entry["caption"])
    return {
        "candidates": [tokens["cands"][image][0] for image in order],
        "references": [tokens["refs"][image] for image in order],
        "tokens": tokens,
        "raw_candidates": data["abstract_cands_200"],
        "raw_references": references,
        "corpus": list(corpus.values()),
        "expected": data["expected"],
    }


def test_cider_d_equals_the_coco_tools_for_every_image(real):
    scores = cider_d(real["candidates"], real["references"])
    assert scores.tolist() == real["expected"]["per_image"]["CIDEr"]
    assert scores.mean() == real["expected"]["corpus_df"]["CIDEr"]


def test_cider_d_with_given_frequencies_equals_the_reward_code_for_every_image(real, tmp_path):
    frequency = DocumentFrequency.of(real["corpus"])
    assert len(frequency.counts) == real["expected"]["custom_df"]["n_df_entries"]
    frequency.save(tmp_path / "df.json")
    for given in (frequency, DocumentFrequency.load(tmp_path / "df.json")):
        scores = cider_d(real["candidates"], real["references"], given)
        assert scores.tolist() == real["expected"]["custom_df"]["per_image"]
        assert scores.mean() == real["expected"]["custom_df"]["CIDErD_mean"]


def test_bleu_and_rouge_equal_the_coco_tools(real):
    expected = real["expected"]["corpus_df"]
    assert bleu(real["candidates"], real["references"]) == [expected[f"Bleu_{n}"] for n in (1, 2, 3, 4)]
    assert rouge_l(real["candidates"], real["references"]) == expected["ROUGE_L"]


def test_scores_of_the_published_example(shared):
    """The six references and two candidates that jmhessel/clipscore prints scores of (four digits)."""
    files = {
        name: json.loads((shared / f"real/coco_caption/clipscore_example_{name}.json").read_text())
        for name in ("refs", "good", "bad")
    }
    printed = {
        "good": {
            "Bleu_1": 0.6667,
            "Bleu_2": 0.4899,
            "Bleu_3": 0.3469,
            "Bleu_4": 0.0,
            "ROUGE_L": 0.4280,
            "CIDEr": 0.5637,
        },
        "bad": {
            "Bleu_1": 0.4815,
            "Bleu_2": 0.2404,
            "Bleu_3": 0.1359,
            "Bleu_4": 0.0,
            "ROUGE_L": 0.3121,
            "CIDEr": 0.2790,
        },
    }
    for name, expected in printed.items():
        rows = [{"image_id": image, "caption": text} for image, text in files[name].items()]
        found = caption.evaluate(rows, files["refs"])
        assert {key: round(value, 4) for key, value in found.items()} == expected


def test_rouge_and_bleu_of_captions_without_a_word_in_common_are_nothing():
    assert rouge_l(["a b", ""], [["c"], ["d e"]]) == 0.0
    assert max(bleu(["a b", ""], [["c"], ["d e"]])) < 1e-3


def test_best_constant_is_the_best_of_all_constants_said_of_other_images(real):
    few = real["references"][:12]
    scores = np.array([cider_d([captions[0]] * len(few), few) for captions in few])
    assert caption.best_constant(few) == pytest.approx((scores.sum(1) - np.diag(scores)).max() / 11, rel=1e-12)
    assert caption.best_constant(few[:1]) == 0.0
    assert caption.best_constant(real["references"]) < 0.5 * real["expected"]["corpus_df"]["CIDEr"]


def test_frequencies_from_the_usual_pickle_and_without_what_tells_nothing(real, tmp_path):
    frequency = DocumentFrequency.of(real["corpus"])
    counts = defaultdict(float, {ngram: float(count) for ngram, count in frequency.counts.items()})
    for protocol in (0, 2, 4):
        (tmp_path / "df.p").write_bytes(
            pickle.dumps({"document_frequency": counts, "ref_len": frequency.images}, protocol)
        )
        known = DocumentFrequency.load(tmp_path / "df.p")
        assert (known.counts, known.images) == (frequency.counts, frequency.images)
    telling = known.prune_singletons()
    assert len(telling.counts) < 0.5 * len(known.counts)
    scores = cider_d(real["candidates"], real["references"], telling)
    assert scores.tolist() == real["expected"]["custom_df"]["per_image"]
    (tmp_path / "df.p").write_bytes(pickle.dumps({"document_frequency": Path, "ref_len": 1}))
    with pytest.raises(ValueError, match=r"df\.p: not a pickle of plain data: it wants to build pathlib"):
        DocumentFrequency.load(tmp_path / "df.p")
    (tmp_path / "df.p").write_bytes(pickle.dumps({"counts": {}}))
    with pytest.raises(ValueError, match=r"df\.p is no document-frequency pickle"):
        DocumentFrequency.load(tmp_path / "df.p")


def test_tokens_equal_the_stanford_tokenisers(real):
    for entry in real["raw_candidates"]:
        assert tokenize(entry["caption"]) == real["tokens"]["cands"][entry["image_id"]][0]
    for image, captions in real["raw_references"].items():
        assert [tokenize(text) for text in captions] == real["tokens"]["refs"][image]


@pytest.mark.parametrize(
    ("text", "tokens"),  # right-hand sides written down from the Stanford tokeniser
    [
        ("I can't, won't; he'd (maybe) \"quote\"!", "i ca n't wo n't he 'd -lrb- maybe -rrb- quote"),
        (
            "Mr. Smith's U.S. flag costs $5.00, i.e. 500 cents...",
            "mr. smith 's u.s. flag costs $ 5.00 i.e. 500 cents",
        ),
        (
            "A man -- with a hat - stands/sits & waits #1 @home 50%",
            "a man with a hat stands/sits & waits # 1 @home 50 %",
        ),
        ("left-hand T-shirt 7-eleven 2x4, the dogs' tails", "left-hand t-shirt 7-eleven 2x4 the dogs tails"),
        ("what?! no way!!! it's 5 o'clock... ok.. fine.", "what ?! no way !!! it 's 5 o'clock ok fine"),
        ("“smart” quotes ‘single’ and – en — em dash… £3 cannot", "smart quotes single and en em dash # 3 can not"),
    ],
)
def test_tokens_of_awkward_captions(text, tokens):
    assert tokenize(text) == tokens


def test_cider_d_by_hand():
    # Two images, so every n-gram of one image weighs log 2. Same words, one repeated in the candidate:
    # unigrams (2, 1) against (1, 1): clipped product 2, norms sqrt 5 and sqrt 2; bigrams "a a", "a b" against "a b".
    scores = cider_d(["a a b", "x"], [["a b"], ["y"]])
    penalty = math.exp(-1 / 72)  # 2 bigrams against 1
    assert scores[0] == pytest.approx(10 / 4 * penalty * (2 / math.sqrt(10) + 1 / math.sqrt(2)), rel=1e-12)
    assert scores[1] == 0.0


def test_words_in_every_image_weigh_nothing_and_one_image_scores_zero():
    assert cider_d(["a cat"], [["a cat"]]).tolist() == [0.0]
    known = DocumentFrequency({("a",): 4}, 4)
    assert cider_d(["a", "cat"], [["a"], ["cat"]], known).tolist() == [0.0, 10.0 / 4]


def test_bad_corpora_are_named(tmp_path):
    with pytest.raises(ValueError, match="1 candidates but references for 2"):
        cider_d(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="number 1 has no reference"):
        cider_d(["a", "b"], [["a"], []])
    (tmp_path / "df.json").write_text("{}")
    with pytest.raises(ValueError, match=r"df\.json is not a document-frequency file"):
        DocumentFrequency.load(tmp_path / "df.json")


def test_evaluate_takes_raw_captions_and_needs_them_all(real):
    expected = real["expected"]["corpus_df"]["CIDEr"]
    result = caption.evaluate(reversed(real["raw_candidates"]), real["raw_references"])
    assert result["CIDEr"] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="no prediction for 1 of 200"):
        caption.evaluate(real["raw_candidates"][1:], real["raw_references"])
    with pytest.raises(ValueError, match="image 'x' has no reference"):
        caption.evaluate([{"image_id": "x", "caption": "a"}], {"x": []})


def test_nocaps_domains_are_corpora_of_their_own(real):
    references, rows = real["raw_references"], real["raw_candidates"]
    domains = {image: caption.DOMAINS[i % 2] for i, image in enumerate(references)}
    result = caption.evaluate_domains(rows, references, domains)
    assert list(result) == ["in-domain", "near-domain", "entire"]  # nothing is out-domain here
    assert result["entire"] == caption.evaluate(rows, references)
    near = {image: references[image] for image in references if domains[image] == "near-domain"}
    assert result["near-domain"] == caption.evaluate([row for row in rows if row["image_id"] in near], near)
    with pytest.raises(ValueError, match="has domain None; NoCaps knows in-domain"):
        caption.evaluate_domains(rows, references, {})


def test_submission_has_every_image_once_in_order(tmp_path):
    rows = [{"image_id": 9, "caption": "a dog"}, {"image_id": 2, "caption": "two cats", "log_prob": -3.0}]
    path = caption.write_submission(tmp_path / "captions.json", [2, 9], rows)
    assert json.loads(path.read_text()) == [
        {"image_id": 2, "caption": "two cats"},
        {"image_id": 9, "caption": "a dog"},
    ]
    with pytest.raises(ValueError, match=r"caption submission: 1 unknown, e\.g\. 9"):
        caption.write_submission(tmp_path / "captions.json", [2], rows)


def test_coco_tools_equal_their_recorded_output(real):
    pytest.importorskip("pycocoevalcap", reason='needs pip install "fiber-vl[caption]"')
    if shutil.which("java") is None:
        pytest.skip("needs a Java runtime")
    result = caption.evaluate(real["raw_candidates"], real["raw_references"], coco_tools=True)
    assert result == pytest.approx(real["expected"]["corpus_df"], rel=1e-12)


def test_missing_tools_are_named(real, monkeypatch):
    arguments = ([{"image_id": 1, "caption": "a"}], {1: ["a"]}, True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocoevalcap", None)  # as if not installed
        with pytest.raises(RuntimeError, match=r"pip install \"fiber-vl\[caption\]\""):
            caption.evaluate(*arguments)
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="put a java command"):
        caption.evaluate(*arguments)
