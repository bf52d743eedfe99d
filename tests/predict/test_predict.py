"""A loaded model in use: results equal direct computation, boxes lie in pixels of the original, errors help."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import box_iou

import fiber
from fiber.coarse.decoding import SpecialTokens, beam_search
from fiber.errors import WeightsError
from fiber.fine.postprocess import REFERRING
from fiber.images.resize import resize_pil
from fiber.predict.base import TaskError
from fiber.predict.sources import ImageError, open_image
from fiber.tasks.classification import TEMPLATES
from fiber.weights.export import read_export, write_export
from tiny_exports import ANSWERS, CATEGORIES, coarse_export, fine_export, images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def coarse(folder):
    return fiber.load(coarse_export(folder / "coarse", vqa=len(ANSWERS)), device="cpu")


@pytest.fixture(scope="module")
def fine(folder):
    return fiber.load(fine_export(folder / "fine"), device="cpu")


@pytest.fixture(scope="module")
def scenes(folder):
    return images(folder / "images")


def tensor(path) -> torch.Tensor:
    return resize_pil(open_image(path).image, 64)[None]


def tokens(predictor, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([predictor.tokenizer(text).input_ids])
    return ids, torch.ones_like(ids)


def test_match_and_answer_equal_the_model(coarse, scenes):
    model, paths = coarse.model, [scenes["rgb"], scenes["thin"], scenes["grey"]]
    matches = coarse.match(iter(paths), "a red circle")
    answers = coarse.answer(paths, "two dogs", top=4)
    assert len(matches) == len(answers) == 3
    for path, match, answer in zip(paths, matches, answers, strict=True):
        image, text = model.image_prefix(tensor(path)), model.text_prefix(*tokens(coarse, "a red circle"))
        assert match.probability == pytest.approx(float(model.match_logits(image, text).softmax(-1)[0, 1]), abs=1e-5)
        similarity = float(model.image_embedding(image)[0] @ model.text_embedding(text)[0])
        assert match.similarity == pytest.approx(similarity, abs=1e-5)
        cls = model.fuse(image, model.text_prefix(*tokens(coarse, "two dogs"))).cls
        expected = model.heads.classifiers["vqa"](cls)[0].sigmoid()
        assert sorted(a.text for a in answer) == sorted(ANSWERS)
        for found in answer:
            assert found.score == pytest.approx(float(expected[ANSWERS.index(found.text)]), abs=1e-5)
        assert [a.score for a in answer] == sorted((a.score for a in answer), reverse=True)


def test_captions_are_those_of_the_decoder(coarse, scenes):
    (captions,) = coarse.caption(scenes["rgb"], beams=3)
    image = coarse.model.backbone.image_tail(coarse.model.image_prefix(tensor(scenes["rgb"])))
    (expected,) = beam_search(coarse.model, image, SpecialTokens.of(coarse.tokenizer), 12, beams=3)
    assert [c.score for c in captions] == pytest.approx([c.score for c in expected], abs=1e-5)
    assert [c.text for c in captions] == [coarse.tokenizer.decode(c.ids).strip() for c in expected]
    drawn = [coarse.caption(scenes["rgb"], method="nucleus", seed=s)[0][0].text for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(coarse.caption(scenes["rgb"], method="greedy")[0]) == 1


def test_an_index_is_reused_until_an_image_or_the_model_changes(coarse, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FIBER_CACHE", str(tmp_path / "cache"))
    made = images(tmp_path / "p")
    (tmp_path / "p" / "broken.jpg").write_bytes(b"?")
    first = coarse.index(tmp_path / "p")
    assert (first.encoded, len(first.unreadable)) == (len(made), 1)
    assert "broken.jpg" in first.unreadable[0]
    again = coarse.index(tmp_path / "p")
    assert again.encoded == 0
    assert torch.equal(again.features, first.features)
    torch.testing.assert_close(first.features, coarse.embed_images([tmp_path / "p" / name for name in first.paths]))

    made["grey"].unlink()
    Image.new("RGB", (30, 30), "green").save(made["rgb"])
    Image.new("RGB", (30, 30), "blue").save(tmp_path / "p" / "new.png")
    changed = coarse.index(tmp_path / "p")
    assert changed.encoded == 2
    assert "grey.png" not in changed.paths
    assert coarse.index(tmp_path / "p").encoded == 0
    other = fiber.load(coarse_export(folder / "other", seed=1), device="cpu")
    assert other.index(tmp_path / "p").encoded == len(changed.paths)


def test_retrieval_ranks_by_similarity_and_reranks_by_matching(coarse, scenes, folder):
    index = coarse.index(folder / "images", folder / "kept.npz")
    found = coarse.retrieve(index, "a red circle", top=20)
    similarity = (index.features @ coarse.embed_texts(["a red circle"])[0]).tolist()
    assert [f.score for f in found] == pytest.approx(sorted(similarity, reverse=True))
    assert {f.text for f in found} == {str(path) for path in scenes.values()}
    again = coarse.retrieve(index, "a red circle", top=3, rerank=5)
    matched = coarse.match([f.text for f in found[:5]], "a red circle")
    assert [f.score for f in again] == pytest.approx(sorted((m.probability for m in matched), reverse=True)[:3])
    again = coarse.retrieve(index, "a red circle", top=5, rerank=2)
    assert len(again) == 5, "those that are not ordered again follow"
    assert again[2:] == found[2:5]
    for numbers in ({"top": 0}, {"rerank": -1}):
        with pytest.raises(ValueError, match="is below"):
            coarse.retrieve(index, "a red circle", **numbers)


@pytest.mark.parametrize("size", [(90, 60), (360, 240), (30, 300)])
def test_regions_lie_in_pixels_of_the_original(fine, scenes, size):
    scene = Image.open(scenes["rgb"]).resize(size)
    regions = fine.refer(scene, "the left half", top=3)[0]
    width, height = (96, 64) if size != (30, 300) else (10, 96)  # short side 64, long side at most 96
    pixels = torch.from_numpy(np.array(scene)).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    pixels = F.pad(pixels, (0, -width % 32, 0, -height % 32))
    prompt = fine.prompts.sentence("the left half", [[(0, 13)]])
    (direct,) = fine.model.detect(pixels, torch.tensor([[height, width]]), [[prompt]], REFERRING)
    expected = direct.boxes[:3] * torch.tensor([size[0] / width, size[1] / height] * 2)
    np.testing.assert_allclose([r.box for r in regions], expected.numpy(), atol=1e-3)
    assert [r.score for r in regions] == pytest.approx(direct.scores[:3].tolist(), abs=1e-6)


def test_grounding_gives_each_phrase_its_regions(fine, scenes):
    for sentence, options in (
        ("a red circle left of two dogs", {}),
        ("a [red circle] left of [two dogs]", {}),
        ("a red circle left of two dogs", {"phrases": ["red circle", "two dogs"]}),
    ):
        regions = fine.ground(scenes["rgb"], sentence, top=2, **options)[0]
        assert [r.label for r in regions] == ["red circle"] * 2 + ["two dogs"] * 2
        assert [r.span for r in regions] == [(2, 12)] * 2 + [(21, 29)] * 2
    assert fine.ground(scenes["rgb"], "a red circle", threshold=1.0) == [[]]
    with pytest.raises(ValueError, match="phrase 'red circle': the sentence is longer than the 32 tokens"):
        fine.ground(scenes["rgb"], "words " * 60 + "a red circle", phrases=["red circle"])


def test_detection_takes_any_classes_and_knows_its_own(fine, scenes):
    found = fine.detect([scenes["rgb"], scenes["turned"]], threshold=0.0, keep=20, all_labels=True)
    assert len(found) == 2
    assert {r.label for r in found[0]} <= set(CATEGORIES)
    assert len(found[0]) == 20
    many = [f"thing number {i}" for i in range(40)]  # needs several prompts
    assert len(fine.prompts.chunks(many)) > 1
    labels = {r.label for r in fine.detect(scenes["rgb"], many, threshold=0.0, keep=4000, all_labels=True)[0]}
    assert len(labels) > 20
    best = fine.detect(scenes["rgb"], threshold=0.0)[0]
    overlaps = box_iou(torch.tensor([r.box for r in best]), torch.tensor([r.box for r in best]))
    assert overlaps.fill_diagonal_(0).max() <= 0.6
    assert_close(best[:1], found[0][:1])
    assert 3 < len(best) <= 20
    least = best[2].score
    assert all(r.score >= least for r in fine.detect(scenes["rgb"], threshold=least)[0])


def test_detection_does_not_depend_on_the_order_of_the_names_nor_on_other_images(fine, scenes):
    names = ["zebra", *reversed(CATEGORIES), "apple"]
    paths = [scenes["rgb"], scenes["thin"], scenes["rgb"]]
    expected = fine.detect(paths, names, threshold=0.0)
    assert fine.detect(paths, [*sorted(names), "zebra"], threshold=0.0) == expected
    assert expected[0] == expected[2]
    every = {"threshold": 0.0, "all_labels": True}
    assert_close(fine.detect(paths[0], names, threshold=0.0)[0], expected[0])
    one_by_one = fine.detect(paths[0], names, chunk_classes=1, **every)[0]
    zebras = [region for region in one_by_one if region.label == "zebra"]
    assert zebras
    assert_close(zebras, fine.detect(paths[0], ["zebra"], **every)[0][: len(zebras)])


def assert_close(regions, expected) -> None:
    assert [r.label for r in regions] == [r.label for r in expected]
    assert [r.score for r in regions] == pytest.approx([r.score for r in expected], abs=1e-5)
    np.testing.assert_allclose([r.box for r in regions], [r.box for r in expected], atol=1e-2)


@pytest.mark.parametrize("name", ["grey", "grey16", "bilevel", "palette", "alpha", "cmyk", "thin", "pixel", "turned"])
def test_every_image_goes_through_every_task(coarse, fine, scenes, name):
    source = open_image(scenes[name])
    assert 0 <= coarse.match(source.image, "a red circle")[0].probability <= 1
    assert coarse.caption(source.image, method="greedy")[0]
    for region in fine.detect(source.image, threshold=0.0)[0]:
        x0, y0, x1, y1 = region.box
        assert 0 <= x0 <= x1 <= source.width
        assert 0 <= y0 <= y1 <= source.height


def test_what_a_model_cannot_do_is_said_with_what_it_can(coarse, fine, folder, scenes):
    with pytest.raises(TaskError, match="at image level\\) cannot detect; it can: match, retrieve, caption, answer"):
        coarse.detect(scenes["rgb"])
    with pytest.raises(TaskError, match="at region level\\) cannot caption; it can: ground, refer, detect"):
        fine.caption(scenes["rgb"])
    plain = fiber.load(coarse_export(folder / "plain"), device="cpu")
    assert plain.tasks == ("match", "retrieve", "caption", "embed", "classify")
    with pytest.raises(TaskError, match="cannot answer"):
        plain.answer(scenes["rgb"], "two dogs")
    nameless = fiber.load(coarse_export(folder / "nameless", vqa=7), device="cpu")
    with pytest.raises(TaskError, match=r"no answer vocabulary \(answers\.json\)"):
        nameless.answer(scenes["rgb"], "two dogs")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = plain.nonsense
    assert not hasattr(plain, "ground")


def test_a_head_that_the_file_lacks_is_not_offered_and_half_a_head_is_an_error(coarse, folder, scenes):
    export = read_export(folder / "coarse")

    def without(pattern: str):
        tensors = {name: t for name, t in export.tensors.items() if not name.startswith(pattern)}
        path = write_export(folder / "part", tensors, export.config, export.tokenizer, answers=export.answers)
        return fiber.load(path, device="cpu")

    assert without("heads.itm").tasks == ("retrieve", "caption", "answer", "embed", "classify")
    assert without("heads.contrastive").tasks == ("match", "caption", "answer")
    assert without("heads.contrastive").match(scenes["rgb"], "dogs")[0].similarity is None
    assert without("backbone.fusion.caption_maps").tasks == ("match", "retrieve", "answer", "embed", "classify")
    with pytest.raises(WeightsError, match=r"heads\.itm\.bias"):
        without("heads.itm.bias")
    with pytest.raises(WeightsError, match=r"backbone\.text\.layers"):
        without("backbone.text.layers.1")


def test_a_model_offers_only_what_it_was_trained_for(coarse, folder):
    export = read_export(folder / "coarse")

    def trained(*tasks: str):
        config = replace(export.config, trained=list(tasks))
        path = write_export(folder / "trained", export.tensors, config, export.tokenizer, answers=export.answers)
        return fiber.load(path, device="cpu").tasks

    assert trained("pretrain") == ("match", "retrieve", "embed", "classify")  # the maps of captioning are as drawn
    assert trained("pretrain", "caption") == ("match", "retrieve", "caption", "embed", "classify")
    assert trained("vqa") == ("answer",)
    assert trained() == coarse.tasks == ("match", "retrieve", "caption", "answer", "embed", "classify")  # not known


def test_classes_of_the_head_and_classes_by_their_prompts(coarse, folder, scenes):
    with pytest.raises(TaskError, match="no classification head: say which classes"):
        coarse.classify(scenes["rgb"])
    paths, names = [scenes["rgb"], scenes["thin"]], ["dog", "cat", "hat"]
    features, templates = coarse.embed_images(paths), TEMPLATES
    prompts = torch.stack([coarse.embed_texts([t.format(name) for t in templates]).mean(0) for name in names])
    expected = (features @ F.normalize(prompts, dim=-1).T / coarse.model.heads.temperature()).softmax(-1)
    for found, row in zip(coarse.classify(paths, names, top=2), expected, strict=True):
        scores, order = row.sort(descending=True)
        assert [entry.text for entry in found] == [names[i] for i in order[:2]]
        assert [entry.score for entry in found] == pytest.approx(scores[:2].tolist(), abs=1e-4)

    head = fiber.load(coarse_export(folder / "head", classification=len(ANSWERS)), device="cpu")
    head.answers = list(ANSWERS)
    (found,) = head.classify(scenes["rgb"], top=9)
    assert sorted(entry.text for entry in found) == sorted(ANSWERS)
    assert sum(entry.score for entry in found) == pytest.approx(1)
    tokens = head.model.backbone.finish_image(head.model.image_prefix(tensor(scenes["rgb"])))
    logits = head.model.heads.classifiers["classification"](head.model.heads.contrastive.image(tokens)[1])
    assert found[0].text == ANSWERS[int(logits.argmax())]


def test_the_threshold_of_the_export_is_that_of_detection(fine, scenes, monkeypatch):
    every = fine.detect(scenes["rgb"], threshold=0.0)[0]
    assert fine.threshold == 0.3
    least = every[1].score
    monkeypatch.setattr(fine, "config", SimpleNamespace(**{**vars(fine.config), "thresholds": {"detect": least}}))
    assert fine.detect(scenes["rgb"])[0] == [region for region in every if region.score >= least]
    assert len(fine.detect(scenes["rgb"], threshold=0.0)[0]) == len(every)


def test_a_batch_that_the_card_does_not_hold_is_halved(coarse, scenes, monkeypatch):
    features, sizes = coarse.features, []

    def small_card(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.cuda.OutOfMemoryError
        return features(images)

    paths = [*scenes.values()]
    expected = coarse.embed_images(paths)
    monkeypatch.setattr(coarse, "features", small_card)
    monkeypatch.setattr(coarse, "batch", 8)
    torch.testing.assert_close(coarse.embed_images(paths), expected)
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2]
    assert coarse.batch == 2
    assert paths[8:]


def test_half_precision_is_close(coarse, fine, folder, scenes):
    half = fiber.load(folder / "coarse", device="cpu", dtype="bf16")
    assert half.model.heads.itm.weight.dtype == torch.bfloat16
    assert half.embed_images(scenes["rgb"])[0] @ coarse.embed_images(scenes["rgb"])[0] > 0.99
    assert half.caption(scenes["rgb"])[0]
    region = fiber.load(folder / "fine", device="cpu", dtype="bf16").refer(scenes["rgb"], "the left half")[0][0]
    assert region.score == pytest.approx(fine.refer(scenes["rgb"], "the left half")[0][0].score, abs=0.1)
    with pytest.raises(ValueError, match="fp64"):
        fiber.load(folder / "coarse", dtype="fp64")


def test_bad_input_is_named(coarse, fine, tmp_path):
    with pytest.raises(ImageError, match=r"absent\.jpg"):
        coarse.match(tmp_path / "absent.jpg", "a dog")
    with pytest.raises(ValueError, match="text is empty"):
        coarse.match(Image.new("RGB", (9, 9)), " ")
    with pytest.raises(ValueError, match="expression is empty"):
        fine.refer(Image.new("RGB", (9, 9)), "  ")


def test_arguments_that_mean_something_else_are_refused(coarse, fine, folder):
    image = Image.new("RGB", (9, 9))
    for call in (
        lambda: coarse.classify(image, "dog"),
        lambda: coarse.embed_texts("dog"),
        lambda: fine.detect(image, "dog"),
        lambda: fine.ground(image, "a dog", "dog"),
    ):
        with pytest.raises(ValueError, match="is a list of texts, not one"):
            call()
    for call in (
        lambda: coarse.answer(image, "what?", top=0),
        lambda: coarse.classify(image, ["a", "b"], top=-1),
        lambda: fine.ground(image, "[a dog]", top=0),
        lambda: fine.refer(image, "a dog", top=0),
        lambda: fine.detect(image, ["dog"], keep=0),
    ):
        with pytest.raises(ValueError, match="is below 1"):
            call()
    for call in (
        lambda: fine.ground(image, "[a dog]", threshold=1.5),
        lambda: fine.detect(image, ["dog"], threshold=-0.1),
    ):
        with pytest.raises(ValueError, match=r"is not in 0\.\.1"):
            call()
    for device in ("cpuu", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(ValueError, match=f"device '{device}'"):
            fiber.load(folder / "coarse", device=device)


def test_nothing_has_no_features(coarse):
    assert coarse.embed_images([]).shape == coarse.embed_texts([]).shape == (0, coarse.width)


def test_a_text_that_is_cut_is_said_once(folder, capsys):
    image = Image.new("RGB", (9, 9))
    coarse, fine = (fiber.load(folder / name, device="cpu") for name in ("coarse", "fine"))
    coarse.match(image, "a dog")
    fine.refer(image, "a dog")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        coarse.match(image, "dog " * 40)
        fine.refer(image, "dog " * 40)
    assert [line.split(" tokens")[0].split()[-1] for line in capsys.readouterr().err.splitlines()] == ["12", "32"]
