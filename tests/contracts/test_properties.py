"""The laws on inputs that hypothesis makes up, the same ones every time: shapes, dtypes, strides, scales, masks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import straightvq as svq
from straightvq.testing.laws.bad_input import assert_refused
from straightvq.testing.laws.evaluation import assert_evaluation_is_pure
from straightvq.testing.laws.masks import assert_masked_take_part_in_nothing, assert_no_vectors_change_nothing
from straightvq.testing.laws.round_trip import assert_round_trip
from straightvq.testing.subject import Subject
from tests.contracts.cases import CASES, DIM, EXCEPTIONS, SIZE


def examples(number: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@functools.cache
def subject(name: str) -> Subject:
    return Subject(CASES[name])


def layer_of(name: str, steps: int) -> svq.VectorQuantizer:
    layer = subject(name).trained(steps) if steps else subject(name).made()
    assert isinstance(layer, svq.VectorQuantizer)
    return layer


@dataclass(frozen=True)
class Batch:
    """An input that hypothesis chose, as few numbers as its failure report should show."""

    seed: int
    batch: tuple[int, ...]
    channel_dim: int
    dtype: torch.dtype
    kind: str
    scale: float
    mean: float
    strides: str
    mask: str

    def values(self) -> Tensor:
        """(*batch, DIM), float64."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (*self.batch, DIM)
        match self.kind:
            case "normal":
                z = torch.randn(shape, generator=generator, dtype=torch.float64)
            case "constant":
                z = torch.ones(shape, dtype=torch.float64)
            case "zeros":
                return torch.zeros(shape, dtype=torch.float64)
            case "duplicates":
                few = torch.randn(2, DIM, generator=generator, dtype=torch.float64)
                z = few[torch.randint(2, self.batch, generator=generator)]
            case _:
                z = torch.randn(shape, generator=generator, dtype=torch.float64)
                z[..., 1:] *= 1e-4  # nearly on a line
        return self.scale * (z + self.mean)

    def z(self) -> Tensor:
        limit = min(torch.finfo(self.dtype).max / 4, 1e14)  # beyond, the layer refuses: squares would overflow
        z = self.values().clamp(-limit, limit).to(self.dtype).movedim(-1, self.channel_dim)
        match self.strides:
            case "contiguous":
                return z.contiguous()
            case "transposed":
                return z.mT.contiguous().mT if z.ndim > 1 else z
            case "every other":
                return z.repeat_interleave(2, dim=0)[::2]
            case _:
                return z.flatten()[None].expand(3, -1)[1].view(z.shape)

    def valid(self) -> Tensor | None:
        match self.mask:
            case "none":
                return None
            case "all valid":
                return torch.ones(self.batch, dtype=torch.bool)
            case "all masked":
                return torch.zeros(self.batch, dtype=torch.bool)
        return torch.rand(self.batch, generator=torch.Generator().manual_seed(self.seed + 1)) < 0.6


dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


def batches(**fixed: Any) -> st.SearchStrategy[Batch]:
    sizes = st.one_of(
        st.tuples(st.sampled_from([0, 1, 2, 3, 7, 16, 31, 70])),
        st.tuples(st.integers(0, 3), st.integers(1, 9)),
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)),
    )
    choices: dict[str, st.SearchStrategy[Any]] = {
        "seed": st.integers(0, 10_000),
        "dtype": dtypes,
        "kind": st.sampled_from(["normal", "duplicates", "constant", "zeros", "line"]),
        "scale": st.sampled_from([1.0, 1e-3, 1e3, 1e-30, 1e12]),
        "mean": st.sampled_from([0.0, 3.0, -1e3, 1e4]),
        "strides": st.sampled_from(["contiguous", "transposed", "every other", "expanded"]),
        "mask": st.sampled_from(["none", "some", "all valid", "all masked"]),
    }

    @st.composite
    def build(draw: st.DrawFn) -> Batch:
        batch = draw(sizes)
        channel_dim = draw(st.sampled_from([-1, *range(len(batch) + 1)]))
        return Batch(batch=batch, channel_dim=channel_dim, **{k: draw(fixed.get(k, v)) for k, v in choices.items()})

    return build()


names = st.sampled_from(list(CASES))
steps = st.sampled_from([0, 6])


@examples(300)
@given(names, steps, batches())
def test_evaluation_is_pure_and_indices_carry_everything(name: str, steps: int, batch: Batch) -> None:
    layer = layer_of(name, steps)
    layer.channel_dim = batch.channel_dim
    z, mask = batch.z(), batch.valid()
    assert_round_trip(layer, z, mask)
    assert_evaluation_is_pure(layer, z, mask)
    out = layer.eval()(z, mask)
    valid = torch.ones(batch.batch, dtype=torch.bool) if mask is None else mask
    assert ((out.indices >= 0) == valid).all()
    assert (out.indices < SIZE).all()
    assert out.quantized.isfinite().all()
    assert out.loss.isfinite()


@examples(200)
@given(names, steps, batches(mask=st.just("some")))
def test_masked_values_take_part_in_nothing(name: str, steps: int, batch: Batch) -> None:
    first, second = layer_of(name, steps), layer_of(name, steps)
    first.channel_dim = second.channel_dim = batch.channel_dim
    mask = batch.valid()
    assert mask is not None
    assert_masked_take_part_in_nothing(first, second, batch.z(), mask)


@examples(100)
@given(names, steps, batches(mask=st.just("all masked")), st.booleans())
def test_batch_without_vectors_changes_nothing(name: str, steps: int, batch: Batch, training: bool) -> None:
    layer = layer_of(name, steps).train(training)
    layer.channel_dim = batch.channel_dim
    assert_no_vectors_change_nothing(layer, batch.z(), batch.valid())


@examples(200)
@given(names, steps, dtypes.flatmap(lambda dtype: st.lists(batches(dtype=st.just(dtype)), min_size=1, max_size=3)))
def test_training_on_anything_finite_leaves_a_finite_table(name: str, steps: int, found: list[Batch]) -> None:
    layer = layer_of(name, steps)
    for batch in found:
        layer.channel_dim = batch.channel_dim
        z = batch.z().requires_grad_()
        out = layer(z, batch.valid())
        assert out.quantized.isfinite().all()
        assert out.loss.isfinite()
        decoded = layer.decode(out.indices)
        is_code = "training_forward_returns_rows_of_the_table_it_leaves_behind" not in EXCEPTIONS.get(name, {})
        if is_code and torch.promote_types(z.dtype, decoded.dtype) == decoded.dtype:
            assert torch.equal(decoded.to(z.dtype), out.quantized)
    for entry, value in layer.state_dict().items():
        assert value.isfinite().all(), entry


@examples(150)
@given(names, st.data())
def test_decode_takes_indices_of_any_shape_and_integer_dtype(name: str, data: st.DataObject) -> None:
    layer = layer_of(name, 6)
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3).map(tuple))
    dtype = data.draw(st.sampled_from([torch.int64, torch.int32, torch.int16, torch.int8]))
    seed = data.draw(st.integers(0, 1000))
    indices = torch.randint(-1, SIZE, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    rows = layer.decode(indices)
    assert rows.shape == (*shape, DIM)
    assert rows.isfinite().all()
    assert (rows[indices < 0] == 0).all()
    table = layer.decode(torch.arange(SIZE))
    torch.testing.assert_close(rows[indices >= 0], table[indices[indices >= 0].long()], rtol=1e-6, atol=1e-6)


@examples(150)
@given(names, steps, batches(mask=st.just("all valid")), st.data())
def test_bad_input_is_refused_and_changes_nothing(name: str, steps: int, batch: Batch, data: st.DataObject) -> None:
    layer = layer_of(name, steps)
    layer.channel_dim = batch.channel_dim
    z, mask = batch.z(), batch.valid()
    assert mask is not None
    fault = data.draw(st.sampled_from(["value", "width", "dtype", "mask shape", "mask dtype", "index", "index dtype"]))
    match fault:
        case "value":
            if z.numel() == 0:
                return
            z = z.contiguous().clone()
            place = data.draw(st.integers(0, z.numel() - 1))
            z.view(-1)[place] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        case "width":
            z = torch.cat([z, z.narrow(batch.channel_dim, 0, 1)], batch.channel_dim)
        case "dtype":
            z = z.nan_to_num().clamp(-9, 9).to(data.draw(st.sampled_from([torch.int64, torch.uint8, torch.bool])))
        case "mask shape":
            mask = mask[None] if data.draw(st.booleans()) else mask[..., None]
        case "mask dtype":
            mask = mask.to(data.draw(st.sampled_from([torch.uint8, torch.float32])))
        case "index":
            wrong = data.draw(st.one_of(st.integers(SIZE, 1 << 40), st.integers(-(1 << 40), -2)))
            assert_refused(layer, lambda: layer.decode(torch.tensor([0, wrong])), f"index {wrong}")
            return
        case _:
            wrong_dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bool, torch.complex64]))
            assert_refused(layer, lambda: layer.decode(torch.zeros(2, dtype=wrong_dtype)), f"indices in {wrong_dtype}")
            return
    training = data.draw(st.booleans())
    assert_refused(layer.train(training), lambda: layer(z, mask), f"a wrong {fault} in `forward`")
    assert_refused(layer, lambda: layer.encode(z, mask), f"a wrong {fault} in `encode`")


@examples(200)
@given(st.integers(0, 80), st.integers(1, 40), st.integers(1, 9), st.sampled_from([0.0, 10.0, 1e3, 1e5]), st.data())
def test_nearest_code_is_that_of_float64_beyond_rounding(n: int, k: int, d: int, mean: float, data: Any) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    mean = min(mean, 1e4) if dtype == torch.float16 else mean
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    z, codes = (mean + torch.randn(rows, d, generator=generator).to(dtype) for rows in (n, k))
    indices = svq.functional.nearest_code(z, codes)
    assert indices.shape == (n,)
    assert indices.dtype == torch.int64
    distance = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = distance.gather(1, indices[:, None])[:, 0]
    rounding = 1e-5 + 4 * mean * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert (chosen <= distance.amin(1) + rounding * (1 + distance.amin(1))).all() if n else True


@examples(100)
@given(st.integers(1, 60), st.integers(1, 24), st.integers(1, 5), st.integers(0, 3), st.data())
def test_k_means_gives_finite_rows_no_two_equal(n: int, k: int, d: int, iterations: int, data: Any) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    distinct = data.draw(st.integers(1, n))
    scale, mean = data.draw(st.sampled_from([1.0, 1e-6, 1e6])), data.draw(st.sampled_from([0.0, 100.0]))
    z = scale * (mean + torch.randn(distinct, d, generator=generator)[torch.arange(n) % distinct])
    batch_size = data.draw(st.one_of(st.none(), st.integers(1, n)))
    centres = svq.functional.kmeans(z, k, iterations=iterations, generator=generator, batch_size=batch_size)
    assert centres.shape == (k, d)
    assert centres.isfinite().all()
    assert len(centres.unique(dim=0)) == k


def test_examples_are_the_same_every_time() -> None:
    @examples(5)
    @given(batches())
    def collect(batch: Batch) -> None:
        seen.append(batch)

    runs = []
    for _ in range(2):
        seen: list[Batch] = []
        collect()
        runs.append(seen)
    assert runs[0] == runs[1]
