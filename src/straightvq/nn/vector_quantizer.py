"""The vector-quantized layer."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.nn.assigners import Assigner, Nearest
from straightvq.nn.codebook import Codebook
from straightvq.nn.estimators import Estimator, StraightThrough
from straightvq.nn.losses import CodebookLoss, CommitmentLoss, Loss
from straightvq.nn.part import check_part, making_float32, no_autocast
from straightvq.nn.quantizer import Quantizer, QuantizerOutput
from straightvq.nn.transforms import Identity, Transform


class VectorQuantizer(Quantizer):
    """Replaces every vector by the nearest of ``codebook_size`` codes.

    In training the codebook may change in the forward (init, running statistics, resets, the update's own step),
    before the codes are read; the result is made of rows of the table left behind. In evaluation nothing changes
    and nothing is random. Losses are computed in both. The search, the statistics and the losses run in at least
    float32 under any autocast; ``quantized`` comes back in the dtype of ``z``.

    Args:
        dim: channels of ``z``.
        codebook: the codes and the rules that move them. It belongs to this layer alone.
        transform: from ``z`` to the codebook's space and back; default ``Identity()``.
        assigner: which code a vector gets; default ``Nearest()``.
        estimator: the gradient that passes the layer; default ``StraightThrough()``.
        losses: default ``[CommitmentLoss(), CodebookLoss()]``; ``[]`` for none.
        channel_dim: axis of ``z`` that holds the channels: -1 for sequences, 1 for images ``(B, C, H, W)``.

    Shape:
        z: Float (*batch, dim) with the channels on ``channel_dim``; mask: Bool (*batch), True where valid;
        indices: Int64 (*batch).

    Raises:
        ValueError, TypeError: at construction for parts that contradict each other, in ``forward`` for a wrong
            width, dtype, mask or non-finite values; a failed call changes nothing.
        RuntimeError: in a training ``forward`` that activation checkpointing repeats inside the backward.

    Source: arXiv 1711.00937; arXiv 2305.08842 for what the codebook and the estimator can do.

    Example:
        >>> layer = VectorQuantizer(8, Codebook(32), channel_dim=1)
        >>> out = layer(torch.randn(2, 8, 4, 4))
        >>> out.quantized.shape, out.indices.shape
        (torch.Size([2, 8, 4, 4]), torch.Size([2, 4, 4]))
        >>> bool((layer.eval()(torch.zeros(1, 8, 1, 1)).quantized == layer.decode(
        ...     layer.encode(torch.zeros(1, 8, 1, 1)))).all())
        True
    """

    def __init__(
        self,
        dim: int,
        codebook: Codebook,
        *,
        transform: Transform | None = None,
        assigner: Assigner | None = None,
        estimator: Estimator | None = None,
        losses: list[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(dim, channel_dim)
        check_part(self, "codebook", codebook, Codebook)
        self.transform = check_part(self, "transform", transform if transform is not None else Identity(), Transform)
        self.assigner = check_part(self, "assigner", assigner if assigner is not None else Nearest(), Assigner)
        self.estimator = check_part(
            self, "estimator", estimator if estimator is not None else StraightThrough(), Estimator
        )
        self.losses = nn.ModuleList(_check_losses(losses))
        self._check_training(codebook)
        codebook.bind(self.transform.codebook_dim(dim), raw_takes_gradient=self._trains_raw(codebook))
        self._check_training(codebook)  # again: some parts show their parameters only when bound
        if codebook.update.loss_trains_raw and not self._trains_raw(codebook):
            warnings.warn(
                f"The codebook will not move: {type(codebook.update).__name__} needs a CodebookLoss with positive "
                "weight or a synchronised estimator. If that is meant, call codebook.freeze().",
                UserWarning,
                stacklevel=2,
            )
        with making_float32():
            self.transform.bind(dim)
        self.codebook = codebook

    def _check_training(self, codebook: Codebook) -> None:
        """Refuses rules that contradict each other."""
        update, estimator = type(codebook.update).__name__, self.estimator
        if estimator.trains_codes and not codebook.update.takes_task_gradient:
            raise ValueError(
                f"`VectorQuantizer`: {estimator} sends a gradient to the codes, and {update} takes none. "
                "Use sync=0, or GradientUpdate or AlternatedUpdate."
            )
        if self._has_codebook_loss or estimator.trains_codes:
            return
        if codebook.parametrization.is_learned:
            raise ValueError(
                f"`VectorQuantizer`: nothing trains the parameters of {type(codebook.parametrization).__name__}: "
                f"with {update} they need a CodebookLoss with positive weight or a synchronised estimator."
            )

    def _trains_raw(self, codebook: Codebook) -> bool:
        """Whether any gradient reaches the raw table."""
        update = codebook.update
        by_loss = update.loss_trains_raw and self._has_codebook_loss
        return by_loss or (update.takes_task_gradient and self.estimator.trains_codes)

    @property
    def _has_codebook_loss(self) -> bool:
        return any(loss.trains_codes and loss.weight > 0 for loss in self._losses)

    @property
    def _losses(self) -> list[Loss]:
        return [loss for loss in self.losses if isinstance(loss, Loss)]

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.codebook.size

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantizes ``z``; see the class for shapes. Steps 0 to 7 are those of the concepts page."""
        self._check(z, mask)
        if self._is_bypassed:
            return self._pass_through(z, mask, [loss.name for loss in self._losses])
        if self.training and not self.codebook.is_still:
            self._check_not_recomputed()
        with no_autocast(z.device):
            flat, valid = self._flatten(z, mask)  # 0
            self._check_values(flat)
            x = self._transform(flat)  # 1
            indices = counts = None
            if self.training:  # 2
                indices, counts = self.codebook.adapt(x.detach(), valid, lambda codes: self._assign(x, codes, valid))
            codes, loss_codes = self.codebook.tables()  # 3
            if indices is None:
                indices = self._assign(x, codes, valid)  # 4
            if self.training:
                self.codebook.record(x.detach(), indices, counts)
            code = _rows(codes, indices).to(x.dtype)
            quantized = self.estimator(x, code)  # 5
            loss_code = code if loss_codes is codes else _rows(loss_codes, indices).to(x.dtype)
            terms = {loss.name: loss(x, loss_code, valid) for loss in self._losses}  # 6
            total = sum((loss.weight * terms[loss.name] for loss in self._losses), start=0 * x[:0].sum())
            out = self._inverse(quantized, valid)  # 7
        return QuantizerOutput(self._unflatten(out, z), indices.view(self._batch(z)), total, terms)

    @torch.no_grad()
    def encode(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices by the evaluation rule, whatever the mode; changes no state.

        Returns:
            Int64, ``z``'s shape without the channel axis; -1 where masked.
        """
        self._check(z, mask)
        with no_autocast(z.device):
            flat, valid = self._flatten(z, mask)
            self._check_values(flat)
            return self._assign(self._transform(flat), self.codebook.codes(), valid).view(self._batch(z))

    def decode(self, indices: Tensor) -> Tensor:
        """What the evaluation forward gives for these indices, in the codebook's dtype; zeros for -1.

        Args:
            indices: integers (*batch), each in ``[-1, codebook_size)``.

        Returns:
            Float (*batch, dim), the channels on ``channel_dim``.
        """
        self._check_indices(indices, self.codebook.size)
        flat = indices.reshape(-1).long()
        with no_autocast(indices.device):
            rows = self._inverse(_rows(self.codebook.codes(), flat), flat >= 0)
        return rows.view(*indices.shape, self.dim).movedim(-1, self.channel_dim)

    @torch.no_grad()
    def unquantized(self, z: Tensor) -> Tensor:
        """The transform and its inverse, without the codes in between; see ``Quantizer.unquantized``.

        Example:
            >>> import straightvq as svq
            >>> layer = svq.VectorQuantizer(2, svq.Codebook(4), transform=svq.UnitNorm())
            >>> layer.unquantized(torch.tensor([[3.0, 4.0]]))
            tensor([[0.6000, 0.8000]])
        """
        self._check(z, None)
        with no_autocast(z.device):
            flat, _ = self._flatten(z, None)
            return self._unflatten(self.transform.inverse(self._transform(flat)), z)

    def codes(self) -> Tensor:
        """Effective codes Float (codebook_size, codebook_dim), detached; a copy."""
        return self.codebook.codes().clone()

    def set_codes(self, codes: Tensor) -> None:
        """Writes effective codes Float (codebook_size, codebook_dim); see ``Codebook.set_codes``."""
        self.codebook.set_codes(codes)

    def _transform(self, flat: Tensor) -> Tensor:
        return self.transform(flat.to(torch.promote_types(flat.dtype, self.codebook.raw.dtype)))

    def _inverse(self, rows: Tensor, valid: Tensor | None) -> Tensor:
        out = self.transform.inverse(rows)
        return out if valid is None else torch.where(valid[:, None], out, 0)

    def _assign(self, x: Tensor, codes: Tensor, valid: Tensor | None) -> Tensor:
        indices = self.assigner(x.detach(), codes.detach())
        return indices if valid is None else torch.where(valid, indices, -1)

    def _batch(self, z: Tensor) -> torch.Size:
        return z.movedim(self.channel_dim, -1).shape[:-1]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, channel_dim={self.channel_dim}"


def _rows(codes: Tensor, indices: Tensor) -> Tensor:
    """codes[indices], with row 0 standing in at masked positions."""
    return F.embedding(indices.clamp(min=0), codes)


def _check_losses(losses: list[Loss] | None) -> list[Loss]:
    if losses is None:
        return [CommitmentLoss(), CodebookLoss()]
    if not isinstance(losses, Sequence):
        raise TypeError(f"`VectorQuantizer`: `losses` must be a list of losses. Got {type(losses).__name__}.")
    checked = [check_part("VectorQuantizer", "losses", loss, Loss) for loss in losses]
    names = [loss.name for loss in checked]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`VectorQuantizer`: `losses` must have different names. Got {name!r} twice.")
    return checked
