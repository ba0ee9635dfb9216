"""Law 1: which term reaches what."""

import torch
from torch import Tensor

from straightvq.nn import Loss
from straightvq.testing.law import hold, law, near
from straightvq.testing.subject import Subject


def _is_reached(tensors: list[Tensor]) -> bool:
    return any(t.grad is not None and bool((t.grad != 0).any()) for t in tensors)


@law("gradients")
def task_gradient_reaches_the_encoder(subject: Subject) -> None:
    """The gradient at ``quantized`` reaches every vector, finite, and the codes only if the estimator says so."""
    layer = subject.trained_table()
    z = subject.data(7).requires_grad_()
    quantized = layer(z).quantized
    hold(quantized.requires_grad, "`quantized` to be connected to z", "no graph")
    weight = torch.randn(quantized.shape, generator=torch.Generator().manual_seed(1))
    (weight * quantized).sum().backward()
    hold(z.grad is not None, "a gradient at z", None)
    assert z.grad is not None
    hold(z.grad.isfinite().all(), "a finite gradient at z", "NaN or infinity")
    hold((z.grad != 0).any(1).all(), "a gradient at every vector", f"{int((z.grad == 0).all(1).sum())} zero rows")
    reached = _is_reached(list(layer.codebook.parameters()))
    if layer.estimator.trains_codes:
        hold(reached, f"a gradient at the codes: {layer.estimator} has trains_codes", "none")
    else:
        hold(not reached, f"no gradient at the codes: {layer.estimator} has no trains_codes", "one")


@law("gradients")
def each_loss_trains_one_side(subject: Subject) -> None:
    """A loss with ``trains_codes`` sends its gradient to the codebook alone, any other to the encoder alone."""
    for number, name in enumerate(subject.trained_table().losses):
        layer = subject.trained_table()
        loss = layer.losses[number]
        assert isinstance(loss, Loss), name
        z = subject.data(7).requires_grad_()
        terms = layer(z).terms
        if terms[loss.name].requires_grad:
            terms[loss.name].backward()
        if loss.trains_codes:
            hold(not _is_reached([z]), f"no gradient of {loss} at the encoder", "one")
            update, book = layer.codebook.update, layer.codebook
            by_map = update.loss_trains_parametrization and book.parametrization.is_learned
            meant = update.loss_trains_raw or by_map
            reached = _is_reached(list(book.parameters()))
            hold(reached == meant, f"{'a' if meant else 'no'} gradient of {loss} at the codebook", reached)
        else:
            hold(_is_reached([z]), f"a gradient of {loss} at the encoder", "none")
            hold(not _is_reached(list(layer.codebook.parameters())), f"no gradient of {loss} at the codebook", "one")


@law("gradients")
def each_loss_pulls_with_its_weight(subject: Subject) -> None:
    """The gradient of ``loss`` is the weighted sum of the gradients of ``terms``."""
    layer = subject.trained_table()
    z = subject.data(7).requires_grad_()
    out = layer(z)
    tensors = [z, *layer.codebook.parameters()]
    wanted = [torch.zeros_like(tensor) for tensor in tensors]
    for loss in layer.losses:
        assert isinstance(loss, Loss)
        for total, gradient in zip(wanted, _gradients(out.terms[loss.name], tensors), strict=True):
            total += loss.weight * gradient
    for gradient, total in zip(_gradients(out.loss, tensors), wanted, strict=True):
        near(gradient, total, "the weighted sum of the terms' gradients", 1e-6)


def _gradients(term: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Zeros where nothing arrives."""
    if not term.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = torch.autograd.grad(term, tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if gradient is None else gradient for t, gradient in zip(tensors, found, strict=True)]
