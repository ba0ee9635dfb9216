"""Freezing, bypass, codes set by hand, the optimizer's groups."""

import copy

import torch
from torch import nn

from straightvq.nn import Quantizer, bypass, parameter_groups
from straightvq.testing.law import hold, law, near, same, same_state
from straightvq.testing.subject import Subject, Trainer, backward, codes_of, state_of, with_codes, with_inverse


def _freeze(layer: Quantizer) -> None:
    for book in with_codes(layer).codebooks():
        book.freeze()


@law("switches")
def frozen_codebook_stays_to_the_bit_under_adamw(subject: Subject) -> None:
    """A frozen codebook changes in nothing, whatever weight decay and momentum an optimizer has."""
    for steps in (0, 6):
        trainer = Trainer(subject)
        books = with_codes(trainer.layer).codebooks()
        for group in trainer.optimizer.param_groups:
            group["weight_decay"] = 0.5
        for number in range(steps):
            trainer.step(number)
        _freeze(trainer.layer)
        before = [state_of(book) for book in books]
        trainer.run(6, 16)
        for old, new in zip(before, map(state_of, books), strict=True):
            old.pop("rewritten"), new.pop("rewritten")  # the optimizer's mark, cleared at its step
            same_state(new, old, "a frozen codebook unchanged")


@law("switches")
def unfrozen_codebook_moves_again(subject: Subject) -> None:
    """Unfreezing undoes freezing."""
    trainer = Trainer(subject)
    books = with_codes(trainer.layer).codebooks()
    trains = {name for name, p in trainer.layer.named_parameters() if p.requires_grad}
    trainer.run(0, 6)
    _freeze(trainer.layer)
    frozen = codes_of(trainer.layer)
    trainer.run(6, 8)
    for book in books:
        book.unfreeze()
    trainer.run(8, 10)
    for before, after in zip(frozen, codes_of(trainer.layer), strict=True):
        hold(not torch.equal(before, after), "codes that move after unfreezing", "none moved")
    again = {name for name, p in trainer.layer.named_parameters() if p.requires_grad}
    hold(again == trains, f"the parameters {sorted(trains)} to require a gradient again", sorted(again))


@law("switches")
def freezing_is_saved(subject: Subject) -> None:
    """A layer that loads a frozen layer's state is frozen."""
    layer, fresh = with_codes(subject.trained()), subject.made(seed=4)
    _freeze(layer)
    fresh.load_state_dict(layer.state_dict())
    before = codes_of(fresh)
    out = fresh((subject.data(60) + 3).requires_grad_())
    (out.loss + out.quantized.sum()).backward()
    for old, new in zip(before, codes_of(fresh), strict=True):
        same(new, old, "codes unchanged in a layer that loaded a frozen state")
    for book in fresh.codebooks():
        free = [name for name, p in book.named_parameters() if p.requires_grad or p.grad is not None]
        hold(not free, "no parameter of a frozen codebook to take a gradient", free)


@law("switches")
def bypass_leaves_the_codes_out_and_changes_nothing(subject: Subject) -> None:
    """Under ``bypass`` the layer is its transform and the inverse with loss 0, and changes no state."""
    layer = subject.trained()
    before = state_of(layer)
    z = subject.data(20).requires_grad_()
    for mode in (True, False):
        layer.train(mode)
        with bypass(nn.Sequential(layer)):
            out = layer(z)
            twin = copy.deepcopy(layer)
        near(out.quantized, layer.unquantized(z), "`quantized` to be that without codes", 1e-6)
        hold((out.indices == -1).all(), "index -1 under bypass", "others")
        hold(out.loss == 0, "loss 0 under bypass", out.loss)
        backward(out, z)
        out.quantized.detach().fill_(7)
        same(z.detach(), subject.data(20), "z unchanged by what happens to `quantized` under bypass")
    same_state(state_of(layer), before, "no state changed under bypass")
    plain = layer(z.detach())
    hold(set(out.terms) == set(plain.terms), f"the terms {sorted(plain.terms)} under bypass", sorted(out.terms))
    shape = tuple(plain.indices.shape)
    hold(out.indices.shape == shape, f"indices of shape {shape} under bypass", tuple(out.indices.shape))
    hold((plain.indices >= 0).all(), "indices again after bypass", "-1")
    hold((twin(z.detach()).indices >= 0).all(), "indices from a copy that was made under bypass", "-1")


@law("switches")
def every_parameter_stays_connected(subject: Subject) -> None:
    """In each training step, under ``bypass`` and without vectors too, every parameter that trains gets a gradient."""
    layer = subject.trained()
    z = subject.data(20)
    nothing = torch.zeros(len(z), dtype=torch.bool)
    for skipped, mask in ((False, None), (True, None), (False, nothing)):
        layer.zero_grad()
        with bypass(layer if skipped else nn.Identity()):
            x = z.clone().requires_grad_()
            out = layer(x, mask)
        backward(out, x)
        left = [name for name, p in layer.named_parameters() if p.requires_grad and p.grad is None]
        hold(not left, "a gradient at every parameter, for data-parallel wrappers that wait for it", left)


@law("switches")
def set_codes_writes_effective_codes(subject: Subject) -> None:
    """``codes()`` gives what ``set_codes`` wrote, up to rounding, and a frozen layer keeps it."""
    layer = with_inverse(subject.made())
    codes = with_inverse(subject.trained(4)).codes()  # such as this kind of layer can have
    layer.set_codes(codes)
    near(layer.codes(), codes, "the codes that were set")
    layer.codebook.freeze()
    layer(subject.data(1))
    layer.codebook.unfreeze()
    near(layer.codes(), codes, "the codes that were set, after a frozen forward")


@law("switches")
def no_init_overwrites_codes_that_somebody_set(subject: Subject) -> None:
    """After ``set_codes`` a data-dependent init does not run."""
    layer = with_inverse(subject.made())
    codes = nn.functional.normalize(torch.randn(layer.codes().shape), dim=1)
    codes[3] = -codes[2]
    layer.set_codes(codes)
    layer(layer.transform.inverse(codes[:2].repeat(50, 1)).detach())
    # 100 vectors on two codes: an init would have gathered all codes there.
    away = (torch.cdist(layer.codes(), codes[:2]).min(1).values > 0.2).sum()
    hold(away >= 0.6 * subject.size, "most codes where they were set", f"{int(away)} of {subject.size}")


@law("switches")
def every_codebook_parameter_is_in_the_codebook_group(subject: Subject) -> None:
    """``parameter_groups`` puts all parameters of codebooks, and no others, in a group without weight decay."""
    layer = subject.made()
    net = nn.Sequential(nn.Linear(subject.dim, subject.dim), layer)
    groups = {g["name"]: g for g in parameter_groups(net, lr=1.0, weight_decay=0.5, codebook_lr=0.1)}
    owned = {parameter for book in layer.codebooks() for parameter in book.parameters()}
    if owned:
        hold(set(groups["codebook"]["params"]) == owned, "the codebook's parameters in its group", "others")
        hold(groups["codebook"]["lr"] == 0.1, "the codebook's own rate, 0.1", groups["codebook"]["lr"])
        hold(groups["codebook"]["weight_decay"] == 0, "no weight decay", groups["codebook"]["weight_decay"])
    hold(set(groups["network"]["params"]) == set(net.parameters()) - owned, "all others in the network's", "others")
    hold(groups["network"]["weight_decay"] == 0.5, "weight decay 0.5", groups["network"]["weight_decay"])
