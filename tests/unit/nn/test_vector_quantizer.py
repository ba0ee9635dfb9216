import copy
from collections.abc import Callable

import pytest
import torch
from tests.reference import naive
from tests.versions import one_graph
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

import straightvq as svq


def test_layer_by_hand() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(2, svq.Codebook(2))
    layer.set_codes(torch.tensor([[1.0, 0.0], [3.0, 3.0]]))
    out = layer(torch.tensor([[0.0, 0.0], [3.0, 1.0]]))
    assert out.quantized.tolist() == [[1.0, 0.0], [3.0, 3.0]]
    assert out.indices.tolist() == [0, 1]
    assert out.loss.item() == pytest.approx(0.25 * 1.25 + 1.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "size"), [((1, 3), 2), ((7, 3), 5), ((2, 3, 5, 3), 31)])
def test_evaluation_equals_the_naive_layer(shape: tuple[int, ...], size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(3, svq.Codebook(size)).eval()
    z = torch.randn(shape).to(dtype)
    out = layer(z)
    flat, codes = z.double().reshape(-1, 3).numpy(), layer.codes().double().numpy()
    want = torch.from_numpy(naive.nearest_code(flat, codes))
    assert torch.equal(out.indices.flatten(), want)
    assert torch.equal(out.quantized, layer.codes()[want].to(dtype).view(shape))
    assert out.quantized.dtype == dtype
    error = ((flat - codes[want.numpy()]) ** 2).mean()
    assert out.terms["commitment"].item() == pytest.approx(error, rel=1e-5)


def test_default_losses_and_none() -> None:
    assert [loss.name for loss in svq.VectorQuantizer(4, svq.Codebook(8)).losses] == ["commitment", "codebook"]
    silent = svq.VectorQuantizer(4, svq.Codebook(8, update=svq.EMAUpdate()), losses=[])
    z = torch.randn(5, 4, requires_grad=True)
    out = silent(z)
    assert out.terms == {}
    assert out.loss.item() == 0
    out.loss.backward()
    assert z.grad is not None


def test_codebook_that_nothing_trains_is_warned_of_at_the_callers_line() -> None:
    with pytest.warns(UserWarning, match="will not move") as caught:
        svq.VectorQuantizer(4, svq.Codebook(8), losses=[svq.CommitmentLoss()])
    assert caught[0].filename == __file__


def test_masked_decode_gives_zeros_also_through_a_projection() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(6, svq.Codebook(8), transform=svq.Projection(3), channel_dim=1)
    indices = torch.tensor([[3, -1], [-1, 7]])
    out = layer.decode(indices)
    assert out.shape == (2, 6, 2)
    assert (out[0, :, 1] == 0).all()
    assert (out[0, :, 0] != 0).any()


def test_decode_of_a_single_index() -> None:
    torch.manual_seed(0)
    layer = svq.presets.vq_vae(4, 8)
    assert torch.equal(layer.decode(torch.tensor(3)), layer.codes()[3])
    assert layer.decode(torch.empty(0, 5, dtype=torch.int64)).shape == (0, 5, 4)


def test_projection_is_trained_in_both_directions() -> None:
    torch.manual_seed(0)
    transform = svq.Projection(3)
    layer = svq.VectorQuantizer(6, svq.Codebook(8), transform=transform)
    out = layer(torch.randn(9, 6))
    (out.quantized.square().mean() + out.loss).backward()
    for parameter in transform.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_encoder_gradient_passes_a_projection_by_the_chain_rule() -> None:
    torch.manual_seed(0)
    transform = svq.Projection(3)
    layer = svq.VectorQuantizer(6, svq.Codebook(8), transform=transform, losses=[svq.CodebookLoss()])
    z, g = torch.randn(9, 6, requires_grad=True), torch.randn(9, 6)
    layer(z).quantized.backward(g)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, g @ transform.up.weight @ transform.down.weight)


def test_straight_through_far_from_the_codes_is_exact() -> None:
    layer = svq.presets.vq_vae(4, 8).eval()
    layer.set_codes(1e-3 * torch.randn(8, 4))
    out = layer(1e6 * torch.randn(5, 4))
    assert torch.equal(out.quantized, layer.codes()[out.indices])


def test_far_from_the_origin_training_keeps_up_with_float64() -> None:
    torch.manual_seed(0)
    single = svq.presets.straight(8, 64)
    single(torch.randn(400, 8) + 1000)  # one start for both: which vectors k-means draws hangs by the last digits
    double = copy.deepcopy(single).double()
    for number in range(5):
        z = torch.randn(400, 8, generator=torch.Generator().manual_seed(number)) + 1000
        a, b = single(z), double(z.double())
    agree = (a.indices == b.indices).double().mean()
    assert agree > 0.99
    assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-3)


def test_codes_track_data_that_move_away() -> None:
    """The affine map and the alternated step together follow a drift that leaves a plain codebook behind."""
    torch.manual_seed(0)
    errors = {}
    for name in ("vq_vae", "vq_ste_pp", "straight", "ema"):
        layer = getattr(svq.presets, name)(4, 16)
        parameters = [*layer.parameters(), nn.Parameter(torch.zeros(1))]
        optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.0)
        for number in range(60):
            z = torch.randn(128, 4, generator=torch.Generator().manual_seed(number)) + 0.2 * number
            optimizer.zero_grad()
            out = layer(z.requires_grad_())
            out.loss.backward()
            optimizer.step()
        errors[name] = out.terms["commitment"].item()
    assert errors["vq_vae"] > 50
    assert max(errors["vq_ste_pp"], errors["straight"], errors["ema"]) < 5


RECIPES = {
    "affine-8": lambda: (svq.Affine(2.0, groups=8), None),
    "affine-10x": lambda: (svq.Affine(10.0), None),
    "running-1": lambda: (svq.RunningAffine(), None),
    "running-8": lambda: (svq.RunningAffine(groups=8), None),
    "chain": lambda: (svq.Chain([svq.Affine(), svq.UnitNormCodes()]), svq.UnitNorm()),
}


@pytest.mark.parametrize("make", list(RECIPES.values()), ids=list(RECIPES))
@pytest.mark.parametrize("inner", [{}, {"lr": 5.0, "momentum": 0.9}], ids=["fraction", "sgd"])
def test_full_recipe_trains_two_hundred_steps(make: object, inner: dict[str, float]) -> None:
    torch.manual_seed(0)
    parametrization, transform = make()
    layer = svq.VectorQuantizer(
        8,
        svq.Codebook(
            64,
            parametrization=parametrization,
            init=svq.KMeansInit(),
            update=svq.AlternatedUpdate(**inner),
            reset=svq.DeadCodeReset(5),
        ),
        transform=transform,
        estimator=svq.StraightThrough(0.5),
    )
    encoder, decoder = nn.Linear(8, 8), nn.Linear(8, 8)
    net = nn.ModuleList([encoder, layer, decoder])
    optimizer = torch.optim.AdamW(svq.parameter_groups(net, 3e-3, 0.01))
    svq.attach_optimizer(optimizer, net)
    losses: list[Tensor] = []
    for number in range(200):
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(number))
        out = layer(encoder(x))
        loss = (decoder(out.quantized) - x).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all()
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert torch.stack(losses[-20:]).mean() < torch.stack(losses[:5]).mean()
    assert len(out.indices.unique()) > 10


def test_inference_mode_and_its_tensors_are_taken() -> None:
    layer = svq.presets.straight(4, 8)
    with torch.inference_mode():
        layer(torch.randn(50, 4))
        out = layer.eval()(torch.randn(50, 4))
    assert (out.indices >= 0).all()
    layer.train()(torch.randn(50, 4, requires_grad=True)).loss.backward()


def test_data_initialisation_under_inference_mode_does_not_spoil_later_training() -> None:
    layer = svq.presets.straight(4, 64)
    with torch.inference_mode():
        layer(torch.randn(20, 4))
    z = torch.randn(20, 4, requires_grad=True)
    layer(z).loss.backward()
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))


def test_memory_does_not_grow_with_vectors_times_codes() -> None:
    layer = svq.presets.straight(2, 4096).eval()
    z = torch.randn(20_000, 2)
    layer(z[:10])
    with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
        layer(z)
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert largest < 16 * 2**20, "a matrix of all distances would take 328 MB"


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [svq.presets.ema, svq.presets.vq_vae, svq.presets.straight])
def test_activation_checkpointing_around_a_moving_codebook_is_refused(
    make: Callable[[int, int], svq.VectorQuantizer], reentrant: bool
) -> None:
    layer = make(4, 8)
    z = torch.randn(64, 4, requires_grad=True)
    loss = checkpoint(lambda x: layer(x).loss, z, use_reentrant=reentrant)
    codes = layer.codes()
    with pytest.raises(RuntimeError, match="outside the checkpointed segment"):
        loss.backward()
    assert torch.equal(layer.codes(), codes)


def test_activation_checkpointing_is_fine_where_no_forward_moves_the_codebook() -> None:
    layer = svq.presets.ema(4, 8)
    z = torch.randn(64, 4)
    layer(z)
    for still in (layer.codebook.freeze, layer.eval):
        still()
        grads: list[Tensor] = []
        for run in (lambda x: layer(x).loss, lambda x: checkpoint(lambda y: layer(y).loss, x, use_reentrant=False)):
            x = z.clone().requires_grad_()
            run(x).backward()
            assert x.grad is not None
            grads.append(x.grad)
        assert torch.equal(*grads)
        layer.codebook.unfreeze()


@pytest.mark.parametrize(
    "transform", [svq.Identity(), svq.UnitNorm(), svq.Projection(2)], ids=lambda t: type(t).__name__
)
def test_unquantized_is_what_a_code_at_every_vector_would_give(transform):
    layer = svq.VectorQuantizer(3, svq.Codebook(6), transform=transform, channel_dim=1).eval()
    z = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    found = layer.unquantized(z)
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    layer.set_codes(layer.transform(z.detach().movedim(1, -1).reshape(-1, 3)).detach())
    torch.testing.assert_close(found, layer(z).quantized.detach())
    with pytest.raises(ValueError, match="`z` must have 3 channels on axis 1"):
        layer.unquantized(torch.zeros(2, 4, 3))


# --- settings of a living layer ---------------------------------------------------------------------------------------


def test_a_loss_can_be_annealed() -> None:
    torch.manual_seed(0)
    layer = svq.presets.ema(4, 8)
    z = torch.randn(50, 4)
    layer(z)
    layer.eval()
    totals = []
    for weight in (0.25, 0.5, 0.0):
        layer.losses[0].coefficient = weight
        layer.losses[1].coefficient = 0.0
        out = layer(z)
        totals.append(out.loss.item() / out.terms["commitment"].item())
    assert totals == pytest.approx([0.25, 0.5, 0.0])


@pytest.mark.parametrize("update", [svq.GradientUpdate, svq.AlternatedUpdate])
def test_sync_can_be_annealed_from_a_positive_value_through_zero(update: type[svq.Update]) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(4, svq.Codebook(8, update=update()), estimator=svq.StraightThrough(1.0), losses=[])
    z, g = torch.randn(50, 4, requires_grad=True), torch.randn(50, 4)
    for sync in (1.0, 0.0, 0.25):
        layer.estimator.sync = sync
        layer.zero_grad()
        out = layer(z)
        out.quantized.backward(g.clone(), retain_graph=True)
        out.loss.backward()
        assert layer.codebook.raw.grad is not None, "data-parallel wrappers wait for it"
        wanted = sync * svq.functional.code_sums(g, out.indices, 8)[1]
        torch.testing.assert_close(layer.codebook.raw.grad, wanted)


def test_a_gradient_that_the_table_was_not_made_for_is_refused_and_changes_nothing() -> None:
    layer = svq.presets.straight(4, 8)
    layer(torch.randn(50, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.estimator.sync = 0.5
    for call in (layer, layer.eval()):
        with pytest.raises(ValueError, match=r"estimator that now sends a gradient .* build the layer with a positive"):
            call(torch.randn(50, 4))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    silent = svq.VectorQuantizer(
        4, svq.Codebook(8), losses=[svq.CommitmentLoss(), svq.CodebookLoss(1.0)], estimator=svq.StraightThrough()
    )
    silent.losses[1].coefficient = 0.0
    silent(torch.randn(5, 4))
    silent.losses[1].coefficient = 1.0
    silent(torch.randn(5, 4)).loss.backward()
    with pytest.warns(UserWarning, match="will not move"):
        still = svq.VectorQuantizer(4, svq.Codebook(8), losses=[svq.CodebookLoss(0.0)])
    still.losses[0].coefficient = 1.0
    with pytest.raises(ValueError, match="a loss that now sends a gradient"):
        still(torch.randn(5, 4))


SETTINGS = [
    (lambda: svq.EMAUpdate(), "decay", 7),
    (lambda: svq.AlternatedUpdate(), "fraction", 1.5),
    (lambda: svq.AlternatedUpdate(), "lr", 3.0),
    (lambda: svq.AlternatedUpdate(lr=3.0), "fraction", 0.1),
    (lambda: svq.AlternatedUpdate(), "steps", 0),
    (lambda: svq.StraightThrough(), "sync", -1),
    (lambda: svq.DeadCodeReset(), "patience", 0.5),
    (lambda: svq.DeadCodeReset(), "noise", "much"),
    (lambda: svq.CommitmentLoss(), "coefficient", -1),
    (lambda: svq.KMeansInit(), "iterations", -1),
    (lambda: svq.Nearest(), "distance", "manhattan"),
    (lambda: svq.Nearest(), "backend", "cuda"),
]


@pytest.mark.parametrize(("make", "name", "value"), SETTINGS, ids=lambda v: v if isinstance(v, str) else None)
def test_a_setting_is_checked_whenever_it_is_set(make: Callable[[], nn.Module], name: str, value: object) -> None:
    part = make()
    before = getattr(part, name)
    with pytest.raises((ValueError, TypeError), match=f"`{type(part).__name__}`: .*`{name}`"):
        setattr(part, name, value)
    assert getattr(part, name) == before


def test_momentum_that_the_layer_has_no_buffer_for_is_refused() -> None:
    update = svq.AlternatedUpdate(momentum=0.0)
    update.momentum = 0.5
    update.momentum = 0.0
    layer = svq.VectorQuantizer(4, svq.Codebook(8, update=update))
    with pytest.raises(ValueError, match=r"`momentum` must stay 0\.0"):
        update.momentum = 0.5
    layer(torch.randn(9, 4))


# --- construction ----------------------------------------------------------------------------------------------------


def test_a_failed_construction_leaves_its_parts_free() -> None:
    for codebook, slots in [
        (svq.Codebook(8, parametrization=svq.Affine()), {"losses": []}),
        (svq.Codebook(9, parametrization=svq.Affine(groups=2), reset=svq.DeadCodeReset()), {}),
        (svq.Codebook(8, 3), {}),
        (svq.Codebook(8, update=svq.EMAUpdate()), {"estimator": svq.StraightThrough(1.0)}),
    ]:
        with pytest.raises(ValueError, match="`"):
            svq.VectorQuantizer(4, codebook, **slots)
        if codebook.size == 8:
            dim = codebook.dim or 4
            svq.VectorQuantizer(dim, codebook)(torch.randn(5, dim))


def test_a_failed_construction_leaves_its_transform_free() -> None:
    transform = svq.Projection(3)
    for codebook in (svq.Codebook(8, 4), "codes"):
        with pytest.raises((ValueError, TypeError), match=r"`codebook`|`Codebook`"):
            svq.VectorQuantizer(6, codebook, transform=transform)
        assert list(transform.parameters()) == []
    svq.VectorQuantizer(6, svq.Codebook(8), transform=transform)(torch.randn(5, 6))


def test_a_codebook_of_two_layers_is_refused_by_its_name() -> None:
    layer = svq.presets.ema(4, 8)
    with pytest.raises(ValueError, match="`Codebook`: this instance is already part of another quantizer"):
        svq.VectorQuantizer(4, layer.codebook)


@one_graph
def test_layers_of_one_shape_share_their_graphs() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for _ in range(9):  # torch gives up at eight graphs of one function
        layer = torch.compile(svq.presets.straight(4, 8), fullgraph=True, backend=counter)
        for _ in range(2):
            layer(torch.randn(50, 4, requires_grad=True)).loss.backward()
    assert counter.frame_count == 2, "one with the init and one without"


def test_a_state_of_an_earlier_version_is_refused_in_a_sentence() -> None:
    layer = svq.presets.ema(4, 8)
    state = {"codebook.raw": torch.zeros(8, 4), "codebook.pool": torch.zeros(0, 4), "codebook.step": torch.tensor(3)}
    net = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(ValueError, match="Got one of an earlier version"):
        net.load_state_dict({f"1.{name}": value for name, value in state.items()}, strict=False)


def test_the_terms_of_a_step_keep_no_storage_of_the_vectors() -> None:
    out = svq.presets.ema(8, 16)(torch.randn(64, 8))
    assert {name: term.untyped_storage().nbytes() for name, term in out.terms.items()} == {
        "commitment": 4,
        "codebook": 4,
    }
    assert out.loss.untyped_storage().nbytes() == 4


@pytest.mark.parametrize("preset", ["ema", "straight"])
def test_one_lookup_serves_losses_and_output(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = getattr(svq.presets, preset)(8, 16)
    layer(torch.randn(64, 8))
    with profile() as seen:
        layer(torch.randn(64, 8))
    assert sum(each.count for each in seen.key_averages() if each.key == "aten::embedding") == 1
