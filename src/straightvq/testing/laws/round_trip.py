"""Law 2: indices carry everything."""

import torch
from torch import Tensor

from straightvq.nn import Quantizer
from straightvq.testing.law import NotApplicable, hold, law, near, same
from straightvq.testing.subject import Subject, with_table

# (channel_dim, shape with 0 for the channels)
_LAYOUTS = ((-1, (7, 5, 0)), (1, (2, 0, 5, 7)), (0, (0, 35)), (-1, (0,)))


def assert_round_trip(layer: Quantizer, z: Tensor, mask: Tensor | None = None) -> None:
    """Shapes, dtypes, ``encode`` and ``decode`` agree with the evaluation forward for this very input."""
    layer.eval()
    with torch.no_grad():
        out = layer(z, mask)
    hold(out.quantized.shape == z.shape, f"`quantized` of shape {tuple(z.shape)}", tuple(out.quantized.shape))
    hold(out.quantized.dtype == z.dtype, f"`quantized` in {z.dtype}", out.quantized.dtype)
    batch = z.movedim(layer.channel_dim, -1).shape[:-1]
    hold(out.indices.shape[: len(batch)] == batch, f"`indices` of shape {tuple(batch)}", tuple(out.indices.shape))
    hold(out.indices.dtype == torch.int64, "`indices` in torch.int64", out.indices.dtype)
    same(layer.encode(z, mask), out.indices, "`encode` to give the evaluation forward's indices")
    decoded = layer.decode(out.indices)
    if torch.promote_types(z.dtype, decoded.dtype) == decoded.dtype:
        same(decoded.to(z.dtype), out.quantized, "`decode` to give what the evaluation forward gave")
    else:  # z is wider than the codebook, and so is what a transform then makes of the codes
        near(decoded.to(z.dtype), out.quantized, "`decode` to give what the evaluation forward gave", 1e-5)


@law("round_trip")
def decode_gives_what_the_evaluation_forward_gave(subject: Subject) -> None:
    """``decode(encode(z))`` equals the evaluation forward's ``quantized`` bit for bit, wherever the channels are."""
    for channel_dim, layout in _LAYOUTS:
        shape = [subject.dim if length == 0 else length for length in layout]
        layer = subject.trained()
        layer.channel_dim = channel_dim
        z = subject.data(3, torch.Size(shape).numel() // subject.dim).reshape(shape)
        assert_round_trip(layer, z)


@law("round_trip")
def decode_of_a_subset_agrees(subject: Subject) -> None:
    """Indices decode alike alone and in company, up to rounding."""
    layer = subject.trained().eval()
    out = layer(subject.data(3))
    near(layer.decode(out.indices[3:8]), out.quantized[3:8], "some indices to decode as in the batch", 1e-6)
    single = torch.stack([layer.decode(index) for index in out.indices[:9]])
    near(single, out.quantized[:9], "single indices to decode as in the batch", 1e-6)


@law("round_trip")
def training_forward_returns_rows_of_the_table_it_leaves_behind(subject: Subject) -> None:
    """After a training forward ``decode(indices)`` equals its ``quantized`` bit for bit."""
    layer = subject.trained().train()
    for number in range(6, 12):
        out = layer(subject.data(number))
        same(layer.decode(out.indices), out.quantized.detach(), "`decode` to give what the training forward gave")


@law("round_trip")
def codes_quantize_to_themselves(subject: Subject) -> None:
    """A code is its own nearest code, where the transform returns to its argument."""
    layer = with_table(subject.trained()).eval()
    codes = layer.codes()
    with torch.no_grad():
        back = layer.transform.inverse(codes)
        if back.shape != codes.shape or not torch.allclose(layer.transform(back), codes, rtol=1e-4, atol=1e-4):
            raise NotApplicable(f"{type(layer.transform).__name__} does not return to its argument")
        near(layer(back).quantized, back, "a code to be quantized to itself")
