import pytest
import torch
from tests.ranks import pretend_ranks
from torch import Tensor

from straightvq.nn import ranks


@pytest.mark.parametrize("group", [None, False])
def test_without_a_process_group_every_collective_is_the_identity(group: ranks.Group) -> None:
    x = torch.randn(3, 2)
    assert ranks.num_ranks(group) == 1
    assert ranks.rank(group) == 0
    assert torch.equal(ranks.sum_over_ranks(x, group), x)
    assert torch.equal(ranks.stack_over_ranks(x, group), x[None])
    assert torch.equal(ranks.rows_over_ranks(x, group), x)
    before = x.clone()
    ranks.copy_from_first_rank(x, group)
    assert torch.equal(x, before)


@pytest.mark.parametrize("num", [1, 3])
def test_message_brings_a_sum_and_all_that_was_stacked(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pretend_ranks(monkeypatch, num)
    message, arrived = ranks.Message(None), list[Tensor]()
    assert message.is_empty
    x, first, second = torch.randn(4), torch.randn(2, 3), torch.randn(1)
    message.stack(first, then=arrived.append)
    message.stack(second, then=arrived.append)
    assert not message.is_empty
    assert not arrived, "before it is sent"
    assert torch.equal(message.send(x), num * x)
    assert torch.equal(arrived[0][0], num * first)  # the pretended ranks all fill the first slot
    assert [tuple(a.shape) for a in arrived] == [(num, 2, 3), (num, 1)]
    assert sent == ["all_reduce"][: num - 1]
