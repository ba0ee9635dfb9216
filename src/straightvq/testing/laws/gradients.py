"""Law 1: which term reaches what."""

import torch
from torch import Tensor

from straightvq.nn import Loss, Quantizer
from straightvq.testing.law import NotApplicable, hold, law, near
from straightvq.testing.subject import Subject, all_losses


def _of_codebooks(layer: Quantizer) -> list[Tensor]:
    return [parameter for book in layer.codebooks() for parameter in book.parameters()]


def _is_reached(tensors: list[Tensor]) -> bool:
    return any(t.grad is not None and bool((t.grad != 0).any()) for t in tensors)


@law("gradients")
def task_gradient_reaches_the_encoder(subject: Subject) -> None:
    """The gradient at ``quantized`` reaches every vector, finite, and the codes only if the estimator says so."""
    layer = subject.trained()
    z = subject.data(7).requires_grad_()
    quantized = layer(z).quantized
    hold(quantized.requires_grad, "`quantized` to be connected to z", "no graph")
    weight = torch.randn(quantized.shape, generator=torch.Generator().manual_seed(1))
    (weight * quantized).sum().backward()
    hold(z.grad is not None, "a gradient at z", None)
    assert z.grad is not None
    hold(z.grad.isfinite().all(), "a finite gradient at z", "NaN or infinity")
    hold((z.grad != 0).any(1).all(), "a gradient at every vector", f"{int((z.grad == 0).all(1).sum())} zero rows")
    estimators = [module.estimator for module in layer.modules() if isinstance(module, Quantizer)]
    owned, meant = _of_codebooks(layer), any(estimator.trains_codes for estimator in estimators)
    if owned:
        asked = "a gradient at the codes: one of {} has" if meant else "no gradient at the codes: none of {} has"
        hold(_is_reached(owned) == meant, f"{asked.format(estimators)} trains_codes", "none" if meant else "one")


@law("gradients")
def each_loss_trains_its_sides(subject: Subject) -> None:
    """The gradient of a loss reaches the encoder, the codes or both, as its ``trains`` says, and nothing else."""
    for number in range(len(subject.trained().losses)):
        layer = subject.trained()
        loss = layer.losses[number]
        assert isinstance(loss, Loss)
        z = subject.data(7).requires_grad_()
        terms = layer(z).terms
        if terms[loss.name].requires_grad:
            terms[loss.name].backward()
        to_encoder, to_codes = loss.trains != "codes", loss.trains != "encoder"
        reached = _is_reached([z])
        hold(reached == to_encoder, f"{'a' if to_encoder else 'no'} gradient of {loss} at the encoder", reached)
        for book in layer.codebooks():
            routes = book.update.loss
            takes = routes.raw or (routes.parametrization and book.parametrization.is_learned)
            meant = to_codes and takes and any(part.trains_codes for part in layer._losses())
            reached = _is_reached(list(book.parameters()))
            hold(reached == meant, f"{'a' if meant else 'no'} gradient of {loss} at the codebook", reached)


@law("gradients")
def each_loss_pulls_with_its_weight(subject: Subject) -> None:
    """The gradient of ``loss`` is the weighted sum of the gradients of ``terms``."""
    layer = subject.trained()
    z = subject.data(7).requires_grad_()
    out = layer(z)
    tensors = [z, *_of_codebooks(layer)]
    wanted = [torch.zeros_like(tensor) for tensor in tensors]
    weights = {(loss.name, loss.coefficient) for _, loss in all_losses(layer)}
    if len(weights) > len(out.terms):
        raise NotApplicable("the quantizers inside weigh losses of one name differently")
    for name, weight in weights:
        for total, gradient in zip(wanted, _gradients(out.terms[name], tensors), strict=True):
            total += weight * gradient
    for gradient, total in zip(_gradients(out.loss, tensors), wanted, strict=True):
        near(gradient, total, "the weighted sum of the terms' gradients", 1e-6)


def _gradients(term: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Zeros where nothing arrives."""
    if not term.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = torch.autograd.grad(term, tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if gradient is None else gradient for t, gradient in zip(tensors, found, strict=True)]
