"""Sites of modules, and modules that are left out."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from bnstudy.errors import UserError
from bnstudy.representations import Layer, capture
from bnstudy.representations.taps import Taps
from tests.representations.networks import ChangesItsInput, batches, cnn

# As in the section "Non-linear Activations (weighted sum, nonlinearity)" of torch's documentation.
ACTIVATIONS = [
    *["ELU", "Hardshrink", "Hardsigmoid", "Hardtanh", "Hardswish", "LeakyReLU", "LogSigmoid"],
    *["PReLU", "ReLU", "ReLU6", "RReLU", "SELU", "CELU", "GELU", "Sigmoid", "SiLU", "Mish"],
    *["Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "GLU"],
]


def sites(*named: tuple[str, nn.Module], site: str) -> dict[str, str]:
    """Return the layer of each module that is read at a site, by module name."""
    network = nn.Sequential(OrderedDict(named))
    try:
        places = Taps(network, sites=[site]).places
    except ValueError:
        return {}
    return {name: layer for name, (layer, _) in places.items()}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_function_of_torch_is_at_the_site_act(name: str) -> None:
    torch.manual_seed(0)
    function = nn.GLU(1) if name == "GLU" else getattr(nn, name)()
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Threshold(0.1, 0), function, nn.Flatten())
    threshold, layer = capture(network, batches())
    assert [threshold.name, layer.name] == ["1", "2"]
    images = torch.cat([images for images, _ in batches()])
    with torch.no_grad():
        expected = network[:3].eval()(images)
    torch.testing.assert_close(layer.activations, expected.flatten(2))


def test_a_subclass_of_an_activation_function_is_one() -> None:
    class Shifted(nn.Hardtanh):
        pass

    assert sites(("0", Shifted()), site="act") == {"0": "0"}


@pytest.mark.parametrize(
    "module", [nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1), nn.Softmax2d(), nn.Dropout()]
)
def test_probabilities_are_no_activations(module: nn.Module) -> None:
    assert sites(("0", nn.ReLU()), ("1", module), site="act") == {"0": "0"}


@pytest.mark.parametrize(
    ("site", "module"),
    [
        ("conv", nn.Conv1d(2, 2, 1)),
        ("conv", nn.Conv3d(2, 2, 1)),
        ("conv", nn.ConvTranspose1d(2, 2, 1)),
        ("conv", nn.ConvTranspose2d(2, 2, 1)),
        ("conv", nn.LazyConv2d(2, 1)),
        ("conv", parametrizations.weight_norm(nn.Conv2d(2, 2, 1))),
        ("conv", parametrizations.spectral_norm(nn.Conv2d(2, 2, 1))),
        ("norm", nn.RMSNorm(2)),
        ("norm", nn.LayerNorm(2)),
        ("norm", nn.SyncBatchNorm(2)),
        ("norm", nn.LazyBatchNorm2d()),
        ("norm", nn.InstanceNorm1d(2)),
        ("norm", nn.LocalResponseNorm(2)),
        ("norm", torchvision.ops.FrozenBatchNorm2d(2)),
        ("norm", torchvision.models.convnext.LayerNorm2d(2)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_convolutions_and_normalizations_of_all_kinds_are_known(
    site: str, module: nn.Module
) -> None:
    assert sites(("0", module), site=site) == {"0": "0"}
    others = {"conv", "norm", "act"} - {site}
    assert not any(sites(("0", module), site=other) for other in others)


class Swish(nn.Module):
    """Activation x * sigmoid(x) that wraps a module."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(x)


class Custom(nn.Module):
    """Activation of an unknown type."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Declared(Custom):
    site = "act"


def test_a_container_is_no_convolution_whatever_its_name() -> None:
    inside = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    network = ("block", nn.Sequential(OrderedDict(conv=inside)))
    assert sites(network, site="conv") == {"block.conv.0": "block.conv.0"}
    assert sites(network, site="act") == {"block.conv.2": "block.conv.2"}


def test_of_a_module_of_another_type_the_name_is_the_site() -> None:
    block = OrderedDict(conv=Custom(), norm=nn.Identity(), act=Swish())
    for site in block:
        assert sites(("block", nn.Sequential(block)), site=site) == {f"block.{site}": "block"}
    assert sites(("0", Declared()), ("1", Custom()), site="act") == {"0": "0"}


def test_a_type_comes_before_a_name() -> None:
    block = nn.Sequential(OrderedDict(conv=nn.ReLU(), act=nn.Conv2d(1, 1, 1)))
    assert sites(("block", block), site="act") == {"block.conv": "block.conv"}
    assert sites(("block", block), site="conv") == {"block.act": "block.act"}


def test_what_changes_a_weight_is_no_layer() -> None:
    convolution = nn.Conv2d(1, 4, 3)
    parametrize.register_parametrization(convolution, "weight", nn.Softplus())
    network = nn.Sequential(convolution, nn.ReLU())
    assert [layer.name for layer in capture(network, batches())] == ["1"]


def test_the_gate_of_a_squeeze_and_excitation_block_is_no_activation() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.SiLU(), torchvision.ops.SqueezeExcitation(4, 2), nn.Sigmoid()
    )
    assert [layer.name for layer in capture(network, batches())] == ["1", "2.activation", "3"]


class Functional(nn.Module):
    """Network with one activation function that is a module and three that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.act, self.idle = nn.Tanh(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x)).relu_()
        return functional.leaky_relu(self.act(self.second(x)))


def read(network: nn.Module, **options: object) -> list[Layer]:
    return list(capture(network, batches(), **options))  # type: ignore[arg-type]


def test_activation_functions_that_are_no_modules_are_reported_once() -> None:
    network = Functional()
    with pytest.warns(UserWarning, match="not measured") as warned:
        assert [layer.name for layer in read(network)] == ["act"]
    (warning,) = warned
    words = str(warning.message)
    assert words.startswith(
        "Functional: not measured: activation functions that are not modules: relu in Functional "
        "(2), leaky_relu in Functional (1); modules that are not called in eval mode: idle\n"
    )
    assert "nn.ReLU()" in words
    assert 'site = "act"' in words
    assert warning.filename == __file__
    assert len(read(network)) == 1  # without a warning, which would be an error


class TanhNorm(nn.Module):
    """Normalization that calls an activation function, as dynamic tanh and EvoNorm do."""

    site = "norm"

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_activation_functions_inside_of_a_norm_belong_to_it() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), TanhNorm(), nn.ReLU())
    assert [layer.name for layer in read(network)] == ["2"]  # a warning would be an error


class HardReLU(nn.Module):
    """Activation function that calls none of torch's activation functions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)


class MySwish(nn.Module):
    """Activation function that calls one of torch's activation functions."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class ConvReLU(nn.Module):
    """Block that contains an activation function, with a name that ends like one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 4, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.conv(x))
        return y


def test_classes_that_are_named_like_activation_functions_are_reported() -> None:
    network = nn.Sequential(ConvReLU(), HardReLU(), MySwish())
    words = r"not measured: modules of unknown classes: 1 \(HardReLU\), 2 \(MySwish\)\n.*site ="
    with pytest.warns(UserWarning, match=words):
        assert [layer.name for layer in read(network)] == ["0.relu"]


def test_functions_inside_an_activation_module_are_part_of_it() -> None:
    class Mine(nn.Module):
        site = "act"

        def forward(self, x: Tensor) -> Tensor:
            return functional.silu(x) + x.tanh()

    assert len(read(nn.Sequential(nn.Conv2d(1, 2, 3), Mine()))) == 1


@pytest.mark.parametrize("options", [{"sites": ["conv"]}, {"layers": ["first"]}])
def test_functions_are_not_missed_where_no_activations_are_asked_for(
    options: dict[str, list[str]],
) -> None:
    assert read(Functional(), **options)


def test_a_network_of_functions_alone_gets_the_advice() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.conv(x))

    with pytest.raises(ValueError, match=r"no module of the network is at act.*\n.*nn.ReLU\(\)"):
        read(Network())


class WithoutSamples(nn.Module):
    """Network whose activations are a tuple, rows that are no samples, and a position table."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.inner, self.outer = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "rows":
            return self.outer(self.inner(x.flatten(0, 1)).reshape(x.shape))
        return self.outer(x + self.inner(torch.ones(1, 1, 14, 14)))


def test_an_output_without_a_row_for_each_sample_is_reported_and_left_out() -> None:
    network = WithoutSamples("rows")
    with pytest.warns(
        UserWarning, match=r"inner returns shape \(8, 14, 14\) for 2 samples, expected"
    ):
        assert [layer.name for layer in read(network)] == ["outer"]
    with pytest.raises(TypeError, match=r"inner returns shape \(8, 14, 14\) for 2 samples"):
        read(network, layers=["inner"])


def test_a_table_that_does_not_depend_on_the_samples_is_no_layer() -> None:
    assert [layer.name for layer in read(WithoutSamples("table"))] == ["outer"]


class ReturnsADict(nn.ReLU):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"x": functional.relu(x)}


class TakesFromADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = ReturnsADict()

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.act(x)["x"]
        return values


class OneByOne(nn.Module):
    """Network that processes the samples of a batch one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.linear = nn.ReLU(), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.act(sample[None]) for sample in x])
        logits: Tensor = self.linear(x.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (TakesFromADict(), "act returns a dict, expected a tensor"),
        (OneByOne(), r"act returns shape \(1, 1, 16, 16\) for 2 samples, expected \(2, channels"),
    ],
)
def test_a_network_without_a_layer_that_can_be_read_is_refused(
    network: nn.Module, reason: str
) -> None:
    with pytest.raises(UserError, match=rf"^no layer can be read: {reason}.*\nChoose") as refused:
        read(network)
    assert isinstance(refused.value, ValueError)


def test_activations_of_single_samples_are_reported() -> None:
    with pytest.warns(UserWarning, match=r"act returns shape \(1, 1, 16, 16\) for 2 samples"):
        (features,) = read(OneByOne(), sites=["act", "features"])
    assert features.tap.site == "features"


class PartlyScripted(nn.Module):
    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.norm = torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval())
        if frozen:
            self.norm = torch.jit.freeze(self.norm)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.act(self.norm(x) - 1)
        return values


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")
@pytest.mark.parametrize("frozen", [False, True])
def test_scripted_modules_are_reported_and_left_out(frozen: bool) -> None:
    network = PartlyScripted(frozen)
    with pytest.warns(UserWarning, match=r"not measured: scripted modules: norm$"):
        (layer,) = read(network, sites=["norm", "act"])
    images = torch.cat([images for images, _ in batches()])
    torch.testing.assert_close(layer.activations, network(images).flatten(2))
    with pytest.raises(UserError, match=r"^layers: scripted modules match: norm.*\n.*before"):
        read(network, layers=["norm*"])
    with pytest.raises(UserError, match=r"no module of the network is at act.*\nScripted modules"):
        read(nn.Sequential(network.norm))


@pytest.mark.parametrize("inputs", [torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8).double()])
def test_a_network_that_is_evaluated_gets_a_copy_of_its_inputs(inputs: Tensor) -> None:
    taps = Taps(ChangesItsInput())
    with torch.no_grad(), taps.evaluating() as run:
        assert torch.equal(run(inputs), run(inputs))
    assert (inputs == 1).all()


def test_features_are_read_where_the_last_linear_layer_is_called() -> None:
    class Network(nn.Module):
        """Network whose classifier is defined before the layers that precede it."""

        def __init__(self) -> None:
            super().__init__()
            self.classifier, self.hidden = nn.Linear(8, 3), nn.Linear(256, 8)
            self.act, self.unused = nn.ReLU(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.act(self.hidden(x.flatten(1))))
            return logits

    act, features = read(Network(), sites=["act", "features"])
    assert (features.name, features.tap.site, features.tap.layer_index) == (
        "classifier",
        "features",
        1,
    )
    assert torch.equal(features.activations, act.activations)
    assert features.network.classifier_weights.shape == (3, 8)


@pytest.mark.parametrize("norm", ["batchnorm", "none"])
def test_nothing_is_missing_in_a_network_of_ours(norm: str) -> None:
    layers = read(cnn(norm), sites=["conv", "norm", "act", "features"])
    assert len(layers) == 10
