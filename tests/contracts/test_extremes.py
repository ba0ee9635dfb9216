"""Values at the edge, and beyond: nothing overflows silently, and `decode` takes whatever integers come."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import straightvq as svq
from tests.contracts.cases import CASES, DIM, SIZE, every

fuzzed = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def make(case: str, steps: int = 2) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    layer = CASES[case]()
    for _ in range(steps):
        layer(torch.randn(80, DIM))
    return layer


def state(layer: svq.VectorQuantizer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def same(layer: svq.VectorQuantizer, before: dict[str, Tensor]) -> bool:
    after = layer.state_dict()
    return list(before) == list(after) and all(torch.equal(value, after[name]) for name, value in before.items())


# --- overflow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@every("case", CASES)
def test_values_whose_squares_overflow_are_refused_and_change_nothing(case: str, dtype: torch.dtype) -> None:
    layer = make(case)
    before = state(layer)
    size = 1e160 if dtype == torch.float64 else 1e38
    z = torch.randn(16, DIM, dtype=dtype)
    z[3, 2] = -size
    message = r"`z` must be at most .* in size.* Got 1 of 96 values beyond, the largest 1"
    for mode in (True, False):
        layer.train(mode)
        with pytest.raises(ValueError, match=message):
            layer(z)
        with pytest.raises(ValueError, match=message):
            layer.encode(z)
    assert same(layer, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every("case", CASES)
def test_the_largest_values_that_are_taken_overflow_nowhere(case: str, dtype: torch.dtype) -> None:
    layer = make(case)
    generator = torch.Generator().manual_seed(1)
    size = 2e4 if dtype == torch.float16 else 2.5e14  # a code outside of the data may have no number in float16
    for scale in (1.0, size, 1.0, size):
        z = (torch.rand(80, DIM, generator=generator) * 2 - 1).mul(scale).to(dtype).requires_grad_()
        out = layer(z)
        assert out.loss.isfinite()
        assert all(term.isfinite() for term in out.terms.values())
        assert out.quantized.isfinite().all()
        out.loss.backward()
        assert all(value.isfinite().all() for value in layer.state_dict().values())


@every("case", CASES)
def test_the_same_vector_many_times_and_tiny_ones_keep_the_state_finite(case: str) -> None:
    """No spread, then none that float32 can square: variances and weights near zero must not divide by it."""
    layer = make(case)
    for z in (torch.full((80, DIM), 3.0), torch.zeros(80, DIM), torch.full((80, DIM), 1e-30), torch.randn(80, DIM)):
        out = layer(z)
        assert out.quantized.isfinite().all()
        assert out.loss.isfinite()
        assert all(value.isfinite().all() for value in layer.state_dict().values())


def test_an_average_outlives_a_code_that_is_idle_for_ever() -> None:
    """The weight of an unused code decays until float32 has no number for it; the code and its next step stay sound."""
    layer = svq.VectorQuantizer(1, svq.Codebook(2, update=svq.EMAUpdate(0.5)))
    layer.codebook.set_codes(torch.tensor([[0.0], [10.0]]))
    layer(torch.zeros(4, 1))
    for _ in range(200):
        layer(torch.zeros(4, 1))
    assert layer.codes().tolist() == [[0.0], [10.0]]
    layer(torch.full((4, 1), 9.0))
    assert layer.codes()[1].item() == 9.0


# --- indices ----------------------------------------------------------------------------------------------------------


@every("case", CASES)
def test_decode_takes_or_refuses_any_integers(case: str) -> None:
    layer = make(case).eval()
    before = state(layer)

    @fuzzed
    @given(st.data())
    def check(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(INTEGERS))
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        inside = st.integers(max(-1, least), SIZE - 1)
        values = data.draw(st.lists(st.one_of(inside, inside, inside, st.integers(least, most)), max_size=6))
        indices = torch.tensor(values, dtype=dtype)
        if all(-1 <= value < SIZE for value in values):
            vectors = layer.decode(indices)
            assert vectors.shape == (len(values), DIM)
            assert vectors.isfinite().all()
            assert all(not vectors[place].any() for place, value in enumerate(values) if value == -1)
        else:
            with pytest.raises(ValueError, match=r"`indices` must be in \[0, 16\)"):
                layer.decode(indices)

    check()
    assert same(layer, before)
