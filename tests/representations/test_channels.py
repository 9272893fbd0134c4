"""Detection of the channel axis of a layer's activations."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import Permute

from bnstudy.callbacks import RepresentationMetrics
from bnstudy.errors import UserError
from bnstudy.metrics import METRICS
from bnstudy.representations import Layer, capture
from tests.representations.networks import batches

GIBIBYTE = 2**30
HEIGHT, WIDTH, CHANNELS = 6, 5, 4


def read(network: nn.Module, **options: object) -> list[Layer]:
    images = torch.rand(10, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    data = [(images[:7], torch.arange(7) % 2), (images[7:], torch.arange(3) % 2)]
    return list(capture(network, data, **options))  # type: ignore[arg-type]


def positive(module: nn.Module) -> nn.Module:
    """Make the last of a layer's four outputs negative and the others positive."""
    with torch.no_grad():
        module.weight.abs_()  # type: ignore[operator, union-attr]
        module.weight[-1].neg_()  # type: ignore[index, union-attr]
        module.bias.zero_()  # type: ignore[operator, union-attr]
    return module


class Function(nn.Module):
    """Module that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Copy(torch.autograd.Function):
    """Function that is invisible to `__torch_function__` modes."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def windows(x: Tensor) -> Tensor:
    """Divide N x 6 x 5 x 4 into N x 3 windows x 10 positions x 4."""
    return x.reshape(len(x), 3, 2, 1, 5, 4).transpose(2, 3).reshape(len(x), 3, 10, 4)


def heads(x: Tensor) -> Tensor:
    """Mix the positions of N x 6 x 5 x 4 with two heads of two channels each."""
    split = x.reshape(len(x), 30, 2, 2).transpose(1, 2)
    mixed = (split @ split.mT).softmax(-1) @ split
    return mixed.transpose(1, 2).reshape(len(x), 30, 4)


convolution = positive(nn.Conv2d(3, CHANNELS, 1))
linear = positive(nn.Linear(3, CHANNELS))
to_last, to_first = Permute([0, 2, 3, 1]), Permute([0, 3, 1, 2])
IN_FRONT: dict[str, list[nn.Module]] = {
    "a convolution": [convolution],
    "a convolution, permuted": [convolution, to_last],
    "a linear layer": [to_last, linear],
    "a linear layer, permuted": [to_last, linear, to_first],
    "as in ConvNeXt": [convolution, to_last, nn.Identity(), nn.Dropout()],
    "a transposition and back": [
        convolution,
        Function(lambda x: x.transpose(1, 3)),
        Function(lambda x: x.swapaxes(3, 1)),
    ],
    "movedim": [convolution, Function(lambda x: torch.movedim(x, 1, -1))],
    "tokens": [convolution, Function(lambda x: x.flatten(2).transpose(1, 2))],
    "tokens of a linear layer": [Function(lambda x: x.flatten(2).mT), linear],
    "tokens, channels first": [convolution, nn.Flatten(2)],
    "windows": [to_last, linear, Function(windows)],
    "elementwise": [to_last, linear, Function(lambda x: torch.cat([x, x], 1).roll(1, 2) / x.max())],
    "a custom function": [to_last, linear, Function(Copy.apply)],
    "pooling": [convolution, nn.MaxPool2d(2), to_last, Function(lambda x: x.mean(1, keepdim=True))],
}  # fmt: skip


@pytest.mark.parametrize("front", IN_FRONT)
def test_a_channel_of_four_is_silent_wherever_the_channels_are(front: str) -> None:
    network = nn.Sequential(OrderedDict(front=nn.Sequential(*IN_FRONT[front]), act=nn.ReLU()))
    (layer,) = read(network)
    assert layer.num_channels == CHANNELS
    for name in ("channel_sparsity", "dead_channels", "unit_sparsity"):
        assert METRICS[name](layer) == 0.25, name
    with torch.no_grad():
        before = network.eval()(torch.zeros(1, 3, HEIGHT, WIDTH))
    assert layer.num_units == before.numel()


@pytest.mark.parametrize("norm", [nn.LayerNorm(3), nn.RMSNorm(3)], ids=["layer", "rms"])
def test_normalization_of_the_last_axis_makes_it_the_channels(norm: nn.Module) -> None:
    class Images(nn.Module):
        """Network that reads images with channels last, as they are stored in files."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = norm, nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norm(x))

    images = torch.rand(4, 6, 5, 3)
    layers = list(capture(Images(), [(images, torch.arange(4) % 2)], sites=["norm", "act"]))
    assert [layer.num_channels for layer in layers] == [3, 3]


def test_normalization_behind_attention_heads_has_the_channels_last() -> None:
    network = nn.Sequential(to_last, linear, Function(heads), nn.LayerNorm(CHANNELS), nn.ReLU())
    assert [layer.num_channels for layer in read(network, sites=["norm", "act"])] == [4, 4]


def test_normalization_over_channels_and_positions_leaves_the_channels_first() -> None:
    network = nn.Sequential(convolution, nn.LayerNorm([CHANNELS, HEIGHT, WIDTH]), nn.ReLU())
    assert [layer.num_channels for layer in read(network, sites=["norm", "act"])] == [4, 4]


class Multiplied(nn.Module):
    """Linear layer, written as a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T * self.weight[:, 0].transpose(0, 0)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_weight_that_is_transposed_moves_no_channels(pooled: bool) -> None:
    pool: nn.Module = Function(lambda x: x.mean((1, 2))) if pooled else nn.Identity()
    network = nn.Sequential(to_last, pool, Multiplied(), nn.ReLU())
    (layer,) = read(network)
    positions = 1 if pooled else HEIGHT * WIDTH
    assert (layer.num_channels, layer.num_positions) == (CHANNELS, positions)


def test_layers_read_in_blocks_of_channels_are_the_same() -> None:
    network = nn.Sequential(to_last, linear, nn.ReLU())
    (whole,) = read(network, distances=False)
    room = 10 * HEIGHT * WIDTH * 4 + 2 * 4 * 2**24  # a channel, and the working memory
    (blocks,) = read(network, distances=False, memory_budget=room / GIBIBYTE)
    assert blocks.activations is None
    assert whole.activations is not None
    expected = network(torch.rand(10, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(whole.activations, expected.detach().movedim(-1, 1).flatten(2))
    for name in ("channel_sparsity", "variance", "mean", "hoyer", "within_between_ratio"):
        if "distances" not in METRICS[name].needs:
            assert METRICS[name](blocks) == pytest.approx(METRICS[name](whole)), name


def test_margins_and_mixup_are_of_the_network_as_it_is() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * HEIGHT * WIDTH, 2))
    first = nn.Sequential(convolution, nn.ReLU(), to_last, to_first, head)
    last = nn.Sequential(convolution, to_last, nn.ReLU(), to_first, head)
    values = [
        [METRICS[name](layer) for name in ("margin_mean", "mixup_accuracy", "silhouette")]
        for network in (first, last)
        for layer in read(network)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], num_classes=3)


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=3)


def vision_transformer() -> nn.Module:
    return VisionTransformer(16, 4, 2, 2, 8, 24, num_classes=3)


# Numbers of channels by site in the networks above.
NETWORKS: list[tuple[Callable[[], nn.Module], dict[str, list[int]]]] = [
    (
        convnext,
        {
            "act": [32, 48],
            "norm": [8, 8, 8, 12, 12],
            "conv": [8, 8, 12, 12],
        },
    ),
    (
        swin,
        {
            "act": [32, 32, 64, 64],
            "norm": [8, *[8] * 4, 32, *[16] * 4, 16],
            "conv": [8],
        },
    ),
    (vision_transformer, {"act": [24, 24], "norm": [8] * 5, "conv": [8]}),
]


@pytest.mark.parametrize(("network", "expected"), NETWORKS)
def test_channels_of_networks_that_have_them_last(
    network: Callable[[], nn.Module], expected: dict[str, list[int]]
) -> None:
    torch.manual_seed(0)
    layers = list(capture(network(), batches(channels=3), sites=list(expected)))
    for site, channels in expected.items():
        of_site = [layer.num_channels for layer in layers if layer.tap and layer.tap.site == site]
        assert of_site == channels, site


def test_the_axis_can_be_given() -> None:
    network = nn.Sequential(OrderedDict(front=convolution, act=nn.ReLU()))
    assert [layer.num_channels for layer in read(network)] == [CHANNELS]
    (last,) = read(network, channel_axis={"front": 1, "a?t": -1, "act": 2})
    assert last.num_channels == WIDTH
    (second,) = read(network, channel_axis={"*": 2})
    assert second.num_channels == HEIGHT
    callback = RepresentationMetrics({}, ["channel_sparsity"], channel_axis={"*": -1})
    assert callback.channel_axis == {"*": -1}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"atc": 1}, r"channel_axis: no module matches atc; did you mean act\?"),
        ({"act": 0}, r"channel_axis: 0 for act is not a channel axis of act, .*1 to 3"),
        ({"act": 4}, "channel_axis: 4 for act is not"),
        ({"act": -4}, "channel_axis: -4 for act is not"),
    ],
)
def test_an_axis_that_is_not_there_is_refused(axes: dict[str, int], words: str) -> None:
    network = nn.Sequential(OrderedDict(front=convolution, act=nn.ReLU()))
    with pytest.raises(UserError, match=words):
        read(network, channel_axis=axes)
