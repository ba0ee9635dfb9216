"""What all networks with a quantizer slot promise: one interface, independence of the batch, no dead parameter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import straightvq as svq
from straightvq.models import (
    AlexNet,
    Autoencoder,
    AutoencoderBase,
    ClassifierBase,
    MaskGIT,
    ResNet18,
    SQVAENet,
    ViT,
    VQGANNet,
    VQVAENet,
)
from straightvq.models.blocks import Rescale
from straightvq.models.transformer import TransformerBlock

CLASSES = 5


def make_quantizer(dim: int, channel_dim: int = 1) -> svq.Quantizer:
    return svq.presets.vq_vae(dim, 16, channel_dim=channel_dim)


def alexnet(quantize: bool, **kwargs) -> AlexNet:
    quantizer = make_quantizer(AlexNet.dim_at(kwargs.get("position", "conv3"), 4)) if quantize else None
    return AlexNet(quantizer, num_classes=CLASSES, width=4, **kwargs)


def resnet(quantize: bool, **kwargs) -> ResNet18:
    quantizer = make_quantizer(ResNet18.dim_at(kwargs.get("position", "layer2"), 4)) if quantize else None
    return ResNet18(quantizer, num_classes=CLASSES, width=4, **kwargs)


def vit(quantize: bool, **kwargs) -> ViT:
    quantizer = make_quantizer(12, channel_dim=-1) if quantize else None
    return ViT(quantizer, num_classes=CLASSES, image_size=32, patch_size=8, layers=3, width=12, **kwargs)


# name -> builder, image size, shape of one image's z at the default position
CLASSIFIERS: dict[str, tuple[Callable[[bool], ClassifierBase], int, tuple[int, ...]]] = {
    "alexnet": (alexnet, 64, (24, 3, 3)),
    "alexnet-small_images": (lambda quantize: alexnet(quantize, small_images=True), 32, (24, 8, 8)),
    "resnet18": (resnet, 64, (8, 8, 8)),
    "resnet18-small_images": (lambda quantize: resnet(quantize, small_images=True), 16, (8, 8, 8)),
    "vit-class_token": (vit, 32, (16, 12)),
    "vit-mean": (lambda quantize: vit(quantize, class_token=False), 32, (16, 12)),
}

# name -> builder and factor between image and latent
AUTOENCODERS: dict[str, tuple[Callable[[], AutoencoderBase], int]] = {
    "autoencoder": (lambda: Autoencoder(make_quantizer(8), hidden=16, blocks=1), 4),
    "sqvae-net_32": (lambda: SQVAENet(make_quantizer(8)), 4),
    "sqvae-net_64": (lambda: SQVAENet(make_quantizer(8), variant="net_64", blocks=2), 4),
    "vqvae": (lambda: VQVAENet(make_quantizer(8), hidden=8, residual=4), 4),
    "vqgan": (lambda: VQGANNet(make_quantizer(8), hidden=32, multipliers=(1, 2), blocks=1), 2),
}

classifiers = pytest.mark.parametrize("case", CLASSIFIERS)
autoencoders = pytest.mark.parametrize("case", AUTOENCODERS)


def make_classifier(case: str, quantize: bool = True) -> tuple[ClassifierBase, Tensor]:
    torch.manual_seed(0)
    build, size, _ = CLASSIFIERS[case]
    return build(quantize), torch.randn(4, 3, size, size)


def make_autoencoder(case: str) -> tuple[AutoencoderBase, Tensor]:
    torch.manual_seed(0)
    return AUTOENCODERS[case][0](), torch.rand(4, 3, 16, 24)


def make_any(case: str) -> tuple[nn.Module, Tensor]:
    return make_classifier(case) if case in CLASSIFIERS else make_autoencoder(case)


everything = pytest.mark.parametrize("case", [*CLASSIFIERS, *AUTOENCODERS])


# --- classifiers -----------------------------------------------------------------------------------------------------


@classifiers
def test_classifier_is_head_after_quantizer_after_encode(case: str) -> None:
    model, x = make_classifier(case)
    out = model.eval()(x)
    shape = CLASSIFIERS[case][2]
    assert out.logits.shape == (4, CLASSES)
    assert out.z.shape == out.quantizer.quantized.shape == (4, *shape)
    assert out.quantizer.indices.shape == (4, *(shape[:-1] if case.startswith("vit") else shape[1:]))
    assert torch.equal(out.z, model.encode(x))
    assert torch.equal(out.logits, model.head(model.quantizer(out.z).quantized))


@classifiers
def test_classifier_without_quantizer_is_the_bypassed_one(case: str) -> None:
    quantized, x = make_classifier(case)
    plain, _ = make_classifier(case, quantize=False)
    missing, unexpected = plain.load_state_dict(quantized.state_dict(), strict=False)
    assert missing == []
    assert all(name.startswith("quantizer.") for name in unexpected)
    quantized.eval(), plain.eval()
    out = plain(x)
    assert out.quantizer is None
    assert torch.equal(out.logits, plain.head(out.z))
    assert not torch.equal(out.logits, quantized(x).logits)
    with svq.bypass(quantized):
        # Up to rounding: a view of the tokens is laid out anew on its way through the layer.
        torch.testing.assert_close(out.logits, quantized(x).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [alexnet, resnet, vit])
def test_names_of_parameters_do_not_depend_on_the_position(build: Callable[..., ClassifierBase]) -> None:
    stages = [name for name, _ in build(False).stages.named_children()]
    positions = [name for name in stages if name not in ("classifier", "class_token")]
    shapes = [
        {name: p.shape for name, p in build(False, position=position).named_parameters()} for position in positions
    ]
    assert all(one == shapes[0] for one in shapes)


@pytest.mark.parametrize(
    ("build", "size", "position"),
    [
        *((alexnet, 64, position) for position in AlexNet.POSITIONS),
        *((resnet, 32, position) for position in ResNet18.POSITIONS),
        *((vit, 32, position) for position in ("patches", "block1", "block2", "block3")),
    ],
)
def test_dim_at_fits_at_every_position(build: Callable[..., ClassifierBase], size: int, position: str) -> None:
    model = build(True, position=position)
    assert model.position == position
    assert model(torch.randn(2, 3, size, size)).logits.shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AlexNet(make_quantizer(64), num_classes=5), r"dim=384, the width of the features at 'conv3'. Got 64."),
        (lambda: ResNet18(make_quantizer(8), num_classes=5), r"dim=128, the width of the features at 'layer2'. Got 8."),
        (lambda: ViT(make_quantizer(8, -1), num_classes=5), r"dim=192, the width of the features at 'block6'. Got 8."),
        (lambda: AlexNet(make_quantizer(384, -1), num_classes=5), r"channel_dim=1, .* are \(B, C, h, w\). Got -1."),
        (lambda: ViT(make_quantizer(192), num_classes=5), r"channel_dim=-1, .* are \(B, tokens, dim\). Got 1."),
        (lambda: alexnet(False, position="fc6"), r"`AlexNet`: `position` must be one of 'conv1', .*Got 'fc6'."),
        (lambda: resnet(False, position=2), r"`ResNet18`: `position` must be one of 'stem', .*Got 2."),
        (lambda: vit(False, position="block4"), r"`ViT`: `position` must be one of 'patches', .*Got 'block4'."),
        (lambda: AlexNet.dim_at("conv6"), r"`AlexNet`: `position` must be one of"),
        (lambda: ViT.dim_at("block9", layers=6), r"`ViT`: `position` must be one of"),
        (lambda: AlexNet(nn.Identity(), num_classes=5), r"`AlexNet`: `quantizer` must be an instance of Quantizer"),
        (lambda: alexnet(False, small_images=1), r"`AlexNet`: `small_images` must be True or False"),
        (lambda: resnet(False, small_images=1), r"`ResNet18`: `small_images` must be True or False"),
        (lambda: alexnet(False, dropout=1.0), r"`AlexNet`: `dropout` must be a finite number in \[0, 1\)"),
        (lambda: ViT(None, num_classes=5, heads=5), r"`ViT`: `heads` must divide the width 192. Got 5."),
        (lambda: ViT(None, num_classes=5, patch_size=15), r"`ViT`: `patch_size` must divide image_size=224. Got 15."),
        (lambda: vit(False, class_token="no"), r"`ViT`: `class_token` must be True or False"),
        (lambda: Autoencoder(make_quantizer(8), downsample=3), r"`downsample` must be a power of two. Got 3."),
        (lambda: SQVAENet(make_quantizer(8), variant="net_28"), r"`variant` must be one of 'net_32', .* Got 'net_28'."),
        (lambda: SQVAENet(make_quantizer(1)), r"`SQVAENet`: `quantizer` must have a dim of at least 2. Got 1."),
        (lambda: VQGANNet(make_quantizer(8), hidden=48), r"`VQGANNet`: `hidden` must be a multiple of 32. Got 48."),
        (lambda: VQGANNet(make_quantizer(8), multipliers=()), r"`multipliers` must be a sequence of integers >= 1"),
        (lambda: VQGANNet(make_quantizer(8), multipliers=2), r"`multipliers` must be a sequence of .* Got 2."),
        (lambda: VQGANNet(make_quantizer(8), multipliers="1"), r"`multipliers` must be a sequence of .* Got '1'."),
        (lambda: VQGANNet(make_quantizer(8), multipliers=(1, 0)), r"`multipliers` must be an integer >= 1. Got 0."),
    ],
)
def test_bad_networks_are_refused(build: Callable[[], object], message: str) -> None:
    with torch.device("meta"), pytest.raises((ValueError, TypeError), match=message):
        build()


SIZES: dict[type[nn.Module], dict[str, int]] = {
    AlexNet: {"num_classes": 1, "in_channels": 1, "width": 1},
    ResNet18: {"num_classes": 1, "in_channels": 1, "width": 1},
    ViT: {"num_classes": 1, "in_channels": 1, "width": 1, "heads": 1, "layers": 1, "image_size": 1, "patch_size": 1},
    Autoencoder: {"in_channels": 1, "hidden": 2, "downsample": 1, "blocks": 0},
    SQVAENet: {"in_channels": 1, "blocks": 1},
    VQVAENet: {"in_channels": 1, "hidden": 2, "residual": 1, "blocks": 0},
    VQGANNet: {"in_channels": 1, "hidden": 32, "blocks": 1},
    MaskGIT: {"codebook_size": 2, "num_classes": 1, "layers": 1, "width": 1, "heads": 1},
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in SIZES.items() for name in names])
def test_sizes_are_integers_of_at_least_so_much(kind: type[nn.Module], name: str) -> None:
    if issubclass(kind, ClassifierBase):
        required = {"quantizer": None, "num_classes": 5}
    else:
        required = {"codebook_size": 8} if kind is MaskGIT else {"quantizer": make_quantizer(8)}
    least = SIZES[kind][name]
    for value, error in ((least - 1, ValueError), (least + 0.5, TypeError)):
        with pytest.raises(error, match=rf"`{kind.__name__}`: `{name}` must be an integer >= {least}. Got {value}"):
            kind(**(required | {name: value}))


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (alexnet, (2, 1, 64, 64), r"`AlexNet`: `x` must have the shape \(B, 3, H, W\). Got \(2, 1, 64, 64\)."),
        (alexnet, (2, 3, 64, 62), r"`AlexNet`: height and width of `x` must be at least 63. Got \(2, 3, 64, 62\)."),
        (resnet, (3, 32, 32), r"`ResNet18`: `x` must have the shape"),
        (vit, (2, 3, 32, 40), r"`ViT`: height and width of `x` must be image_size=32. Got \(2, 3, 32, 40\)."),
    ],
)
def test_classifiers_refuse_images_of_other_shapes(
    build: Callable[[bool], ClassifierBase], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(False)(torch.randn(shape))


# --- autoencoders ----------------------------------------------------------------------------------------------------


@autoencoders
def test_autoencoder_is_decode_after_quantizer_after_encode(case: str) -> None:
    model, x = make_autoencoder(case)
    factor = AUTOENCODERS[case][1]
    out = model.eval()(x)
    assert model.downsample == factor
    assert out.reconstruction.shape == x.shape
    assert out.z.shape == (4, 8, 16 // factor, 24 // factor)
    assert out.quantizer.indices.shape == (4, 16 // factor, 24 // factor)
    assert torch.equal(out.z, model.encode(x))
    assert torch.equal(out.reconstruction, model.decode(model.quantizer(out.z).quantized))
    with svq.bypass(model):
        assert torch.equal(model(x).reconstruction, model.decode(out.z))


@autoencoders
def test_tokens_give_the_evaluation_reconstruction(case: str) -> None:
    model, x = make_autoencoder(case)
    model(x)
    out, indices = model.eval()(x), model.tokenize(x)
    assert torch.equal(indices, out.quantizer.indices)
    assert torch.equal(model.detokenize(indices), out.reconstruction)


@autoencoders
def test_autoencoder_takes_any_number_of_channels(case: str) -> None:
    kind = type(make_autoencoder(case)[0])
    model = kind(make_quantizer(4), in_channels=1)
    assert model(torch.rand(1, 1, 16, 16)).reconstruction.shape == (1, 1, 16, 16)


@autoencoders
def test_autoencoder_refuses_what_does_not_fit(case: str) -> None:
    model, _ = make_autoencoder(case)
    name = type(model).__name__
    with pytest.raises(ValueError, match=rf"`{name}`: `x` must have the shape \(B, 3, H, W\). Got \(2, 1, 16, 16\)."):
        model(torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match=rf"`{name}`: height and width of `x` must be multiples of downsample="):
        model(torch.rand(2, 3, 16, 17))
    with pytest.raises(ValueError, match=rf"`{name}`: `quantizer` must have channel_dim=1.*Got -1."):
        type(model)(make_quantizer(8, channel_dim=-1))
    with pytest.raises(TypeError, match=rf"`{name}`: `quantizer` must be an instance of Quantizer"):
        type(model)(nn.Identity())


@autoencoders
def test_reconstruction_task_takes_every_autoencoder(case: str) -> None:
    tasks = pytest.importorskip("straightvq.training")
    model, x = make_autoencoder(case)
    task = tasks.Reconstruction(model)
    assert torch.isfinite(task.head_loss(task.latent({"image": x}), {"image": x}))


# --- both ------------------------------------------------------------------------------------------------------------


@everything
def test_every_parameter_gets_a_gradient(case: str) -> None:
    model, x = make_any(case)
    model.eval()  # in training a bias before a batch normalization has none
    out = model(x)
    (out[0].square().sum() + out.quantizer.loss).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@everything
def test_evaluation_changes_nothing_and_ignores_the_rest_of_the_batch(case: str) -> None:
    model, x = make_any(case)
    model(x)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone = model(x[:1])
    torch.testing.assert_close(model(x)[0][:1], alone[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x).quantizer.indices[:1], alone.quantizer.indices)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (AlexNet(None, num_classes=3, width=2, small_images=True), torch.randn(2, 3, 32, 32)),
        (TransformerBlock(12, 3, norm_first=True, dropout=0.5), torch.randn(2, 5, 12)),
        (MaskGIT(11, grid=(3, 4), layers=2, width=16, heads=4, dropout=0.5), torch.full((2, 3, 4), -1)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_dropout_acts_in_training_only(model: nn.Module, x: Tensor) -> None:
    def result() -> Tensor:
        out = model(x)
        return out.logits if isinstance(model, AlexNet) else out

    assert not torch.equal(result(), result())
    model.eval()
    assert torch.equal(result(), result())


@everything
def test_state_dict_is_complete(case: str) -> None:
    model, x = make_any(case)
    model(x)
    torch.manual_seed(1)
    other = CLASSIFIERS[case][0](True) if case in CLASSIFIERS else AUTOENCODERS[case][0]()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x)[0], other.eval()(x)[0])


# The others are built of the same layers, and each takes seconds.
FEW = ("alexnet-small_images", "vit-class_token", "sqvae-net_32")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in FEW else pytest.mark.slow) for case in CLASSIFIERS | AUTOENCODERS]
)
def test_forward_compiles_in_one_graph(case: str) -> None:
    torch.compiler.reset()
    model, x = make_any(case)
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], model(x)[0])


def test_rescaling_is_linear() -> None:
    assert torch.equal(Rescale(2.0, -1.0)(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))
    assert repr(Rescale(2.0, -1.0)) == "Rescale(scale=2, shift=-1)"


@pytest.mark.parametrize("base", [AutoencoderBase, ClassifierBase])
def test_bases_are_abstract(base: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        base(None)
