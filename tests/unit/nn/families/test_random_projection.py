import pytest
import torch

import straightvq as svq


def made(**options: int | bool) -> svq.RandomProjectionQuantizer:
    return svq.RandomProjectionQuantizer(12, 32, 5, **options)


@pytest.mark.parametrize("normalize", [False, True])
def test_indices_are_those_of_the_formula(normalize: bool) -> None:
    layer = made(normalize=normalize)
    z = 3 + 2 * torch.randn(200, 12)
    x = z.double()
    if normalize:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    x = x @ layer.projection[0].double()
    similarity = (x / x.norm(dim=1, keepdim=True)) @ layer.table[0].double().T
    best = similarity.topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(layer(z).indices[clear], similarity.argmax(1)[clear])


def test_projection_is_xavier_normal_and_codes_have_length_one() -> None:
    layer = svq.RandomProjectionQuantizer(400, 500, 100)
    assert layer.projection.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.02)
    torch.testing.assert_close(layer.table.norm(dim=-1), torch.ones(1, 500))
    assert layer.table.mean().abs() < 0.005


def test_numbers_are_the_seeds_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = made().state_dict()
    torch.manual_seed(2)
    for name, value in made().state_dict().items():
        assert torch.equal(value, first[name])
    assert not torch.equal(made(seed=1).state_dict()["table"], first["table"])


def test_drawing_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    made()
    assert torch.equal(torch.get_rng_state(), before)


def test_output_is_the_shortest_vector_that_projects_onto_the_code() -> None:
    layer = made(normalize=False)
    out = layer(torch.randn(20, 12))
    torch.testing.assert_close(out.quantized @ layer.projection[0], layer.table[0][out.indices])
    # The shortest one lies in the span of the projection's columns.
    span = torch.linalg.qr(layer.projection[0])[0]
    torch.testing.assert_close(out.quantized @ span @ span.T, out.quantized)
    assert torch.equal(layer.encode(layer.decode(torch.arange(32))), torch.arange(32))


def test_nothing_trains_and_nothing_changes() -> None:
    layer = made(num_codebooks=3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    z = torch.randn(50, 12, requires_grad=True)
    out = layer(z)
    out.quantized.sum().backward()
    assert not list(layer.parameters())
    assert out.loss == 0
    assert torch.equal(z.grad, torch.ones_like(z))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_codebooks_have_their_own_projections_and_a_prefix_decodes() -> None:
    layer = made(num_codebooks=3)
    out = layer(torch.randn(4, 7, 12))
    assert out.indices.shape == (4, 7, 3)
    assert len(layer.projection.unique(dim=0)) == 3
    first = layer.decode(out.indices[..., :1])
    rest = out.indices.clone()
    rest[..., 0] = -1
    torch.testing.assert_close(first + layer.decode(rest), out.quantized.detach())


def test_preset_has_the_width_of_the_paper() -> None:
    assert svq.presets.best_rq(80, 8192).table.shape == (1, 8192, 16)


def test_seed_and_normalisation_stay_those_of_the_construction() -> None:
    layer = svq.RandomProjectionQuantizer(4, 8)
    for name, value in {"seed": 1, "normalize": False}.items():
        with pytest.raises(ValueError, match=f"`{name}` must stay .* make a new layer"):
            setattr(layer, name, value)
    with pytest.raises(TypeError, match="`normalize` must be True or False"):
        layer.normalize = 1
    assert (layer.seed, layer.normalize) == (0, True)
