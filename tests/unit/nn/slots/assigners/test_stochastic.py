import pytest
import torch

import straightvq as svq
from straightvq.testing.ranks import Ranks


def layer(**slots: svq.Assigner | svq.Estimator) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    return svq.VectorQuantizer(4, svq.Codebook(8), **{"assigner": svq.Stochastic(4.0), **slots})


def test_training_draws_anew_at_every_step_and_evaluation_takes_the_nearest() -> None:
    quantizer, z = layer(), torch.randn(200, 4)
    nearest = svq.functional.nearest_code(z, quantizer.codes())
    first, second = quantizer(z).indices, quantizer(z).indices
    assert not torch.equal(first, second)
    assert not torch.equal(first, nearest)
    assert torch.equal(quantizer.encode(z), nearest)
    assert torch.equal(quantizer.eval()(z).indices, nearest)


def test_low_temperatures_leave_the_nearest_code() -> None:
    quantizer, z = layer(), torch.randn(200, 4)
    quantizer.assigner.temperature = 1e-6
    assert torch.equal(quantizer(z).indices, quantizer.encode(z))


def test_masked_vectors_draw_nothing() -> None:
    z, mask = torch.randn(90, 4), torch.arange(90) % 3 != 0
    assert torch.equal(layer()(z, mask).indices[mask], layer()(z[mask]).indices)


def test_ranks_draw_what_one_process_draws() -> None:
    z = torch.randn(90, 4)
    cuts = (slice(0, 60), slice(60, 90))
    quantizers = [layer() for _ in range(2)]
    parts = Ranks(2).run(lambda rank: quantizers[rank](z[cuts[rank]]).indices)
    assert torch.equal(torch.cat(parts), layer()(z).indices)


@pytest.mark.parametrize("estimator", [svq.Gumbel, svq.ReinMax])
@pytest.mark.parametrize("assigner", [svq.Nearest, svq.Sinkhorn])  # the temperature of the latter is another one
def test_estimators_of_a_draw_are_refused_where_nothing_is_drawn(
    assigner: type[svq.Assigner], estimator: type[svq.Estimator]
) -> None:
    expected = f"{estimator.__name__} is the gradient of a code that was drawn, and {assigner.__name__} draws none"
    with pytest.raises(ValueError, match=expected):
        layer(assigner=assigner(), estimator=estimator())


def test_the_rotation_trick_is_refused_for_codes_that_are_drawn() -> None:
    with pytest.raises(ValueError, match=r"RotationTrick diverges on codes that are drawn, as Stochastic.*Use Nearest"):
        layer(estimator=svq.RotationTrick())


def test_the_rotation_trick_is_refused_over_levels_that_draw() -> None:
    with pytest.raises(
        ValueError, match=r"RotationTrick diverges on codes that are drawn, as Stochastic of the levels"
    ):
        svq.ResidualQuantizer(4, [layer(), layer()], estimator=svq.RotationTrick())
    svq.ResidualQuantizer(4, [svq.presets.ema(4, 8)], estimator=svq.RotationTrick())


def test_a_refused_construction_leaves_its_parts_free() -> None:
    codebook, transform = svq.Codebook(8), svq.Projection(2)
    with pytest.raises(ValueError, match="RotationTrick"):
        svq.VectorQuantizer(4, codebook, transform=transform, assigner=svq.Stochastic(), estimator=svq.RotationTrick())
    svq.VectorQuantizer(4, codebook, transform=transform)
