"""Random-projection quantization: targets for self-supervised learning from maps that never train."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.functional.nearest import nearest_code
from straightvq.nn.part import check_bool, check_int, setting
from straightvq.nn.quantizer import Quantizer


class RandomProjectionQuantizer(Quantizer):
    """Projects every vector by a fixed random matrix; the index is the nearest of fixed random unit codes.

    ``index = argmin_k || norm(P' z) - c_k ||``, with ``P`` xavier-normal and ``c_k`` normal, then l2-normalised.
    Nothing trains, nothing changes, and training and evaluation do the same. The indices are the product: BEST-RQ's
    encoder is trained to predict them. ``quantized`` is in the space of ``z``: the shortest vector that the projection
    takes to the code, the mean of those where there are several codebooks; the gradient passes straight through.

    All numbers come from ``seed``: every rank, and every process that was given it, has the same ones. They are saved.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes of a codebook. The paper uses 8,192.
        codebook_dim: width of the codes; 16 as in the paper.
        num_codebooks: with more than one each has a projection of its own, and indices get an axis for them.
        normalize: whether every vector is brought to mean 0 and variance 1 first. The paper normalises its data,
            without which few codes are used; set it to False for data that are normalised already.
        seed: of projection and codes, an integer >= 0.
        channel_dim: axis of ``z`` that holds the channels: -1 for sequences, 1 for images ``(B, C, H, W)``.

    Shape:
        z: Float (*batch, dim) with the channels on ``channel_dim``; mask: Bool (*batch), True where valid;
        indices: Int64 (*batch), or (*batch, num_codebooks).

    Raises:
        ValueError, TypeError: as in every quantizer.

    Source: arXiv 2202.01855 (BEST-RQ), section 3. The paper has no ``quantized``.

    Example:
        >>> layer = RandomProjectionQuantizer(8, 32, codebook_dim=4)
        >>> out = layer(torch.randn(5, 8))
        >>> out.indices.shape, bool((layer.decode(out.indices) == out.quantized).all())
        (torch.Size([5]), True)
    """

    kept_as: ClassVar = {"num_codebooks": "num_quantizers"}

    projection: Tensor
    inverse: Tensor
    table: Tensor
    normalize: bool = setting(check_bool, keeps="all")
    seed: int = setting(check_int, minimum=0, keeps="all")
    _is_bound = False

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int = 16,
        *,
        num_codebooks: int = 1,
        normalize: bool = True,
        seed: int = 0,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(dim, channel_dim=channel_dim)
        self.codebook_size = check_int(self, "codebook_size", codebook_size, 2)
        self.codebook_dim = check_int(self, "codebook_dim", codebook_dim, 1)
        self.num_quantizers = check_int(self, "num_codebooks", num_codebooks, 1)
        self.normalize = normalize
        self._declare(normalize=self.normalize)
        self.seed = seed
        self.is_composite = self.num_quantizers > 1
        books = self.num_quantizers
        self.register_buffer("projection", torch.empty(books, self.dim, self.codebook_dim, dtype=torch.float32))
        self.register_buffer("inverse", torch.empty(books, self.codebook_dim, self.dim, dtype=torch.float32))
        self.register_buffer("table", torch.empty(books, self.codebook_size, self.codebook_dim, dtype=torch.float32))
        self.reset_parameters()
        self._is_bound = True

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the numbers of the seed anew, for a layer made on torch's meta device and given memory later."""
        if self.table.is_meta:
            return
        super().reset_parameters()
        generator = torch.Generator().manual_seed(self.seed)
        with torch.device("cpu"):
            maps = [torch.empty(self.dim, self.codebook_dim, dtype=torch.float64) for _ in self.projection]
            for one in maps:
                nn.init.xavier_normal_(one, generator=generator)
            codes = torch.randn(self.table.shape, dtype=torch.float64, generator=generator)
        projection = torch.stack(maps)
        self.projection.copy_(projection)
        self.inverse.copy_(torch.linalg.pinv(projection))
        self.table.copy_(F.normalize(codes, dim=-1))

    # --- maps on flat rows ----------------------------------------------------------------------------------------

    def assign(self, z: Tensor) -> Tensor:
        if self.normalize:
            z = F.layer_norm(z, (self.dim,))
        both = zip(self.projection.to(z.dtype), self.table.to(z.dtype), strict=True)
        indices = torch.stack([nearest_code(z @ map_, codes, distance="cosine") for map_, codes in both], 1)
        return indices if self.is_composite else indices[:, 0]

    def lookup(self, indices: Tensor) -> Tensor:
        columns = indices.T if self.is_composite else indices[None]
        rows = [
            F.embedding(column.clamp(min=0), codes) @ back * (column >= 0)[:, None]
            for column, codes, back in zip(columns, self.table, self.inverse, strict=False)
        ]
        return torch.stack(rows).sum(0) / self.num_quantizers

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, codebook_size={self.codebook_size}, codebook_dim={self.codebook_dim}"
        return f"{sizes}, num_codebooks={self.num_quantizers}, seed={self.seed}, channel_dim={self.channel_dim}"
