"""Law 8: a masked position takes part in nothing; and batches of no or one vector."""

import torch
from torch import Tensor

from straightvq.nn import Quantizer
from straightvq.testing.law import hold, law, near, near_state, same, same_state
from straightvq.testing.subject import Subject, backward, clock_of, codes_of, same_output, state_of


def assert_masked_take_part_in_nothing(first: Quantizer, second: Quantizer, z: Tensor, mask: Tensor) -> None:
    """Two equal layers agree on results, gradients and state when only the masked values of their input differ."""
    spoilt, clean = z.detach().clone(), z.detach().clone().requires_grad_()
    spoilt.masked_fill_(~mask.unsqueeze(-1).movedim(-1, first.channel_dim), torch.nan)  # in place: strides round sums
    a, b = first(clean, mask), second(spoilt, mask)
    quantized = a.quantized.detach().movedim(first.channel_dim, -1)
    hold((a.indices[~mask] == -1).all(), "index -1 at masked positions", a.indices[~mask].unique().tolist())
    hold((quantized[~mask] == 0).all(), "zeros at masked positions", f"up to {quantized[~mask].abs().sum():.3g}")
    same_output(b, a, "whatever the masked values")
    gradient = backward(a, clean).movedim(first.channel_dim, -1)
    hold((gradient[~mask] == 0).all(), "no gradient at masked positions", "one")
    hold(gradient.isfinite().all(), "a finite gradient", "NaN or infinity")
    same_state(state_of(second), state_of(first), "the same state whatever the masked values")


@law("masks")
def masked_positions_take_part_in_nothing(subject: Subject) -> None:
    """What stands at masked positions, NaN included, changes no result, no gradient and no state."""
    first, second = subject.made(), subject.made()
    for number in range(6):
        z = subject.data(number).view(-1, 5, subject.dim)
        mask = torch.rand(z.shape[:-1], generator=torch.Generator().manual_seed(number)) < 0.7
        assert_masked_take_part_in_nothing(first, second, z, mask)


@law("masks")
def masked_batch_equals_the_batch_of_its_valid_vectors(subject: Subject) -> None:
    """A masked batch does what the batch of its valid vectors does, up to rounding."""
    first, second = subject.trained(), subject.trained()
    z = subject.data(7)
    mask = torch.arange(len(z)) % 3 != 0
    a, b = first(z, mask), second(z[mask])
    same(a.indices[mask], b.indices, "the indices of the valid vectors alone")
    near(a.loss, b.loss, "the loss of the valid vectors alone")
    for codes, others in zip(codes_of(first), codes_of(second), strict=True):
        near(codes, others, "the codes that the valid vectors alone lead to")


@law("masks")
def mask_of_ones_changes_nothing(subject: Subject) -> None:
    """A mask that hides nothing changes nothing, up to rounding."""
    first, second = subject.made(), subject.made()
    for number in range(5):
        z = subject.data(number)
        a, b = first(z), second(z, torch.ones(len(z), dtype=torch.bool))
        same(b.indices, a.indices, "the indices without a mask")
        near(b.loss, a.loss, "the loss without a mask")
    near_state(state_of(second), state_of(first), "the state without a mask")


def assert_no_vectors_change_nothing(layer: Quantizer, z: Tensor, mask: Tensor | None) -> None:
    """An empty or all-masked batch gives loss 0, connected to z, and changes nothing but the clock."""
    before = state_of(layer)
    z = z.detach().clone().requires_grad_()
    out = layer(z, mask)
    hold(out.loss == 0, "loss 0 without vectors", out.loss)
    hold((out.indices == -1).all(), "index -1 everywhere without vectors", "others")
    gradient = backward(out, z)
    hold((gradient == 0).all(), "a gradient of zeros at z", gradient)
    hold(layer.encode(z, mask).shape == out.indices.shape, "indices of one shape", tuple(out.indices.shape))
    after = state_of(layer)
    for name, value in before.items():
        if name not in clock_of(layer):
            same(after[name], value, f"`{name}` unchanged by a batch without vectors")


@law("masks")
def batch_without_vectors_changes_only_the_step_and_keeps_the_graph(subject: Subject) -> None:
    """An empty or all-masked batch gives loss 0, still connected to z, and changes nothing but the clock."""
    z = subject.data(1)
    for mode in (True, False):
        for layer in subject.of_each_age():
            layer.train(mode)
            assert_no_vectors_change_nothing(layer, z, torch.zeros(len(z), dtype=torch.bool))
            assert_no_vectors_change_nothing(layer, z[:0], None)


@law("masks")
def one_vector_at_a_time(subject: Subject) -> None:
    """Batches of a single vector train, and leave no two codes equal."""
    layer = subject.made()
    for number in range(5):
        z = subject.data(number, 1).requires_grad_()
        gradient = backward(layer(z), z)
        hold(gradient.isfinite().all(), "a finite gradient for a single vector", gradient)
        for codes in codes_of(layer):
            hold(codes.isfinite().all(), "finite codes after single vectors", "NaN or infinity")
            hold(len(codes.unique(dim=0)) == len(codes), f"{len(codes)} different codes", len(codes.unique(dim=0)))
