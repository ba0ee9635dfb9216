import pytest
import torch
from torch import Tensor, nn

from straightvq.nn.part import Part, at_least_float32, check_bool, check_float, check_int, check_part


class Scale(Part):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 1 / 3))
        self.register_buffer("count", torch.tensor([7]))
        self.register_buffer("mean", torch.full((2,), 1 / 3))


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_half_precision_does_not_round_the_state(name: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), Scale())
    getattr(net, name)()
    part = net[1]
    assert net[0].weight.dtype != torch.float32
    assert part.weight.dtype == part.mean.dtype == torch.float32
    assert torch.equal(part.mean, torch.full((2,), 1 / 3))
    assert part.count.dtype == torch.int64


def test_double_is_taken_and_half_after_double_is_float32() -> None:
    part = Scale().double()
    assert part.weight.dtype == torch.float64
    assert part.half().weight.dtype == torch.float32
    assert part.to(torch.float16).mean.dtype == torch.float32


def test_moving_keeps_the_parameter_object() -> None:
    part = Scale()
    before = part.weight
    part.half().double().float()
    assert part.weight is before


def test_binding_twice_is_refused() -> None:
    part = Scale()
    part._bind_once()
    with pytest.raises(ValueError, match="`Scale`: this instance is already part of another quantizer"):
        part._bind_once()


def test_integers_of_numpy_and_torch_are_taken_where_they_are_integers() -> None:
    assert check_int("f", "n", torch.arange(3).numpy()[2], 1) == 2
    with pytest.raises(TypeError, match=r"`f`: `n` must be an integer >= 1. Got 2.0 \(float\)"):
        check_int("f", "n", 2.0, 1)
    with pytest.raises(ValueError, match=r"`f`: `n` must be an integer >= 1. Got 0"):
        check_int("f", "n", 0, 1)


@pytest.mark.parametrize(
    ("value", "fits"), [(0.0, False), (0.5, True), (1.0, True), (1.5, False), (float("nan"), False)]
)
def test_interval_ends_are_open_or_closed(value: float, fits: bool) -> None:
    if fits:
        assert check_float("f", "x", value, minimum=0, maximum=1, open_minimum=True) == value
    else:
        with pytest.raises(ValueError, match=r"`f`: `x` must be a finite number in \(0, 1\]"):
            check_float("f", "x", value, minimum=0, maximum=1, open_minimum=True)


def test_integers_are_numbers_and_booleans_are_not() -> None:
    assert check_float("f", "x", 2) == 2.0
    with pytest.raises(TypeError, match="must be a number"):
        check_float("f", "x", True)
    with pytest.raises(TypeError, match="True or False"):
        check_bool("f", "x", 1)


def test_a_class_in_place_of_an_instance_gets_its_own_hint() -> None:
    with pytest.raises(TypeError, match=r"Got the class Scale; write Scale\(\)"):
        check_part("f", "part", Scale, Part)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32(dtype: torch.dtype) -> None:
    assert at_least_float32(dtype) == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_state_of_a_part_is_all_in_its_state_dict() -> None:
    state: dict[str, Tensor] = Scale().state_dict()
    assert set(state) == {"weight", "count", "mean"}
