"""What is wrong with a codebook, told from its windows, and what to write against it."""

from typing import Any

import torch
from torch import Tensor, nn

from straightvq.diagnostics import functional
from straightvq.nn import CommitmentLoss, GradientUpdate, Quantizer
from straightvq.training.window import Followed, Reading

# Fewer vectors per code than this leave codes of a healthy codebook unused.
_VECTORS_PER_CODE = 4
# A commitment term that grew this much, with a relative error that grew that much, is a divergence.
_COMMITMENT_GROWTH, _ERROR_GROWTH = 100.0, 2.0
# Above this width a smaller one is worth trying.
_NARROW = 16
_PAGE = "docs/collapse.md"


class CodebookWarning(UserWarning):
    """A codebook that collapses, does not move or diverges while it trains."""


class Concerns:
    """What has to be remembered of one quantizer's windows, and the warnings already given.

    Args:
        size: number of codes.
        threshold: usage below which a window counts as collapsed.
        patience: number of such windows in a row before the warning.
    """

    def __init__(self, size: int, threshold: float, patience: int) -> None:
        self.size = size
        self.threshold = threshold
        self.patience = patience
        self.counts = torch.zeros(size, dtype=torch.int64)
        self.low = 0
        self.reference: list[float] | None = None
        self.warned: list[str] = []

    def once(self, kind: str, message: str | None) -> list[str]:
        """The message unless there is none or one of its kind was returned before."""
        if message is None or kind in self.warned:
            return []
        self.warned.append(kind)
        return [message]

    def collapse(self, counts: Tensor, quantizer: Quantizer) -> str | None:
        """Judges the window; one with too few vectors is widened by those that follow."""
        self.counts = self.counts.to(counts.device) + counts
        vectors = int(self.counts.sum())
        if vectors < _VECTORS_PER_CODE * self.size:
            return None
        usage = float(functional.usage(self.counts))
        perplexity = float(functional.perplexity(self.counts))
        self.counts.zero_()
        self.low = self.low + 1 if usage < self.threshold else 0
        if self.low < self.patience:
            return None
        return (
            f"the codebook has collapsed: {round(usage * self.size)} of {self.size} codes ({usage:.1%}) were used "
            f"for {vectors} vectors, perplexity {perplexity:.1f}, and {self.low} windows in a row stayed below "
            f"{self.threshold:.0%}. {_list_cures(quantizer)}"
        )

    def divergence(self, reading: Reading) -> str | None:
        """Compares the window with the one of the smallest commitment term."""
        if self.reference is None or reading.commitment < self.reference[0]:
            self.reference = [reading.commitment, reading.error]
            return None
        least, error = self.reference
        # Negated, so that NaN counts as growth.
        if not reading.commitment <= _COMMITMENT_GROWTH * least and not reading.error <= _ERROR_GROWTH * error:
            return (
                f"the codebook loses the embeddings: the commitment term grew from {least:.3g} to "
                f"{reading.commitment:.3g}, and the quantization error relative to the embeddings' variance grew with "
                f"it, from {error:.3g} to {reading.error:.3g}. (A commitment term that rises while the relative error "
                "falls or stays is normal: the norm of the embeddings grows.) Lower the learning rate, or let the "
                "codes follow faster with update=svq.AlternatedUpdate() or svq.EMAUpdate(decay=0.95), or hold the "
                f"embeddings with a larger svq.CommitmentLoss(weight=...). See {_PAGE}."
            )
        return None


def no_update(followed: Followed, is_unchanged: bool, optimizers: list[Any]) -> str | None:
    """Says that the codes stand still, or that an optimizer has never heard of them, and why."""
    if followed.codebook is None or followed.is_frozen:
        return None
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    named = [(name, p) for name, p in followed.codebook.named_parameters() if p.requires_grad]
    missing = [name for name, p in named if id(p) not in held]
    idle = [name for name, p in named if id(p) in held and p.grad is None]
    if not is_unchanged and not missing:
        return None
    said = (
        "no code has moved in a whole window of training." if is_unchanged else "a part of the codebook is untrained."
    )
    if missing:
        said += (
            f" The codebook's {_names(missing)} in none of the trainer's optimizers: build the optimizer from "
            "svq.parameter_groups(module, lr=..., weight_decay=...), or from module.parameters()."
        )
    if idle:
        said += (
            f" The codebook's {_names(idle)} without a gradient (grad is None): add the quantizer's output.loss to "
            "the loss of training_step, with losses=[svq.CommitmentLoss(), svq.CodebookLoss()]."
        )
    if not missing and not idle:
        said += (
            " Every parameter of it has an optimizer and a gradient: is the learning rate 0?"
            if named
            else f" It takes no gradient, and {type(followed.codebook.update).__name__} found nothing to do."
        )
    return f"{said} If it is meant to stand still, call codebook.freeze(). See {_PAGE}."


def _names(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _list_cures(quantizer: Quantizer) -> str:
    cures = list_cures(quantizer)
    if not cures:
        return f"All the usual cures are in place; see {_PAGE} for the rest."
    numbered = "; ".join(f"({number}) {cure}" for number, cure in enumerate(cures, 1))
    return f"What helps, best evidence first: {numbered}. See {_PAGE}."


def list_cures(quantizer: Quantizer) -> list[str]:
    """The cures of collapse that this quantizer does not have yet, best evidence first, each with the code."""
    codebook = getattr(quantizer, "codebook", None)
    cures = []
    if getattr(codebook, "reset", None) is None:
        cures.append("revive dead codes: svq.Codebook(..., reset=svq.DeadCodeReset())")
    if not getattr(getattr(codebook, "init", None), "needs_data", False):
        cures.append("start on the data: svq.Codebook(..., init=svq.KMeansInit())")
    update = getattr(codebook, "update", None)
    if update is None or isinstance(update, GradientUpdate):
        cures.append(
            "let the codes follow the embeddings by themselves: svq.Codebook(..., update=svq.AlternatedUpdate()), "
            "or update=svq.EMAUpdate()"
        )
    width = getattr(codebook, "dim", None) or quantizer.dim
    if width > _NARROW:
        cures.append(f"narrower codes than {width}: svq.VectorQuantizer(..., transform=svq.Projection(8))")
    losses = getattr(quantizer, "losses", [])
    for loss in losses:
        if isinstance(loss, CommitmentLoss) and loss.coefficient > 0.05:
            cures.append(
                f"less commitment than {loss.coefficient:g}: svq.VectorQuantizer(..., "
                f"losses=[svq.CommitmentLoss(weight={loss.coefficient / 10:g}), svq.CodebookLoss()])"
            )
    if isinstance(codebook, nn.Module) and any(p.requires_grad for p in codebook.parameters()):
        cures.append(
            "a higher rate for the codebook: svq.parameter_groups(module, lr, weight_decay, codebook_lr=10 * lr)"
        )
    return cures
