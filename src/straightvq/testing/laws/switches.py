"""Freezing, bypass, codes set by hand, the optimizer's groups."""

import torch
from torch import nn

from straightvq.nn import bypass, parameter_groups
from straightvq.testing.law import hold, law, near, same, same_state
from straightvq.testing.subject import Subject, Trainer, state_of, with_table


@law("switches")
def frozen_codebook_stays_to_the_bit_under_adamw(subject: Subject) -> None:
    """A frozen codebook changes in nothing, whatever weight decay and momentum an optimizer has."""
    for steps in (0, 6):
        trainer = Trainer(subject)
        layer = with_table(trainer.layer)
        for group in trainer.optimizer.param_groups:
            group["weight_decay"] = 0.5
        for number in range(steps):
            trainer.step(number)
        layer.codebook.freeze()
        before = state_of(layer.codebook)
        trainer.run(6, 16)
        after = state_of(layer.codebook)
        before.pop("rewritten"), after.pop("rewritten")  # the optimizer's mark, cleared at its step
        same_state(after, before, "a frozen codebook unchanged")


@law("switches")
def unfrozen_codebook_moves_again(subject: Subject) -> None:
    """Unfreezing undoes freezing."""
    trainer = Trainer(subject)
    layer = with_table(trainer.layer)
    trainer.run(0, 6)
    layer.codebook.freeze()
    frozen = layer.codes()
    trainer.run(6, 8)
    layer.codebook.unfreeze()
    trainer.run(8, 10)
    hold(not torch.equal(frozen, layer.codes()), "codes that move after unfreezing", "none moved")
    still = [name for name, p in layer.named_parameters() if not p.requires_grad]
    hold(not still, "every parameter to require a gradient again", still)


@law("switches")
def freezing_is_saved(subject: Subject) -> None:
    """A layer that loads a frozen layer's state is frozen."""
    layer, fresh = subject.trained_table(), with_table(subject.made(seed=4))
    layer.codebook.freeze()
    fresh.load_state_dict(layer.state_dict())
    before = fresh.codes()
    out = fresh((subject.data(60) + 3).requires_grad_())
    (out.loss + out.quantized.sum()).backward()
    same(fresh.codes(), before, "codes unchanged in a layer that loaded a frozen state")
    free = [name for name, p in fresh.codebook.named_parameters() if p.requires_grad or p.grad is not None]
    hold(not free, "no parameter of a frozen codebook to take a gradient", free)


@law("switches")
def bypass_passes_vectors_through_and_changes_nothing(subject: Subject) -> None:
    """Under ``bypass`` the layer is the identity with loss 0, and changes no state."""
    layer = subject.trained()
    before = state_of(layer)
    z = subject.data(20).requires_grad_()
    for mode in (True, False):
        layer.train(mode)
        with bypass(nn.Sequential(layer)):
            out = layer(z)
        same(out.quantized.detach(), z.detach(), "`quantized` to be z under bypass")
        hold((out.indices == -1).all(), "index -1 under bypass", "others")
        hold(out.indices.shape[:1] == z.shape[:1], f"indices of shape ({len(z)},)", tuple(out.indices.shape))
        hold(out.loss == 0, "loss 0 under bypass", out.loss)
        (out.quantized.sum() + out.loss).backward()
    same_state(state_of(layer), before, "no state changed under bypass")
    plain = layer(z.detach())
    hold(set(out.terms) == set(plain.terms), f"the terms {sorted(plain.terms)} under bypass", sorted(out.terms))
    hold((plain.indices >= 0).all(), "indices again after bypass", "-1")


@law("switches")
def set_codes_writes_effective_codes(subject: Subject) -> None:
    """``codes()`` gives what ``set_codes`` wrote, up to rounding, and a frozen layer keeps it."""
    layer = with_table(subject.made())
    codes = subject.trained_table(4).codes()  # such as this kind of layer can have
    layer.set_codes(codes)
    near(layer.codes(), codes, "the codes that were set")
    layer.codebook.freeze()
    layer(subject.data(1))
    layer.codebook.unfreeze()
    near(layer.codes(), codes, "the codes that were set, after a frozen forward")


@law("switches")
def no_init_overwrites_codes_that_somebody_set(subject: Subject) -> None:
    """After ``set_codes`` a data-dependent init does not run."""
    layer = with_table(subject.made())
    codes = nn.functional.normalize(torch.randn(layer.codes().shape), dim=1)
    codes[3] = -codes[2]
    layer.set_codes(codes)
    layer(layer.transform.inverse(codes[:2].repeat(50, 1)).detach())
    # 100 vectors on two codes: an init would have gathered all codes there.
    away = (torch.cdist(layer.codes(), codes[:2]).min(1).values > 0.2).sum()
    hold(away >= 0.6 * subject.size, "most codes where they were set", f"{int(away)} of {subject.size}")


@law("switches")
def every_codebook_parameter_is_in_the_codebook_group(subject: Subject) -> None:
    """``parameter_groups`` puts all parameters of the codebook, and no others, in a group without weight decay."""
    layer = with_table(subject.made())
    net = nn.Sequential(nn.Linear(subject.dim, subject.dim), layer)
    groups = {g["name"]: g for g in parameter_groups(net, lr=1.0, weight_decay=0.5, codebook_lr=0.1)}
    owned = set(layer.codebook.parameters())
    if owned:
        hold(set(groups["codebook"]["params"]) == owned, "the codebook's parameters in its group", "others")
        hold(groups["codebook"]["lr"] == 0.1, "the codebook's own rate, 0.1", groups["codebook"]["lr"])
        hold(groups["codebook"]["weight_decay"] == 0, "no weight decay", groups["codebook"]["weight_decay"])
    hold(set(groups["network"]["params"]) == set(net.parameters()) - owned, "all others in the network's", "others")
    hold(groups["network"]["weight_decay"] == 0.5, "weight decay 0.5", groups["network"]["weight_decay"])
