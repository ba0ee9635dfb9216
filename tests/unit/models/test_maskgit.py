"""`MaskGIT`: size, who sees whom, masks, classes, bad input."""

from typing import Any

import pytest
import torch
from torch import Tensor

from straightvq.models import MaskGIT

CODES = 11


def make_model(**kwargs: Any) -> MaskGIT:
    torch.manual_seed(0)
    sizes = {"grid": (3, 4), "layers": 2, "width": 16, "heads": 4}
    model = MaskGIT(CODES, **(sizes | kwargs)).eval()
    with torch.no_grad():  # the narrow start hides differences
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def make_indices(batch: int = 2) -> Tensor:
    return torch.randint(0, CODES, (batch, 3, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_classes", [None, 1000])
@pytest.mark.parametrize("tie_output", [True, False])
def test_size_is_the_sum_of_its_layers(num_classes: int | None, tie_output: bool) -> None:
    width, codes, layers, tokens = 768, 1024, 24, 256
    with torch.device("meta"):
        model = MaskGIT(codes, num_classes=num_classes, tie_output=tie_output)
    rows = codes + 1 + tokens + (0 if num_classes is None else num_classes + 1 + 1)
    block = 4 * width * (width + 1) + 8 * width * width + 5 * width + 4 * width
    last = width * (width + 1) + 2 * width + codes + (0 if tie_output else codes * width)
    assert sum(p.numel() for p in model.parameters()) == rows * width + 2 * width + layers * block + last


def test_every_position_sees_every_other() -> None:
    model = make_model(layers=1)
    indices = make_indices(1)
    before = model(indices)
    for row, column in [(0, 0), (2, 3)]:
        other = indices.clone()
        other[0, row, column] = (other[0, row, column] + 1) % CODES
        assert ((model(other) - before).abs().amax(-1) > 1e-6).all()


def test_masked_is_unlike_any_code() -> None:
    model = make_model()
    indices = make_indices(1).expand(CODES + 1, -1, -1).clone()
    indices[:, 1, 1] = torch.arange(-1, CODES)
    logits = model(indices)[:, 0, 0]
    assert len(logits.unique(dim=0)) == CODES + 1


def test_positions_are_learned() -> None:
    masked = torch.full((1, 3, 4), -1)
    logits = make_model()(masked)
    assert logits.shape == (1, 3, 4, CODES)
    assert len(logits.flatten(0, 2).unique(dim=0)) == 12
    assert make_model()(masked[:0]).shape == (0, 3, 4, CODES)


def test_class_matters_and_no_label_is_the_null_class() -> None:
    model = make_model(num_classes=3)
    indices = make_indices(1).expand(4, -1, -1)
    logits = model(indices, torch.tensor([0, 1, 2, -1]))
    assert len(logits[:, 0, 0].unique(dim=0)) == 4
    torch.testing.assert_close(model(indices[:1]), logits[3:])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_images_do_not_depend_on_their_batch_nor_on_the_integer_dtype(dtype: torch.dtype) -> None:
    model = make_model(num_classes=3)
    indices, labels = make_indices(4), torch.tensor([-1, 0, 1, 2])
    torch.testing.assert_close(model(indices, labels)[:2], model(indices[:2].to(dtype), labels[:2].to(dtype)))


def test_tied_output_reads_the_embedding_of_the_codes() -> None:
    model = make_model()
    indices = make_indices(1)
    before = model(indices)
    with torch.no_grad():
        unused = next(code for code in range(CODES) if code not in indices)
        model.token_embedding.weight[unused] += 1
    changed = (model(indices) != before).flatten(0, 2).any(0)
    assert changed.nonzero().flatten().tolist() == [unused]


@pytest.mark.parametrize("tie_output", [True, False])
def test_every_parameter_gets_a_gradient(tie_output: bool) -> None:
    model = make_model(num_classes=3, tie_output=tie_output)
    indices = make_indices()
    indices[:, 0] = -1
    model(indices, torch.tensor([1, -1])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_forward_compiles_in_one_graph() -> None:
    torch.compiler.reset()
    model = make_model(num_classes=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    labels = torch.tensor([1, -1])
    torch.testing.assert_close(compiled(make_indices(), labels), model(make_indices(), labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": 4}, r"`MaskGIT`: `grid` must be two integers >= 1, \(height, width\). Got 4."),
        ({"grid": (4, 4, 4)}, r"`MaskGIT`: `grid` must be two integers"),
        ({"grid": (4, 0)}, r"`MaskGIT`: `grid` must be an integer >= 1. Got 0."),
        ({"heads": 3}, r"`MaskGIT`: `heads` must divide the width 16. Got 3."),
        ({"dropout": 1.0}, r"`MaskGIT`: `dropout` must be a finite number in \[0, 1\)"),
        ({"tie_output": 1}, r"`MaskGIT`: `tie_output` must be True or False"),
    ],
)
def test_bad_sizes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_model(**arguments)


@pytest.mark.parametrize(
    ("indices", "labels", "error", "message"),
    [
        (make_indices().float(), None, TypeError, r"`indices` must be an integer tensor. Got torch.float32."),
        (make_indices().tolist(), None, TypeError, r"`indices` must be an integer tensor. Got list."),
        (make_indices() - 2, None, ValueError, r"`indices` must be in \[0, 11\), or -1 for masked positions. Got"),
        (make_indices() + CODES, None, ValueError, r"`indices` must be in \[0, 11\)"),
        (make_indices().mT, None, ValueError, r"`indices` must have the shape \(B, 3, 4\). Got \(2, 4, 3\)."),
        (make_indices().flatten(1), None, ValueError, r"`indices` must have the shape \(B, 3, 4\). Got \(2, 12\)."),
        (make_indices(), torch.tensor([0.0, 1.0]), TypeError, r"`labels` must be an integer tensor"),
        (make_indices(), torch.tensor([0, 3]), ValueError, r"`labels` must be in \[0, 3\), or -1 for the null class."),
        (make_indices(), torch.tensor([0]), ValueError, r"`labels` must have the shape \(2,\), one for each grid."),
    ],
)
def test_bad_calls_are_refused(indices: Any, labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="`MaskGIT`: " + message):
        make_model(num_classes=3)(indices, labels)


def test_more_codes_than_can_have_a_row_each_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`MaskGIT`: `codebook_size` must be at most 16777216.*Got 1099511627776"):
        MaskGIT(1 << 40, layers=1, width=8, heads=1)


def test_labels_without_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`MaskGIT`: `labels` must be None, because the network has num_classes=None"):
        make_model()(make_indices(), torch.tensor([0, 1]))
