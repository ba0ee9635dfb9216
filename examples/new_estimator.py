"""A new gradient estimator is one class: pass less gradient to vectors that are far from their code.

python examples/new_estimator.py
"""

import torch
from torch import Tensor, nn

import straightvq as svq


class ClippedStraightThrough(svq.Estimator):
    """Straight-through, with the gradient of far vectors scaled down.

    ``quantized = sg[code] + w * (z - sg[z])`` with ``w = min(1, radius / ||z - code||)``, a constant for the gradient.

    Args:
        radius: distance up to which the gradient passes whole; above it falls as 1 / distance.
    """

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        if radius <= 0:
            raise ValueError(f"`ClippedStraightThrough`: `radius` must be positive. Got {radius}.")
        self.radius = radius

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        distance = (z - code).detach().norm(dim=1, keepdim=True)
        weight = (self.radius / distance).clamp(max=1)  # a distance of 0 gives infinity, and the clamp 1
        return code.detach() + weight * (z - z.detach())

    def extra_repr(self) -> str:
        return f"radius={self.radius}"


def final_error(estimator: svq.Estimator) -> float:
    """Trains a linear autoencoder with 32 codes for 100 steps."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(8, 4), nn.Linear(4, 8)
    book = svq.Codebook(32, init=svq.KMeansInit(), update=svq.EMAUpdate(), reset=svq.DeadCodeReset())
    net = nn.ModuleList([encoder, svq.VectorQuantizer(4, book, estimator=estimator), decoder])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        x = torch.randn(256, 8)
        out = net[1](encoder(x))
        error = (decoder(out.quantized) - x).square().mean()
        optimizer.zero_grad()
        (error + out.loss).backward()
        optimizer.step()
    return error.item()


if __name__ == "__main__":
    for estimator in (svq.StraightThrough(), ClippedStraightThrough(radius=0.5)):
        print(f"{estimator}: reconstruction error {final_error(estimator):.4f}")
