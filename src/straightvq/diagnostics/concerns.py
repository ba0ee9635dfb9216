"""What is wrong with a codebook, told from its windows of training, and what to write against it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from straightvq.diagnostics import functional
from straightvq.diagnostics.following import Followed
from straightvq.nn import (
    Codebook,
    CommitmentLoss,
    EntropyLoss,
    GradientUpdate,
    Identity,
    Quantizer,
    RandomProjectionQuantizer,
)

VECTORS_PER_CODE = 4  # fewer leave codes of a healthy codebook unused
_COMMITMENT_GROWTH, _ERROR_GROWTH = 100.0, 2.0  # both together are a divergence
_NARROW = 16  # above this width a smaller one is worth trying
_PAGE = "docs/collapse.md"


class Concerns:
    """Judges one quantizer window by window: a collapse, codes that nothing moves, a divergence; each is told once.

    ``patience`` windows in a row with a usage below ``threshold`` are a collapse.
    """

    def __init__(self, followed: Followed, threshold: float, patience: int) -> None:
        self.followed = followed
        self.threshold = threshold
        self.patience = patience
        self.counts = torch.zeros(followed.num_counters, dtype=torch.int64)
        self.low = 0  # collapsed windows in a row
        self.reference: list[float] | None = None  # commitment and error of the window with the least commitment
        self.warned: list[str] = []
        self._codes: Tensor | None = None  # when the window was opened

    def open_window(self) -> None:
        """Remember where the codes are now. Without this, the next window cannot tell whether they moved."""
        self._codes = self.followed.snapshot()

    def judge(self, values: dict[str, float], counts: Tensor, optimizers: Sequence[Optimizer]) -> list[str]:
        """The new concerns that a closed window gives rise to; then the next one is open. See `Window.close`."""
        before = self._codes
        self.open_window()
        if not values:
            return []
        is_unchanged = before is not None and self._codes is not None and torch.equal(before, self._codes)
        found = {
            "collapse": self._collapse(counts),
            "no update": _no_update(self.followed.codebook, is_unchanged, optimizers),
            "divergence": self._divergence(values["commitment"], values["error"]),
        }
        new = {kind: text for kind, text in found.items() if text and kind not in self.warned}
        self.warned += new
        return list(new.values())

    def _collapse(self, counts: Tensor) -> str | None:
        """A window with too few vectors is widened by those that follow."""
        self.counts = self.counts.to(counts.device) + counts
        vectors, size = int(self.counts.sum()), self.followed.size
        if not len(self.counts) or vectors < VECTORS_PER_CODE * size:
            return None
        usage, perplexity = float(functional.usage(self.counts)), float(functional.perplexity(self.counts))
        self.counts.zero_()
        self.low = self.low + 1 if usage < self.threshold else 0
        if self.low < self.patience:
            return None
        cures = "; ".join(f"({number}) {cure}" for number, cure in enumerate(list_cures(self.followed.quantizer), 1))
        what_helps = (
            f"What helps, best evidence first: {cures}. See {_PAGE}."
            if cures
            else f"All the usual cures are in place; see {_PAGE} for the rest."
        )
        return (
            f"the codebook has collapsed: {round(usage * size)} of {size} codes ({usage:.1%}) were used "
            f"for {vectors} vectors, perplexity {perplexity:.1f}, and {self.low} windows in a row stayed below "
            f"{self.threshold:.0%}. {what_helps}"
        )

    def _divergence(self, commitment: float, error: float) -> str | None:
        if self.reference is None or commitment < self.reference[0]:
            self.reference = [commitment, error]
            return None
        least, error_then = self.reference
        # NaN compares as false, and so counts as growth.
        if commitment <= _COMMITMENT_GROWTH * least or error <= _ERROR_GROWTH * error_then:
            return None
        return (
            f"the codebook loses the embeddings: the commitment term grew from {least:.3g} to {commitment:.3g}, and "
            f"the quantization error relative to the embeddings' variance grew with it, from {error_then:.3g} to "
            f"{error:.3g}. (A commitment term that rises while the relative error falls or stays is normal: the norm "
            "of the embeddings grows.) Lower the learning rate, or let the codes follow faster with "
            "update=svq.AlternatedUpdate() or svq.EMAUpdate(decay=0.95), or hold the embeddings with a larger "
            f"svq.CommitmentLoss(weight=...). See {_PAGE}."
        )

    def state_dict(self) -> dict[str, Any]:
        """What has to be remembered of the windows so far, and the warnings already given."""
        counts, warned = self.counts.cpu().clone(), list(self.warned)
        return {"counts": counts, "low": self.low, "reference": self.reference, "warned": warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.counts, self.low = state["counts"].clone(), state["low"]
        self.reference, self.warned = state["reference"], list(state["warned"])


def _no_update(codebook: Codebook | None, is_unchanged: bool, optimizers: Sequence[Optimizer]) -> str | None:
    """Says that the codes stand still, or that an optimizer has never heard of them, and why."""
    if codebook is None or codebook.is_frozen:
        return None
    held = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in codebook.named_parameters() if p.requires_grad}
    missing = [name for name, p in trained.items() if p not in held]
    idle = [name for name, p in trained.items() if p in held and p.grad is None]
    if not is_unchanged and not missing:
        return None
    said = [
        "no code has moved in a whole window of training." if is_unchanged else "a part of the codebook is untrained."
    ]
    if missing:
        said.append(
            f"The codebook's {_names(missing)} in none of the trainer's optimizers: build the optimizer from "
            "svq.parameter_groups(module, lr=..., weight_decay=...), or from module.parameters()."
        )
    if idle:
        said.append(
            f"The codebook's {_names(idle)} without a gradient (grad is None): add the quantizer's output.loss to "
            "the loss of training_step, with losses=[svq.CommitmentLoss(), svq.CodebookLoss()]."
        )
    if not trained:
        said.append(f"It takes no gradient, and {type(codebook.update).__name__} found nothing to do.")
    elif not missing and not idle:
        said.append("Every parameter of it has an optimizer and a gradient: is the learning rate 0?")
    return " ".join([*said, f"If it is meant to stand still, call codebook.freeze(). See {_PAGE}."])


def _names(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def list_cures(quantizer: Quantizer) -> list[str]:
    """The cures of collapse that this quantizer does not have yet, best evidence first, each with the code."""
    codebook = getattr(quantizer, "codebook", None)
    if not isinstance(codebook, Codebook):
        return _cures_without_codebook(quantizer)
    cures = []
    if codebook.reset is None:
        cures.append("revive dead codes: svq.Codebook(..., reset=svq.DeadCodeReset())")
    if not codebook.init.needs_data:
        cures.append("start on the data: svq.Codebook(..., init=svq.KMeansInit())")
    if isinstance(codebook.update, GradientUpdate):
        follow = "svq.Codebook(..., update=svq.AlternatedUpdate()), or update=svq.EMAUpdate()"
        cures.append(f"let the codes follow the embeddings by themselves: {follow}")
    width = codebook.dim or quantizer.dim
    if width > _NARROW:
        cures.append(f"narrower codes than {width}: svq.VectorQuantizer(..., transform=svq.Projection(8))")
    cures += [
        f"less commitment than {loss.coefficient:g}: svq.VectorQuantizer(..., "
        f"losses=[svq.CommitmentLoss(weight={loss.coefficient / 10:g}), svq.CodebookLoss()])"
        for loss in quantizer.losses
        if isinstance(loss, CommitmentLoss) and loss.coefficient > 0.05
    ]
    if any(p.requires_grad for p in codebook.parameters()):
        cures.append(
            "a higher rate for the codebook: svq.parameter_groups(module, lr, weight_decay, codebook_lr=10 * lr)"
        )
    return cures


def _cures_without_codebook(quantizer: Quantizer) -> list[str]:
    if isinstance(quantizer, RandomProjectionQuantizer):
        cure = "bring every vector to mean 0 and variance 1: svq.RandomProjectionQuantizer(..., normalize=True)"
        return [] if quantizer.normalize else [cure]
    cures = []
    name = type(quantizer).__name__
    if quantizer.has_signs and not any(isinstance(x, EntropyLoss) and x.coefficient for x in quantizer.losses):
        cures.append(f"reward the use of all codes: svq.{name}(..., losses=[svq.EntropyLoss()])")
    if type(quantizer.transform) is Identity:
        width = quantizer.transform.codebook_dim(quantizer.dim)
        cures.append(f"a learned map onto the grid: svq.{name}(..., transform=svq.Projection({width}))")
    return cures
