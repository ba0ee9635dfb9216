"""Laws 3 and 7: evaluation is pure, losses are reported in it; memory is bounded."""

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.nn import Loss, Nearest, Quantizer
from straightvq.testing.law import hold, law, near, same, same_state
from straightvq.testing.subject import Subject, state_of


def assert_evaluation_is_pure(layer: Quantizer, z: Tensor, mask: Tensor | None = None) -> None:
    """Two evaluation forwards of this very input are equal, change no state and draw no random number."""
    layer.eval()
    before, random = state_of(layer), torch.get_rng_state()
    first = layer(z, mask)
    layer.train().encode(z, mask)
    layer.decode(first.indices)
    second = layer.eval()(z, mask)
    same_state(state_of(layer), before, "no state changed by evaluation, `encode` and `decode`")
    hold(torch.equal(random, torch.get_rng_state()), "no random number drawn in evaluation", "a draw")
    same(second.quantized, first.quantized, "the same `quantized` from the same input")
    same(second.indices, first.indices, "the same `indices` from the same input")
    same(second.loss, first.loss, "the same `loss` from the same input")


@law("evaluation")
def evaluation_changes_no_state_and_draws_nothing(subject: Subject) -> None:
    """Evaluation, ``encode`` and ``decode`` change no parameter or buffer and draw no random number."""
    for steps in (0, 6):
        layer = subject.trained(steps) if steps else subject.made()
        assert_evaluation_is_pure(layer, subject.data(50) + 5)


@law("evaluation")
def other_vectors_in_the_batch_change_no_index(subject: Subject) -> None:
    """A vector's index is the same alone and in company, where its float64 margin exceeds rounding."""
    layer = subject.trained_table().eval()
    z = subject.data(3)
    together, alone = layer.encode(z), torch.stack([layer.encode(row) for row in z])
    clear = torch.ones_like(together, dtype=torch.bool)
    if isinstance(layer.assigner, Nearest):
        x, codes = layer.transform(z).detach().double(), layer.codes().double()
        if layer.assigner.distance == "cosine":
            codes = F.normalize(codes, dim=1)
        closest = torch.cdist(x, codes).sort(1).values
        clear = closest[:, 1] - closest[:, 0] > 1e-4
    same(alone[clear], together[clear], "the same index alone and in the batch")


@law("evaluation")
def losses_are_reported_in_evaluation_and_add_up(subject: Subject) -> None:
    """In evaluation ``terms`` has every loss, finite and positive, and ``loss`` is their weighted sum."""
    layer = subject.trained_table().eval()
    out = layer(subject.data(3))
    weights = {loss.name: loss.weight for loss in layer.losses if isinstance(loss, Loss)}
    hold(set(out.terms) == set(weights), f"the terms {sorted(weights)}", sorted(out.terms))
    hold(out.loss.shape == (), "a scalar loss", tuple(out.loss.shape))
    total = sum((weights[name] * term for name, term in out.terms.items()), start=torch.zeros(()))
    near(out.loss, torch.as_tensor(total), "the weighted sum of the terms")
    for name, term in out.terms.items():
        hold(term > 0 and term.isfinite(), f"`{name}` finite and positive for data off the codes", term)


@law("memory")
def no_matrix_of_vectors_times_codes_is_kept(subject: Subject) -> None:
    """Nothing of shape (n, codebook_size) is saved for the backward: memory is O(n d + k d)."""
    layer = subject.trained_table()
    n, k = len(subject.data(8)) + 1, subject.size
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(subject.data(8, n).requires_grad_())
    matrices = [shape for shape in kept if shape in ((n, k), (k, n))]
    hold(not matrices, f"nothing of {n} x {k} kept for the backward", matrices)
