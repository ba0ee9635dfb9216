from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tests.reference import estimators as naive
from torch import Tensor

import straightvq as svq


def batch(normal: Tensor | dict[str, Tensor], uniform: Tensor | None = None) -> Any:
    """A training batch whose draws are these numbers."""

    def draw(stream: str, shape: tuple[int, ...], *_: object, **__: object) -> Tensor:
        numbers = normal[stream] if isinstance(normal, dict) else normal
        return numbers.expand(shape)

    draws = SimpleNamespace(normal=draw, uniform=lambda stream, shape, *_: cast(Tensor, uniform).view(shape))
    return SimpleNamespace(draws=draws, rows=lambda: None)


def run(
    estimator: svq.Estimator, z: Tensor, codes: Tensor, indices: Tensor, g: Tensor, given: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and gradients at vectors and codes."""
    z, codes = z.clone().requires_grad_(), codes.clone().requires_grad_()
    out = estimator(z, codes[indices], svq.Context(codes, indices, given))
    out.backward(g)
    assert z.grad is not None
    assert codes.grad is not None
    return out.detach(), z.grad, codes.grad


ZERO, FIRST = torch.zeros(1, 2), torch.tensor([0])
CODE = torch.tensor([[3.0, 4.0]])


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_detached_form_divides_the_gradient_by_hand(mode: str) -> None:
    # u = (.6, .8), g = (1, 0): u u^T g = (.36, .48) for the code, the rest (.64, -.48) for the vector.
    given = batch(ZERO) if mode == "training" else None
    out, to_z, to_code = run(svq.DiVeQ(noise=0.0), ZERO, CODE, FIRST, torch.tensor([[1.0, 0.0]]), given)
    assert torch.equal(out, CODE)
    torch.testing.assert_close(to_z, torch.tensor([[0.64, -0.48]]))
    torch.testing.assert_close(to_code, torch.tensor([[0.36, 0.48]]))


def test_noise_tilts_the_step_by_hand() -> None:
    # 0.5 * v = (1, -4) makes (3, 4) the direction (1, 0): the output is 5 of it. g = (0, 1): n . g = 0; g = (1, 0): 1.
    v = torch.tensor([[2.0, -8.0]])
    out, to_z, to_code = run(svq.DiVeQ(noise=0.5), ZERO, CODE, FIRST, torch.tensor([[0.0, 1.0]]), batch(v))
    assert out.tolist() == [[4.0 * 5 / 4, 0.0]]
    assert to_z.tolist() == [[0.0, 1.0]]
    assert to_code.tolist() == [[0.0, 0.0]]
    _, to_z, to_code = run(svq.DiVeQ(noise=0.5), ZERO, CODE, FIRST, torch.tensor([[1.0, 0.0]]), batch(v))
    torch.testing.assert_close(to_z, torch.tensor([[0.4, -0.8]]))
    torch.testing.assert_close(to_code, torch.tensor([[0.6, 0.8]]))


def test_noise_is_a_standard_deviation() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(2, svq.Codebook(2), estimator=svq.DiVeQ(noise=0.1))
    layer.set_codes(torch.tensor([[10.0, 0.0], [-90.0, 0.0]]))
    out = layer(torch.zeros(20_000, 2)).quantized.detach()
    # The step is 10 long, and its tilt is that of (10, 0) + v: across it spreads by v's deviation.
    assert out[:, 1].std().item() == pytest.approx(0.1, rel=0.03)
    assert out.norm(dim=1).sub(10).abs().max() < 1e-4


def test_nsvq_by_hand() -> None:
    # v = (0, 1): the output is 5 long that way. g = (0, 1): (.6, .8) for the code, (-.6, .2) for the vector.
    v = torch.tensor([[0.0, 1.0]])
    out, to_z, to_code = run(svq.NSVQ(), ZERO, CODE, FIRST, torch.tensor([[0.0, 1.0]]), batch(v))
    assert out.tolist() == [[0.0, 5.0]]
    torch.testing.assert_close(to_z, torch.tensor([[-0.6, 0.2]]))
    torch.testing.assert_close(to_code, torch.tensor([[0.6, 0.8]]))


def test_nsvq_errs_by_the_root_of_two_times_the_quantization_error() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(64, svq.Codebook(2), estimator=svq.NSVQ())
    layer.set_codes(torch.randn(2, 64))
    z = torch.randn(5_000, 64)
    out = layer(z)
    code = layer.decode(out.indices)
    ratio = (out.quantized - code).square().sum() / (z - code).square().sum()
    assert ratio.sqrt().item() == pytest.approx(2**0.5, rel=0.01)
    torch.testing.assert_close((out.quantized - z).norm(dim=1), (code - z).norm(dim=1))


def test_space_filling_form_by_hand() -> None:
    # Codes (0,0), (2,0), (2,4); s = 1/4 and 1/2: points (.5, 0) and (2, 2). z = (0, 1) takes the first one.
    # Steps: to (0,0) along (0,-1), to (2,0) along (2,-1)/sqrt(5). Weights 3/4, 1/4; g = (5, 10).
    codes, z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 4.0]]), torch.tensor([[0.0, 1.0]])
    given = batch(torch.zeros(1, 2), torch.tensor([0.25, 0.5]))
    g = torch.tensor([[5.0, 10.0]])
    out, to_z, to_codes = run(svq.SpaceFillingDiVeQ(noise=0.0), z, codes, FIRST, g, given)
    torch.testing.assert_close(out, torch.tensor([[0.5, 0.0]]))
    # u u^T g: (0, 10) for the first end; u . g = 0 for the second.
    torch.testing.assert_close(to_codes, torch.tensor([[0.0, 7.5], [0.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(to_z, torch.tensor([[5.0, 2.5]]))


def test_space_filling_second_step_starts_at_the_vector() -> None:
    # As above, g = (5, 0) has u . g = 2 sqrt(5) at the second end: its share is 1/4 of (4, -2).
    codes, z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 4.0]]), torch.tensor([[0.0, 1.0]])
    given = batch(torch.zeros(1, 2), torch.tensor([0.25, 0.5]))
    _, to_z, to_codes = run(svq.SpaceFillingDiVeQ(noise=0.0), z, codes, FIRST, torch.tensor([[5.0, 0.0]]), given)
    torch.testing.assert_close(to_codes, torch.tensor([[0.0, 0.0], [1.0, -0.5], [0.0, 0.0]]))
    torch.testing.assert_close(to_z, torch.tensor([[4.0, 0.5]]))


@pytest.mark.parametrize("part", [svq.DiVeQ(0.3), svq.SpaceFillingDiVeQ(0.3), svq.NSVQ()], ids=repr)
def test_evaluation_is_the_code_with_the_gradient_of_the_detached_form(part: svq.Estimator) -> None:
    g = torch.tensor([[1.0, 0.0]])
    got, wanted = (run(each, ZERO, CODE, FIRST, g) for each in (part, svq.DiVeQ(0)))
    for mine, other in zip(got, wanted, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_they_are_the_papers_formulas(noise: float) -> None:
    torch.manual_seed(0)
    z, codes, g, v, w = (torch.randn(n, 5, dtype=torch.float64) for n in (33, 7, 33, 33, 33))
    indices, share = torch.randint(7, (33,)), torch.rand(6, dtype=torch.float64)
    x, c = z.clone().requires_grad_(), codes.clone().requires_grad_()
    points = codes[:-1] + share[:, None] * (codes[1:] - codes[:-1])
    line = torch.cdist(z, points).argmin(1)
    s = share[line, None]
    first, second = naive.diveq(x, c[line], noise * v), naive.diveq(x, c[line + 1], noise * w)
    cases: list[tuple[svq.Estimator, Tensor]] = [
        (svq.DiVeQ(noise), naive.diveq(x, c[indices], noise * v)),
        (svq.NSVQ(), naive.nsvq(x, c[indices], v)),
        (svq.SpaceFillingDiVeQ(noise), (1 - s) * first + s * second),
    ]
    given = batch({"diveq": v, "nsvq": v, "diveq second": w}, share)
    for part, out in cases:
        wanted = out.detach(), *torch.autograd.grad(out, [x, c], g, retain_graph=True)
        for mine, other in zip(run(part, z, codes, indices, g, given), wanted, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("part", [svq.DiVeQ(0.0), svq.DiVeQ(0.5), svq.NSVQ(), svq.SpaceFillingDiVeQ(0.0)], ids=repr)
def test_a_vector_on_its_code_gets_finite_gradients(part: svq.Estimator) -> None:
    given = batch(torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
    codes = torch.tensor([[3.0, 4.0], [5.0, 4.0]])
    for result in run(part, codes[:1], codes, FIRST, torch.tensor([[1.0, 2.0]]), given):
        assert result.isfinite().all()
    out, to_z, to_codes = run(svq.DiVeQ(0.0), codes[:1], codes, FIRST, torch.tensor([[1.0, 2.0]]))
    assert torch.equal(out, codes[:1])
    assert to_z.tolist() == [[1.0, 2.0]]
    assert not to_codes.any()


@pytest.mark.parametrize("part", [svq.DiVeQ, svq.NSVQ, svq.SpaceFillingDiVeQ])
def test_they_have_no_losses_unless_one_insists(part: type[svq.Estimator]) -> None:
    layer = svq.VectorQuantizer(2, svq.Codebook(4), estimator=part())
    out = layer(torch.randn(9, 2))
    assert out.loss == 0
    assert out.terms.keys() == {"commitment", "codebook"}
    assert out.terms["commitment"] > 0
    for loss in (svq.CommitmentLoss(), svq.CodebookLoss()):
        with pytest.warns(UserWarning, match=f"{part.__name__} has no commitment.*Got {type(loss).__name__}"):
            svq.VectorQuantizer(2, svq.Codebook(4), estimator=part(), losses=[loss])
    svq.VectorQuantizer(2, svq.Codebook(4), estimator=part(), losses=[svq.EntropyLoss()])
    svq.VectorQuantizer(2, svq.Codebook(4), estimator=part(), losses=[])


@pytest.mark.parametrize(
    "assigner", [svq.Stochastic(), svq.Sinkhorn(), svq.LargestProduct(), svq.Nearest("cosine")], ids=repr
)
def test_the_space_filling_form_takes_no_assigner_that_its_own_search_would_ignore(assigner: svq.Assigner) -> None:
    codebook = svq.Codebook(4)
    told = rf"SpaceFillingDiVeQ searches .*{type(assigner).__name__}\(.*Use Nearest as `assigner`, or DiVeQ as"
    with pytest.raises(ValueError, match=told):
        svq.VectorQuantizer(2, codebook, estimator=svq.SpaceFillingDiVeQ(), assigner=assigner)
    svq.VectorQuantizer(2, codebook, estimator=svq.DiVeQ(), assigner=assigner)  # the refused codebook is still free


@pytest.mark.parametrize("part", [svq.DiVeQ(), svq.NSVQ(), svq.SpaceFillingDiVeQ()], ids=repr)
def test_without_a_context_they_say_so(part: svq.Estimator) -> None:
    with pytest.raises(ValueError, match=f"`{type(part).__name__}`: `context` must be given"):
        part(ZERO, CODE)
