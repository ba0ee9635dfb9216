"""The slots are open: methods of other papers, as the page on extending shows them, keep the laws."""

import inspect
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.testing import check_quantizer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import extensions  # noqa: E402

MATRIX = {"no_matrix_of_vectors_times_codes_is_made": "soft assignments hold n x k, and say so"}
EXCEPTIONS = {"gumbel": MATRIX, "entropy": MATRIX}
NAMES = list(extensions.layers())


def made(name: str) -> svq.Quantizer:
    return extensions.layers()[name]


# The second of a kind, with other parts, is slow.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "synchronised" in name else []) for name in NAMES]
)
def test_example_keeps_the_laws(name: str) -> None:
    report = check_quantizer(lambda: made(name), exceptions=EXCEPTIONS.get(name))
    idle = [law for law, result in report.items() if result.startswith("does not apply")]
    idle = [law for law in idle if law != "compiled_forward_equals_eager" or torch.__version__ >= "2.13"]
    if not made(name).codebooks():
        assert len(idle) <= 10, "what a quantizer without a codebook has not"
    else:
        assert len(idle) <= 5, idle


# What one example of the page consists of.
SHOWN = [
    ["Rotation"],
    ["noisy_logits", "GumbelSample", "GumbelStraightThrough"],
    ["Entropy"],
    ["Residual"],
    ["SharedResidual"],
    ["FiniteScalar"],
    ["LinearMap", "FrozenBasis"],
    ["Network"],
]


@pytest.mark.parametrize("names", SHOWN, ids=lambda names: names[-1])
def test_the_page_shows_the_example_in_few_lines(names: list[str]) -> None:
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    sources = [inspect.getsource(getattr(extensions, name)) for name in names]
    assert all(source in page for source in sources), f"docs/extend.md must show {names} as they are"
    lines = [line for source in sources for line in source.splitlines() if line.strip()]
    assert len(lines) <= 25


def test_a_finite_scalar_quantizer_takes_fifteen_lines() -> None:
    lines = [line for line in inspect.getsource(extensions.FiniteScalar).splitlines() if line.strip()]
    assert len(lines) <= 15


# --- values -----------------------------------------------------------------------------------------------------------


def test_rotation_by_hand() -> None:
    # z = (2, 0), code = (0, 1), g = (1, 0): the rotation by 90 degrees, half as long: g_z = (0, -.5).
    z, g = torch.tensor([[2.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    out = extensions.Rotation()(z, torch.tensor([[0.0, 1.0]]))
    out.backward(g)
    assert out.tolist() == [[0.0, 1.0]]
    torch.testing.assert_close(z.grad, torch.tensor([[0.0, -0.5]]))


def test_gumbel_samples_follow_the_softmax_and_the_estimator_sees_their_noise() -> None:
    torch.manual_seed(0)
    layer = made("gumbel")
    assert isinstance(layer, svq.VectorQuantizer)
    codes = torch.randn(16, 6) * 0.5
    layer.set_codes(codes)
    z = torch.zeros(20_000, 6)
    counts = torch.bincount(layer(z).indices, minlength=16) / len(z)
    wanted = (-codes.square().sum(1)).softmax(0)
    assert (counts - wanted).abs().max() < 0.02
    indices = layer(z).indices
    noisy = extensions.noisy_logits(z, codes, layer.batch(z, None))
    assert torch.equal(indices, noisy.argmax(1))
    assert not torch.equal(layer(z).indices, layer(z).indices), "other draws in every step"
    assert torch.equal(layer.encode(z[:9]), layer.encode(z[:9]))


def test_gumbel_gradient_is_that_of_the_softmax() -> None:
    torch.manual_seed(0)
    layer = made("gumbel").double()
    assert isinstance(layer, svq.VectorQuantizer)
    z, g = torch.randn(7, 6).double().requires_grad_(), torch.randn(7, 6).double()
    twin, codes = z.detach().clone().requires_grad_(), layer.codes().requires_grad_()
    layer(z).quantized.backward(g)
    logits = extensions.noisy_logits(twin, codes, layer.batch(twin, None))
    (logits.softmax(1) @ codes).backward(g)
    torch.testing.assert_close(z.grad, twin.grad)
    torch.testing.assert_close(layer.codebook.raw.grad, codes.grad)


def test_masked_vectors_draw_what_the_valid_ones_alone_draw() -> None:
    torch.manual_seed(0)
    layer = made("gumbel")
    z, mask = torch.zeros(64, 6), torch.arange(64) % 3 != 0
    masked = layer(z, mask).indices[mask]
    again = extensions.layers()["gumbel"]
    again.load_state_dict(layer.state_dict())
    again.clock.step.sub_(1)
    assert torch.equal(again(z[mask]).indices, masked)


def test_entropy_by_hand() -> None:
    # Two vectors on two codes far apart: no entropy each, ln 2 together.
    codes = torch.tensor([[-50.0], [50.0]])
    context = svq.Context(codes, torch.tensor([0, 1]), None)
    loss = extensions.Entropy(1.0)
    assert loss(codes.clone(), codes, None, context).item() == pytest.approx(-(2**0.5 and 0.6931472), abs=1e-5)
    same = torch.full((2, 1), 50.0)
    assert loss(same, same, None, context).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["residual", "residual, synchronised", "shared", "shared, synchronised"])
def test_the_gradient_of_the_task_passes_a_composite_once(name: str) -> None:
    torch.manual_seed(0)
    layer = made(name).double()
    z, g = torch.randn(90, 6).double().requires_grad_(), torch.randn(90, 6).double()
    for _ in range(2):
        out = layer(z)
    (encoder,) = torch.autograd.grad(out.quantized, z, g, retain_graph=True)
    torch.testing.assert_close(encoder, g, rtol=0, atol=0)
    if "synchronised" in name:
        books = layer.codebooks()
        found = torch.autograd.grad(out.quantized, [book.raw for book in books], g)
        for number, (book, gradient) in enumerate(zip(books, found, strict=True)):
            wanted = torch.zeros_like(book.raw)
            for level in range(3) if len(books) == 1 else [number]:
                wanted.index_add_(0, out.indices[:, level], 0.5 * g)
            torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("name", ["residual", "shared"])
def test_each_level_codes_what_the_levels_before_it_left_over(name: str) -> None:
    torch.manual_seed(0)
    layer = made(name)
    z = torch.randn(500, 6)
    for _ in range(10):
        layer(z)
    layer.eval()
    indices = layer.encode(z)
    assert indices.shape == (500, 3)
    errors = [(z - layer.decode(indices[:, :level])).square().mean().item() for level in (1, 2, 3)]
    assert errors[0] > 1.3 * errors[1] > 1.5 * errors[2]
    hidden = indices.clone()
    hidden[:, 2] = -1
    assert torch.equal(layer.decode(hidden), layer.decode(indices[:, :2]))
    rest: Tensor = z
    for level, book in enumerate(layer.codebooks() * (3 if name == "shared" else 1)):
        assert torch.equal(indices[:, level], svq.functional.nearest_code(rest, book.codes()))
        rest = rest - book.codes()[indices[:, level]]


def test_a_shared_codebook_adapts_once_to_the_vectors_of_all_levels() -> None:
    torch.manual_seed(0)
    level = svq.VectorQuantizer(1, svq.Codebook(4, update=svq.EMAUpdate(0.0)))
    layer = extensions.SharedResidual(level, 2)
    level.set_codes(torch.tensor([[0.0], [10.0], [100.0], [1.0]]))
    layer(torch.tensor([[101.0], [112.0]]))
    # Level 1: both at 100, rests 1 and 12. Level 2: 1 at 1, 12 at 10. All vectors: 100 <- (101 + 112) / 2.
    assert level.codes().flatten().tolist() == [0.0, 12.0, 106.5, 1.0]
    assert int(level.clock.step) == 1


def test_finite_scalar_by_hand() -> None:
    layer = extensions.FiniteScalar([3, 5])
    z = torch.tensor([[0.0, 10.0], [-10.0, 0.3], [10.0, -10.0]], requires_grad=True)
    out = layer(z)
    assert out.quantized.tolist() == [[0.0, 2.0], [-1.0, 1.0], [1.0, -2.0]]
    out.quantized.sum().backward()
    assert z.grad is not None
    assert z.grad[0, 0] == 1  # 1 * (1 - tanh(0)^2)
    torch.testing.assert_close(z.grad[1, 1], 2 * (1 - torch.tensor(0.3).tanh() ** 2))
    every = layer.decode(torch.arange(15))
    assert len(every.unique(dim=0)) == 15
    assert torch.equal(layer.assign(every), torch.arange(15))


def test_a_frozen_basis_stays_frozen_under_sync() -> None:
    torch.manual_seed(0)
    layer = made("linear map")
    assert isinstance(layer, svq.VectorQuantizer)
    basis, codes = layer.codebook.raw.clone(), layer.codes()
    optimizer = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=0.5)
    for _ in range(3):
        out = layer(torch.randn(50, 6, requires_grad=True))
        (out.quantized.square().mean() + out.loss).backward()
        optimizer.step()
    assert torch.equal(layer.codebook.raw, basis)
    assert not any(parameter is layer.codebook.raw for parameter in layer.parameters())
    assert (layer.codes() != codes).all(), "every code moves with the map"


@pytest.mark.parametrize("make", [extensions.LinearMap, extensions.Network])
def test_what_would_write_codes_without_an_inverse_is_refused_by_name(make: type[svq.Parametrization]) -> None:
    for slots, names in [
        ({"init": svq.KMeansInit()}, "KMeansInit"),
        ({"init": svq.SampleInit()}, "SampleInit"),
        ({"reset": svq.DeadCodeReset()}, "DeadCodeReset"),
        ({"update": svq.AlternatedUpdate()}, "AlternatedUpdate"),
    ]:
        with pytest.raises(ValueError, match=rf"{names} would write codes, and {make.__name__} has no inverse.*Use"):
            svq.Codebook(16, parametrization=make(), **slots)
        with pytest.raises(ValueError, match="Chain has no inverse"):
            svq.Codebook(16, parametrization=svq.Chain([make(), svq.Affine()]), **slots)
    layer = svq.VectorQuantizer(4, svq.Codebook(16, parametrization=make()))
    before = layer.codes()
    with pytest.raises(ValueError, match=rf"{make.__name__} has none"):
        layer.set_codes(torch.zeros(16, 4))
    assert torch.equal(layer.codes(), before)


def test_a_chain_may_start_from_a_raw_table_of_another_width() -> None:
    layer = svq.VectorQuantizer(4, svq.Codebook(16, parametrization=svq.Chain([extensions.Network(), svq.Affine()])))
    assert layer.codebook.raw.shape == (16, 8)
    assert layer.codes().shape == (16, 4)
    layer(torch.randn(50, 4)).loss.backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_parts_that_look_at_a_table_are_refused_where_there_is_none() -> None:
    class Lattice(extensions.FiniteScalar):
        def __init__(self) -> None:
            svq.Quantizer.__init__(self, 2, estimator=extensions.GumbelStraightThrough())

    with pytest.raises(ValueError, match="GumbelStraightThrough looks at the table of codes, and there is none"):
        Lattice()
