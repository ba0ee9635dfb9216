import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import straightvq as svq
from straightvq.models import BinaryNet


def make(**given: object) -> BinaryNet:
    torch.manual_seed(0)
    return BinaryNet(5, in_channels=1, **({"width": 2, "blocks": 2, "estimator": svq.ReSTE()} | given))


def test_first_and_last_layer_alone_are_in_full_precision() -> None:
    net = make()
    assert [type(module) for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))] == [
        nn.Conv2d,
        nn.Linear,
    ]
    shapes = [tuple(conv.weight.shape[:2]) for conv in net.convolutions()]
    assert shapes == [(2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8)]


def test_forward_by_hand() -> None:
    net, x = make().double().eval(), torch.randn(2, 1, 7, 6, dtype=torch.float64)
    y = net.stages.stem(x)
    for stage in (net.stages.stage1, net.stages.stage2, net.stages.stage3):
        for block in stage:
            short = y
            if block.conv.stride == 2:
                short = torch.cat([F.avg_pool2d(y, 2, ceil_mode=True)] * 2, 1)
            y = (short + block.norm(block.conv(y))).clamp(-1, 1)
    out = net(x)
    torch.testing.assert_close(out.logits, net.stages.classifier(y))
    assert out.logits.shape == (2, 5)
    assert out.quantizer is None


def test_one_estimator_serves_all_signs() -> None:
    net = make()
    net.estimator.power = 2.5
    assert {conv.weight_signs.estimator.power for conv in net.convolutions()} == {2.5}
    assert {conv.input_signs.estimator.power for conv in net.convolutions()} == {2.5}
    twin = copy.deepcopy(net)
    twin.estimator.power = 3.0
    assert {conv.weight_signs.estimator.power for conv in twin.convolutions()} == {3.0}
    assert net.convolutions()[0].weight_signs.estimator.power == 2.5


def test_it_learns() -> None:
    net = make(width=4)
    y = torch.arange(40) % 5
    x = torch.randn(5, 1, 8, 8)[y] + 0.1 * torch.randn(40, 1, 8, 8)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x).logits, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"num_classes": 0}, ValueError, "`num_classes` must be an integer >= 1"),
        ({"in_channels": 0}, ValueError, "`in_channels` must be an integer >= 1"),
        ({"width": 1.5}, TypeError, "`width` must be an integer >= 1"),
        ({"blocks": 0}, ValueError, "`blocks` must be an integer >= 1"),
        ({"estimator": svq.ReSTE}, TypeError, "write ReSTE()"),
    ],
)
def test_impossible_arguments_are_refused(given: dict[str, object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        BinaryNet(**({"num_classes": 5} | given))
    assert f"`BinaryNet`: {words}" in str(caught.value) or words in str(caught.value)


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`BinaryNet`: `x` must have the shape \(B, 1, H, W\). Got \(2, 3, 8, 8\)"):
        make()(torch.rand(2, 3, 8, 8))
