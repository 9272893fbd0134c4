"""Networks and data of the user's own, and the messages if they cannot be used."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from bnstudy import train
from bnstudy.data.datasets import DatasetModule
from bnstudy.data.own_data import make_data
from bnstudy.errors import UserError
from bnstudy.models import FrozenBatchNorm, Normalization, adapt
from bnstudy.models.norm_layers import FusedActivation
from bnstudy.models.own_network import replace_norm_layers
from bnstudy.training.build import build_network
from tests.conftest import REPOSITORY, CommandLine, description

HERE = "tests.training.test_own_network"
GROUPS = {"num_groups": 2, "eps": 1e-5}
STANDARDIZED: dict[str, Any] = {"name": "weightstandardization", **GROUPS}
EVERYTHING = {"train": None, "test": None}


class Plain(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(num_classes),
        )


class Layered(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 9), nn.LayerNorm(9), nn.Linear(9, num_classes))


class Lines(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.ReLU())


class TwoOutputs(nn.Module):
    """Network with two outputs in training, like networks with auxiliary classifiers."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.line = nn.BatchNorm2d(1), nn.Linear(64, 3)
        self.end = end or nn.Identity()

    def forward(self, x: Tensor) -> Any:
        output = self.end(self.line(self.norm(x).flatten(1)))
        return (output, output) if self.training else output


class Probabilities(nn.Sequential):
    """Network that ends in a softmax, in evaluation at least."""

    def __init__(self, only_in_evaluation: bool) -> None:
        super().__init__(*Plain(3))
        self.only_in_evaluation = only_in_evaluation

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return logits if self.training and self.only_in_evaluation else logits.softmax(1)


class Locked(Plain):
    """Network with an attribute that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(3)
        self.lock = threading.Lock()


class Raises(Plain):
    """Network whose code fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__(3)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class Detached(Plain):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return logits.detach()


class Conv2d(nn.Conv2d):
    """Convolution of the user's own."""


class Encoder(nn.Module):
    """Network with torch's transformer, which reads the attributes of its norms in eval mode."""

    def __init__(self, *, is_padded: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
        self.encoder, self.is_padded = nn.TransformerEncoder(layer, 2), is_padded

    def forward(self, x: Tensor) -> Tensor:
        mask = None
        if self.is_padded:
            mask = torch.zeros(len(x), 8, dtype=torch.bool)
            mask[0, 6:] = True
        y: Tensor = self.encoder(x[:, 0], src_key_padding_mask=mask)
        return y[:, :3].mean(2)


class Augmented(TensorDataset):
    """Samples with random augmentation."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + torch.rand(()), label


def samples(count: int, kind: type[TensorDataset] = TensorDataset) -> TensorDataset:
    generator = torch.Generator().manual_seed(count)
    return kind(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3)


def pair(kind: type[TensorDataset] = TensorDataset) -> tuple[TensorDataset, TensorDataset]:
    return samples(41, kind), samples(20)


def augmented() -> tuple[TensorDataset, TensorDataset]:
    return pair(Augmented)


def floats() -> Any:
    return [TensorDataset(torch.randn(6, 4), torch.randn(6))] * 2


def bytes_() -> Any:
    return [TensorDataset(torch.zeros(6, 4, dtype=torch.uint8), torch.arange(6))] * 2


class Module(L.LightningDataModule):
    """Three splits in loaders."""

    def train_dataloader(self) -> Any:
        return DataLoader(samples(41), 8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(samples(12), 8)

    def test_dataloader(self) -> Any:
        return DataLoader(samples(20), 8)


class Weighted(Module):
    def train_dataloader(self) -> Any:
        return DataLoader(samples(6), 2, sampler=WeightedRandomSampler(torch.ones(6), 6))


class InBatches(BatchSampler):
    """Batches of the user's own."""


class Batched(Module):
    def train_dataloader(self) -> Any:
        train = samples(6)
        return DataLoader(train, batch_sampler=InBatches(SequentialSampler(train), 2, False))


class Renamed(TensorDataset):
    """Samples whose labels differ from `targets` in the middle, with attributes that mislead."""

    targets = (0, 0, 1, 1, 2, 2)
    labels = ("cat", "dog")
    classes = 3

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image, (0, 2, 2)[label]


class Named(Dataset[Any]):
    """Samples with names in `labels` and `classes`, which other data sets use for other things."""

    labels = ("cat", "dog", "mouse", "cat", "dog", "mouse")
    classes = np.array(["cat", "dog", "mouse"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return torch.ones(4), index % 3


def renamed() -> Any:
    return [Renamed(torch.randn(6, 4), torch.tensor(Renamed.targets))] * 2


def named() -> Any:
    return [Named()] * 2


def misspelt() -> Any:
    return {"train": samples(6), "val": samples(6), "test": samples(6)}


def without_test() -> Any:
    return {"train": samples(6), "tst": samples(6)}


def raises() -> Any:
    raise OSError("no such disk")


class Mixup(Module):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


def data(name: str, **options: Any) -> Any:
    made = make_data({"_target_": f"{HERE}.{name}", **options}, 0, {"train": 9, "test": None})
    made.setup()
    return made


def config(target: str, norm: str = "batchnorm", **model: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": target, "initialization": "own", **model},
        "norm": {"name": norm},
        "trainer": {},
        "seed": 0,
    }


def test_batchnorm_is_replaced_and_weights_are_the_same_for_every_norm() -> None:
    found = data("pair")
    kinds: dict[str, type[nn.Module]] = {}
    weights = []
    for norm in ("batchnorm", "none", "batchnorm_frozen"):
        network = build_network(config(f"{HERE}.Plain", norm), found)
        kinds[norm] = type(network[1])  # type: ignore[index]
        weights.append({k: v for k, v in network.state_dict().items() if not k.startswith("1.")})
    assert kinds["batchnorm"] is nn.BatchNorm2d
    assert kinds["batchnorm_frozen"] is FrozenBatchNorm
    assert kinds["none"] not in (nn.BatchNorm2d, FrozenBatchNorm)
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())


@pytest.mark.parametrize("norm", ["batchnorm", "layernorm_channels", "none", "affine"])
def test_layernorm_is_replaced_as_well(norm: str) -> None:
    network = build_network(config(f"{HERE}.Layered", norm), data("pair"))
    x = torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        hidden = network[1](network[0](x))  # type: ignore[index]
        if norm == "batchnorm":
            hidden = functional.batch_norm(hidden, None, None, training=True)
        elif norm == "layernorm_channels":
            hidden = functional.layer_norm(hidden, (9,))
        torch.testing.assert_close(network.train()(x), network[3](hidden))  # type: ignore[index]


@pytest.mark.parametrize(
    ("network", "shape", "norm", "words"),
    [
        (nn.Flatten(), (1, 8, 8), {}, "has neither BatchNorm nor LayerNorm to replace"),
        (nn.LayerNorm((8, 8)), (1, 8, 8), {}, "over channels are replaced, and it has LayerNorm"),
        (nn.LayerNorm(8), (1, 8, 8), {"name": "evonorm_s0"}, "contains an activation function"),
        (Lines(), (1, 8, 8), {}, "only nn.BatchNorm2d and .*, and it has BatchNorm1d"),
        (Plain(3), (3, 8, 8), {}, "does not take a batch of two 3x8x8 samples"),
        (Plain(4), (1, 8, 8), {}, r"output for 2 samples is \(2, 4\), expected \(2, 3\)"),
        (TwoOutputs(), (1, 8, 8), {}, r"output for 2 samples is tuple"),
        (Plain(3), (1, 8, 8), {"position": "post"}, "norm.position=post is not possible"),
        (functional.relu, (1, 8, 8), {}, "makes a function, not a torch.nn.Module"),
        (Locked(), (1, 8, 8), {}, r"cannot be copied \(TypeError: cannot pickle '_thread.lock'"),
        (Raises(AttributeError("a\nb")), (1, 8, 8), {}, r"\(AttributeError: a\)"),
        (Raises(KeyError("a\nb")), (1, 8, 8), {}, r"\(KeyError: 'a\\nb'\)"),
        (Raises(NotImplementedError()), (1, 8, 8), {}, r"\(NotImplementedError: NotImpl"),
        (Detached(3), (1, 8, 8), {}, "its output has no gradient"),
        (Layered(3).requires_grad_(False), (1, 8, 8), {}, "its output has no gradient"),
        (
            nn.Sequential(Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
            (1, 8, 8),
            STANDARDIZED,
            "norm=weightstandardization standardizes .* nn.Conv2d only, and it has Conv2d\n",
        ),
        (
            nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), nn.BatchNorm2d(2)),
            (1, 8, 8),
            STANDARDIZED,
            "nn.Conv2d only, and it has ParametrizedConv2d\n",
        ),
        (
            parametrizations.weight_norm(nn.LayerNorm(8), dim=None),
            (1, 8, 8),
            {},
            "nn.LayerNorm over channels are replaced, and it has ParametrizedLayerNorm",
        ),
    ],
)
def test_a_network_that_cannot_be_used_is_refused(
    network: Any, shape: tuple[int, ...], norm: dict[str, Any], words: str
) -> None:
    made = Normalization(**{"name": "none"} | norm)
    with pytest.raises(UserError, match=words) as error:
        adapt(network, "model._target_=mine.Net", made, shape, 3)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("only_in_evaluation", [False, True])
def test_outputs_that_are_probabilities_are_warned_of_once(only_in_evaluation: bool) -> None:
    network = Probabilities(only_in_evaluation)
    with pytest.warns(match="outputs are probabilities") as warned:
        adapt(network, "model._target_=mine.Net", Normalization("none"), (1, 8, 8), 3)
    (message,) = [str(warning.message) for warning in warned]
    assert message == (
        "model._target_=mine.Net: its outputs are probabilities, and the loss expects logits\n"
        "Remove the softmax at its end"
    )


def test_a_replacement_of_a_subclass_keeps_its_own_parameters() -> None:
    class OnePlus(nn.LayerNorm):
        def __init__(self) -> None:
            super().__init__(9)
            nn.init.zeros_(self.weight)

        def forward(self, x: Tensor) -> Tensor:
            return functional.layer_norm(x, (9,), 1 + self.weight, self.bias)

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), OnePlus(), nn.Linear(9, 3))
    adapt(network, "model._target_=mine.Net", Normalization("layernorm_channels"), (1, 8, 8), 3)
    weights = dict(network[2].named_parameters())
    assert all(weight.eq(1).all() for name, weight in weights.items() if "weight" in name)


def test_convolutions_keep_what_their_network_gave_them() -> None:
    for name in ("none", "weightstandardization"):
        options = GROUPS if name == "weightstandardization" else {}
        norm = Normalization(name, **options)
        frozen = nn.Conv2d(1, 2, 3, dtype=torch.float64).requires_grad_(False)
        calls: list[nn.Module] = []
        frozen.register_forward_hook(lambda module, *_, calls=calls: calls.append(module))
        weight = frozen.weight
        network = nn.Sequential(frozen, nn.BatchNorm2d(2))
        replace_norm_layers(network, norm)
        assert type(network[0]) is type(norm.convolution(1, 2, 3))
        assert network[0].weight is weight
        assert not any(parameter.requires_grad for parameter in network[0].parameters())
        network[0](torch.randn(1, 1, 8, 8, dtype=torch.float64))
        assert calls == [network[0]]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.LayerNorm])
@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("batchnorm", {"eps": 0.1}, ["weight", "bias"]),
        ("groupnorm", GROUPS, ["weight", "bias"]),
        ("dyt", {}, ["weight", "bias", "alpha"]),
        ("rmsnorm", {}, ["weight"]),
        ("none", {}, []),
    ],
)
def test_a_replacement_takes_over_the_parameters_of_the_norm(
    kind: Callable[[int], nn.Module], name: str, options: dict[str, Any], parameters: list[str]
) -> None:
    first, second = kind(4), kind(4)
    second.weight = first.weight
    nn.init.zeros_(first.weight)
    second.bias.requires_grad_(False)
    network = nn.Sequential(first, second, kind(4).requires_grad_(False)).double()
    replace_norm_layers(network, Normalization(name, **options))
    norms = [dict(getattr(made, "norm", made).named_parameters()) for made in network]
    assert [[*norm] for norm in norms] == [parameters] * 3
    for norm, layer in zip(norms, (first, second), strict=False):
        for parameter in ("weight", "bias"):
            if parameter in norm:
                assert norm[parameter] is getattr(layer, parameter)
    assert not any(parameter.requires_grad for parameter in norms[2].values())
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    assert network(x).dtype is torch.float64


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4, affine=False), nn.LayerNorm(4, elementwise_affine=False)]
)
def test_a_replacement_of_a_norm_without_parameters_has_its_dtype(norm: nn.Module) -> None:
    network = nn.Sequential(norm, nn.Conv2d(4, 4, 1)).double()
    replace_norm_layers(network, Normalization("affine"))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.LayerNorm])
def test_a_replacement_takes_over_the_hooks_of_the_norm(kind: Callable[[int], nn.Module]) -> None:
    norm, calls = kind(4), []
    handles = [
        norm.register_forward_hook(lambda *_: calls.append("forward"), always_call=True),
        norm.register_forward_pre_hook(lambda *_: calls.append("before"), with_kwargs=True),
        norm.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    network = nn.Sequential(nn.Conv2d(4, 4, 1), norm)
    replace_norm_layers(network, Normalization("affine"))
    network(torch.randn(2, 4, 4, 4)).sum().backward()
    assert calls == ["before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    network(torch.randn(2, 4, 4, 4)).sum().backward()
    assert len(calls) == 3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("is_padded", [False, True])
def test_the_norms_of_a_transformer_of_torch_are_replaced(is_padded: bool) -> None:
    network, x = Encoder(is_padded=is_padded), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = network.eval()(x)
        norm = Normalization("layernorm_channels", eps=1e-5)
        adapt(network, "model._target_=mine.Net", norm, (1, 8, 8), 3)
        torch.testing.assert_close(network.eval()(x), expected)
    adapt(Encoder(is_padded=is_padded), "mine.Net", Normalization("none"), (1, 8, 8), 3)


def test_probabilities_do_not_hide_a_second_output_in_training() -> None:
    network = TwoOutputs(end=nn.Softmax(1))
    with pytest.raises(UserError, match="its output for 2 samples is tuple"):
        adapt(network, "model._target_=mine.Net", Normalization("none"), (1, 8, 8), 3)


@pytest.mark.parametrize("name", ["none", "batchnorm", "weightstandardization"])
def test_with_every_norm_as_many_random_numbers_are_drawn_for_a_shared_convolution(
    name: str,
) -> None:
    options = GROUPS if name == "weightstandardization" else {}
    convolution = nn.Conv2d(4, 4, 3)
    network = nn.Sequential(convolution, nn.BatchNorm2d(4), convolution)
    torch.manual_seed(0)
    nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    replace_norm_layers(network, Normalization(name, **options))
    assert torch.equal(torch.rand(3), drawn)


def test_the_same_random_numbers_are_drawn_as_by_new_convolutions() -> None:
    def made() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 3, bias=False))

    torch.manual_seed(0)
    made(), made()
    drawn = torch.rand(3)
    torch.manual_seed(0)
    replace_norm_layers(made(), Normalization("none"))
    assert torch.equal(torch.rand(3), drawn)


class Shared(nn.Module):
    """Parent that uses one norm, convolution and activation under two names each."""

    def __init__(self, norm: nn.Module, convolution: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.norm = self.same_norm = norm
        self.conv = self.same_conv = convolution
        self.act = self.same_act = activation


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.LayerNorm])
@pytest.mark.parametrize("name", ["none", "batchnorm", "weightstandardization", "evonorm_s0"])
def test_a_layer_in_several_places_is_replaced_in_all_and_stays_one_layer(
    name: str, kind: Callable[[int], nn.Module]
) -> None:
    norm = Normalization(
        name, **(GROUPS if name in ("weightstandardization", "evonorm_s0") else {})
    )
    layers = kind(4), nn.Conv2d(4, 4, 1), nn.ReLU()
    network = nn.Sequential(Shared(*layers), Shared(*layers))
    network.append(network[0])
    replace_norm_layers(network, norm)
    for attribute in ("norm", "conv"):
        found = {getattr(part, f"{same}{attribute}") for part in network for same in ("", "same_")}
        assert len(found) == 1
    assert network[0].norm is not layers[0]
    assert type(network[0].conv) is norm.convolution_class
    if norm.has_activation and kind is nn.BatchNorm2d:
        activations = {
            type(getattr(part, name)) for part in network for name in ("act", "same_act")
        }
        assert activations == {FusedActivation}


def test_a_key_that_the_constructor_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match=r"Plain: got an unexpected .*'depth'\nIt takes no keys"):
        build_network(config(f"{HERE}.Plain", depth=3), data("pair"))


def test_the_seed_determines_the_order_and_augmentation_of_samples() -> None:
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")

    def epoch(seed: int) -> list[Tensor]:
        found = make_data({"_target_": f"{HERE}.augmented", "batch_size": 8}, seed, EVERYTHING)
        found.setup()
        found.trainer = trainer
        return [images for images, _ in found.train_dataloader()]

    first = epoch(0)
    torch.rand(3)  # they do not depend on the global generator
    state = torch.get_rng_state()
    again = epoch(0)
    assert torch.equal(state, torch.get_rng_state())
    assert [len(images) for images in first] == [8, 8, 8, 8, 9]
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(epoch(1)))
    measured = data("augmented")
    probes = [torch.cat([images for images, _ in measured.probe("train")]) for _ in range(2)]
    assert torch.equal(*probes)
    assert len(probes[0]) == 9


def test_a_data_module_has_its_splits() -> None:
    found = data("Module")
    assert isinstance(found, DatasetModule)
    assert found.batch_size == 8
    facts = found.facts()
    assert {key: facts[key] for key in ("train", "validation", "test", "classes", "probe")} == {
        "train": 41,
        "validation": 12,
        "test": 20,
        "classes": ["0", "1", "2"],
        "probe": {"train": 9, "test": 20},
    }
    assert found.input_shape == (1, 8, 8)
    assert data("pair", validation=0.2).facts() == data("pair").facts() | {
        "train": 32,
        "validation": 9,
    }
    assert facts["sha256"] not in (
        data("augmented").facts()["sha256"],
        data("pair").facts()["sha256"],
    )


def test_labels_are_those_of_the_samples() -> None:
    found = data("renamed")
    assert found.labels["train"].tolist() == [0, 0, 2, 2, 2, 2]
    assert list(found.class_names) == ["0", "1", "2"]
    found = data("named")
    assert found.labels["train"].tolist() == [0, 1, 2, 0, 1, 2]
    assert list(found.class_names) == ["cat", "dog", "mouse"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Weighted", "train: its data loader has a WeightedRandomSampler"),
        ("Batched", "train: its data loader has a InBatches"),
        ("misspelt", "val: no such split\nSplits are train, validation, test"),
        ("Mixup", "does not call its on_after_batch_transfer"),
        ("floats", "train: labels are torch.float32"),
        ("bytes_", "train: inputs are torch.uint8"),
        ("Plain", "missing a required argument: 'num_classes'"),
        ("Lines", "is of type Lines\nExpected: a LightningDataModule"),
        ("without_test", "is of type dict with keys train, tst\nExpected"),
        ("raises", r"raises: OSError: no such disk\nRaised in .*test_own_network.py, line \d+"),
    ],
)
def test_data_that_cannot_be_used_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        data(name)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.slow
def test_classes_that_the_command_line_names_are_trained(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(
        f"model._target_={HERE}.Plain", f"data._target_={HERE}.pair", "data.batch_size=16",
        "norm=batchnorm,none", "trainer.max_epochs=1", "metrics=fast", "logger=none", "-m",
        main=train.main,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    cells = sorted((tmp_path / "multirun" / "own_own").glob("*/run.json"))
    assert [description(cell.parent)["config"]["model"] for cell in cells] == [
        {"_target_": f"{HERE}.Plain", "initialization": "own"}
    ] * 2
    assert "2 runs: 2 completed" in result.stdout


@pytest.mark.slow
def test_the_command_of_the_example_folder_trains(tmp_path: Path) -> None:
    folder = shutil.copytree(REPOSITORY / "docs/examples/own_network", tmp_path / "mine")
    command = next(
        line
        for line in (folder / "README.md").read_text().splitlines()
        if line.startswith("python -m bnstudy.train --config-dir")
    )
    options = ["trainer.max_epochs=1", "metrics=fast", "logger=none"]
    result = subprocess.run(
        [sys.executable, *command.split()[1:], *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "4 runs: 4 completed" in result.stdout
