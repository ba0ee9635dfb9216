import pytest
import torch
from tests.reference import naive

from straightvq.functional import nearest as module
from straightvq.functional import nearest_code

SIZES = [(1, 1, 1), (1, 7, 3), (5, 1, 4), (17, 3, 1), (33, 29, 5), (101, 65, 13)]


def test_assignment_by_hand() -> None:
    # Distances of (0,0): 1 and sqrt 18; of (3,1): sqrt 5 and 2.
    z = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    assert nearest_code(z, torch.tensor([[1.0, 0.0], [3.0, 3.0]])).tolist() == [0, 1]


def test_cosine_ignores_lengths_by_hand() -> None:
    # By distance (1,2) belongs to (1,0); by angle to (0,9).
    codes = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    z = torch.tensor([[1.0, 2.0], [100.0, 1.0]])
    assert nearest_code(z, codes, distance="cosine").tolist() == [1, 0]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k", "d"), SIZES)
def test_equals_the_naive_search(n: int, k: int, d: int, dtype: torch.dtype, distance: str) -> None:
    torch.manual_seed(n * k + d)
    z, codes = torch.randn(n, d).to(dtype), torch.randn(k, d).to(dtype)
    got = nearest_code(z, codes, distance=distance)
    want = torch.from_numpy(naive.nearest_code(z.double().numpy(), codes.double().numpy(), distance))
    assert got.dtype == torch.int64
    if dtype != torch.float64:
        # Half-precision inputs may tie exactly up to float32 rounding; then the distances must agree.
        same = got == want
        z, codes = z.double(), codes.double()
        if distance == "cosine":
            codes = torch.nn.functional.normalize(codes, dim=1)
            value = [-(z * codes[i]).sum(1) for i in (got, want)]
        else:
            value = [(z - codes[i]).square().sum(1) for i in (got, want)]
        assert (same | (value[0] - value[1] < 1e-5)).all()
    else:
        assert torch.equal(got, want)


def test_tiles_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(203, 7), torch.randn(61, 7)
    whole = nearest_code(z, codes, backend="tiled")
    assert torch.equal(whole, torch.cdist(z.double(), codes.double()).argmin(1))
    monkeypatch.setattr(module, "_TILE_CODES", 32)
    monkeypatch.setattr(module, "_TILE", 32 * 13)
    assert torch.equal(nearest_code(z, codes, backend="tiled"), whole)


@pytest.mark.parametrize("num_codes", [1, 31, 32, 33, 63, 65, 1025])
def test_any_number_of_codes_fills_its_blocks(num_codes: int) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(40, 3), torch.randn(num_codes, 3)
    assert torch.equal(nearest_code(z, codes, backend="tiled"), torch.cdist(z.double(), codes.double()).argmin(1))


def test_equal_distances_in_different_blocks_go_to_the_lowest_index() -> None:
    codes = torch.full((100, 1), 9.0)
    codes[[70, 35, 90]] = torch.tensor([[1.0], [-1.0], [1.0]])
    codes = torch.cat([codes, -codes])  # the mean is exactly 0, so nothing is rounded
    assert nearest_code(torch.zeros(1, 1), codes, backend="tiled").tolist() == [35]


@pytest.mark.parametrize("backend", ["tiled", "faiss"])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0, 10000.0])
def test_far_from_the_origin_float32_equals_float64(offset: float, backend: str) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss")
    torch.manual_seed(0)
    z, codes = torch.randn(20_000, 16) + offset, torch.randn(512, 16) + offset
    exact = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert (nearest_code(z, codes, backend=backend) == exact).double().mean() >= 0.9999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_lowest_index(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    late = []
    for half in (1, 2, 3, 4, 5, 9, 17, 33, 65):
        for d in (1, 2, 3, 5, 7, 16, 33):
            codes = torch.randn(half, d, dtype=dtype)
            twice = torch.cat([codes, codes[torch.randperm(half)]])
            for n in (1, 3, 17, 301):
                if (nearest_code(torch.randn(n, d, dtype=dtype), twice, backend="tiled") >= half).any():
                    late.append((n, 2 * half, d))
    assert not late, f"(n, k, d) where a duplicate with a higher index won: {late}"


def test_ties_across_tiles_go_to_the_lowest_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE_CODES", 32)
    torch.manual_seed(0)
    codes = torch.randn(8, 5)
    assert (nearest_code(torch.randn(100, 5), codes.repeat(9, 1), backend="tiled") < 8).all()


def test_other_vectors_in_the_batch_change_nothing() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(67, 9), torch.randn(50, 9)
    alone = torch.cat([nearest_code(row[None], codes) for row in z])
    assert torch.equal(nearest_code(z, codes), alone)


def test_empty_batch_gives_no_indices() -> None:
    out = nearest_code(torch.empty(0, 3), torch.randn(4, 3))
    assert out.shape == (0,)
    assert out.dtype == torch.int64


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_autocast_does_not_change_the_answer(distance: str) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(500, 16) + 20, torch.randn(300, 16) + 20
    plain = nearest_code(z, codes, distance=distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_code(z, codes, distance=distance), plain)


def test_no_gradient_and_no_change_of_the_arguments() -> None:
    z, codes = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    before = z.detach().clone(), codes.detach().clone()
    assert not nearest_code(z, codes).requires_grad
    assert torch.equal(z, before[0])
    assert torch.equal(codes, before[1])


def test_search_restores_the_programs_matmul_setting() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    nearest_code(torch.randn(3, 2), torch.randn(4, 2))
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 5, 3), (63, 100, 65), (501, 257, 8), (0, 4, 3)])
def test_faiss_and_torch_give_the_same_indices_beyond_rounding(n: int, k: int, d: int, distance: str) -> None:
    pytest.importorskip("faiss")
    z, codes = 20 + torch.randn(n, d), 20 + torch.randn(k, d)
    tiled = nearest_code(z, codes, distance=distance, backend="tiled")
    faiss = nearest_code(z, codes, distance=distance, backend="faiss")
    assert faiss.dtype == torch.int64
    exact = codes.double() if distance == "euclidean" else torch.nn.functional.normalize(codes.double(), dim=1)

    def error(indices: torch.Tensor) -> torch.Tensor:
        chosen = exact[indices]
        if distance == "cosine":
            return -(z.double() * chosen).sum(1)
        return (z.double() - chosen).square().sum(1)

    torch.testing.assert_close(error(faiss), error(tiled), rtol=1e-5, atol=1e-4)
    assert (faiss == tiled).sum() >= 0.99 * n


@pytest.mark.parametrize("half", [33, 64, 100])  # where rows do not fill FAISS's blocks it takes the later twin itself
def test_faiss_gives_duplicates_the_lowest_index(half: int) -> None:
    pytest.importorskip("faiss")
    codes = torch.randn(half, 7).repeat(2, 1)
    assert (nearest_code(torch.randn(5000, 7), codes, backend="faiss") < half).all()


def test_faiss_by_name_refuses_what_it_cannot_do() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="'faiss' needs the package faiss-cpu and float32 on the CPU"):
        nearest_code(torch.randn(3, 2).double(), torch.randn(4, 2).double(), backend="faiss")


def test_without_faiss_the_search_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    z, codes = torch.randn(50, 4), torch.randn(9, 4)
    wanted = nearest_code(z, codes, backend="tiled")
    monkeypatch.setattr(module, "_faiss", lambda: None)
    assert torch.equal(nearest_code(z, codes), wanted)
