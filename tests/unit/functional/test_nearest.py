import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.reference import naive
from torch import Tensor

from straightvq.functional import certain, knn, nearest_code, tiles
from straightvq.functional import nearest as module

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
FAISS = pytest.param("faiss", marks=needs_faiss)
SIZES = [(1, 1, 1), (1, 7, 3), (5, 1, 4), (17, 3, 1), (33, 29, 5), (101, 65, 13)]


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
    z, codes = torch.randn(203, 7), torch.randn(161, 7)
    whole = nearest_code(z, codes, backend="tiled")
    assert torch.equal(whole, torch.cdist(z.double(), codes.double()).argmin(1))
    monkeypatch.setattr(tiles, "_TILE_CODES", 64)
    monkeypatch.setattr(tiles, "_TILE", 64 * 13)
    assert torch.equal(nearest_code(z, codes, backend="tiled"), whole)


@pytest.mark.parametrize("num_codes", [1, 31, 32, 33, 63, 64, 65, 130, 1025])
def test_any_number_of_codes_fills_its_blocks(num_codes: int) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(40, 3), torch.randn(num_codes, 3)
    assert torch.equal(nearest_code(z, codes, backend="tiled"), torch.cdist(z.double(), codes.double()).argmin(1))


def test_equal_distances_in_different_blocks_go_to_the_lowest_index() -> None:
    codes = torch.full((100, 1), 9.0)
    codes[[70, 35, 90]] = torch.tensor([[1.0], [-1.0], [1.0]])
    codes = torch.cat([codes, -codes])  # the mean is exactly 0, so nothing is rounded
    assert nearest_code(torch.zeros(1, 1), codes, backend="tiled").tolist() == [35]


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


@pytest.mark.parametrize("num_codes", [40, 64, 200])
def test_best_and_next_are_the_two_smallest_values_of_all_tiles(
    num_codes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_TILE_CODES", 64)
    monkeypatch.setattr(tiles, "_TILE", 64 * 13)
    torch.manual_seed(0)
    z, codes = torch.randn(50, 5, dtype=torch.float64), torch.randn(num_codes, 5, dtype=torch.float64)
    operands = tiles.padded(codes, codes.square().sum(1) / 2)
    values, places = (codes.square().sum(1) / 2 - z @ codes.T).sort(1)
    best, following = tiles.best_and_next(z, *operands)
    assert torch.equal(best, places[:, :1])
    torch.testing.assert_close(following, values[:, 1])
    few, last = tiles.best_few(z, *operands, 5)
    assert torch.equal(few.sort(1).values, places[:, :5].sort(1).values)
    torch.testing.assert_close(last, values[:, 4])


def test_ties_across_tiles_go_to_the_lowest_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_TILE_CODES", 64)
    torch.manual_seed(0)
    codes = torch.randn(8, 5)
    assert (nearest_code(torch.randn(100, 5), codes.repeat(29, 1), backend="tiled") < 8).all()


def test_empty_batch_gives_no_indices() -> None:
    assert torch.equal(nearest_code(torch.empty(0, 3), torch.randn(4, 3)), torch.empty(0, dtype=torch.int64))


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


@needs_faiss
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 5, 3), (63, 100, 65), (501, 257, 8), (0, 4, 3)])
def test_faiss_and_torch_give_the_same_indices_beyond_rounding(n: int, k: int, d: int, distance: str) -> None:
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


@needs_faiss
@pytest.mark.parametrize("half", [33, 64, 100])  # where rows do not fill FAISS's blocks it takes the later twin itself
def test_faiss_gives_duplicates_the_lowest_index(half: int) -> None:
    codes = torch.randn(half, 7).repeat(2, 1)
    assert (nearest_code(torch.randn(5000, 7), codes, backend="faiss") < half).all()


@needs_faiss
def test_faiss_by_name_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="'faiss' needs the package faiss-cpu and float32 on the CPU"):
        nearest_code(torch.randn(3, 2).double(), torch.randn(4, 2).double(), backend="faiss")


def test_without_faiss_the_search_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    z, codes = torch.randn(50, 4), torch.randn(9, 4)
    wanted = nearest_code(z, codes, backend="tiled")
    monkeypatch.setattr(knn, "_faiss", lambda: None)
    assert torch.equal(nearest_code(z, codes), wanted)


# --- how near the nearest is: geometry in which products lose it ------------------------------------------------------


GEOMETRY = ["far code", "many far codes", "code beyond squares", "clusters", "tight clusters", "offset", "tiny",
            "large dimension", "on the codes", "cone"]  # fmt: skip


def make(geometry: str, d: int) -> tuple[Tensor, Tensor]:
    """Vectors (5000, d) and codes (300, d)."""
    torch.manual_seed(d)
    z, codes = torch.randn(5000, d), torch.randn(300, d)
    match geometry:
        case "far code":
            codes[17] = 1e5
        case "many far codes":
            codes[::3] *= 1e5
        case "code beyond squares":
            z, codes[17], codes[80] = 1e3 * z, 1e25, -3e38
        case "clusters":
            z, codes = (x + 300 * (1 - 2 * torch.randint(2, (len(x), 1))) for x in (z, codes))
        case "tight clusters":
            z, codes = (1e-3 * x + 300 * (1 - 2 * torch.randint(2, (len(x), 1))) for x in (z, codes))
        case "offset":
            z, codes = z + 1e4, codes + 1e4
        case "tiny":
            z, codes = 1e-12 * z, 1e-12 * codes
        case "large dimension":
            z[:, 0] *= 1e3
        case "on the codes":
            codes = 1e3 * codes
            z = codes[torch.randint(300, (5000,))] + 1e-3 * z
        case "cone":
            axis = 100 * torch.randn(d)
            z, codes = (axis + 0.1 * z) * torch.rand(5000, 1), axis + 0.1 * codes
    return z, codes


# What is promised of each search: the part of the smaller squared distance by which a better code may be missed.
SEARCHES = {"tiled": 2.0**-18, "faiss": 2.0**-12, "few": 2.0**-18, "graph": 2.0**-18}


def run(search: str, z: Tensor, codes: Tensor, distance: str = "euclidean") -> Tensor:
    """By back end, or as on an accelerator, or as in an exported graph."""
    if search == "few":
        return module._search_among_few(z, codes, distance, "tiled")
    if search == "graph":
        return module._search_in_graph(z, codes, distance)
    if search == "two":  # vectors at a time
        return torch.cat([nearest_code(pair, codes, distance=distance) for pair in z.split(2)])
    return nearest_code(z, codes, distance=distance, backend=search)


def excess(z: Tensor, codes: Tensor, indices: Tensor, distance: str = "euclidean") -> Tensor:
    """By how much of the smallest squared distance the found code is farther, in float64."""
    z, codes = z.double(), codes.double()
    if distance == "cosine":
        z, codes = (x / x.norm(dim=1, keepdim=True) for x in (z, codes))
    squares = torch.cdist(z, codes, compute_mode="donot_use_mm_for_euclid_dist").square()
    least = squares.amin(1)
    # Chords are those of unit vectors that are themselves rounded, to 1e-16.
    return (squares.gather(1, indices[:, None])[:, 0] - least) / least.clamp(
        min=1e-300 if distance == "euclidean" else 1e-20
    )


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("backend", ["tiled", FAISS])
@pytest.mark.parametrize("d", [2, 16, 100])
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_the_nearest_code_is_found_in_any_geometry(geometry: str, d: int, backend: str, distance: str) -> None:
    z, codes = make(geometry, d)
    indices = run(backend, z, codes, distance)
    promised = SEARCHES[backend] if distance == "euclidean" else 2.0**-12
    assert excess(z, codes, indices, distance).max() <= promised


@pytest.mark.parametrize("search", ["few", "graph"])
@pytest.mark.parametrize("d", [2, 16, 100])
@pytest.mark.parametrize(
    "geometry", ["far code", "many far codes", "code beyond squares", "offset", "tiny", "on the codes"]
)
def test_a_few_candidates_hold_the_nearest_code_where_few_are_within_rounding(
    geometry: str, d: int, search: str
) -> None:
    z, codes = make(geometry, d)
    assert excess(z, codes, run(search, z, codes)).max() <= SEARCHES[search]


@pytest.mark.parametrize("search", ["tiled", FAISS, "few", "graph"])
def test_one_far_code_changes_nothing_for_the_others_by_hand(search: str) -> None:
    # 0.9 is nearer to 1 than to 0. Relative to the mean, 3333, float32 cannot say so.
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e4, 0.0]])
    z = torch.tensor([[0.9, 0.0]])
    for n in (1, 5):
        assert run(search, z.repeat(n, 1), codes).tolist() == [1] * n


@pytest.mark.parametrize("search", ["tiled", FAISS])
def test_float64_agrees_where_float32_has_digits_left(search: str) -> None:
    for geometry in GEOMETRY:
        z, codes = make(geometry, 16)
        got, want = run(search, z, codes), nearest_code(z.double(), codes.double())
        assert excess(z, codes, want).max() <= 1e-9
        differ = got != want
        assert excess(z, codes, got)[differ].numel() == 0 or excess(z, codes, got)[differ].max() <= SEARCHES[search]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("search", ["tiled", FAISS, "few", "graph", "two"])
@pytest.mark.parametrize(("repeats", "d"), [(2, 7), (3, 40), (50, 7)])
def test_of_equal_codes_the_first_is_found(search: str, repeats: int, d: int, distance: str) -> None:
    if search == "graph" and repeats > module._FEW:
        pytest.skip("more copies than candidates")
    torch.manual_seed(0)
    codes = torch.randn(40, d) + 100 * (torch.arange(40)[:, None] % 2)
    table = codes.repeat(repeats, 1)
    z = codes[torch.randint(40, (5000,))] + torch.randn(5000, d)
    assert (run(search, z[:40] if search == "two" else z, table, distance) < 40).all()


@pytest.mark.parametrize("search", ["tiled", FAISS])
def test_a_table_of_one_code_many_times_gives_its_first_place(search: str) -> None:
    assert (run(search, torch.randn(5000, 8), torch.randn(1, 8).repeat(999, 1)) == 0).all()


@pytest.mark.parametrize("search", ["tiled", "two", "few"])  # FAISS proposes one code, of those that tie any
def test_exact_ties_of_different_codes_go_to_the_lowest_index(search: str) -> None:
    # Integer points and integer codes: float32 is exact, and many codes are as near as each other.
    torch.manual_seed(0)
    z, codes = torch.randint(-2, 3, (600, 3)).float(), torch.randint(-3, 4, (150, 3)).float()
    squares = (z[:, None] - codes).square().sum(2)
    want = torch.where(squares == squares.amin(1, keepdim=True), torch.arange(150), 150).amin(1)
    if search == "few":
        assert torch.equal(squares.gather(1, run(search, z, codes)[:, None])[:, 0], squares.amin(1))
    else:
        assert torch.equal(run(search, z, codes), want)


@pytest.mark.parametrize("n", [1, 50, 5000])
def test_a_code_of_length_0_is_at_a_right_angle_and_a_vector_of_length_0_at_the_first_code(n: int) -> None:
    # (-1, 1) is at more than 90 degrees from both others, and (0.2, 1) at less from one, if not much.
    codes = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]])
    z = torch.tensor([[-1.0, 1.0], [0.2, 1.0], [2.0, 1.0], [0.0, 0.0], [1e-30, 0.0], [1e25, -1e26]])
    want = [1, 0, 0, 0, 0, 2]
    assert torch.cat([nearest_code(row.repeat(n, 1), codes, distance="cosine")[:1] for row in z]).tolist() == want
    for search in ("few", "graph"):
        assert run(search, z[:3].repeat(n, 1), codes, "cosine")[:3].tolist() == want[:3]


def test_a_vector_beyond_squares_is_searched_in_float64() -> None:
    z = torch.tensor([[3e20, 0.0], [-1e20, 1e20], [0.0, 0.0]])
    codes = torch.tensor([[0.0, 0.0], [-1e20, 2e20], [1e20, 0.0]])
    for backend in ("auto", "tiled"):
        assert nearest_code(z, codes, backend=backend).tolist() == [2, 1, 0]


@pytest.mark.parametrize("n", [1, 3, 5000])
def test_values_that_are_no_numbers_give_an_index_in_range_and_spoil_no_other(n: int) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(n + 2, 5), torch.randn(70, 5)
    good = nearest_code(z[2:], codes)
    z[0], z[1] = torch.nan, torch.inf
    got = nearest_code(z, codes)
    assert torch.equal(got[2:], good)
    assert ((got >= 0) & (got < 70)).all()


# --- settings of the program ------------------------------------------------------------------------------------------

# In a process of its own: torch does not go back from the newer ways to the older ones.
WITH_SETTINGS = """
import threading, torch, torch.backends
from straightvq.functional import kmeans, nearest, nearest_code

SETTINGS = [
    ("torch.backends.cuda.matmul.allow_tf32 = True", "torch.backends.cuda.matmul.allow_tf32 = False"),
    ("torch.set_float32_matmul_precision('high')", ""),
    ("torch.set_float32_matmul_precision('medium')", ""),
    ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", ""),  # and the older way says 'medium'
    ("torch.set_float32_matmul_precision('highest'); torch.backends.cuda.matmul.fp32_precision = 'tf32'", ""),
    ("torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "torch.backends.mkldnn.matmul.fp32_precision = 'none'"),
    ("torch.backends.mkldnn.fp32_precision = 'bf16'", "torch.backends.mkldnn.fp32_precision = 'none'"),
    ("torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'none'", ""),
]
NAMES = ["torch.backends.fp32_precision", "torch.backends.cuda.matmul.fp32_precision",
         "torch.backends.cuda.matmul.allow_tf32", "torch.get_float32_matmul_precision()",
         "torch.backends.mkldnn.fp32_precision", "torch.backends.mkldnn.matmul.fp32_precision"]
SETTERS = ["_set_fp32_precision_setter", "_set_cublas_allow_tf32", "_set_float32_matmul_precision",
           "_set_onednn_allow_tf32"]
setters = {name: getattr(torch._C, name) for name in SETTERS}

def read():
    found = []
    for name in NAMES:
        try:
            found.append(eval(name))
        except RuntimeError:
            found.append("raises")
    return found

def refuse(*_):
    raise AssertionError("the search changed a setting")

addmm = torch.addmm
def lowered(bias, a, b, **rest):  # what a device with such products does with them
    if a.dtype == torch.float32 and reduced:
        a, b = a.bfloat16().float(), b.bfloat16().float()
    return addmm(bias, a, b, **rest)
torch.addmm = lowered

# Two clusters: rounded to bfloat16, products hide the nearest of each.
z, codes = (torch.randn(n, 40) + 10 * (1 - 2 * torch.randint(2, (n, 1))) for n in (2000, 100))
want = torch.cdist(z.double(), codes.double()).argmin(1)

def search():
    found = [nearest._search_among_few(z, codes, "euclidean", "tiled")]
    if device == "cpu":
        found.append(nearest_code(z, codes))
    wrong.extend(float((one != want).double().mean()) for one in found if not torch.equal(one, want))

for setting, back in SETTINGS:
    exec(setting)
    before = read()
    for name in SETTERS:
        setattr(torch._C, name, refuse)
    # The CPU's products are lowered only by oneDNN's setting, and others' by either.
    reduced, wrong = True, []
    device = "cpu" if torch.backends.mkldnn.matmul.fp32_precision in ("tf32", "bf16") else "cuda"
    nearest.products_are_lowered = lambda _, ask=nearest.products_are_lowered: ask(torch.device("cuda"))
    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert read() == before, f"{setting}: seen by another thread while searches run"
    assert not wrong, f"{setting}: {wrong} of the indices are wrong"
    reduced = False
    kmeans(z[:200], 20, iterations=2, generator=torch.Generator().manual_seed(0))
    assert read() == before, setting
    for name in SETTERS:
        setattr(torch._C, name, setters[name])
    exec(back)
"""


def test_no_setting_is_touched_and_none_costs_precision() -> None:
    done = subprocess.run([sys.executable, "-c", WITH_SETTINGS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_setting_that_changes_during_the_search_starts_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two clusters: rounded to bfloat16, products hide the nearest of each.
    z, codes = (torch.randn(n, 40) + 30 * (1 - 2 * torch.randint(2, (n, 1))) for n in (500, 200))
    want = torch.cdist(z.double(), codes.double()).argmin(1)
    addmm = torch.addmm

    def lowered(bias: Tensor, a: Tensor, b: Tensor, **rest: Any) -> Tensor:
        answers[:] = [True]
        if a.dtype == torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return addmm(bias, a, b, **rest)

    monkeypatch.setattr(torch, "addmm", lowered)
    for place in (module, certain):
        monkeypatch.setattr(place, "products_are_lowered", lambda device: answers[0])
    for search in ("tiled", "few"):
        answers = [False]
        assert torch.equal(run(search, z, codes), want)


def test_faiss_takes_torchs_number_of_threads_and_leaves_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    taken = []
    search = faiss.knn
    monkeypatch.setattr(faiss, "knn", lambda *args: (taken.append(faiss.omp_get_max_threads()), search(*args))[1])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # of its own where the two share a runtime
    before = faiss.omp_get_max_threads()
    nearest_code(torch.randn(5000, 8), torch.randn(20, 8), backend="faiss")
    assert taken == [3]
    assert faiss.omp_get_max_threads() == before != 3


def test_one_vector_makes_no_copy_of_the_codes() -> None:
    z, codes = torch.randn(1, 64), torch.randn(20_000, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        nearest_code(z, codes)
    assert max(abs(event.cpu_memory_usage) for event in profile.events()) < 200_000, "a copy would take 5 MB"
