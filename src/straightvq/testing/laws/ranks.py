"""Law 4: all ranks hold the same codebook, that of one process with the whole batch."""

import torch
from torch import Tensor

from straightvq.nn.codebook import Codebook
from straightvq.nn.draws import Clock
from straightvq.testing.law import hold, law, near, same, same_state
from straightvq.testing.ranks import Ranks
from straightvq.testing.subject import Subject, codes_of, names_of, state_of, with_codes

_STEPS = 8


def _batch(subject: Subject, step: int) -> tuple[Tensor, Tensor]:
    z = subject.data(10 * step).double()
    return z, torch.rand(len(z), generator=torch.Generator().manual_seed(step)) > 0.2


def _shard(step: int, rank: int, x: Tensor) -> Tensor:
    """Contiguous and uneven; in every fourth step one rank has nothing."""
    cut = (0, len(x) * 5 // 8, len(x) // 4, len(x))[step % 4]
    return x[:cut] if rank == 0 else x[cut:]


@law("ranks")
def ranks_do_what_one_process_does(subject: Subject) -> None:
    """On uneven and empty shards, after every training forward, all ranks hold one process's codebook."""
    alone = with_codes(subject.made()).double()
    # The codebooks start apart on purpose: the first training step makes the ranks equal. The rest is the wrapper's.
    layers = [subject.made(seed=rank).double() for rank in range(2)]
    shared = names_of(alone, Codebook) | names_of(alone, Clock)
    outside = {name: value for name, value in alone.state_dict().items() if name not in shared}
    for layer in layers:
        layer.load_state_dict(outside, strict=False)

    def train(rank: int) -> list[tuple[list[Tensor], Tensor]]:
        results = []
        for step in range(_STEPS):
            z, mask = (_shard(step, rank, x) for x in _batch(subject, step))
            indices = layers[rank](z, mask).indices
            results.append((codes_of(layers[rank]), indices))
        return results

    ranks = Ranks(2).run(train)
    for step, ((codes, first), (others, second)) in enumerate(zip(*ranks, strict=True)):
        out = alone(*_batch(subject, step))
        for mine, other, single in zip(codes, others, codes_of(alone), strict=True):
            same(other, mine, f"the first rank's codes on the second after step {step}")
            near(mine, single, f"one process's codes after step {step}", 1e-9)
        hold(torch.equal(torch.cat([first, second]), out.indices), "one process's indices", f"others in step {step}")
    same_state(state_of(layers[1]), state_of(layers[0]), "the first rank's state on the second")
