"""Bugs that other vector-quantization libraries have or had, and the tests that keep them out of this one.

The labels: V for vqtorch, P for vector-quantize-pytorch 1.31, E for EnCodec and audiocraft, O for others. Each row says
what is shown and where: ``law NAME`` is a law of ``straightvq.testing``, run on every case; ``here NAME`` a test below,
often with the numbers at which the bug was found; the rest is ``file::test``. Where the list is empty the row says why.
"""

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import straightvq as svq
from straightvq.testing import LAWS

ROOT = Path(__file__).parents[2]
NN, CONTRACTS = "tests/unit/nn", "tests/contracts"

TABLE: dict[str, tuple[str, list[str]]] = {
    "T-V1": ("the alternated step works with the affine map", ["here test_alternated_step_trains_with_the_affine_map"]),
    "T-V2": (
        "the alternated step moves the codebook in every composition and leaves no gradient behind",
        ["law training_moves_the_codebook", "law forward_leaves_no_gradient_behind_and_runs_without_one"],
    ),
    "T-V3": (
        "the alternated step runs under no_grad, beside a commitment loss, and assigns again",
        ["here test_alternated_step_runs_without_gradients_and_assigns_again"],
    ),
    "T-V4": (
        "an init with fewer vectors than codes keeps the table's shape and precedes the first assignment",
        [
            "here test_fewer_vectors_than_codes_fill_the_whole_table",
            f"{NN}/slots/test_inits.py::test_data_init_fits_before_the_first_assignment",
            "law ranks_do_what_one_process_does",
        ],
    ),
    "T-V5": ("every distance can be chosen and runs", ["here test_every_distance_finds_its_nearest_code"]),
    "T-V6": (
        "unit norm means the same for inputs and codes",
        ["here test_unit_norm_means_the_same_for_inputs_and_codes"],
    ),
    "T-V7": (
        "scalar loss, one result type also when switched off, keyword calls, each error its own message",
        [
            "here test_result_is_the_same_type_with_quantization_switched_off",
            f"{CONTRACTS}/test_bad_input.py::test_bad_argument_is_refused_with_a_telling_message",
        ],
    ),
    "T-V8": (
        "a reset inverts the affine map, is equal on all ranks, and clears the optimizer's moments",
        [
            "here test_reset_through_an_affine_map_lands_on_the_data",
            f"{NN}/test_optimizers.py::test_moments_of_reset_rows_are_cleared_and_others_kept",
            "law ranks_do_what_one_process_does",
        ],
    ),
    "T-V9": ("the search is not in half precision", ["here test_search_finds_the_code_of_float64_at_any_mean"]),
    "T-V10": (
        "sync gives the codes nu times the task gradient and leaves the encoder's alone",
        [
            "here test_synchronised_gradient_is_nu_times_the_task_gradient",
            f"{CONTRACTS}/test_gradients.py::test_gradient_equals_its_closed_form",
            f"{NN}/slots/test_parametrizations.py::test_running_affine_groups_really_differ",
        ],
    ),
    "T-V11": (
        "the import works in a clean environment, every block of the docs runs",
        [
            f"{CONTRACTS}/test_bad_input.py::test_import_is_silent_and_loads_nothing_heavy",
            "tests/docs/test_pages.py::test_python_blocks_run",
        ],
    ),
    "T-P1": (
        "the affine map has a learnable scale and shift, in groups, with a rate of its own",
        ["here test_affine_map_is_among_the_named_parameters"],
    ),
    "T-P2": ("evaluation never updates affine statistics", ["here test_evaluation_on_shifted_data_changes_no_index"]),
    "T-P3": ("decode applies the affine map", ["law decode_gives_what_the_evaluation_forward_gave"]),
    "T-P4": (
        "an affine checkpoint loads strictly and holds no uninitialised buffer",
        ["law state_dict_is_complete_and_loads_strictly", "law resume_equals_never_having_stopped"],
    ),
    "T-P5": ("affine statistics agree on all ranks", ["law ranks_do_what_one_process_does"]),
    "T-P6": (
        "sync reaches the codebook and does not scale the encoder's gradient",
        ["here test_synchronised_gradient_is_nu_times_the_task_gradient"],
    ),
    "T-P7": (
        "the inner step's state is saved, and the codebook is moved by one rule",
        [
            "law resume_equals_never_having_stopped",
            f"{NN}/slots/test_updates.py::test_nothing_is_stepped_twice",
            f"{NN}/test_codebook.py::test_raw_table_is_a_parameter_only_if_a_gradient_reaches_it",
        ],
    ),
    "T-P8": (
        "codebook and commitment have weights of their own, also for cosine codes",
        [
            "here test_codebook_is_trained_whatever_the_weight_of_the_commitment",
            "law each_loss_trains_its_sides",
        ],
    ),
    "T-P9": (
        "what sends a gradient to an EMA codebook is refused",
        [f"{CONTRACTS}/test_gradients.py::test_contradictory_parts_are_refused_by_name"],
    ),
    "T-P10": (
        "a mask works with a projection and with channels first",
        ["here test_mask_works_with_a_projection_and_channels_first", "law masked_positions_take_part_in_nothing"],
    ),
    "T-P11": (
        "a mask of ones changes nothing, an all-masked batch has a finite loss",
        ["law mask_of_ones_changes_nothing", "law batch_without_vectors_changes_only_the_step_and_keeps_the_graph"],
    ),
    "T-P12": (
        "a process group made after the layer is honoured",
        [f"{CONTRACTS}/test_ranks.py::test_uneven_and_empty_ranks_do_what_one_process_does"],
    ),
    "T-P13": ("a rank without vectors keeps no other waiting", ["law ranks_do_what_one_process_does"]),
    "T-P14": (
        "a forward on one rank alone does not hang when synchronisation is off",
        [f"{CONTRACTS}/test_ranks.py::test_synchronisation_can_be_switched_off"],
    ),
    "T-P15": (
        "EMA, k-means and resets are the same on all ranks",
        [
            "law ranks_do_what_one_process_does",
            f"{CONTRACTS}/test_ranks.py::test_uneven_and_empty_ranks_do_what_one_process_does",
        ],
    ),
    "T-P16": (
        "k-means of fewer vectors than codes leaves no zero codes; evaluation never initialises",
        [
            "here test_fewer_vectors_than_codes_fill_the_whole_table",
            f"{NN}/slots/test_inits.py::test_evaluation_never_initialises",
        ],
    ),
    "T-P17": (
        "what counts as dead is relative to N/K, and unused EMA codes stay where they are",
        [
            "here test_small_batches_reset_few_codes",
            f"{NN}/slots/test_updates.py::test_unused_ema_code_stays_where_it_is_for_ever",
        ],
    ),
    "T-P18": (
        "the nearest code is right far from the origin",
        [
            "here test_search_finds_the_code_of_float64_at_any_mean",
            "law far_from_the_origin_the_nearest_code_is_found",
        ],
    ),
    "T-P19": ("there is no rotation estimator here", []),
    "T-P20": ("no estimator draws noise in evaluation", ["law evaluation_changes_no_state_and_draws_nothing"]),
    "T-P21": (
        "full precision holds on the CPU under autocast, and losses are computed in evaluation",
        ["law autocast_changes_nothing", "law losses_are_reported_in_evaluation_and_add_up"],
    ),
    "T-P22": (
        "memory does not grow with vectors times codes",
        [
            "law no_matrix_of_vectors_times_codes_is_made",
            f"{NN}/test_vector_quantizer.py::test_memory_does_not_grow_with_vectors_times_codes",
        ],
    ),
    "T-P23": (
        "training and evaluation compile without graph breaks, encode and decode export",
        [
            "law compiled_forward_equals_eager",
            f"{CONTRACTS}/test_export.py::test_saved_programs_do_what_the_network_does",
        ],
    ),
    "T-P24": (
        "bad values are refused with a sentence",
        [
            f"{CONTRACTS}/test_bad_input.py::test_bad_argument_is_refused_with_a_telling_message",
            "law bad_input_is_refused_and_changes_nothing",
        ],
    ),
    "T-E1": (
        "one EMA step after k-means leaves the centres in place",
        [f"{NN}/slots/test_updates.py::test_ema_right_after_k_means_leaves_the_centres_in_place"],
    ),
    "T-E2": (
        "replaced codes survive the forward that replaced them; planted far codes disappear",
        [f"{NN}/slots/test_resets.py::test_planted_far_codes_disappear_and_stay_away_under_ema"],
    ),
    "T-E3": ("EMA sums are taken over all ranks", ["law ranks_do_what_one_process_does"]),
    "T-O1": (
        "the code that is returned is the code that was compared",
        ["here test_every_distance_finds_its_nearest_code", "law decode_gives_what_the_evaluation_forward_gave"],
    ),
    "T-O2": (
        "decode uses the mapped table, and the default weights are the VQ-VAE's",
        ["law decode_gives_what_the_evaluation_forward_gave", f"{NN}/slots/losses/test_pair.py::test_vq_loss_by_hand"],
    ),
    "T-O3": (
        "evaluation is repeatable and does not depend on the batch",
        ["law evaluation_changes_no_state_and_draws_nothing", "law other_vectors_in_the_batch_change_no_index"],
    ),
    "T-O4": ("there are no binary or scalar quantizers here", []),
    "T-O5": (
        "evaluation counts no usage; noise of a reset is a deviation, not a variance",
        [
            f"{NN}/slots/test_resets.py::test_evaluation_counts_nothing",
            f"{NN}/slots/test_resets.py::test_noise_is_relative_to_the_norm_of_the_vector",
        ],
    ),
    "T-O6": (
        "what an init has filled and its flag are in the state dict, and a reset takes batches of any size",
        [
            f"{NN}/test_codebook.py::test_loading_goes_on_with_an_unfinished_init",
            f"{NN}/slots/test_resets.py::test_fewer_vectors_than_dead_codes_serve_the_longest_unused_first",
        ],
    ),
    "T-O7": ("counters are buffers", ["law every_buffer_that_training_changes_is_saved"]),
    "T-O8": (
        "every exported class can be constructed, and defaults are the correct ones",
        [f"{CONTRACTS}/test_laws.py::test_table_holds_every_preset_and_every_concrete_part"],
    ),
    "T-O9": (
        "vectors written into a unit-norm codebook are normalised; no distance matrix is kept",
        [
            "here test_unit_norm_means_the_same_for_inputs_and_codes",
            "law no_matrix_of_vectors_times_codes_is_made",
        ],
    ),
    "T-O10": (
        "a reloaded layer does not initialise again",
        [f"{NN}/slots/test_inits.py::test_loaded_codes_are_not_initialised_again"],
    ),
    "T-O11": (
        "everything runs in one process on the CPU, EMA state is in buffers",
        [
            f"{NN}/slots/test_updates.py::test_ema_takes_no_gradient_and_keeps_its_table_in_buffers",
            "law every_buffer_that_training_changes_is_saved",
        ],
    ),
    "T-O12": (
        "what gathers vectors is not written in evaluation and takes any batch size",
        [f"{NN}/slots/test_inits.py::test_evaluation_never_initialises", "law one_vector_at_a_time"],
    ),
}


def test_table_has_every_label() -> None:
    counts = {"V": 11, "P": 24, "E": 3, "O": 12}
    assert list(TABLE) == [f"T-{who}{n}" for who, last in counts.items() for n in range(1, last + 1)]


@pytest.mark.parametrize("label", list(TABLE))
def test_named_tests_exist(label: str) -> None:
    for reference in TABLE[label][1]:
        kind, _, name = reference.partition(" ")
        if kind == "law":
            assert name in LAWS, reference
        elif kind == "here":
            assert callable(globals().get(name)), reference
        else:
            file, _, name = reference.partition("::")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert name in names, reference


def test_every_test_below_is_named_in_the_table() -> None:
    named = {reference.removeprefix("here ") for _, references in TABLE.values() for reference in references}
    own = [name for name in globals() if name.startswith("test_")]
    assert [name for name in own if name not in named] == own[:3], "all but the three about the table itself"


# --- the bugs, with the numbers at which they were found -------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_alternated_step_trains_with_the_affine_map() -> None:
    torch.manual_seed(0)
    layer = svq.presets.vq_ste_pp(8, 32, lr_scale=2.0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    for step in range(3):
        optimizer.zero_grad()
        out = layer(normal(64, 8, seed=step).requires_grad_())
        (out.loss + out.quantized.square().mean()).backward()
        optimizer.step()
    assert layer.codes().isfinite().all()


def test_alternated_step_runs_without_gradients_and_assigns_again() -> None:
    torch.manual_seed(0)
    book = svq.Codebook(4, update=svq.AlternatedUpdate(fraction=1.0))
    layer = svq.VectorQuantizer(1, book, losses=[svq.CommitmentLoss(0.7)])
    layer.set_codes(torch.tensor([[0.0], [3.0], [100.0], [200.0]]))
    # 1.4 first belongs to the code 0, which moves to the mean -2.2 of its two; then 3 is nearer.
    z = torch.tensor([[1.4], [-5.8], [3.0]])
    with torch.no_grad():
        out = layer(z)
    assert out.indices.tolist() == [1, 0, 1]
    torch.testing.assert_close(layer.codes()[:2], torch.tensor([[-2.2], [3.0]]))
    assert torch.equal(out.quantized, layer.codes()[out.indices])


@pytest.mark.parametrize(("size", "vectors"), [(1000, 300), (100, 27), (64, 10)])
@pytest.mark.parametrize("init", [svq.KMeansInit, svq.SampleInit])
def test_fewer_vectors_than_codes_fill_the_whole_table(size: int, vectors: int, init: type[svq.Init]) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(8, svq.Codebook(size, init=init(), update=svq.EMAUpdate()))
    z = 5 + normal(vectors, 8)
    out = layer(z)
    codes = layer.codes()
    assert codes.shape == (size, 8)
    assert len(codes.unique(dim=0)) == size
    assert torch.cdist(codes, z).min(1).values.max() < 0.1, "a code away from the data, as zero codes are"
    assert (out.quantized - z).abs().max() < 0.1


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_every_distance_finds_its_nearest_code(distance: svq.functional.nearest.Distance) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(8, svq.Codebook(32), assigner=svq.Nearest(distance)).eval()
    z = normal(200, 8, seed=1)
    codes = layer.codes() * (0.5 + torch.rand(32, 1))
    layer.set_codes(codes)
    if distance == "cosine":
        wanted = (F.normalize(z, dim=1).double() @ F.normalize(codes, dim=1).double().T).argmax(1)
    else:
        wanted = torch.cdist(z.double(), codes.double()).argmin(1)
    out = layer(z)
    assert torch.equal(out.indices, wanted)
    assert torch.equal(out.quantized, codes[wanted]), "the code itself, not a normalised twin of it"


def test_unit_norm_means_the_same_for_inputs_and_codes() -> None:
    torch.manual_seed(0)
    book = svq.Codebook(16, parametrization=svq.UnitNormCodes())
    layer = svq.VectorQuantizer(8, book, transform=svq.UnitNorm())
    written = 7 * normal(16, 8)
    layer.set_codes(written)
    ones = torch.ones(16)
    torch.testing.assert_close(layer.codes().norm(dim=1), ones)
    torch.testing.assert_close(layer.codes(), layer.transform(written))
    torch.testing.assert_close(layer.eval()(written).quantized, layer.transform(written))


def test_result_is_the_same_type_with_quantization_switched_off() -> None:
    torch.manual_seed(0)
    layer = svq.presets.ema(4, 8)
    z = normal(20, 4).requires_grad_()
    on = layer(z=z, mask=None)
    with svq.bypass(layer):
        off = layer(z=z, mask=None)
    with torch.no_grad():
        quiet = layer(z=z)
    for out in (on, off, quiet):
        assert type(out) is svq.QuantizerOutput
        assert out.loss.shape == ()
        assert set(out.terms) == {"commitment", "codebook"}
        assert all(term.shape == () for term in out.terms.values())
    assert not quiet.loss.requires_grad


def test_reset_through_an_affine_map_lands_on_the_data() -> None:
    torch.manual_seed(0)
    book = svq.Codebook(16, parametrization=svq.Affine(), reset=svq.DeadCodeReset(patience=1, noise=0.0))
    layer = svq.VectorQuantizer(8, book)
    affine = book.parametrization
    assert isinstance(affine, svq.Affine)
    with torch.no_grad():
        affine.scale.fill_(9.0)  # an effective scale of 10 and a shift of 5
        affine.shift.fill_(5.0)
        book.raw.copy_(100 + normal(16, 8))
    z = normal(64, 8, seed=1)
    for _ in range(4):
        layer(z)
    nearest = torch.cdist(layer.codes(), z).min(1).values
    assert (nearest < 1e-2).sum() >= 15, "reset codes stand on vectors of the batch"


@pytest.mark.parametrize("mean", [0.0, 20.0, 100.0, 1000.0, 10_000.0])
def test_search_finds_the_code_of_float64_at_any_mean(mean: float) -> None:
    torch.manual_seed(0)
    z, codes = mean + normal(500, 32), mean + normal(1024, 32, seed=1)
    layer = svq.presets.vq_vae(32, 1024).eval()
    layer.set_codes(codes)
    distance = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    closest = distance.sort(1).values
    clear = closest[:, 1] - closest[:, 0] > 1e-5 + 1e-6 * mean
    assert clear.float().mean() > 0.9
    assert torch.equal(layer.encode(z)[clear], distance.argmin(1)[clear])


def test_synchronised_gradient_is_nu_times_the_task_gradient() -> None:
    g = normal(40, 4, seed=3)
    encoders, tables = [], []
    for sync in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        layer = svq.VectorQuantizer(4, svq.Codebook(8), estimator=svq.StraightThrough(sync))
        z = normal(40, 4).requires_grad_()
        layer(z).quantized.backward(g)
        assert z.grad is not None
        encoders.append(z.grad)
        tables.append(0.0 if layer.codebook.raw.grad is None else layer.codebook.raw.grad.norm().item())
    assert all(torch.equal(grad, g) for grad in encoders)
    assert tables[0] == 0.0 < tables[1]
    assert tables[2] == pytest.approx(2 * tables[1])


def test_affine_map_is_among_the_named_parameters() -> None:
    torch.manual_seed(0)
    layer = svq.presets.vq_ste_pp(8, 32, groups=4, lr_scale=3.0)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes["codebook.parametrization.scale"] == (4, 8)
    assert shapes["codebook.parametrization.shift"] == (4, 8)
    layer(normal(64, 8)).loss.backward()
    assert all(p.grad is not None for name, p in layer.named_parameters() if "parametrization" in name)


def test_evaluation_on_shifted_data_changes_no_index() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(8, svq.Codebook(32, parametrization=svq.RunningAffine(), update=svq.EMAUpdate()))
    for step in range(5):
        layer(normal(128, 8, seed=step))
    layer.eval()
    z = normal(200, 8, seed=9)
    before = layer.encode(z)
    for step in range(200):
        layer(3 + 2 * normal(128, 8, seed=step))
    assert torch.equal(layer.encode(z), before)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_codebook_is_trained_whatever_the_weight_of_the_commitment(
    distance: svq.functional.nearest.Distance,
) -> None:
    found = []
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        losses: list[svq.Loss] = [svq.CommitmentLoss(weight), svq.CodebookLoss()]
        layer = svq.VectorQuantizer(4, svq.Codebook(8), assigner=svq.Nearest(distance), losses=losses)
        layer(normal(40, 4)).loss.backward()
        found.append(layer.codebook.raw.grad)
    assert found[0].norm() > 0
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("codebook_dim", [None, 3])
def test_mask_works_with_a_projection_and_channels_first(codebook_dim: int | None) -> None:
    torch.manual_seed(0)
    layer = svq.presets.ema(6, 16, channel_dim=1, codebook_dim=codebook_dim)
    z, mask = normal(2, 6, 5, 7), torch.rand(2, 5, 7) < 0.5
    out = layer(z, mask=mask)
    assert out.indices.shape == mask.shape
    assert ((out.indices >= 0) == mask).all()
    assert (out.quantized.movedim(1, -1)[~mask] == 0).all()
    assert torch.equal(layer.decode(out.indices), out.quantized)


def test_small_batches_reset_few_codes() -> None:
    torch.manual_seed(0)
    layer = svq.presets.ema(8, 256, patience=2)
    layer(normal(2048, 8))
    for step in range(4):
        before = layer.codes()
        layer(normal(64, 8, seed=step))
        moved = (layer.codes() != before).any(1).sum()
        assert moved <= 64, "only codes that got a vector: a batch of 64 says little about 256 codes"
