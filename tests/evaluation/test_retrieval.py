"""Retrieval against scoring every pair with full forwards, on one rank and on two."""

import math
from unittest.mock import MagicMock

import numpy as np
import pytest
import simplejpeg
import torch
import torch.multiprocessing as mp

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.data.convert.writer import ShardWriter
from fiber.data.records import Sample, image_hash
from fiber.data.shards import ShardSet
from fiber.errors import ShardError
from fiber.evaluation.gallery import PrefixCache, image_rows
from fiber.evaluation.metrics.ranking import Ranking
from fiber.evaluation.retrieval import ITM_PRIOR, evaluate_retrieval
from fiber.tasks import retrieval

IMAGES, LENGTH, VOCABULARY = 7, 6, 50
CAPTIONS = [1, 3, 2, 1, 4, 1, 2]  # an image


def make_model(seed: int = 0) -> CoarseModel:
    """Two stages, gates wide open, so that matching depends on both sides."""
    config = ModelConfig(
        image=ImageTowerConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), window=4),
        text=TextTowerConfig(width=16, layers=3, heads=2, intermediate=32),
        num_fused=2,
        head_width=12,
    )
    model = CoarseModel(build_backbone(config, VOCABULARY, 1, LENGTH), head_width=12, vocab_size=VOCABULARY)
    initialise(model, "fan_in", seed)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.7)
    return model.eval()


def make_data() -> tuple[dict, dict]:
    """All images and all texts in the order of their positions."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    image_id = torch.randperm(IMAGES, generator=generator) + 2**40
    owner = torch.arange(IMAGES).repeat_interleave(torch.tensor(CAPTIONS))
    ids = torch.randint(4, VOCABULARY, (len(owner), LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[::3, 4:] = 0
    ids = torch.where(mask == 1, ids, 1)
    swapped_mask = mask.clone()
    swapped_mask[1::2] = 0
    texts = {"ids": ids, "mask": mask, "image_id": image_id[owner], "position": torch.arange(len(owner))}
    texts |= {"swapped_ids": ids.roll(1, 0), "swapped_mask": swapped_mask}
    return {"images": images, "image_id": image_id, "position": torch.arange(IMAGES)}, texts


def batches(columns: dict, size: int, rank: int = 0, world: int = 1) -> list[dict]:
    share = {name: x[rank::world] for name, x in columns.items()}
    starts = range(0, len(share["position"]), size)
    return [{name: x[s : s + size] for name, x in share.items()} for s in starts]


def run(rank: int = 0, world: int = 1, rerank_k: int = 2, **more):
    images, texts = make_data()
    parts = batches(images, 3, rank, world), batches(texts, 4, rank, world)
    return evaluate_retrieval(make_model(), *parts, rerank_k=rerank_k, batch=5, **more)


@torch.no_grad()
def full_scores() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contrastive, matching and joint scores (N,M) with a full forward for every single pair. Joint: the odds of a
    match and the contrastive logit."""
    model, (images, texts) = make_model(), make_data()
    contrastive = torch.empty(IMAGES, len(texts["ids"]))
    matching, joint = torch.empty_like(contrastive), torch.empty_like(contrastive)
    for i in range(IMAGES):
        for j in range(len(texts["ids"])):
            image = model.image_prefix(images["images"][i : i + 1])
            text = model.text_prefix(texts["ids"][j : j + 1], texts["mask"][j : j + 1])
            contrastive[i, j] = (model.image_embedding(image) * model.text_embedding(text)).sum()
            logits = model.match_logits(image, text)[0]
            matching[i, j] = logits[1]
            probability = float(logits.double().softmax(-1)[1])
            joint[i, j] = math.log(probability / (1 - probability)) + contrastive[i, j] / model.heads.temperature()
    return contrastive.numpy(), matching.numpy(), joint.numpy()


def recall_by_hand(scores: np.ndarray, own: np.ndarray, k: int) -> float:
    """Share of rows whose k best columns hold one of their own."""
    best = np.argsort(-scores, axis=1)[:, :k]
    return float(np.mean([own[row, columns].any() for row, columns in enumerate(best)]))


def own_pairs() -> np.ndarray:
    rows = np.repeat(np.arange(IMAGES), CAPTIONS)
    return np.arange(IMAGES)[:, None] == rows[None]


def full(ranking: Ranking) -> np.ndarray:
    """Scores (Q,C) of a ranking that has kept all candidates."""
    scores = torch.full(ranking.columns.shape, torch.nan)
    return scores.scatter(1, ranking.columns, ranking.scores).numpy()


def test_all_candidates_equal_scoring_every_pair():
    contrastive, matching, joint = full_scores()
    found, own = run(rerank_k=1000), own_pairs()
    np.testing.assert_allclose(full(found.dual_image_to_text), contrastive, atol=1e-6)
    np.testing.assert_allclose(full(found.dual_text_to_image), contrastive.T, atol=1e-6)
    np.testing.assert_allclose(full(found.image_to_text), matching, atol=1e-5)
    np.testing.assert_allclose(full(found.text_to_image), matching.T, atol=1e-5)
    np.testing.assert_allclose(full(found.joint_image_to_text), joint, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(full(found.joint_text_to_image), joint.T, rtol=1e-5, atol=1e-5)
    assert found.figures["pairs"] == matching.size
    for k in (1, 5):
        for prefix, scores in (("", contrastive), ("reranked_", matching), ("joint_", joint)):
            assert found.figures[f"{prefix}i2t_r{k}"] == pytest.approx(recall_by_hand(scores, own, k))
            assert found.figures[f"{prefix}t2i_r{k}"] == pytest.approx(recall_by_hand(scores.T, own.T, k))


def test_reranking_orders_the_candidates_and_leaves_the_rest_behind_in_their_order():
    contrastive, matching, joint = full_scores()
    found, k = run(rerank_k=3), 3
    pairs = set()
    for ours, itc, itm, own in (
        (found.image_to_text, contrastive, matching, own_pairs()),
        (found.text_to_image, contrastive.T, matching.T, own_pairs().T),
        (found.joint_image_to_text, contrastive, joint, own_pairs()),
        (found.joint_text_to_image, contrastive.T, joint.T, own_pairs().T),
    ):
        for row, (contrast, match) in enumerate(zip(itc, itm, strict=True)):
            by_contrast = np.argsort(-contrast)
            expected = [*sorted(by_contrast[:k], key=lambda c, m=match: -m[c]), *by_contrast[k:]]
            assert ours.columns[row].tolist() == expected[: ours.columns.shape[1]]
            assert (ours.scores[row].diff() <= 0).all()
            assert ours.rank[row] == np.flatnonzero(own[row][expected])[0]
            pairs |= {(row, c) if itc is contrastive else (c, row) for c in by_contrast[:k]}
    assert found.figures["pairs"] == len(pairs)


def test_matching_loss_and_swapped_relations_equal_full_forwards():
    found = run().figures
    model, (images, texts) = make_model(), make_data()
    rows = torch.arange(IMAGES).repeat_interleave(torch.tensor(CAPTIONS))
    chosen = torch.nonzero(texts["swapped_mask"].any(1)).squeeze(1)
    with torch.no_grad():
        image = model.image_prefix(images["images"])[rows[chosen]]
        prefixes = model.text_prefix(texts["ids"], texts["mask"])[chosen]
        true = model.match_logits(image, prefixes)[:, 1]
        swapped = model.text_prefix(texts["swapped_ids"], texts["swapped_mask"])[chosen]
        false = model.match_logits(image, swapped)[:, 1]
        nearer = [
            float(v @ t) > float(v @ s)
            for v, t, s in zip(
                model.image_embedding(image),
                model.text_embedding(prefixes),
                model.text_embedding(swapped),
                strict=True,
            )
        ]
    assert found["swap_count"] == len(chosen)
    assert found["swap_accuracy"] == pytest.approx(float((true > false).float().mean()))
    assert found["contrastive_swap_accuracy"] == pytest.approx(np.mean(nearer))
    assert pytest.approx(-(1 / 3) * math.log(1 / 3) - (2 / 3) * math.log(2 / 3)) == ITM_PRIOR
    assert found["itm_prior"] == ITM_PRIOR


def test_the_matching_loss_of_a_model_that_knows_only_the_prior_is_the_prior():
    model, (images, texts) = make_model(), make_data()
    model.heads.itm.weight.data.zero_()
    model.heads.itm.bias.data.copy_(torch.tensor([math.log(2 / 3), math.log(1 / 3)]))
    found = evaluate_retrieval(model, batches(images, 3), batches(texts, 4), rerank_k=0, batch=7)
    assert found.figures["itm_loss"] == pytest.approx(ITM_PRIOR, abs=1e-6)
    assert "reranked_t2i_r1" not in found.figures


def test_half_precision_cache_changes_scores_a_little_and_the_mode_comes_back():
    exact, halved = run(), run(cache=PrefixCache(device="cpu", dtype=torch.bfloat16))
    difference = (exact.image_to_text.scores[:, :2] - halved.image_to_text.scores[:, :2]).abs()
    assert 0 < difference.max() < 0.1
    model, (images, texts) = make_model().train(), make_data()
    evaluate_retrieval(model, batches(images, 3), batches(texts, 4), rerank_k=1, batch=4)
    assert model.training


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = run(rank, world)
    torch.save({"figures": found.figures, "scores": found.image_to_text.scores}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_find_what_one_finds(tmp_path):
    mp.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    alone = run()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["figures"] == pytest.approx(alone.figures, abs=1e-6)
        np.testing.assert_allclose(found["scores"], alone.image_to_text.scores, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, texts: texts["image_id"].add_(1), "not in the gallery"),
        (lambda images, texts: images["image_id"].fill_(3), "in the gallery twice"),
        (lambda images, texts: images["position"].fill_(3), "came twice"),
    ],
)
def test_sets_that_do_not_fit_are_named(change, message):
    images, texts = make_data()
    change(images, texts)
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(make_model(), batches(images, 3), batches(texts, 4), rerank_k=1, batch=4)


def test_an_image_that_a_set_holds_twice_is_named_by_its_id(tmp_path, monkeypatch):
    for shard in ("s0", "s1"):  # the same image in both
        with ShardWriter(tmp_path, shard) as writer:
            record = {"image_id": "photo 7", "width": 8, "height": 8, "source": "test", "captions": [{"text": "a"}]}
            writer.add(Sample(f"{shard}a", [("jpg", simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))], record))
    for path in tmp_path.glob("index.*"):
        path.unlink()
    number = image_hash("photo 7")

    def repeated(*_, **__):
        image_rows(torch.tensor([5, number, number]), torch.tensor([5]))

    monkeypatch.setattr(retrieval, "retrieval_sets", lambda *_, **__: ([], []))
    monkeypatch.setattr(retrieval, "evaluate_retrieval", repeated)
    context = MagicMock(shards=ShardSet(tmp_path))
    with pytest.raises(ShardError, match=f"^{tmp_path}: two samples with image_id 'photo 7'; the set holds an image"):
        retrieval.evaluate(MagicMock(), context)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="a rank has no images"):
        evaluate_retrieval(make_model(), [], [], rerank_k=1, batch=4)
