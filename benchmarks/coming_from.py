"""What docs/coming_from_vector_quantize_pytorch.md says in figures of that library, measured on it.

python benchmarks/coming_from.py            # seconds; needs the extra `bench`
"""

import torch
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

DIM, CODES, VECTORS, STEPS = 64, 512, 4096, 300


def passed_on(layer: VectorQuantize, z: torch.Tensor) -> float:
    """Length of the task's gradient at the encoder, relative to that behind the layer, without other losses."""
    z = z.clone().requires_grad_()
    quantized, *_ = layer(z)
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    (quantized * weight).sum().backward()
    assert z.grad is not None
    return float(z.grad.norm() / weight.norm())


def main() -> None:
    torch.manual_seed(0)
    z = torch.randn(1, VECTORS, DIM)

    layer = VectorQuantize(dim=DIM, codebook_size=CODES, commitment_weight=0.0)
    print(f"start: standard deviation of the codes {layer.codebook.std():.4f}")
    print(f"rotation trick, new layer: {100 * passed_on(layer, z):.1f} % of the gradient reaches the encoder")
    for _ in range(STEPS):
        layer(torch.randn(1, VECTORS, DIM))
    print(f"rotation trick, after {STEPS} steps: {100 * passed_on(layer, z):.1f} %")

    affine = VectorQuantize(dim=DIM, codebook_size=CODES, affine_param=True)
    for _ in range(STEPS):
        affine(2 + torch.randn(1, VECTORS, DIM))
    affine.eval()
    quantized, indices, _ = affine(2 + z)
    off = (affine.get_output_from_indices(indices) - quantized).abs().max()
    print(f"affine codes: decoding is off by up to {off:.2g}")

    synchronised = VectorQuantize(
        dim=DIM, codebook_size=CODES, learnable_codebook=True, ema_update=False, rotation_trick=False,
        sync_update_v=1.0, commitment_weight=0.0,
    )  # fmt: skip
    x = z.clone().requires_grad_()
    synchronised(x)[0].sum().backward()
    codes = next(synchronised._codebook.parameters()).grad
    got = 0.0 if codes is None else float(codes.abs().max())
    print(f"synchronised update: codes get {got:g}, the encoder {float(x.grad.mean()):g} times its own gradient")

    residual = ResidualVQ(dim=DIM, codebook_size=CODES, num_quantizers=8, commitment_weight=0.0, rotation_trick=False)
    x = z.clone().requires_grad_()
    residual(x)[0].sum().backward()
    print(f"residual, 8 levels: the encoder gets {float(x.grad.mean()):g} times the gradient")


if __name__ == "__main__":
    main()
