from itertools import chain

import pytest
import torch

from straightvq.data.loader import EpochSampler, eval_loader, train_loader
from straightvq.data.sets import TensorSet


def pictures(count):
    values = torch.arange(count, dtype=torch.uint8)
    return TensorSet({"image": values[:, None, None, None].expand(count, 1, 4, 4).clone(), "label": values.long()})


def loader(count=10, batch_size=4, seed=0, **kwargs):
    data = pictures(count)
    return train_loader(data, batch_size, EpochSampler(data, seed), **kwargs)


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_only():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = EpochSampler(range(20), seed)
            sampler.set_epoch(epoch)
            torch.rand(3)  # the global generator has no say
            orders[seed, epoch] = tuple(sampler)
            assert tuple(sampler) == orders[seed, epoch]
            assert sorted(sampler) == list(range(20))
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_see_the_batches_of_one_process(ranks):
    data = pictures(12)
    whole = labels(train_loader(data, 6, EpochSampler(data, seed=5)))
    shards = [
        labels(train_loader(data, 6 // ranks, EpochSampler(data, 5, num_replicas=ranks, rank=rank)))
        for rank in range(ranks)
    ]
    for step, batch in enumerate(whole):
        assert sorted(batch) == sorted(chain.from_iterable(shard[step] for shard in shards))


def test_each_pass_is_the_next_epoch_and_batches_say_which():
    first = loader()
    passes = [list(first) for _ in range(3)]
    assert [[batch["epoch"] for batch in batches] for batches in passes] == [[e] * 3 for e in range(3)]
    assert len({str(labels(batches)) for batches in passes}) == 3
    assert [len(batch) for batch in labels(passes[0])] == [4, 4, 2]


@pytest.mark.parametrize("stop", range(7))
def test_resumed_loader_goes_on_exactly_from_any_batch(stop):
    uninterrupted = loader()
    expected = labels(list(uninterrupted) + list(uninterrupted) + list(uninterrupted))
    first, second, served = loader(), loader(), 0
    while served < stop:
        for _ in first:
            served += 1
            if served == stop:
                break
    second.load_state_dict(first.state_dict())
    rest = []
    while len(rest) < 9 - stop:
        rest += labels(second)
    assert rest == expected[stop:]


def test_state_outlives_the_iterator():
    # Lightning drops the iterator at the end of `fit`; a checkpoint may be written after that.
    first = loader()
    iterator = iter(first)
    next(iterator)
    iterator.close()
    assert first.state_dict() == {"epoch": 0, "samples": 4}


def test_unread_iterators_do_not_count_as_epochs():
    first = loader()
    iter(first)
    assert next(iter(first))["epoch"] == 0


def test_pass_cut_short_by_a_limit_is_complete():
    second = loader()
    second.limit = 2
    second.load_state_dict({"epoch": 0, "samples": 8})
    assert next(iter(second))["epoch"] == 1


def test_place_is_kept_when_the_batch_size_changes():
    first, second = loader(12, 4), loader(12, 2)
    iterator = iter(first)
    seen = next(iterator)["label"].tolist()
    second.load_state_dict(first.state_dict())
    assert sorted(chain(seen, *labels(second))) == list(range(12))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on forking a threaded process
def test_workers_change_nothing():
    plain, workers = loader(), loader(num_workers=1)
    expected = labels(list(plain) + list(plain))
    assert labels(list(workers) + list(workers)) == expected
    state = {"epoch": 0, "samples": 4}
    workers.load_state_dict(state)
    assert labels(workers) == expected[1:3]


def test_batch_larger_than_the_set_is_the_set():
    assert sorted(labels(loader(3, 64))[0]) == [0, 1, 2]


def test_evaluation_keeps_the_order_of_the_set():
    assert labels(eval_loader(pictures(5), 2)) == [[0, 1], [2, 3], [4]]
