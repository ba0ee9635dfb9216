"""The full recipe by hand: affine codes, alternated steps, synchronised update, reset and k-means.

Compare with ``svq.presets.vq_ste_pp``, which builds the same layer in one line.

python examples/full_recipe.py
"""

import torch
from torch import Tensor, nn

import straightvq as svq


def build(dim: int, codebook_size: int) -> svq.VectorQuantizer:
    codebook = svq.Codebook(
        codebook_size,
        parametrization=svq.Affine(lr_scale=2.0),  # one scale and shift for all codes: unused ones move along
        init=svq.KMeansInit(),  # centres of the first batches
        update=svq.AlternatedUpdate(fraction=0.1),  # fit the codes before the task gradient is taken
        reset=svq.DeadCodeReset(patience=20),  # move dead codes onto the data
    )
    return svq.VectorQuantizer(
        dim,
        codebook,
        estimator=svq.StraightThrough(sync=0.2),  # the codes also follow the task gradient
        losses=[svq.CommitmentLoss(0.25), svq.CodebookLoss()],  # the latter trains scale and shift
    )


def mixture(n: int) -> Tensor:
    """Points around 16 corners of a cube in 8 dimensions, far from the origin."""
    corners = torch.tensor([[(i >> bit & 1) * 4.0 for bit in range(4)] for i in range(16)]).repeat(1, 2)
    return corners[torch.randint(16, (n,))] + 0.5 * torch.randn(n, 8) + 10


def main() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"encoder": nn.Linear(8, 4), "quantizer": build(4, 64), "decoder": nn.Linear(4, 8)})
    optimizer = torch.optim.AdamW(svq.parameter_groups(net, lr=1e-2, weight_decay=0.01, codebook_lr=1e-3))
    svq.attach_optimizer(optimizer, net)  # clears the moments of rows that a reset rewrote
    for step in range(200):
        x = mixture(256)
        out = net["quantizer"](net["encoder"](x))
        error = (net["decoder"](out.quantized) - x).square().mean()
        optimizer.zero_grad()
        (error + out.loss).backward()
        optimizer.step()
        if step % 40 == 39:
            terms = ", ".join(f"{name} {value.item():.4f}" for name, value in out.terms.items())
            print(f"step {step + 1}: error {error.item():.3f}, {terms}, used {out.indices.unique().numel()} of 64")


if __name__ == "__main__":
    main()
