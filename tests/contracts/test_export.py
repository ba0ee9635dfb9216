"""Law 9: what an autoencoder does as a tokenizer leaves torch: images to indices, and indices to images."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from straightvq.models import Autoencoder
from tests.contracts.cases import CASES, PRESETS, Factory
from tests.versions import exported

pytestmark = exported

ONNX = ("vq_vae", "vq_ste_pp-l2", "ema+running+groups", "straight-narrow")


def every_case(*quick: str) -> pytest.MarkDecorator:
    """All cases; an export takes seconds, so only some of them in the quick suite."""
    cases = [pytest.param(make, marks=[] if name in quick else pytest.mark.slow) for name, make in CASES.items()]
    return pytest.mark.parametrize("make", cases, ids=list(CASES))


BATCH = torch.export.Dim("batch", min=1, max=1024)


class Tokenize(nn.Module):
    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.tokenize(images)


class Detokenize(Tokenize):
    def forward(self, indices: Tensor) -> Tensor:
        return self.model.detokenize(indices)


def examples(model: Autoencoder) -> Iterator[tuple[nn.Module, Tensor]]:
    """What is exported, and what it is given; a masked position is among the indices."""
    x = images(9, 7)
    indices = model.tokenize(x)
    indices[0, 1, 2] = -1
    yield Tokenize(model).eval(), x
    yield Detokenize(model).eval(), indices


def images(seed: int, num: int) -> Tensor:
    return torch.rand(num, 1, 8, 12, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(make: Factory) -> Autoencoder:
    """After a few training forwards, so that codes and statistics are not those of the start."""
    torch.manual_seed(0)
    model = Autoencoder(make(channel_dim=1), in_channels=1, hidden=4, downsample=2, blocks=0)
    for seed in range(3):
        model(images(seed, 6))
    return model.eval()


@every_case(*PRESETS, *ONNX)
def test_saved_programs_do_what_the_network_does(model: Autoencoder) -> None:
    for module, given in examples(model):
        file = io.BytesIO()
        torch.export.save(torch.export.export(module, (given[:3],), dynamic_shapes=({0: BATCH},)), file)
        file.seek(0)
        program = torch.export.load(file).module()
        for some in (given, given[:1]):
            expected = module(some)
            got = program(some)
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@every_case(*ONNX)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the exporter's own
def test_onnx_programs_do_what_the_network_does(model: Autoencoder) -> None:
    import onnxruntime  # not installed where all of this is skipped

    for module, given in examples(model):
        program: Any = torch.onnx.export(
            module, (given[:3],), dynamo=True, dynamic_shapes=({0: BATCH},), verbose=False, optimize=True
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
        for some in (given, given[:1]):
            expected = module(some).detach().numpy()
            (got,) = session.run(None, {session.get_inputs()[0].name: some.numpy()})
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
