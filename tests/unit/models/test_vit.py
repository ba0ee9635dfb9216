"""`ViT`: its published size, its tokens, and the class token that nothing can take around the quantizer."""

import pytest
import torch
from tests.unit.models.sizes import count_of

import straightvq as svq
from straightvq.models import ViT

SMALL = {"image_size": 32, "patch_size": 4, "layers": 6, "width": 96}
TINY = {"num_classes": 3, "image_size": 16, "patch_size": 4, "layers": 2, "width": 12}


def test_full_size_has_the_published_number_of_parameters() -> None:
    assert count_of(ViT, num_classes=1000) == 5_717_416


def test_small_size_is_the_sum_of_its_layers() -> None:
    width, tokens = 96, 64
    block = 4 * width * (width + 1) + width * (4 * width) * 2 + 5 * width + 4 * width
    patches = 3 * 4 * 4 * width + width + tokens * width
    last = 2 * width + width * 10 + 10
    assert count_of(ViT, num_classes=10, **SMALL, class_token=False) == patches + 6 * block + last
    assert count_of(ViT, num_classes=10, **SMALL) == patches + 6 * block + last + 2 * width


@pytest.mark.parametrize(("layers", "position"), [(12, "block6"), (6, "block3"), (1, "patches"), (3, "block1")])
def test_position_is_the_middle_unless_given(layers: int, position: str) -> None:
    with torch.device("meta"):
        assert ViT(None, num_classes=3, layers=layers).position == position


def test_tokens_are_patches_in_rows() -> None:
    torch.manual_seed(0)
    model = ViT(None, **TINY, position="patches").eval()
    x = torch.randn(1, 3, 16, 16)
    other = x.clone()
    other[:, :, 4:8, 8:12] += 1  # second row, third column of 4 x 4 patches
    changed = (model.encode(x) != model.encode(other)).any(-1)
    assert changed[0].nonzero().flatten().tolist() == [6]


def test_class_token_joins_after_the_quantizer_and_decides_the_logits() -> None:
    torch.manual_seed(0)
    model = ViT(svq.presets.vq_vae(12, 16), **TINY).eval()
    names = [name for name, _ in model.stages.named_children()]
    assert names == ["patches", "block1", "class_token", "block2", "classifier"]
    assert model.encode(torch.randn(2, 3, 16, 16)).shape == (2, 16, 12)
    z = torch.randn(1, 16, 12)
    shuffled = z[:, torch.randperm(16)]  # positions are in z; without them attention ignores the order
    torch.testing.assert_close(model.head(z), model.head(shuffled))


def test_mean_is_over_all_tokens() -> None:
    torch.manual_seed(0)
    model = ViT(None, **TINY, position="block2", class_token=False).eval()
    z = torch.randn(2, 16, 12)
    torch.testing.assert_close(model.head(z), model.head(z.mean(1, keepdim=True)))


def test_half_precision_works_under_autocast() -> None:
    model = ViT(svq.presets.vq_vae(12, 16), **TINY)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 3, 16, 16)).logits.isfinite().all()
