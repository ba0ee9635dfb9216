import warnings

import pytest
import torch
from torch import nn

import straightvq as svq


class Net(nn.Module):
    def __init__(self, layer: svq.VectorQuantizer) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.layer = layer


def far_codes(used: int = 2) -> torch.Tensor:
    codes = 1000.0 + torch.arange(32.0).view(8, 4)
    codes[:used] = torch.arange(float(used))[:, None].expand(-1, 4)
    return codes


@pytest.mark.parametrize("codebook_lr", [None, 0.5])
def test_groups_cover_every_parameter_once(codebook_lr: float | None) -> None:
    net = Net(svq.presets.vq_ste_pp(4, 8))
    groups = svq.parameter_groups(net, 0.1, 0.2, codebook_lr)
    assert [group["name"] for group in groups] == ["network", "codebook"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.2), (codebook_lr or 0.1, 0.0)]
    listed = [p for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(net.parameters())


def test_groups_without_parameters_are_left_out() -> None:
    assert [g["name"] for g in svq.parameter_groups(nn.Linear(2, 2), 0.1, 0.1)] == ["network"]
    assert [g["name"] for g in svq.parameter_groups(svq.presets.vq_vae(4, 8), 0.1, 0.1)] == ["codebook"]
    assert svq.parameter_groups(svq.presets.ema(4, 8), 0.1, 0.1) == []


def test_projection_belongs_to_the_network() -> None:
    layer = svq.VectorQuantizer(4, svq.Codebook(8), transform=svq.Projection(2))
    groups = {g["name"]: g["params"] for g in svq.parameter_groups(layer, 0.1, 0.1)}
    assert set(groups["network"]) == set(layer.transform.parameters())


def test_a_codebook_shared_by_two_places_is_listed_once() -> None:
    layer = svq.presets.vq_vae(4, 8)
    assert len(svq.parameter_groups(nn.ModuleList([layer, layer]), 0.1, 0.1)[0]["params"]) == 1


def test_groups_suit_torch_optimizers() -> None:
    net = Net(svq.presets.vq_ste_pp(4, 8))
    optimizer = torch.optim.AdamW(svq.parameter_groups(net, 0.1, 0.2))
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD], ids=["adamw", "sgd"])
def test_moments_of_reset_rows_are_cleared_and_others_kept(kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(
        4, svq.Codebook(8, reset=svq.DeadCodeReset(3, noise=0.0)), estimator=svq.StraightThrough(0.5)
    )
    layer.set_codes(far_codes())
    extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(layer.parameters(), lr=0.0, **extra)  # type: ignore[call-arg]
    twin = kind(layer.parameters(), lr=0.0, **extra)  # type: ignore[call-arg]
    svq.attach_optimizer(optimizer, layer)
    raw = layer.codebook.raw
    for number in range(6):
        out = layer(torch.rand(16, 4, generator=torch.Generator().manual_seed(number)))
        for o in (optimizer, twin):
            o.zero_grad()
        (out.quantized.sum() + out.loss).backward()
        if number == 3:
            for o in (optimizer, twin):
                # As if the dead rows had been used before: old momentum.
                for value in o.state[raw].values():
                    if value.shape == raw.shape:
                        value[2:] = 7.0
            assert layer.codebook.rewritten.tolist() == [False, False, *[True] * 6]
        for o in (twin, optimizer):
            o.step()
        if number == 3:
            break
    assert not layer.codebook.rewritten.any()
    for name, value in optimizer.state[raw].items():
        if value.shape == raw.shape:
            other = twin.state[raw][name]
            assert torch.equal(value[:2], other[:2]), "rows that nobody rewrote keep their moments"
            assert (value[2:] - other[2:]).abs().min() > 0.5, "the old moments must be gone"


def test_removed_handle_clears_nothing() -> None:
    layer = svq.presets.vq_vae(4, 8)
    optimizer = torch.optim.AdamW(layer.parameters())
    handle = svq.attach_optimizer(optimizer, layer)
    handle.remove()
    layer.set_codes(far_codes())
    optimizer.step()
    assert layer.codebook.rewritten.all()


def test_set_codes_clears_all_moments() -> None:
    layer = svq.presets.vq_vae(4, 8)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.0)
    svq.attach_optimizer(optimizer, layer)
    layer(torch.randn(30, 4)).loss.backward()
    optimizer.step()
    layer.set_codes(far_codes())
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert torch.equal(layer.codes(), far_codes()), "no momentum may move codes that were just set"


def test_clearing_follows_the_optimizers_own_state_after_loading() -> None:
    layer = svq.presets.vq_vae(4, 8)
    optimizer = torch.optim.AdamW(layer.parameters())
    svq.attach_optimizer(optimizer, layer)
    layer(torch.randn(30, 4)).loss.backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    layer.codebook.rewritten.fill_(True)
    layer.codebook.raw.grad.zero_()  # type: ignore[union-attr]
    optimizer.step()
    assert (optimizer.state[layer.codebook.raw]["exp_avg"] == 0).all()


def test_missing_codebook_parameters_are_warned_of_once() -> None:
    net = Net(svq.presets.vq_ste_pp(4, 8))
    with pytest.warns(UserWarning, match=r"\['layer.codebook'\] are not in the optimizer"):
        svq.attach_optimizer(torch.optim.SGD(net.encoder.parameters(), 0.1), net)


@pytest.mark.parametrize("preset", [svq.presets.ema, svq.presets.straight], ids=["ema", "straight"])
def test_codebook_without_parameters_is_not_warned_of(preset: object) -> None:
    net = Net(preset(4, 8))  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svq.attach_optimizer(torch.optim.SGD(net.encoder.parameters(), 0.1), net)


def test_frozen_codebook_is_not_warned_of() -> None:
    net = Net(svq.presets.vq_vae(4, 8))
    net.layer.codebook.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svq.attach_optimizer(torch.optim.SGD(net.encoder.parameters(), 0.1), net)


def test_another_optimizer_of_the_same_network_does_not_take_the_flags_away() -> None:
    net = Net(svq.presets.vq_vae(4, 8))
    own, other = torch.optim.AdamW(net.layer.parameters()), torch.optim.AdamW(net.encoder.parameters())
    svq.attach_optimizer(own, net)
    with pytest.warns(UserWarning, match="not in the optimizer"):
        svq.attach_optimizer(other, net)
    net.layer.codebook.rewritten.fill_(True)
    net.encoder.weight.grad = torch.ones(4, 4)
    other.step()
    assert net.layer.codebook.rewritten.all()
    own.step()
    assert not net.layer.codebook.rewritten.any()


def test_optimizer_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer. Got Linear"):
        svq.attach_optimizer(nn.Linear(1, 1), nn.Linear(1, 1))  # type: ignore[arg-type]
