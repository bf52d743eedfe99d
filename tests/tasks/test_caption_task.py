"""Steps of captioning against plain Python over uncached passes, the recorded reference, and finite differences of
the recipe: what is frozen, when the frozen copy is renewed, what splits leave alone."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.init import initialise
from fiber.backbone.text import RobertaTower
from fiber.coarse.caption_losses import caption_logits, reinforce_loss, start_captions
from fiber.coarse.decoding import Caption, SpecialTokens, sample
from fiber.coarse.model import CoarseModel
from fiber.config.stage1 import CaptionConfig
from fiber.tasks.caption import CaptionTask, to_caption
from fiber.weights.load import load_weights
from fiber.weights.official import coarse_names, from_official

START, PAD, END, A, B, MASK = range(6)
MARKS = SpecialTokens(start=START, end=END, forbidden=(START, PAD, MASK))
CAPTIONS = ([A, B], [B], [A, A, B, A], [])
SAMPLES, TOKENS = 3, 5


def make_model(seed: int = 3) -> CoarseModel:
    """Six ids, of which two words and the end may be generated; open gates, no dropout."""
    text = RobertaTower(
        vocab_size=6, width=16, layers=3, heads=2, intermediate=32, max_positions=12, pad_id=PAD, dropout=0.0
    )
    image = SwinTower(embed_dim=8, depths=(1, 2, 1), heads=(1, 2, 2), window=2, drop_path=0.0)
    model = CoarseModel(FusionBackbone(image, text, num_fused=2), head_width=16, vocab_size=6)
    initialise(model, "fan_in", seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.7)
        model.heads.mlm.decoder.bias[[A, B]] = 1.0  # some captions end within the limit and some do not
    return model


def reward(captions: list[Caption], references: list[list[str]]) -> np.ndarray:
    """Something that tells captions apart: the share of the word A, and the number of references where it ended."""
    shares = [caption.ids.count(A) / max(len(caption.ids), 1) for caption in captions]
    return np.array([s + caption.ended * len(r) for s, caption, r in zip(shares, captions, references, strict=True)])


def make_task(**recipe) -> CaptionTask:
    smoothing = recipe.pop("label_smoothing", 0.0)
    recipe = CaptionConfig(**{"samples": SAMPLES, "max_new_tokens": TOKENS} | recipe)
    task = CaptionTask(make_model(), recipe, MARKS, PAD, smoothing).train()
    task.reward = reward
    return task


def make_batch(step: int = 0) -> dict:
    generator = torch.Generator().manual_seed(5)
    ids = torch.full((len(CAPTIONS), 8), PAD)
    for row, words in zip(ids, CAPTIONS, strict=True):
        row[: len(words) + 2] = torch.tensor([START, *words, END])
    return {
        "images": torch.randint(0, 256, (len(CAPTIONS), 3, 32, 32), generator=generator, dtype=torch.uint8),
        "ids": ids,
        "mask": (ids != PAD).long(),
        "references": [["x"] * (1 + b % 2) for b in range(len(CAPTIONS))],
        "draws": torch.rand(len(CAPTIONS), SAMPLES, TOKENS, generator=generator, dtype=torch.float64),
        "step": step,
    }


def part(batch: dict, start: int, stop: int) -> dict:
    return {name: x[start:stop] if isinstance(x, Tensor | list) else x for name, x in batch.items()}


def log_probabilities(model: CoarseModel, images: Tensor, words: list[int], allowed: bool) -> Tensor:
    """Log-probability (len(words),) of each word after <s> and those before it, by one pass without padding or cache.
    `allowed`: among the tokens that may be generated."""
    logits = model.heads.mlm(
        model.caption_tokens(torch.tensor([[START, *words[:-1]]]), None, start_captions(model, images))
    )[0]
    if allowed:
        logits = logits.masked_fill(torch.tensor([i in MARKS.forbidden for i in range(6)]), -torch.inf)
    return logits.log_softmax(-1)[range(len(words)), words]


def gradients(task: CaptionTask, loss: Tensor) -> dict[str, Tensor]:
    task.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def words_of(batch: dict) -> list[list[int]]:
    return [[*words, END] for words in CAPTIONS[: len(batch["ids"])]]


# ---------------------------------------------------------------------------------------------- cross-entropy, GOLD


def test_mle_is_the_mean_over_tokens_and_does_not_depend_on_the_split():
    task, batch = make_task(), make_batch()
    rows = [
        log_probabilities(task.model, batch["images"][b : b + 1], words, allowed=False)
        for b, words in enumerate(words_of(batch))
    ]
    expected = -torch.cat(rows).mean()
    losses, report = task(batch)
    assert list(losses) == ["mle"]
    torch.testing.assert_close(losses["mle"], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(report["loss/mle"], expected.detach(), rtol=1e-5, atol=0)
    whole = gradients(task, losses["mle"])

    parts = [part(batch, 0, 1), part(batch, 1, 4)]
    counts = [task.loss_normalisers(p)["caption"] for p in parts]
    assert counts == [3, 8]
    split = [task(p | {"loss_normalisers": {"caption": sum(counts) / 2}}) for p in parts]
    assert_close(gradients(task, sum(losses["mle"] for losses, _ in split) / 2), whole)


def test_figures_of_the_log_do_not_depend_on_the_split():
    task, batch = make_task(objective="gold"), make_batch()
    with torch.no_grad():  # the image decides over a word, so that some are right and some are wrong
        wanted = caption_logits(task.model, start_captions(task.model, batch["images"]), batch["ids"], batch["mask"])
        batch["ids"][0, 1:4] = wanted[0, :3].argmax(-1)
    parts = [part(batch, 0, 1), part(batch, 1, 4)]
    counts = [task.loss_normalisers(p)["caption"] for p in parts]
    _, whole = task(batch)
    split = [task(p | {"loss_normalisers": {"caption": sum(counts) / 2}})[1] for p in parts]
    for name in ("accuracy/caption", "gold/weight"):
        values = [float(report[name]) for report in split]
        assert sum(values) / 2 == pytest.approx(float(whole[name]), rel=1e-5), name


def test_label_smoothing_is_torchs():
    batch = make_batch()
    plain = make_task()
    logits = caption_logits(plain.model, start_captions(plain.model, batch["images"]), batch["ids"], batch["mask"])
    targets = F.pad(batch["ids"][:, 1:], (0, 1), value=PAD)
    expected = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=PAD, label_smoothing=0.1)
    torch.testing.assert_close(make_task(label_smoothing=0.1)(batch)[0]["mle"], expected, rtol=1e-5, atol=0)


def gold_by_hand(model: CoarseModel, frozen: CoarseModel, batch: dict) -> Tensor:
    """Token by token: w = max(0.1, p · mean of p from here on), weighted sum over the number of tokens."""
    captions = []
    for b, words in enumerate(words_of(batch)):
        image = batch["images"][b : b + 1]
        with torch.no_grad():
            p = log_probabilities(frozen, image, words, allowed=False).exp().tolist()
        weights = [max(0.1, p[t] * sum(p[t:]) / len(p[t:])) for t in range(len(p))]
        cross_entropy = -log_probabilities(model, image, words, allowed=False)
        captions.append(sum(w * ce for w, ce in zip(weights, cross_entropy, strict=True)) / len(words))
    return sum(captions) / len(captions)


def test_gold_steps_by_hand_with_a_copy_that_is_renewed_when_due():
    task, older, changed = make_task(objective="gold", gold_refresh=2), make_model(), make_model()
    for step in range(4):
        batch = make_batch(step)
        if step % 2 == 0:
            older.load_state_dict(changed.state_dict())
        losses, _ = task(batch)
        expected = gold_by_hand(task.model, older, batch)
        torch.testing.assert_close(losses["gold"], expected, rtol=1e-5, atol=0)
        found = gradients(task, losses["gold"])
        assert_close(found, gradients(task, expected))
        with torch.no_grad():  # a large update, so that an old and a new copy weigh differently
            for name, parameter in task.named_parameters():
                if name in found:
                    parameter -= 0.5 * found[name]
        changed.load_state_dict(task.model.state_dict())
        with torch.no_grad():
            assert abs(gold_by_hand(task.model, older, batch) - gold_by_hand(task.model, changed, batch)) > 1e-4


def test_the_frozen_copy_is_kept_and_neither_trained_nor_set_to_training():
    task = make_task(objective="gold")
    task(make_batch())
    kept = {name for name in task.state_dict() if name.startswith("frozen.")}
    assert len(kept) == len(task.model.state_dict())
    assert not any(p.requires_grad for p in task.frozen.parameters())
    assert task.training
    assert not any(module.training for module in task.frozen.modules())
    before = {name: x.clone() for name, x in task.frozen.state_dict().items()}
    task.model.heads.mlm.decoder.bias.data += 1
    task(make_batch(step=1))
    task.eval()(make_batch(step=0))  # evaluation renews nothing
    assert all(torch.equal(x, before[name]) for name, x in task.frozen.state_dict().items())
    assert not any(name.startswith("frozen.") for name in make_task().state_dict())


def test_gold_of_the_recorded_reference(shared):
    prefix = shared / "parity/coarse_a"
    io, facts = load_file(f"{prefix}.io.safetensors"), json.loads(prefix.with_suffix(".json").read_text())
    text = RobertaTower(vocab_size=120, width=32, layers=12, heads=4, intermediate=128, max_positions=14, dropout=0.0)
    image = SwinTower(embed_dim=16, depths=(2, 2, 18, 2), heads=(1, 2, 4, 8), window=4, drop_path=0.0)
    model = CoarseModel(FusionBackbone(image, text), head_width=32, vocab_size=120)
    official = {name: x.float() for name, x in load_file(f"{prefix}.weights.safetensors").items()}
    load_weights(model, from_official(official, model.state_dict(), coarse_names((2, 2, 18, 2), 12, 6)))
    special_tokens = SpecialTokens(start=0, end=2, forbidden=(0, 1, 119))
    task = CaptionTask(model, CaptionConfig(objective="gold"), special_tokens, PAD).train()
    batch = {"images": io["in.image"], "ids": io["in.text_ids"], "mask": io["in.text_masks"], "step": 0}
    losses, report = task(batch)
    expected = facts["caption_gold_train_if_divided_by_token_count"]
    gold = float(losses["gold"].detach())
    assert gold == pytest.approx(expected, rel=1e-5)
    assert float(report["loss/mle"]) == pytest.approx(facts["losses"]["caption_mle"], rel=1e-5)
    # The release divides each caption's sum by the number of ignored positions instead of its tokens.
    labels = io["caption_mle.labels"]
    real, ignored = (labels != -100).sum(1), (labels == -100).sum(1)
    with torch.no_grad():
        logits = caption_logits(model, start_captions(model, batch["images"]), batch["ids"], batch["mask"])
    each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    weights = task._gold_weights(batch, batch["ids"], batch["mask"], labels)
    torch.testing.assert_close(weights, io["caption_gold.weights"], rtol=1e-4, atol=0)
    per_caption = (weights * each).sum(1)
    assert float((per_caption / real).mean()) == pytest.approx(gold, rel=1e-6)
    assert float((per_caption / ignored).mean()) == pytest.approx(float(io["caption_gold.train_loss"]), rel=1e-5)


# ---------------------------------------------------------------------------------------------- the reward


def drawn_by_hand(model: CoarseModel, image: Tensor, draws: list[float]) -> list[int]:
    """Tokens whose cumulative probability passes the draw, one uncached pass a token, until the end or the limit."""
    words: list[int] = []
    for draw in draws:
        with torch.no_grad():
            cumulative = 0.0
            for token in (END, A, B):
                cumulative += math.exp(float(log_probabilities(model, image, [*words, token], allowed=True)[-1]))
                if draw < cumulative:
                    break
        words.append(token)
        if token == END:
            break
    return words


def test_captions_are_drawn_by_inversion_and_depend_on_their_own_draws_alone():
    model, batch = make_model().eval(), make_batch()
    rows = torch.arange(len(CAPTIONS)).repeat_interleave(SAMPLES)
    draws = batch["draws"].flatten(0, 1)
    images = start_captions(model, batch["images"])
    ids = sample(model, images, MARKS, draws, PAD)
    captions = [to_caption(row, MARKS) for row in ids.tolist()]
    for row, caption in enumerate(captions):
        words = drawn_by_hand(model, batch["images"][rows[row]][None], draws[row].tolist())
        assert [*caption.ids, *([END] if caption.ended else [])] == words
    assert len({tuple(caption.ids) for caption in captions}) > 4
    assert {caption.ended for caption in captions} == {True, False}
    alone = sample(model, start_captions(model, batch["images"][rows[4:5]]), MARKS, draws[4:5], PAD)
    assert to_caption(alone[0].tolist(), MARKS) == captions[4]


def test_drawn_words_have_the_probability_of_the_model():
    model, batch = make_model().eval(), make_batch()
    image, many = batch["images"][:1], 4000
    images = start_captions(model, image)
    draws = torch.rand(many, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.bincount(sample(model, images, MARKS, draws, PAD)[:, 1], minlength=6) / many
    with torch.no_grad():
        expected = [float(log_probabilities(model, image, [t], allowed=True)[0].exp()) for t in range(6)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=0.03, rtol=0)
    assert found[list(MARKS.forbidden)].sum() == 0


@pytest.mark.parametrize("baseline", ["mean", "none"])
def test_reward_steps_by_hand(baseline):
    task, batch = make_task(objective="cider", baseline=baseline, mle_weight=0.3), make_batch()
    expected = 0.0
    for b in range(len(CAPTIONS)):
        image = batch["images"][b : b + 1]
        words = [drawn_by_hand(task.model, image, batch["draws"][b, s].tolist()) for s in range(SAMPLES)]
        scores = reward([to_caption([START, *w], MARKS) for w in words], [batch["references"][b]] * SAMPLES)
        for s in range(SAMPLES):
            others = np.delete(scores, s).mean() if baseline == "mean" else 1.0
            mean = log_probabilities(task.model, image, words[s], allowed=True).mean()
            expected = expected + mean * float(100 * others - 100 * scores[s]) / len(CAPTIONS)
    losses, report = task(batch)
    torch.testing.assert_close(report["loss/reinforce"], expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["reinforce"], 0.7 * expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["mle"], 0.3 * make_task()(batch)[0]["mle"])
    found = gradients(task, losses["reinforce"])
    wanted = gradients(task, 0.7 * expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert task.model.training


def test_reinforce_by_numbers():
    log_probability = torch.tensor([[-1.0, -2.0], [-0.5, -0.25]])
    rewards = torch.tensor([[1.2, 0.8], [1.0, 1.0]])
    mean = reinforce_loss(log_probability, rewards, "mean")
    assert float(mean) == pytest.approx(-(40 * -1.0 + -40 * -2.0) / 2)  # the second image teaches nothing
    release = reinforce_loss(log_probability, rewards, "none")
    assert float(release) == pytest.approx((-1.0 * (100 - 120) + -2.0 * (100 - 80)) / 2)


def test_a_reward_step_does_not_depend_on_the_split():
    task, batch = make_task(objective="cider"), make_batch()
    losses, _ = task(batch)
    whole = gradients(task, sum(losses.values()))
    parts = [part(batch, 0, 2), part(batch, 2, 4)]
    mean = {"caption": sum(task.loss_normalisers(p)["caption"] for p in parts) / 2}
    split = [task(p | {"loss_normalisers": mean})[0] for p in parts]
    found = gradients(task, sum(sum(losses.values()) for losses in split) / 2)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("objective", ["mle", "gold", "cider"])
def test_every_trained_parameter_is_reached_and_no_other(objective):
    task = make_task(objective=objective)
    losses, report = task(make_batch())
    reached = gradients(task, sum(losses.values()))
    assert set(reached) == {name for name, p in task.named_parameters() if p.requires_grad}
    assert not any(value.requires_grad for value in report.values())
    unused_parameters = {name.removeprefix("model.") for name, p in task.named_parameters() if not p.requires_grad}
    assert {
        "backbone.image.norm.weight",
        "heads.itm.weight",
        "heads.cross_modal.image_pooler.bias",
    } <= unused_parameters
