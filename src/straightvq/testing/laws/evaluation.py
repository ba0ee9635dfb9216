"""Laws 3 and 7: evaluation is pure, losses are reported in it; memory is bounded."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from straightvq.nn import Quantizer, VectorQuantizer
from straightvq.testing.law import NotApplicable, hold, law, near, same, same_state
from straightvq.testing.subject import Subject, all_losses, backward, same_output, state_of, with_codes


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
    same_output(second, first, "from the same input")


@law("evaluation")
def evaluation_changes_no_state_and_draws_nothing(subject: Subject) -> None:
    """Evaluation, ``encode`` and ``decode`` change no parameter or buffer and draw no random number."""
    for layer in subject.of_each_age():
        assert_evaluation_is_pure(layer, subject.data(50) + 5)


@law("evaluation")
def encoding_follows_the_evaluation_rule_in_any_mode(subject: Subject) -> None:
    """``encode``, ``decode`` and ``unquantized`` give in training mode what they give in evaluation."""
    layer, z = subject.trained(), subject.data(3)
    calls = {"encode": z, "decode": layer.encode(z), "unquantized": z}
    wanted = {name: getattr(layer.eval(), name)(given) for name, given in calls.items()}
    layer.train()
    for name, given in calls.items():
        same(getattr(layer, name)(given), wanted[name], f"the `{name}` of evaluation in training mode")
    hold(all(module.training for module in layer.modules()), "all modules in training mode again", "others")


@law("evaluation")
def other_vectors_in_the_batch_change_no_index(subject: Subject) -> None:
    """A vector's index is the same alone and in company, where it does not hang by rounding."""
    layer, z = subject.trained().eval(), subject.data(3)
    together, alone = layer.encode(z), torch.stack([layer.encode(row) for row in z])
    clear = clear_of_borders(layer, z)
    same(alone[clear], together[clear], "the same index alone and in the batch")


def clear_of_borders(layer: Quantizer, z: Tensor, reach: float = 1e-4) -> Tensor:
    """Where float64 finds the same indices for all small moves of a vector, Bool (n,)."""
    exact = copy.deepcopy(layer).double().eval()
    z = z.double()
    wanted = exact.encode(z)
    clear = torch.ones(len(z), dtype=torch.bool)
    for number in range(8):
        moved = z + reach * torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(number))
        clear &= (exact.encode(moved) == wanted).view(len(z), -1).all(1)
    return clear


@law("evaluation")
def losses_are_reported_in_evaluation_and_add_up(subject: Subject) -> None:
    """In evaluation ``terms`` has every loss, finite, and ``loss`` is their weighted sum."""
    layer = subject.trained().eval()
    out = layer(subject.data(3))
    hold(out.loss.shape == (), "a scalar loss", tuple(out.loss.shape))
    training = layer.train()(subject.data(3))
    hold(set(out.terms) == set(training.terms), f"the terms of training, {sorted(training.terms)}", sorted(out.terms))
    for name, value in out.terms.items():
        hold(value.shape == () and value.isfinite(), f"`{name}` a finite scalar", value)
    if not isinstance(layer, VectorQuantizer):
        return
    weights = {loss.name: loss.coefficient for _, loss in all_losses(layer)}
    hold(set(out.terms) == set(weights), f"the terms {sorted(weights)}", sorted(out.terms))
    total = sum((weights[name] * term for name, term in out.terms.items()), start=torch.zeros(()))
    near(out.loss, torch.as_tensor(total), "the weighted sum of the terms")
    for name in {"commitment", "codebook"} & set(out.terms):
        hold(out.terms[name] > 0, f"`{name}` positive for data off the codes", out.terms[name])


class _Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operator gives."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.itemsize for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return out


@law("memory")
def no_matrix_of_vectors_times_codes_is_made(subject: Subject) -> None:
    """No operator of a training or evaluation step gives n x codebook_size numbers: memory is O(n d + k d)."""
    layer = with_codes(subject.trained())
    widest = 2 * layer.num_quantizers * max(layer.dim, *(book.raw.shape[-1] for book in layer.codebooks()))
    if subject.size < widest:
        raise NotApplicable(f"{subject.size} codes are too few to tell their number from {widest}")
    # More than a search compares in one piece, whatever its size.
    z = torch.cat([subject.data(seed) for seed in range(8, 120)])
    for mode in (True, False):
        layer.train(mode)
        with _Largest() as largest:
            x = z.clone().requires_grad_()
            backward(layer(x), x)
        hold(largest.numel < len(z) * subject.size, f"fewer than {len(z)} x {subject.size} numbers", largest.numel)
