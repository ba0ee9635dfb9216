"""Residual and product quantizers against naive references: values, gradients, prefixes, levels left out."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import straightvq as svq

DIM, SIZE, LEVELS = 6, 16, 3


def level(dim: int = DIM, *, narrow: bool = False, sync: float = 0.0, size: int = SIZE) -> svq.VectorQuantizer:
    return svq.VectorQuantizer(
        dim,
        svq.Codebook(size, init=svq.NormalInit(0.7)),
        transform=svq.Projection(3, start="orthonormal") if narrow else None,
        estimator=svq.StraightThrough(sync),
    )


def stack(**given: object) -> svq.ResidualQuantizer:
    keys = {"narrow", "sync", "size"} & set(given)
    own = {key: given.pop(key) for key in keys}
    return svq.ResidualQuantizer(DIM, [level(**own) for _ in range(LEVELS)], **given)


def vectors(n: int = 40, dim: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


# --- residual: values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [False, True])
def test_each_level_quantizes_what_the_earlier_ones_left(narrow: bool) -> None:
    q, z = stack(narrow=narrow), vectors()
    out = q(z)
    rest, total = z, torch.zeros_like(z)
    for number, each in enumerate(q.levels):
        own = each.eval()(rest)
        assert torch.equal(out.indices[:, number], own.indices)
        total, rest = total + own.quantized, rest - own.quantized
    torch.testing.assert_close(out.quantized, total)
    assert out.indices.shape == (40, LEVELS)


@pytest.mark.parametrize("kept", range(1, LEVELS + 1))
def test_a_prefix_of_the_indices_decodes_to_the_first_levels(kept: int) -> None:
    q, z = stack().eval(), vectors()
    indices = q.encode(z)
    expected = sum(each.decode(indices[:, number]) for number, each in enumerate(q.levels[:kept]))
    torch.testing.assert_close(q.decode(indices[:, :kept]), expected)
    padded = indices.clone()
    padded[:, kept:] = -1
    assert torch.equal(q.decode(padded), q.decode(indices[:, :kept]))
    assert torch.equal(q(z, kept=kept).quantized, q.decode(padded))


def test_losses_of_the_levels_add_up() -> None:
    q, z = stack(), vectors()
    out, rest = q(z), z
    loss = 0.0
    for each in q.levels:
        own = each(rest)
        loss, rest = loss + own.loss, rest - own.quantized.detach()
    torch.testing.assert_close(out.loss, loss)
    assert set(out.terms) == {"commitment", "codebook"}


@pytest.mark.parametrize("make", [svq.presets.ema, svq.presets.straight])
def test_levels_start_by_kmeans_on_their_residuals(make: Callable[..., svq.VectorQuantizer]) -> None:
    q = svq.ResidualQuantizer(DIM, [make(DIM, SIZE) for _ in range(LEVELS)])
    z = vectors(400)
    out = q(z)
    errors = [(z - q.decode(out.indices[:, :k])).square().mean() for k in range(1, LEVELS + 1)]
    assert errors[0] < z.square().mean()
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert all(len(column.unique()) == SIZE for column in out.indices.T)


def residual_kmeans(z: Tensor, num_codes: int, generator: torch.Generator) -> list[Tensor]:
    """Centres of each level, fitted to the end on what the levels before it leave."""
    levels = []
    for _ in range(4):
        levels.append(svq.functional.kmeans(z, num_codes, iterations=100, generator=generator))
        z = z - levels[-1][svq.functional.nearest_code(z, levels[-1])]
    return levels


def error(levels: list[Tensor], z: Tensor) -> float:
    for codes in levels:
        z = z - codes[svq.functional.nearest_code(z, codes)]
    return z.square().mean().item()


@pytest.mark.parametrize("case", ["whole", "small", "moving"])
def test_the_preset_comes_near_residual_kmeans_on_whole_small_and_moving_batches(case: str) -> None:
    """Whole batches, fresh ones of 4 vectors per code, and ones whose mean and spread move."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)

    def draw(n: int, time: float = 0.0) -> Tensor:
        return 8 * time + (1 + 2 * time) * torch.randn(n, DIM, generator=g)

    end = float(case == "moving")
    fitted, new = draw(2000, end), draw(4000, end)
    batches = {
        "whole": lambda step: fitted,
        "small": lambda step: draw(64),
        "moving": lambda step: draw(256, step / 199),
    }
    q = svq.presets.straight_residual(DIM, 16, num_quantizers=4)
    for step in range(60 if case == "whole" else 200):
        q(batches[case](step))
    z = fitted if case == "whole" else new
    assert error([own.codes() for own in q.levels], z) < 1.06 * error(residual_kmeans(fitted, 16, g), z)
    assert all(len(column.unique()) == 16 for column in q.encode(z).T)


@pytest.mark.parametrize("dim", [16, 64, 512])
def test_no_level_of_the_preset_lengthens_what_is_left(dim: int) -> None:
    torch.manual_seed(0)
    q = svq.presets.straight_residual(dim, 64, num_quantizers=6, codebook_dim=8)
    z = vectors(512, dim)
    q(z)
    indices = q.eval().encode(z)
    lengths = [z.norm()] + [(z - q.decode(indices[:, :k])).norm() for k in range(1, 7)]
    assert all(later < earlier for earlier, later in itertools.pairwise(lengths))


# --- residual: gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("narrow", "sync"), [(False, 0.0), (False, 0.5), (True, 0.0), (True, 0.5)])
def test_the_encoder_gets_the_gradient_exactly_once(narrow: bool, sync: float) -> None:
    q, z, g = stack(narrow=narrow, sync=sync), vectors().requires_grad_(), vectors(seed=1)
    q(z).quantized.backward(g)
    assert torch.equal(z.grad, g)


@pytest.mark.parametrize("sync", [0.0, 0.5])
def test_each_level_gets_what_a_layer_of_its_own_would_get(sync: float) -> None:
    q, z, g = stack(narrow=True, sync=sync), vectors(), vectors(seed=1)
    q(z).quantized.backward(g)
    got = [{name: p.grad.clone() for name, p in each.named_parameters() if p.grad is not None} for each in q.levels]
    q.zero_grad()
    rest = z
    for each, own in zip(q.levels, got, strict=True):
        quantized = each(rest).quantized
        quantized.backward(g)
        expected = {name: p.grad for name, p in each.named_parameters() if p.grad is not None}
        assert own.keys() == expected.keys()
        assert {"transform.down.weight", "transform.up.weight"} <= own.keys()
        assert ("codebook.raw" in own) == (sync > 0)
        for name in expected:
            torch.testing.assert_close(own[name], expected[name])
        rest = rest - quantized.detach()


def test_the_commitment_of_every_level_reaches_the_encoder() -> None:
    # sum over levels of weight * 2 / (n d) * (r_l - c_l): each residual is z less a constant.
    q, z = stack(), vectors().requires_grad_()
    out = q(z)
    out.loss.backward()
    rest, expected = z.detach(), torch.zeros_like(z)
    for number, each in enumerate(q.levels):
        rest = rest - each.codes()[out.indices[:, number]]
        expected += 0.25 * 2 / rest.numel() * rest
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize("narrow", [False, True])
def test_per_level_the_gradient_passes_every_layer_in_turn(narrow: bool) -> None:
    q, g = stack(narrow=narrow, sync=0.3, gradient="per_level"), vectors(seed=1)
    z = vectors().requires_grad_()
    q(z).quantized.backward(g)
    got = {name: p.grad.clone() for name, p in q.named_parameters()} | {"z": z.grad}
    q.zero_grad()
    z = vectors().requires_grad_()
    rest, total = z, 0.0
    for each in q.levels:
        own = each(rest).quantized
        total, rest = total + own, rest - own
    total.backward(g)
    for name, gradient in ({name: p.grad for name, p in q.named_parameters()} | {"z": z.grad}).items():
        torch.testing.assert_close(got[name], gradient, msg=name)


class Twice(svq.Estimator):
    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        return code.detach() + 2 * (z - z.detach())


def test_an_outer_estimator_gives_the_encoder_its_gradient() -> None:
    q, z, g = stack(narrow=True, estimator=Twice()), vectors().requires_grad_(), vectors(seed=1)
    q(z).quantized.backward(g)
    torch.testing.assert_close(z.grad, 2 * g)


def test_a_gradient_that_would_leave_an_estimator_idle_is_refused_when_it_is_set() -> None:
    q = stack(estimator=Twice())
    with pytest.raises(ValueError, match=r"Got `estimator`, .* which would do nothing"):
        q.gradient = "per_level"
    assert q.gradient == "once"
    levels = [svq.LookupFreeQuantizer(4, 4, estimator=svq.ReSTE(3.0), losses=[]) for _ in range(2)]
    q = svq.ResidualQuantizer(4, levels, gradient="per_level")
    with pytest.raises(ValueError, match="ReSTE of level 0 would do nothing"):
        q.gradient = "once"
    assert q.gradient == "per_level"
    with pytest.raises(ValueError, match="'once', 'per_level'"):
        q.gradient = "twice"
    plain = stack()
    plain.gradient = "per_level"
    assert plain.gradient == "per_level"


def test_parts_may_be_a_module_list() -> None:
    assert svq.ResidualQuantizer(DIM, nn.ModuleList([level(), level()])).num_quantizers == 2
    assert svq.ProductQuantizer(DIM, nn.ModuleList([level(3), level(3)])).num_quantizers == 2
    layer = svq.VectorQuantizer(DIM, svq.Codebook(SIZE), losses=nn.ModuleList([svq.CodebookLoss()]))
    assert set(layer(vectors()).terms) == {"codebook"}
    with pytest.raises(TypeError, match="must be a quantizer or a list"):
        svq.ResidualQuantizer(DIM, nn.ModuleList())


def test_without_codes_every_part_has_its_transform() -> None:
    """Each level passes what its projection can hold of what the earlier ones left; each group its own."""
    z = vectors().requires_grad_()
    narrow = stack(narrow=True)
    rest, want = z, torch.zeros_like(z)
    for own in narrow.levels:
        kept = own.transform.inverse(own.transform(rest))
        rest, want = rest - kept, want + kept
    flat = svq.FiniteScalarQuantizer(3, [5] * 2, transform=svq.Projection(2))
    groups = svq.ProductQuantizer(DIM, [flat, svq.BinarySphericalQuantizer(3, 3)])
    first = flat.transform.inverse(flat.bound(flat.transform(z[:, :3])))
    both = torch.cat([first, groups.groups[1].bound(z[:, 3:])], 1)
    for q, expected in ((narrow, want), (groups, both)):
        torch.testing.assert_close(q.unquantized(z), expected.detach())
        with svq.bypass(q):
            out = q(z)
        torch.testing.assert_close(out.quantized, expected)
        got = torch.autograd.grad(out.quantized.square().sum(), z)[0]
        torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), z)[0])
    shared = svq.ResidualQuantizer(3, svq.FiniteScalarQuantizer(3, [5] * 3), num_quantizers=2)
    first = shared.parts[0].bound(z[:, :3])
    torch.testing.assert_close(shared.unquantized(z[:, :3]), (first + shared.parts[0].bound(z[:, :3] - first)).detach())


# --- levels left out --------------------------------------------------------------------------------------------------


def test_levels_left_out_take_part_in_nothing() -> None:
    torch.manual_seed(0)
    one, other = (svq.ResidualQuantizer(DIM, [svq.presets.ema(DIM, SIZE) for _ in range(2)]) for _ in range(2))
    other.load_state_dict(one.state_dict())
    z = vectors(8 * 10).view(8, 10, DIM)
    kept = torch.tensor([1, 2] * 4)
    out = one(z, kept=kept)
    assert (out.indices[kept == 1, :, 1] == -1).all()
    assert (out.indices[kept == 2] >= 0).all()
    # The second level, alone, on the residuals of the samples that keep it.
    first = other.levels[0](z)
    rest = (z - first.quantized)[kept == 2]
    second = other.levels[1](rest)
    assert torch.equal(one.levels[1].codes(), other.levels[1].codes())
    torch.testing.assert_close(out.loss, first.loss + second.loss)
    torch.testing.assert_close(out.quantized[kept == 2], (first.quantized[kept == 2] + second.quantized))
    torch.testing.assert_close(out.quantized[kept == 1], first.quantized[kept == 1])


def test_dropout_cuts_whole_samples_to_the_choices() -> None:
    torch.manual_seed(0)
    q = stack(dropout=0.5, kept_choices=[1, 2])
    indices = q(vectors(2000 * 3).view(2000, 3, DIM)).indices
    kept = (indices >= 0).sum(2)
    assert (kept == kept[:, :1]).all()
    shares = kept[:, 0].bincount(minlength=4) / 2000
    torch.testing.assert_close(shares, torch.tensor([0, 0.25, 0.25, 0.5]), atol=0.04, rtol=0)
    assert not torch.equal(indices, q(vectors(2000 * 3).view(2000, 3, DIM)).indices), "every step draws anew"
    assert (q.eval()(vectors()).indices >= 0).all()


# --- shared codes, beam -----------------------------------------------------------------------------------------------


def test_a_shared_codebook_moves_once_by_the_rows_of_all_levels() -> None:
    torch.manual_seed(0)
    q = svq.ResidualQuantizer(
        DIM, svq.VectorQuantizer(DIM, svq.Codebook(SIZE, update=svq.EMAUpdate())), num_quantizers=2
    )
    assert len(q.codebooks()) == 1
    codes, z = q.levels[0].codes(), vectors()
    q(z)
    first = svq.functional.nearest_code(z, codes)
    rows = torch.stack([z, z - codes[first]], 1).flatten(0, 1)
    twin = svq.VectorQuantizer(DIM, svq.Codebook(SIZE, update=svq.EMAUpdate()))
    twin.set_codes(codes)
    twin(rows)
    torch.testing.assert_close(q.levels[0].codes(), twin.codes())


@pytest.mark.parametrize("narrow", [False, True])
def test_the_widest_beam_finds_the_best_of_all_combinations(narrow: bool) -> None:
    torch.manual_seed(3)
    q, z = stack(size=4, narrow=narrow).eval(), vectors(60)
    every = torch.tensor(list(itertools.product(range(4), repeat=LEVELS)))
    errors = torch.cdist(z, q.decode(every))
    greedy = q.encode(z)
    q.beam = 4**LEVELS
    best = q.encode(z)
    torch.testing.assert_close((z - q.decode(best)).norm(dim=1), errors.min(1).values)
    assert (q(z).indices == best).all()
    assert not torch.equal(best, greedy)


@pytest.mark.parametrize("beam", [1, 2, 3])
def test_a_beam_is_never_worse_than_greedy(beam: int) -> None:
    torch.manual_seed(1)
    q, z = stack().eval(), vectors(500)
    greedy = (z - q.decode(q.encode(z))).norm(dim=1)
    q.beam = beam
    error = (z - q.decode(q.encode(z))).norm(dim=1)
    assert (error <= greedy + 1e-6).all()
    assert (error.mean() < greedy.mean() - 1e-3) == (beam > 1)


def test_nearest_few_are_the_first_of_all_in_order() -> None:
    z, codes = vectors(50), torch.cat([vectors(30, seed=2), vectors(3, seed=2)])  # three codes twice
    distances = torch.cdist(z.double(), codes.double())
    expected = distances.argsort(dim=1, stable=True)[:, :5]
    assert torch.equal(svq.functional.nearest_few(z, codes, 5), expected)
    assert svq.functional.nearest_few(z, codes[:3], 5).shape == (50, 3)


# --- product ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sync", "narrow"), [(0.5, True), (0.5, False), (0.0, True), (0.0, False)])
def test_a_product_is_a_layer_for_each_group(sync: float, narrow: bool) -> None:
    torch.manual_seed(0)
    groups = [level(2, sync=sync), level(4, narrow=narrow)]
    q, g = svq.ProductQuantizer(DIM, groups), vectors(seed=1)
    z = vectors().requires_grad_()
    out = q(z)
    out.quantized.backward(g.clone(), retain_graph=True)  # z.grad may be a view of it, to which the loss adds
    out.loss.backward()
    got = {name: p.grad.clone() for name, p in q.named_parameters()} | {"z": z.grad}
    q.zero_grad()
    z = vectors().requires_grad_()
    outs = [group(part) for group, part in zip(groups, z.split([2, 4], 1), strict=True)]
    torch.testing.assert_close(out.quantized, torch.cat([each.quantized for each in outs], 1))
    assert torch.equal(out.indices, torch.stack([each.indices for each in outs], 1))
    loss = (2 * outs[0].loss + 4 * outs[1].loss) / 6
    torch.testing.assert_close(out.loss, loss)
    torch.cat([each.quantized for each in outs], 1).backward(g, retain_graph=True)
    loss.backward()
    for name, gradient in ({name: p.grad for name, p in q.named_parameters()} | {"z": z.grad}).items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_shared_groups_are_one_batch() -> None:
    torch.manual_seed(0)
    shared = svq.presets.ema(3, SIZE)
    q = svq.ProductQuantizer(DIM, shared, num_groups=2)
    twin = svq.presets.ema(3, SIZE)
    twin.load_state_dict(shared.state_dict())
    out, own = q(vectors()), twin(vectors().view(-1, 3))
    assert torch.equal(out.indices, own.indices.view(-1, 2))
    assert torch.equal(out.quantized, own.quantized.view(-1, DIM))
    torch.testing.assert_close(out.loss, own.loss)
    assert torch.equal(shared.codes(), twin.codes())


# --- nesting ----------------------------------------------------------------------------------------------------------


def test_a_product_of_residuals_gives_the_levels_of_all_groups_first() -> None:
    torch.manual_seed(0)
    groups = [svq.ResidualQuantizer(3, [level(3) for _ in range(2)]) for _ in range(2)]
    q = svq.ProductQuantizer(DIM, groups).eval()
    z = vectors()
    own = [group.encode(part) for group, part in zip(groups, z.split(3, 1), strict=True)]
    indices = q.encode(z)
    assert torch.equal(indices, torch.stack([own[0][:, 0], own[1][:, 0], own[0][:, 1], own[1][:, 1]], 1))
    first = torch.cat([group.decode(each[:, :1]) for group, each in zip(groups, own, strict=True)], 1)
    torch.testing.assert_close(q.decode(indices[:, :2]), first)
    assert torch.equal(q(z, kept=1).indices[:, 2:], torch.full((40, 2), -1))


def test_a_residual_of_products_gives_the_groups_of_a_level_together() -> None:
    torch.manual_seed(0)
    q = svq.ResidualQuantizer(DIM, [svq.ProductQuantizer(DIM, [level(3), level(3)]) for _ in range(2)]).eval()
    z = vectors()
    first = q.levels[0](z)
    assert torch.equal(q.encode(z)[:, :2], first.indices)
    assert torch.equal(q.encode(z)[:, 2:], q.levels[1].encode(z - first.quantized))
    torch.testing.assert_close(q.decode(q.encode(z)[:, :2]), first.quantized)
    z = vectors().requires_grad_()
    q.train()(z).quantized.backward(vectors(seed=1))
    assert torch.equal(z.grad, vectors(seed=1))


# --- bad input --------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no levels": (lambda: svq.ResidualQuantizer(DIM, []), TypeError, r"`levels` must be a quantizer or a list"),
    "no quantizer": (lambda: svq.ResidualQuantizer(DIM, [nn.Identity()]), TypeError, "instance of Quantizer"),
    "another width": (lambda: svq.ResidualQuantizer(DIM, [level(), level(4)]), ValueError, "width 6. Got 4 at level 1"),
    "one twice": (lambda: svq.ResidualQuantizer(DIM, [level()] * 2), ValueError, "num_quantizers=2"),
    "shared by how many": (lambda: svq.ResidualQuantizer(DIM, level()), TypeError, "how often"),
    "not that many": (lambda: stack(num_quantizers=2), ValueError, "length 3"),
    "unknown gradient": (lambda: stack(gradient="twice"), ValueError, "'once', 'per_level'"),
    "estimator unused": (
        lambda: stack(gradient="per_level", estimator=svq.StraightThrough()),
        ValueError,
        "do nothing",
    ),
    "estimator with codes": (lambda: stack(estimator=svq.StraightThrough(0.5)), ValueError, "belong to the levels"),
    "dropout": (lambda: stack(dropout=1.5), ValueError, r"`dropout` must be a finite number in \[0, 1\]"),
    "dropout inside": (
        lambda: svq.ResidualQuantizer(DIM, [stack(dropout=0.5), level()]),
        ValueError,
        "outermost",
    ),
    "choices": (lambda: stack(kept_choices=[0, 1]), ValueError, "kept_choices"),
    "too many choices": (lambda: stack(kept_choices=[4]), ValueError, r"in \[1, 3\]. Got \[4\]"),
    "beam": (lambda: stack(beam=0), ValueError, "`beam` must be an integer >= 1"),
    "beam over composites": (
        lambda: svq.ResidualQuantizer(DIM, [stack()], beam=2),
        ValueError,
        "VectorQuantizer layers",
    ),
    "widths": (lambda: svq.ProductQuantizer(DIM, [level(3), level(2)]), ValueError, r"add up to 6. Got \[3, 2\]"),
    "shared widths": (lambda: svq.ProductQuantizer(DIM, level(4), num_groups=2), ValueError, r"Got \[4, 4\]"),
    "depths": (
        lambda: svq.ProductQuantizer(DIM, [svq.ResidualQuantizer(3, [level(3), level(3)]), level(3)]),
        ValueError,
        r"as many codes per vector, in as many levels. Got \(codes, levels\) \[\(2, 2\), \(1, 1\)\]",
    ),
    "as many codes in other levels": (
        lambda: svq.ProductQuantizer(
            8, [svq.presets.rq_vae(4, 16, num_quantizers=2), svq.ProductQuantizer(4, [level(2), level(2)])]
        ),
        ValueError,
        "in as many levels",
    ),
    "shared composite": (
        lambda: svq.ResidualQuantizer(DIM, svq.ProductQuantizer(DIM, [level(3), level(3)]), num_quantizers=2),
        ValueError,
        "must be a VectorQuantizer or have no codebook",
    ),
    "one twice, deep inside": (
        lambda: (lambda one: svq.ResidualQuantizer(DIM, [svq.ResidualQuantizer(DIM, [one, level()]), one]))(level()),
        ValueError,
        "different ones inside",
    ),
    "estimator that would do nothing": (
        lambda: svq.ResidualQuantizer(
            4, [svq.LookupFreeQuantizer(4, 4, estimator=svq.ReSTE(3.0), losses=[]) for _ in range(2)]
        ),
        ValueError,
        "ReSTE of level 0 would do nothing",
    ),
    "choices set later": (lambda: setattr(stack(dropout=0.5), "kept_choices", [0]), ValueError, "kept_choices"),
    "no hook": (lambda: stack().register_step_hook(3), TypeError, "callable"),
    "dropout of one level": (
        lambda: svq.ProductQuantizer(DIM, [level(3), level(3)], dropout=0.5),
        ValueError,
        "residual",
    ),
    "kept of a product": (
        lambda: svq.ProductQuantizer(DIM, [level(3), level(3)])(vectors(), kept=1),
        ValueError,
        "counts residual levels",
    ),
    "kept too many": (lambda: stack()(vectors(), kept=4), ValueError, r"in \[1, 3\]. Got values from 4 to 4"),
    "kept of another shape": (lambda: stack()(vectors(), kept=torch.ones(3).long()), ValueError, r"shape \(40,\)"),
    "kept as floats": (lambda: stack()(vectors(), kept=torch.ones(40)), TypeError, "integers"),
    "prefix too long": (lambda: stack().decode(torch.zeros(2, 4).long()), ValueError, "1 to 3 entries"),
    "index of another level": (
        lambda: svq.ResidualQuantizer(DIM, [level(), level(size=8)]).decode(torch.tensor([[3, 9]])),
        ValueError,
        r"sizes \[16, 8\]",
    ),
    "dropout switched on": (lambda: setattr(stack(), "dropout", 0.5), ValueError, "make a new layer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_sentence(name: str) -> None:
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call()


def test_a_failed_construction_leaves_the_transform_free() -> None:
    transform = svq.Projection(4)
    with pytest.raises(ValueError, match="width 4"):
        svq.ResidualQuantizer(DIM, [level()], transform=transform)
    assert svq.ResidualQuantizer(DIM, [level(4)], transform=transform)(vectors()).quantized.shape == (40, DIM)


def test_freezing_a_composite_freezes_every_level() -> None:
    q = svq.ResidualQuantizer(DIM, [svq.presets.ema(DIM, SIZE) for _ in range(2)])
    q(vectors())
    q.freeze()
    before = [book.codes() for book in q.codebooks()]
    q(vectors(seed=3))
    assert all(torch.equal(book.codes(), codes) for book, codes in zip(q.codebooks(), before, strict=True))
    q.unfreeze()
    q(vectors(seed=3))
    assert not torch.equal(q.codebooks()[0].codes(), before[0])


# --- losses per vector, and whoever watches the steps -----------------------------------------------------------------


def _kinds() -> dict[str, Callable[[], svq.Quantizer]]:
    return {
        "layer": lambda: level(narrow=True),
        "residual": stack,
        "residual, shared": lambda: svq.ResidualQuantizer(DIM, level(), num_quantizers=2),
        "product": lambda: svq.ProductQuantizer(DIM, [level(2), level(4)]),
        "product, shared": lambda: svq.ProductQuantizer(DIM, level(3), num_groups=2),
    }


@pytest.mark.parametrize("kind", _kinds())
def test_losses_per_vector_have_the_scalar_as_their_mean_with_the_same_gradient(kind: str) -> None:
    torch.manual_seed(0)
    q = _kinds()[kind]()
    z = vectors(5 * 8).view(5, 8, DIM).requires_grad_()
    mask = torch.rand(5, 8, generator=torch.Generator().manual_seed(1)) < 0.6
    scalar = q(z, mask)
    scalar.loss.backward()
    expected = {name: p.grad.clone() for name, p in q.named_parameters() if p.grad is not None} | {"z": z.grad.clone()}
    q.zero_grad()
    z.grad = None
    q.reduction = "none"
    each = q(z, mask)
    assert each.loss.shape == (5, 8)
    assert (each.loss[~mask] == 0).all()
    torch.testing.assert_close(each.loss[mask].mean(), scalar.loss)
    for name, term in each.terms.items():
        torch.testing.assert_close(term[mask].mean(), scalar.terms[name])
    each.loss[mask].mean().backward()
    got = {name: p.grad for name, p in q.named_parameters() if p.grad is not None} | {"z": z.grad}
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_losses_of_levels_left_out_are_zero_per_vector() -> None:
    q, z = stack(), vectors()
    q.reduction = "none"
    kept = torch.tensor([1, 3] * 20)
    out = q(z, kept=kept)
    rest = z - q.levels[0].codes()[out.indices[:, 0]]
    torch.testing.assert_close(out.terms["commitment"][kept == 1], rest.square().mean(1)[kept == 1])
    assert (out.terms["commitment"][kept == 3] > rest.square().mean(1)[kept == 3]).all()


def test_a_loss_without_values_per_vector_is_refused_before_anything_changes() -> None:
    class Whole(svq.Loss):
        name, trains = "whole", "encoder"

        def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
            return z.mean()

    ema = svq.Codebook(SIZE, update=svq.EMAUpdate())
    q = svq.ResidualQuantizer(DIM, [level(), svq.VectorQuantizer(DIM, ema, losses=[Whole(1.0)])])
    with pytest.raises(ValueError, match="Whole has no value"):
        q.reduction = "none"
    assert {each.reduction for each in (q, *q.levels)} == {"mean"}


@pytest.mark.parametrize("kind", [*list(_kinds())[1:], "nested"])
def test_a_part_with_a_reduction_of_its_own_is_refused_before_anything_changes(kind: str) -> None:
    q = svq.ResidualQuantizer(DIM, [level(), stack()]) if kind == "nested" else _kinds()[kind]()
    part = q.parts[-1].parts[0] if kind == "nested" else q.parts[-1]
    part.reduction = "none"
    before = copy.deepcopy(q.state_dict())
    with pytest.raises(
        ValueError, match=r"`reduction` must be the same .* outermost one. Got 'none' in .* 'mean' here"
    ):
        q(vectors())
    assert all(torch.equal(value, before[name]) for name, value in q.state_dict().items())
    q.reduction = "none"
    assert q(vectors()).loss.shape == (40,)


@pytest.mark.parametrize("kind", _kinds())
def test_hooks_see_every_step_of_every_part_once(kind: str) -> None:
    torch.manual_seed(0)
    q, seen = _kinds()[kind](), []
    parts = [module for module in q.modules() if isinstance(module, svq.Quantizer)]
    handles = [part.register_step_hook(lambda own, step: seen.append((own, step))) for part in parts]
    out = q(vectors())
    expected = [q, *getattr(q, "levels", []), *(q.parts if isinstance(q, svq.ProductQuantizer) else [])]
    assert sorted(id(own) for own, _ in seen) == sorted(map(id, expected))
    assert torch.equal(next(step for own, step in seen if own is q).indices, out.indices)
    for handle in handles:
        handle.remove()
    q(vectors())
    assert len(seen) == len(expected)


def test_dac_finds_few_codes_for_vectors_of_one_direction_and_with_patience_many() -> None:
    torch.manual_seed(0)
    z = torch.tensor([1.0, *[0.0] * 15]) + 0.05 * torch.randn(512, 16)
    used = {}
    for patience in (None, 5):
        q = svq.presets.dac(16, 32, num_quantizers=2, dropout=0.0, patience=patience)
        used[patience] = [len(column.unique()) for column in q(z).indices.T]
    assert used[None][0] <= 8
    assert min(used[5]) >= 24
