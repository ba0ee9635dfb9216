import pytest
import torch

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
