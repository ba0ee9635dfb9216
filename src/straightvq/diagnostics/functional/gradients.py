"""What reaches encoder and codes in a step: gradient gap, sparsity, delay."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from straightvq.diagnostics.functional import vectors
from straightvq.diagnostics.functional.vectors import check_shape, ratio, result_dtype, wide_dtype
from straightvq.errors import InvalidValueError
from straightvq.functional.nearest import Distance, nearest_code


class GradientGap(NamedTuple):
    """How far the straight-through gradient is from the one without a quantizer; see `gradient_gap`."""

    norm: Tensor
    relative: Tensor
    cosine: Tensor


class UpdateDelay(NamedTuple):
    """Quantization errors around one training step, over the variance of the embeddings; see `update_delay`."""

    before: Tensor
    aimed: Tensor
    after: Tensor

    @property
    def delay(self) -> Tensor:
        """`after - aimed`: what the codes miss because the embeddings have moved on."""
        return self.after - self.aimed


def gradient_gap(grad_at_z: Tensor, grad_at_quantized: Tensor) -> GradientGap:
    """Error of the straight-through gradient.

    norm = ||g_z - g_q||,  relative = norm / ||g_z||,  cosine = <g_z, g_q> / (||g_z|| ||g_q||), of the gradients of one
    head G at the embeddings, g_z = dL(G(z))/dz, and at the quantized vectors, g_q = dL(G(q))/dq; see `estimator_gap`.

    norm depends on how the loss averages; compare relative (0 is exact) and cosine (1 is exact) between runs. It
    vanishes if the quantizer is exact or the head is linear in L; for a smooth head it is bounded by its smoothness
    times ||z - q||. If both gradients are zero it is (0, 0, 1); if only g_z is, relative is infinite; a single zero
    gradient has cosine 0.

    Shape: grad_at_z, grad_at_quantized: Float, any one shape.
    Raises: ValueError if the shapes differ.
    Source: the gradient gap of the paper's analysis of the straight-through estimator.

    Example:
        >>> gradient_gap(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])).norm  # L = |u|^2 / 2, q = 0
        tensor(5.)
    """
    check_shape("gradient_gap", "grad_at_quantized", grad_at_quantized, "grad_at_z", grad_at_z)
    a = grad_at_z.flatten().to(wide_dtype(grad_at_z))
    b = grad_at_quantized.flatten().to(a.dtype)
    norm_a, norm_b = a.norm(), b.norm()
    # Each side is normalised by itself: a product of two small norms could underflow.
    gap = gap_of_norms((a - b).norm(), norm_a, norm_b, (ratio(a, norm_a) * ratio(b, norm_b)).sum())
    return GradientGap(*(value.to(result_dtype(grad_at_z)) for value in gap))


def gap_of_norms(apart: Tensor, norm_a: Tensor, norm_b: Tensor, cosine: Tensor) -> GradientGap:
    """The gap from the norms of the difference and of both gradients; two zero gradients are alike."""
    cosine = torch.where((norm_a == 0) & (norm_b == 0), 1.0, cosine.clamp(-1, 1))
    return GradientGap(apart, ratio(apart, norm_a), cosine)


def estimator_gap(head: Callable[[Tensor], Tensor], z: Tensor, quantized: Tensor) -> GradientGap:
    """`gradient_gap` of a head, run at the embeddings and at the quantized vectors.

    Leaves no gradient in a parameter. A head that draws random numbers, as dropout does, draws the same ones both
    times, and the random state is left as it was found. Put the head in evaluation mode to measure it there.

    Args:
        head: maps a latent to the task loss, a scalar: the rest of the network, target and loss included.
        z: embeddings, Float of any shape that the head takes. If the layer transforms them, as unit norm and
            projections do, pass ``layer.unquantized(z)``: otherwise the gap includes that of the transform.
        quantized: what the quantizer makes of them, of the same shape.

    Raises: ValueError if the shapes differ or the head's loss is not a scalar that depends on the latent.
    Source: the paper's gradient gap: dL(G(F(x)))/dF(x) - dL(G(h(F(x))))/dh(F(x)).

    Example:
        >>> gap = estimator_gap(lambda u: u.square().sum() / 2, torch.tensor([3.0, 4.0]), torch.zeros(2))
        >>> gap.norm, estimator_gap(torch.sum, torch.tensor([3.0, 4.0]), torch.zeros(2)).norm
        (tensor(5.), tensor(0.))
    """
    check_shape("estimator_gap", "quantized", quantized, "z", z)
    return gradient_gap(_head_gradient(head, z), _head_gradient(head, quantized))


def _head_gradient(head: Callable[[Tensor], Tensor], latent: Tensor) -> Tensor:
    at = latent.detach().clone().requires_grad_()
    with torch.random.fork_rng(devices=[at.device] if at.is_cuda else []), torch.enable_grad():
        loss = head(at)
    if loss.ndim or not loss.requires_grad:
        raise InvalidValueError(
            "`estimator_gap`: `head` must return a scalar loss that depends on the latent. "
            f"Got the shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}."
        )
    return torch.autograd.grad(loss, at)[0]


def gradient_sparsity(grad: Tensor) -> Tensor:
    """Fraction of the codes that receive a gradient in a step: rows with a non-zero entry.

    A plain codebook gets (assigned codes)/k; with shared affine parameters every *effective* code moves although the
    raw table's gradient stays this sparse. Of `codes_after - codes_before` it is the fraction of the codes that a step
    moved, by whatever rule.

    Shape: grad: Float (k, dim), the gradient of the code table, or its change; the result is Float ().
    Raises: ValueError if `grad` is not a table of at least one row.

    Example:
        >>> gradient_sparsity(torch.tensor([[0.0, 0.1], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
        tensor(0.5000)
    """
    if grad.ndim != 2 or not len(grad):
        rule = "`grad` must have the shape (codebook_size, dim) with at least one row"
        raise vectors.shape_error("gradient_sparsity", rule, grad)
    return (grad != 0).any(-1).float().mean()


def update_delay(
    z_before: Tensor, z_after: Tensor, codes_before: Tensor, codes_after: Tensor, *, distance: Distance = "euclidean"
) -> UpdateDelay:
    """How far the codebook lags behind the encoder: quantization errors of the same inputs around a training step.

    before = d(z^t, C^t), aimed = d(z^t, C^(t+1)), after = d(z^(t+1), C^(t+1)), with
    d(z, C) = mean ||z - nearest code||^2 / mean ||z^t - mean z^t||^2.

    Codes are trained on the embeddings of the step (`aimed`) and used on those of the encoder that has stepped, too:
    `delay = after - aimed` is what that costs. Near 0 is normal; negative means that the commitment pulls the
    embeddings towards their codes faster than the task moves them away; more than `before - aimed`, the gain of the
    codebook's own step, means that the step left the codebook worse off. Unchanged when vectors and codes are shifted
    or scaled together.

    Args:
        z_before, z_after: embeddings of a fixed set of inputs before and after the step, Float (*batch, dim).
        codes_before, codes_after: effective codes, Float (k, dim).
        distance: by which codes are assigned; see `straightvq.functional.nearest_code`.

    Raises: ValueError if the shapes do not fit or there is no vector.
    Source: the paper: the codebook "is always delayed by a single iteration". The measure is ours.

    Example:
        >>> z = torch.tensor([[-1.0], [1.0]])  # variance 1, one code at 2 that moves half way to the mean
        >>> delay = update_delay(z, z - 1, torch.tensor([[2.0]]), torch.tensor([[1.0]]))
        >>> [float(error) for error in delay], float(delay.delay)
        ([5.0, 2.0, 5.0], 3.0)
    """
    spread = vectors.mean_and_variance(vectors.flatten(z_before, "update_delay"))[1].sum()
    missed = step_misses("update_delay", z_before, z_after, codes_before, codes_after, distance)
    return UpdateDelay(*(ratio(part.square().sum(-1).mean(), spread).to(result_dtype(z_before)) for part in missed))


def step_misses(
    owner: str, z_before: Tensor, z_after: Tensor, codes_before: Tensor, codes_after: Tensor, distance: Distance
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors minus nearest codes, wide (n, dim): before the step, with the new codes, and with both new."""
    check_shape(owner, "z_after", z_after, "z_before", z_before)
    check_shape(owner, "codes_after", codes_after, "codes_before", codes_before)
    vectors.check_codes(owner, z_before, codes_before)

    def missed(z: Tensor, codes: Tensor) -> Tensor:
        flat = z.detach().reshape(-1, z.shape[-1]).to(wide_dtype(z))
        codes = codes.detach().to(flat.dtype)
        return flat - codes[nearest_code(flat, codes, distance=distance)]

    return missed(z_before, codes_before), missed(z_before, codes_after), missed(z_after, codes_after)
