"""What a forward and backward of the quantizers without a codebook cost, beside vector-quantize-pytorch.

    python benchmarks/codebook_free.py                  # about a minute on one core
    python benchmarks/codebook_free.py --vectors 65536

Standard normal vectors on the CPU, one thread; ours and the peer take turns. Medians of the processor's time, which
other programs on the machine lengthen less than the clock's.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import straightvq as svq

Once = Callable[[Tensor], None]


def ours(layer: svq.Quantizer) -> Once:
    def once(x: Tensor) -> None:
        out = layer(x)
        (out.quantized.sum() + out.loss).backward()

    return once


def fsq(levels: list[int], **options: object) -> Once:
    from vector_quantize_pytorch import FSQ

    layer = FSQ(levels, **options)
    return lambda x: layer(x)[0].sum().backward()


def lfq(bits: int, **options: object) -> Once:
    from vector_quantize_pytorch import LFQ

    layer = LFQ(dim=bits, codebook_size=1 << bits, **options)

    def once(x: Tensor) -> None:
        out = layer(x)
        (out.quantized.sum() + out.entropy_aux_loss).backward()

    return once


def cases() -> list[tuple[str, int, int, Once, Once | None]]:
    """Name, width, repetitions, ours, the peer's."""
    some, many = [8, 5, 5, 5], [8, 8, 8, 6, 5]
    finite, sign, sphere = svq.FiniteScalarQuantizer, svq.LookupFreeQuantizer, svq.BinarySphericalQuantizer
    noisy = finite(4, some, form="symmetric", noise=0.5)
    return [
        (f"FSQ {some}", 4, 100, ours(finite(4, some)), fsq(some)),
        (f"FSQ {many}", 5, 100, ours(finite(5, many)), fsq(many)),
        ("FSQ, symmetric", 4, 100, ours(finite(4, some, form="symmetric")), fsq(some, preserve_symmetry=True)),
        ("FSQ, noise", 4, 100, ours(noisy), fsq(some, preserve_symmetry=True, noise_dropout=0.5)),
        ("FSQ, from 64 channels", 64, 50, ours(svq.presets.fsq(64, some)), fsq(some, dim=64)),
        ("LFQ, 8 bits, entropy", 8, 9, ours(sign(8, 8, losses=[svq.EntropyLoss()])), lfq(8)),
        ("LFQ, 10 bits, entropy", 10, 5, ours(sign(10, 10, losses=[svq.EntropyLoss()])), lfq(10)),
        ("BSQ, 10 bits, entropy", 10, 5, ours(sphere(10, 10)), lfq(10, spherical=True)),
        ("LFQ, 18 bits, entropy", 18, 5, ours(sign(18, 18, losses=[svq.EntropyLoss()])), None),
        ("BSQ, 18 bits, entropy", 18, 9, ours(sphere(18, 18)), None),
    ]


def seconds(once: Once, x: Tensor) -> float:
    x.grad = None
    start = time.thread_time()
    once(x)
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=16_384)
    vectors = parser.parse_args().vectors
    torch.set_num_threads(1)
    print("| forward and backward | straightvq, ms | vector-quantize-pytorch, ms |\n|---|---|---|")
    for name, width, times, mine, other in cases():
        x = torch.randn(1, vectors, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
        taken: dict[bool, list[float]] = {True: [], False: []}
        for number in range(times + 2):
            for is_mine, once in ((True, mine), (False, other)):
                if once is not None and (spent := seconds(once, x)) and number >= 2:
                    taken[is_mine].append(spent)
        cells = [f"{1e3 * statistics.median(times_):.2f}" if times_ else "-" for times_ in taken.values()]
        print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
