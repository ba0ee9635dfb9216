"""What a training forward does, and does not do."""

import torch

from straightvq.nn import RunningAffine
from straightvq.nn.draws import Clock
from straightvq.testing.law import hold, law, near, same_state
from straightvq.testing.subject import Subject, Trainer, codes_of, state_of, with_codes


@law("training")
def training_moves_the_codebook(subject: Subject) -> None:
    """Training moves the codes: in the forward where a rule of the codebook does, else at the optimizer's step."""
    layer = with_codes(subject.trained())
    before = codes_of(layer)
    layer.train()(subject.data(40))
    for number, book in enumerate(layer.codebooks()):
        if book.update.writes or isinstance(book.parametrization, RunningAffine):
            hold(not torch.equal(before[number], book.codes()), "codes moved by the training forward", "none moved")
    before = codes_of(layer)
    Trainer(subject, layer).run(0, 2)
    for number, book in enumerate(layer.codebooks()):
        hold(not torch.equal(before[number], book.codes()), "codes moved by two training steps", "none moved")


@law("training")
def forward_leaves_no_gradient_behind_and_runs_without_one(subject: Subject) -> None:
    """A training forward leaves no gradient in any parameter, and runs under ``no_grad``."""
    layer = subject.made()
    layer(subject.data(0))
    with torch.no_grad():
        layer(subject.data(1))
    left = [name for name, p in layer.named_parameters() if p.grad is not None]
    hold(not left, "no gradient left behind by a forward", left)


@law("training")
def state_changes_do_not_depend_on_gradient_mode(subject: Subject) -> None:
    """Training forwards change the state alike with and without gradients."""
    with_grad, without = subject.made(), subject.made()
    for number in range(4):
        with_grad(subject.data(number))
        with torch.no_grad():
            without(subject.data(number))
    same_state(state_of(without), state_of(with_grad), "the same state under no_grad")


@law("training")
def two_forwards_before_one_backward(subject: Subject) -> None:
    """A layer used twice before the backward trains: nothing saved for it was overwritten."""
    trainer = Trainer(subject)
    for number in range(8):
        trainer.optimizer.zero_grad()
        halves = [trainer.layer(trainer.encoder(subject.data(2 * number + i, 30))) for i in (0, 1)]
        sum((out.loss + out.quantized.square().mean() for out in halves), start=torch.zeros(())).backward()
        trainer.optimizer.step()
    hold(all(codes.isfinite().all() for codes in codes_of(trainer.layer)), "finite codes", "NaN or infinity")


@law("training")
def gradients_accumulate_over_several_forwards(subject: Subject) -> None:
    """Gradients of one layer's forwards accumulate, and every forward changes the codebook's state once."""
    trainer = Trainer(subject)
    for number in range(4):
        out = trainer.layer(trainer.encoder(subject.data(number, 30)))
        (out.loss + out.quantized.square().mean()).backward()
    trainer.optimizer.step()
    hold(all(codes.isfinite().all() for codes in codes_of(trainer.layer)), "finite codes", "NaN or infinity")
    for clock in (module for module in trainer.layer.modules() if isinstance(module, Clock)):
        hold(int(clock.step) == 4, "4 steps counted after 4 training forwards", clock.step)


@law("training")
def long_training_stays_finite(subject: Subject) -> None:
    """Sixty training steps keep loss and state finite."""
    trainer = Trainer(subject)
    losses = trainer.run(0, 60)
    hold(losses.isfinite().all(), "60 finite losses", f"{int((~losses.isfinite()).sum())} that are not")
    broken = [name for name, value in trainer.net.state_dict().items() if not value.isfinite().all()]
    hold(not broken, "a finite state after 60 steps", broken)


@law("training")
def channels_first_equals_channels_last(subject: Subject) -> None:
    """Where the channels are changes no result and no state."""
    first, last = subject.made(1), subject.made(-1)
    for number in range(3):
        z = subject.data(number, 70).view(2, 5, 7, subject.dim)
        a, b = first(z.movedim(-1, 1)), last(z)
        hold(torch.equal(a.indices, b.indices), "the same indices with channel_dim=1 and -1", "others")
        near(a.quantized.movedim(1, -1), b.quantized, "the same `quantized` with channel_dim=1 and -1", 0)
    same_state(state_of(first), state_of(last), "the same state with channel_dim=1 and -1")
