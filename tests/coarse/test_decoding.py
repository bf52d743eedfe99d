"""Decoding against the recorded reference, against the uncached pass, and against enumeration of all captions."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from fiber import processor
from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.init import initialise
from fiber.backbone.text import RobertaTower
from fiber.coarse.decoding import SpecialTokens, beam_search, greedy, next_logits, nucleus
from fiber.coarse.model import CoarseModel
from fiber.weights.load import load_weights
from fiber.weights.official import coarse_names, from_official

END, A, B = 2, 3, 4
MARKS = SpecialTokens(start=0, end=END, forbidden=(0, 1, 5))


@pytest.fixture(scope="module")
def tiny() -> CoarseModel:
    """Six ids, of which two words and the end may be generated; open gates, so that the image matters."""
    text = RobertaTower(vocab_size=6, width=16, layers=3, heads=2, intermediate=32, max_positions=12)
    image = SwinTower(embed_dim=8, depths=(1, 2, 1), heads=(1, 2, 2), window=2)
    model = CoarseModel(FusionBackbone(image, text, num_fused=2), head_width=16, vocab_size=6)
    initialise(model, "fan_in", seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.7)
    return model.eval()


def image_of(model: CoarseModel, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.backbone.image_tail(model.image_prefix(images))


@pytest.fixture(scope="module")
def rows(tiny) -> torch.Tensor:
    return image_of(tiny, torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
def uncached_logits(model: CoarseModel, image: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Logits (V,) after `ids` from one whole causal pass on one image (N,C)."""
    cache = model.backbone.start_decoding(image[None])
    return model.heads.mlm(model.caption_tokens(torch.tensor([ids]), None, cache))[0, -1].float()


def scored(model: CoarseModel, image: torch.Tensor, max_length: int) -> dict[tuple[int, ...], float]:
    """Mean log-probability of every possible caption, one uncached pass a prefix."""
    captions = {}
    for length in range(max_length):
        for words in itertools.product((A, B), repeat=length):
            total = 0.0
            for t, token in enumerate((*words, END)):
                if t == max_length - 1:
                    break  # the limit cuts the end token off
                logits = uncached_logits(model, image, [0, *words[:t]])
                logits[list(MARKS.forbidden)] = -torch.inf
                total += float(logits.log_softmax(-1)[token])
            captions[words] = total / min(length + 1, max_length - 1)
    return captions


def test_greedy_captions_and_step_logits_are_the_recorded_ones(shared):
    prefix = shared / "parity/coarse_a"
    io, meta = load_file(f"{prefix}.io.safetensors"), json.loads(prefix.with_suffix(".json").read_text())
    text = RobertaTower(vocab_size=120, width=32, layers=12, heads=4, intermediate=128, max_positions=14)
    image = SwinTower(embed_dim=16, depths=(2, 2, 18, 2), heads=(1, 2, 4, 8), window=4)
    model = CoarseModel(FusionBackbone(image, text), head_width=32, vocab_size=120).eval()
    official = {n: t.float() for n, t in load_file(f"{prefix}.weights.safetensors").items()}
    load_weights(model, from_official(official, model.state_dict(), coarse_names((2, 2, 18, 2), 12, 6)))
    row = image_of(model, io["in.image"])

    special_tokens = SpecialTokens(start=0, end=2, forbidden=(119,))  # the release forbids the mask alone
    captions = greedy(model, row, special_tokens, max_length=12)
    assert meta["beam1_steps"] == 11
    for caption, expected in zip(captions, io["beam1.ids"].tolist(), strict=True):
        assert caption.ids == expected

    for beams, name in ((1, "beam1"), (5, "beam5")):
        rows = row.repeat_interleave(beams, 0)
        for step in (1, 2, 3, 10):
            fed, cache = io[f"{name}.step{step}.text_ids"], model.backbone.start_decoding(rows)
            with torch.no_grad():
                for t in range(step + 1):
                    logits = next_logits(model, fed[:, t], cache)
            torch.testing.assert_close(logits, io[f"{name}.step{step}.logits"][:, 0], atol=1e-4, rtol=0)


def test_cached_steps_equal_one_uncached_pass(tiny, rows):
    words = torch.randint(3, 5, (3, 7), generator=torch.Generator().manual_seed(0))
    words[:, 0] = 0
    cache = tiny.backbone.start_decoding(rows)
    with torch.no_grad():
        cached = torch.stack([next_logits(tiny, words[:, t], cache) for t in range(7)], 1)
        whole = tiny.heads.mlm(tiny.caption_tokens(words, None, tiny.backbone.start_decoding(rows)))
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=0)
    assert (whole[0, 0] - whole[1, 0]).abs().max() > 1e-3  # the row decides, so the image cache is tested too


def test_a_wide_beam_finds_all_captions_in_the_order_of_enumeration(tiny, rows):
    found = beam_search(tiny, rows, MARKS, max_length=5, beams=40)
    for image, captions in zip(rows, found, strict=True):
        truth = scored(tiny, image, max_length=5)
        assert len(captions) == len(truth) == 31
        assert {tuple(caption.ids) for caption in captions} == set(truth)
        for caption in captions:
            assert caption.score == pytest.approx(truth[tuple(caption.ids)], abs=1e-5)
            assert caption.ended == (len(caption.ids) < 4)
        assert [c.score for c in captions] == sorted((c.score for c in captions), reverse=True)


def test_packed_weights_find_the_same_captions(tiny, rows, monkeypatch):
    monkeypatch.setattr(processor, "SMALLEST", 1)
    expected = beam_search(tiny, rows, MARKS, max_length=6)
    with processor.packed([tiny.backbone.text, tiny.backbone.fusion, tiny.heads]):
        assert "forward" in vars(tiny.heads.mlm.decoder)
        found = beam_search(tiny, rows, MARKS, max_length=6)
    assert [[beam.ids for beam in beams] for beams in found] == [[beam.ids for beam in beams] for beams in expected]
    scores = [beam.score for beams in expected for beam in beams]
    assert [beam.score for beams in found for beam in beams] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_narrow_beams_are_distinct_and_truly_scored(tiny, rows, beams):
    for image, captions in zip(rows, beam_search(tiny, rows, MARKS, 6, beams), strict=True):
        truth = scored(tiny, image, max_length=6)
        assert len({tuple(caption.ids) for caption in captions}) == len(captions) == beams
        for caption in captions:
            assert caption.score == pytest.approx(truth[tuple(caption.ids)], abs=1e-5)


def test_captions_do_not_depend_on_the_batch_they_are_in(tiny, rows):
    for decode in (greedy, beam_search):
        together = decode(tiny, rows, MARKS, 8)
        for row, expected in enumerate(together):
            (alone,) = decode(tiny, rows[row : row + 1], MARKS, 8)
            ids = [c.ids for c in alone] if decode is beam_search else alone.ids
            assert ids == ([c.ids for c in expected] if decode is beam_search else expected.ids)


def test_greedy_takes_the_likeliest_token_and_scores_it(tiny, rows):
    for image, caption in zip(rows, greedy(tiny, rows, MARKS, 6), strict=True):
        assert caption.score == pytest.approx(scored(tiny, image, 6)[tuple(caption.ids)], abs=1e-5)
        ids = [0]
        for token in [*caption.ids, *([END] if caption.ended else [])]:
            logits = uncached_logits(tiny, image, ids)
            assert int(logits[[END, A, B]].argmax()) + END == token
            ids.append(token)


def test_nucleus_draws_by_probability_within_top_p(tiny, rows):
    logits = uncached_logits(tiny, rows[0], [0])[[END, A, B]].softmax(-1)
    ordered = logits.sort(descending=True).values
    many = rows[:1].expand(4000, -1, -1)
    draws = nucleus(tiny, many, MARKS, 2, top_p=1.0, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([sum(c.ids == ids for c in draws) for ids in ([], [A], [B])]) / 4000
    torch.testing.assert_close(counts, logits, atol=0.03, rtol=0)
    # A nucleus that just needs the second token never draws the third, one that does not need it only the first.
    for top_p, kinds in ((float(ordered[0]) + 1e-3, 2), (float(ordered[0]) - 1e-3, 1)):
        draws = nucleus(tiny, many[:300], MARKS, 2, top_p=top_p, generator=torch.Generator().manual_seed(1))
        assert len({tuple(c.ids) for c in draws}) == kinds
    cold = nucleus(tiny, rows, MARKS, 6, temperature=1e-4)
    assert [c.ids for c in cold] == [c.ids for c in greedy(tiny, rows, MARKS, 6)]
    with pytest.raises(ValueError, match="top_p"):
        nucleus(tiny, rows, MARKS, 6, top_p=0.0)
