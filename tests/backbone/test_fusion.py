"""The fusion backbone: two encoders while the gates are shut, one prefix for many uses, a decoder with a cache."""

import pytest
import torch
from torch import Tensor

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.init import initialise
from fiber.backbone.text import RobertaTower

B, L, VOCABULARY = 3, 6, 40


def make(num_fused: int = 3, gate: float = 0.6, seed: int = 0, **options) -> FusionBackbone:
    """Image stages of 1 and 3 blocks, 4 text layers; with 4 fused pairs the merge lies between two of them."""
    tower = {"embed_dim": 8, "depths": (1, 3), "heads": (1, 2), "window": 4, "drop_path": options.pop("drop", 0.0)}
    tower |= {key: options.pop(key) for key in ("padded", "stage_norms", "depths") if key in options}
    checkpointing, dropout = options.pop("checkpointing", False), options.pop("dropout", 0.0)
    backbone = FusionBackbone(
        SwinTower(**tower, checkpointing=checkpointing),
        RobertaTower(
            vocab_size=VOCABULARY,
            width=16,
            layers=4,
            heads=2,
            intermediate=32,
            max_positions=20,
            dropout=dropout,
            checkpointing=checkpointing,
        ),
        num_fused=num_fused,
        **options,
    )
    initialise(backbone, "fan_in", seed)
    for name, parameter in backbone.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(gate)
    return backbone.eval()


def inputs(size: tuple[int, int] = (32, 32)) -> tuple[Tensor, Tensor, Tensor]:
    """images (B,3,H,W), ids and mask (B,L); the last text is padded."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, VOCABULARY, (B, L), generator=generator)
    ids[-1, 4:] = 1
    return torch.randn(B, 3, *size, generator=generator), ids, (ids != 1).long()


# ---------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize("last_text_norm", [False, True])
@pytest.mark.parametrize("num_fused", [1, 3, 4])
@torch.no_grad()
def test_shut_gates_leave_two_separate_encoders(num_fused, last_text_norm):
    backbone = make(num_fused, gate=0.0, last_text_norm=last_text_norm)
    for norm in (backbone.image.norm, backbone.text.layers[-1].norm2):
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)  # so that applying them shows
        torch.nn.init.normal_(norm.bias)
    images, ids, mask = inputs()
    image, text = backbone.image_prefix(images), backbone.text_prefix(ids, mask)
    fused = backbone.fuse(image, text)
    torch.testing.assert_close(backbone.image.norm(fused.image), backbone.finish_image(image))
    expected = backbone.finish_text(text)
    found = fused.text if last_text_norm else backbone.text.layers[-1].norm2(fused.text)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_open_gates_let_each_side_see_the_other_but_not_its_padding():
    backbone = make()
    images, ids, mask = inputs()
    image, text = backbone.image_prefix(images), backbone.text_prefix(ids, mask)
    fused = backbone.fuse(image, text)
    others = backbone.fuse(image[[1, 0, 2]], text)
    assert not torch.allclose(fused.text[0], others.text[0])
    assert not torch.allclose(fused.image[0], others.image[0])
    torch.testing.assert_close(fused.text[2], others.text[2])
    shorter = backbone.fuse(image[[2]], backbone.text_prefix(ids[2:, :4], mask[2:, :4]))
    torch.testing.assert_close(fused.image[2:], shorter.image)
    torch.testing.assert_close(fused.text[2:, :4], shorter.text)


@torch.no_grad()
def test_a_pair_updates_both_sides_from_the_same_inputs():
    backbone = make()
    images, ids, mask = inputs()
    x, y = backbone.image_prefix(images), backbone.text_prefix(ids, mask)
    bias = torch.where(mask == 1, 0.0, -1e4)[:, None, None]
    new_x, new_y = backbone.run_pair(0, x.tokens, x.grid, y.tokens, bias)
    block, layer = backbone.image.block((1, 0)), backbone.text.layers[1]
    ask_text, ask_image = backbone.fusion.image_to_text[0], backbone.fusion.text_to_image[0]

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float) -> Tensor:
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v)]
        weights = (heads[0] @ heads[1].mT / heads[0].shape[-1] ** 0.5 + bias).softmax(-1)
        return (weights @ heads[2]).transpose(1, 2).flatten(2)

    a, s = block.attend(x.tokens, x.grid), layer.attend(y.tokens, bias)
    key, value = ask_text.key_value(y.tokens).chunk(2, -1)  # the text before this pair's update
    a = a + 0.6 * ask_text.output(attend(ask_text.query(ask_text.norm(a)), key, value, bias))
    c = attend(ask_image.query(s), ask_image.key(x.tokens), ask_image.value(x.tokens), 0.0)
    torch.testing.assert_close(new_x, block.finish(x.tokens, a))
    torch.testing.assert_close(new_y, layer.finish(y.tokens, s + 0.6 * ask_image.output(c)))


# ---------------------------------------------------------------------------------------------- prefixes


@torch.no_grad()
def test_states_may_be_paired_at_will():
    backbone = make(4)
    images, ids, mask = inputs()
    image, text = backbone.image_prefix(images), backbone.text_prefix(ids, mask)
    rows, columns = torch.tensor([0, 2, 2, 1]), torch.tensor([1, 1, 0, 2])
    found = backbone.fuse(image[rows], text[columns])
    for k, (i, j) in enumerate(zip(rows, columns, strict=True)):
        alone = backbone.fuse(
            backbone.image_prefix(images[i : i + 1]), backbone.text_prefix(ids[j : j + 1], mask[j : j + 1])
        )
        torch.testing.assert_close(found.image[k], alone.image[0])
        torch.testing.assert_close(found.text[k], alone.text[0])


@torch.no_grad()
def test_stage_norms_give_the_maps_of_every_stage_wherever_fusion_begins():
    """The maps do not depend on how many pairs are fused while the gates are shut."""
    maps = []
    tower: dict[str, Tensor] = {}  # what a new model draws last depends on the number of pairs
    for num_fused in (1, 4):
        backbone = make(num_fused, gate=0.0, padded=True, stage_norms=True, depths=(2, 2), last_text_norm=True)
        tower = tower or backbone.image.state_dict()
        backbone.image.load_state_dict(tower)
        images, ids, mask = inputs((36, 28))
        image = backbone.image_prefix(images)
        maps.append(backbone.fuse(image, backbone.text_prefix(ids, mask)).stages)
    assert [tuple(m.shape) for m in maps[0]] == [(B, 8, 9, 7), (B, 16, 5, 4)]
    for one, other in zip(*maps, strict=True):
        torch.testing.assert_close(one, other)
    last = maps[0][1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(last.mean(-1), torch.zeros(B, 20), atol=1e-5, rtol=0)  # normed
    assert maps[0][0].flatten(2).transpose(1, 2).mean(-1).abs().max() > 0.05  # the first stage is not


@torch.no_grad()
def test_prompt_offsets_are_added_after_the_embeddings():
    backbone = make()
    _, ids, mask = inputs()
    offset = torch.randn(10, 16)
    y = backbone.text.embeddings(ids)
    torch.testing.assert_close(backbone.text.embeddings(ids, offset=offset), y + offset[:L])
    assert not torch.allclose(backbone.text_prefix(ids, mask, offset).tokens, backbone.text_prefix(ids, mask).tokens)


# ---------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("num_fused", [2, 4])
@torch.no_grad()
def test_decoding_with_a_cache_equals_decoding_at_once(num_fused):
    backbone = make(num_fused)
    images, ids, _ = inputs()
    ids = ids.clamp(min=4)
    image = backbone.image_tail(backbone.image_prefix(images))
    at_once = backbone.decode(ids, backbone.start_decoding(image))
    cache = backbone.start_decoding(image)
    one_by_one = torch.cat([backbone.decode(ids[:, t : t + 1], cache) for t in range(L)], dim=1)
    torch.testing.assert_close(one_by_one, at_once, atol=1e-5, rtol=0)
    cache = backbone.start_decoding(image)
    chunks = torch.cat([backbone.decode(ids[:, :2], cache), backbone.decode(ids[:, 2:], cache)], dim=1)
    torch.testing.assert_close(chunks, at_once, atol=1e-5, rtol=0)


@torch.no_grad()
def test_decoding_is_causal_and_padding_does_not_matter():
    backbone = make()
    images, ids, mask = inputs()
    image = backbone.image_tail(backbone.image_prefix(images))
    tokens = backbone.decode(ids, backbone.start_decoding(image), mask)
    changed = ids.clone()
    changed[:, 3] = 5
    other = backbone.decode(changed, backbone.start_decoding(image), mask)
    torch.testing.assert_close(tokens[:, :3], other[:, :3])
    assert not torch.allclose(tokens[0, 3:], other[0, 3:])
    alone = backbone.decode(ids[2:, :4], backbone.start_decoding(image[2:]))
    torch.testing.assert_close(tokens[2:, :4], alone)


@torch.no_grad()
def test_beams_that_survive_go_on_as_if_they_had_been_alone():
    backbone = make()
    images, ids, _ = inputs()
    ids = ids.clamp(min=4)
    image = backbone.image_tail(backbone.image_prefix(images))
    cache = backbone.start_decoding(image[:1])
    backbone.decode(ids[:, :3], cache)  # three texts of one image
    kept = torch.tensor([2, 0, 0])
    cache.reorder(kept)
    found = backbone.decode(ids[[1, 1, 2], 3:4], cache)
    history = torch.cat([ids[kept, :3], ids[[1, 1, 2], 3:4]], dim=1)
    expected = backbone.decode(history, backbone.start_decoding(image[[0, 0, 0]]))[:, -1:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_texts_of_an_image_follow_each_other():
    backbone = make()
    images, ids, mask = inputs()
    image = backbone.image_tail(backbone.image_prefix(images[:2]))
    ids, mask = ids[[0, 1, 2, 0]], mask[[0, 1, 2, 0]]
    found = backbone.decode(ids, backbone.start_decoding(image, room=0), mask)
    expected = backbone.decode(ids, backbone.start_decoding(image[[0, 0, 1, 1]]), mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    swapped = backbone.decode(ids, backbone.start_decoding(image[[0, 1, 0, 1]]), mask)
    assert not torch.allclose(found, swapped, atol=1e-3)


# ---------------------------------------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_recomputes_the_same_gradients(dropout):
    found = []
    for checkpointing in (False, True, "selective"):
        backbone = make(checkpointing=checkpointing, dropout=dropout, drop=dropout).train()
        images, ids, mask = inputs()
        torch.manual_seed(7)
        image, text = backbone.image_prefix(images), backbone.text_prefix(ids, mask)
        fused = backbone.fuse(image, text)
        outputs = fused.image, fused.text, backbone.finish_image(image), backbone.finish_text(text)
        sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in outputs).backward()
        found.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    plain, recomputed, partly = found
    assert plain.keys() == recomputed.keys() == partly.keys()
    assert len(plain) > 100
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name
        assert torch.equal(gradient, partly[name]), name


# ---------------------------------------------------------------------------------------------- combinations


@pytest.mark.parametrize("num_fused", [0, 5])
def test_more_fused_pairs_than_layers_are_refused(num_fused):
    with pytest.raises(ValueError, match=f"num_fused = {num_fused} must lie between 1 and .* 4 blocks, .* 4 layers"):
        make(num_fused)


def test_text_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="text width 16 is not a multiple of its 3 heads"):
        RobertaTower(vocab_size=10, width=16, layers=1, heads=3, intermediate=8)
    tower = RobertaTower(vocab_size=10, width=16, layers=1, heads=2, intermediate=8, max_positions=8)
    tower.embeddings(torch.full((1, 6), 4))
    with pytest.raises(ValueError, match=r"a text of 7 tokens is longer than the position table allows \(6\)"):
        tower.embeddings(torch.full((1, 7), 4))


@torch.no_grad()
def test_positions_count_tokens_and_skip_padding():
    tower = RobertaTower(vocab_size=10, width=16, layers=1, heads=2, intermediate=8, dropout=0.0).eval()
    ids = torch.tensor([[1, 5, 1, 6]])
    table = tower.embeddings
    expected = table.word(ids) + table.position(torch.tensor([[1, 2, 1, 3]])) + table.token_type.weight[0]
    torch.testing.assert_close(tower.embeddings(ids), table.norm(expected))


@pytest.mark.parametrize(
    ("depths", "num_fused", "places"),
    [
        ((2, 2, 18, 2), 6, [(2, 14), (2, 15), (2, 16), (2, 17), (3, 0), (3, 1)]),
        ((1, 3), 4, [(0, 0), (1, 0), (1, 1), (1, 2)]),
    ],
)
def test_pairs_follow_from_depths_and_their_number(depths, num_fused, places):
    heads = (1, 2, 4, 8)[: len(depths)]
    image = SwinTower(embed_dim=8, depths=depths, heads=heads, window=2)
    text = RobertaTower(vocab_size=9, width=8, layers=12, heads=1, intermediate=8)
    backbone = FusionBackbone(image, text, num_fused=num_fused)
    assert backbone.image.places[-num_fused:] == places
    assert [part.query.in_features for part in backbone.fusion.image_to_text] == [8 * 2**s for s, _ in places]
    assert [part.key.in_features for part in backbone.fusion.text_to_image] == [8 * 2**s for s, _ in places]
