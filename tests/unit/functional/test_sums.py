import pytest
import torch
from tests.reference import naive

from straightvq.functional import code_sums
from straightvq.functional import sums as sums_module
from straightvq.functional.sums import add_compensated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "k", "d"), [(0, 3, 2), (1, 1, 1), (7, 3, 5), (203, 31, 3)])
def test_equals_the_naive_sums(n: int, k: int, d: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n + k)
    z, indices = torch.randn(n, d).to(dtype), torch.randint(-1, k, (n,))
    counts, sums = code_sums(z, indices, k)
    want_counts, want_sums = naive.code_sums(z.double().numpy(), indices.numpy(), k)
    assert counts.dtype == torch.int64
    assert sums.dtype == torch.promote_types(dtype, torch.float32)
    assert counts.tolist() == want_counts.tolist()
    torch.testing.assert_close(sums.double(), torch.from_numpy(want_sums), rtol=1e-5, atol=1e-5)


def test_all_masked_gives_zeros() -> None:
    counts, sums = code_sums(torch.ones(3, 2), torch.full((3,), -1), 4)
    assert counts.sum() == sums.abs().sum() == 0


def test_width_zero_counts_without_sums() -> None:
    counts, sums = code_sums(torch.empty(3, 0), torch.tensor([0, 2, 2]), 3)
    assert counts.tolist() == [1, 0, 2]
    assert sums.shape == (3, 0)


def test_counts_are_exact_beyond_the_integers_of_float32() -> None:
    n = 2**24 + 3
    counts, _ = code_sums(torch.empty(n, 0, dtype=torch.float16), torch.zeros(n, dtype=torch.int32), 2)
    assert counts.tolist() == [n, 0]


@pytest.mark.parametrize("num_codes", [1, 3, 5000])
def test_the_error_of_a_sum_does_not_grow_with_the_number_of_vectors(num_codes: int) -> None:
    # Added one after another in float32, 0.1 is off by 1e-4 of the sum after 10^5 times, and by a tenth after 10^7.
    errors = {}
    for n in (100_000, 3_000_000):
        z = torch.tensor([[0.1, 1.0]]).expand(n, 2)
        _, sums = code_sums(z, torch.zeros(n, dtype=torch.int64), num_codes)
        errors[n] = (sums[0].double() / (n * z[0].double()) - 1).abs().max().item()
    assert max(errors.values()) < (1e-4 if num_codes == 5000 else 2e-5)
    assert errors[3_000_000] <= 2 * errors[100_000] + 1e-7


@pytest.mark.parametrize("numbers", [1, 1 << 24])
@pytest.mark.parametrize(("n", "k"), [(5000, 3), (5000, 1500), (4097, 1), (1025, 2)])
def test_parts_of_the_vectors_add_up(n: int, k: int, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_module, "_NUMBERS", numbers)
    z, indices = torch.randn(n, 3, dtype=torch.float64), torch.randint(-1, k, (n,))
    counts, sums = code_sums(z, indices, k)
    want_counts, want_sums = naive.code_sums(z.numpy(), indices.numpy(), k)
    assert counts.tolist() == want_counts.tolist()
    torch.testing.assert_close(sums, torch.from_numpy(want_sums))


def test_memory_beside_the_vectors_is_no_larger_than_they_are() -> None:
    z, indices = torch.randn(100_000, 64), torch.randint(2000, (100_000,))
    with torch.profiler.profile(profile_memory=True) as profile:
        code_sums(z, indices, 2000)
    assert max(abs(event.cpu_memory_usage) for event in profile.events()) < 1.1 * 4 * z.numel()


def test_compensated_sums_keep_what_rounding_takes() -> None:
    parts = torch.full((20_000,), 0.1)
    total = lost = torch.tensor(0.0)
    for part in parts:
        total, lost = add_compensated(total, lost, part)
    exact = parts.double().sum()
    assert abs(total.double() + lost.double() - exact) <= 1e-7 * abs(exact)
    assert abs(total.double() - exact) > 1e-7 * abs(exact), "there must be something to take"
