import pytest
import torch
from tests.reference import naive

from straightvq.functional import code_sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "k", "d"), [(0, 3, 2), (1, 1, 1), (7, 3, 5), (203, 31, 3)])
def test_equals_the_naive_sums(n: int, k: int, d: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n + k)
    z, indices = torch.randn(n, d).to(dtype), torch.randint(-1, k, (n,))
    counts, sums = code_sums(z, indices, k)
    want_counts, want_sums = naive.code_sums(z.double().numpy(), indices.numpy(), k)
    assert counts.dtype == sums.dtype == torch.promote_types(dtype, torch.float32)
    assert counts.tolist() == want_counts.tolist()
    torch.testing.assert_close(sums.double(), torch.from_numpy(want_sums), rtol=1e-5, atol=1e-5)


def test_counts_stay_exact_beyond_the_integers_of_float16() -> None:
    counts, _ = code_sums(torch.ones(5000, 1, dtype=torch.float16), torch.zeros(5000, dtype=torch.int64), 2)
    assert counts.tolist() == [5000.0, 0.0]


def test_all_masked_gives_zeros() -> None:
    counts, sums = code_sums(torch.ones(3, 2), torch.full((3,), -1), 4)
    assert counts.sum() == sums.abs().sum() == 0


def test_width_zero_counts_without_sums() -> None:
    counts, sums = code_sums(torch.empty(3, 0), torch.tensor([0, 2, 2]), 3)
    assert counts.tolist() == [1.0, 0.0, 2.0]
    assert sums.shape == (3, 0)
