"""Reading of activations: correct values, and no change of the model."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from bnstudy.errors import UserError
from bnstudy.metrics import METRICS, evaluate
from bnstudy.representations import Layer, capture
from tests.representations.networks import Batches, ChangesItsInput, batches, cnn, state


def names(layers: list[Layer]) -> list[tuple[int, str, str]]:
    return [(one.tap.layer_index, one.tap.layer, one.tap.site) for one in layers]


def read(model: nn.Module, *arguments: object, **options: object) -> list[Layer]:
    return list(capture(model, batches(), *arguments, **options))  # type: ignore[arg-type]


def test_blocks_are_layers_and_their_parts_sites() -> None:
    model = cnn().eval()
    layers = read(model, sites=["conv", "norm", "act"])
    assert names(layers) == [
        (index, f"block0{index + 1}", site)
        for index in range(3)
        for site in ("conv", "norm", "act")
    ]
    by_name = {(one.name, one.tap.site): one.activations for one in layers}
    images = torch.cat([images for images, _ in batches()])
    with torch.no_grad():
        first = model.block01.conv(images)
    torch.testing.assert_close(by_name["block01", "conv"], first.flatten(2))
    assert torch.equal(by_name["block01", "act"], by_name["block01", "norm"].relu())
    for layer in layers:
        assert torch.equal(layer.labels, torch.arange(10) % 3)
        assert layer.activations.is_contiguous()


def test_the_act_sites_are_read_unless_said_otherwise() -> None:
    assert names(read(cnn())) == names(read(cnn(), sites=["act"]))
    assert [site for *_, site in names(read(cnn()))] == ["act"] * 3


def test_names_do_not_depend_on_the_norm() -> None:
    sites = ["norm", "act", "features"]
    assert names(read(cnn(), sites=sites)) == names(read(cnn("none"), sites=sites))


def test_features_are_what_the_last_linear_layer_reads() -> None:
    model = cnn().eval()
    *_, last = layers = read(model, sites=["act", "features"])
    assert names(layers)[-1] == (3, "classifier", "features")
    images = torch.cat([images for images, _ in batches()])
    with torch.no_grad():
        torch.testing.assert_close(
            model.classifier(last.activations.squeeze(2)), model(images), rtol=1e-4, atol=1e-5
        )


def test_features_are_found_if_the_last_linear_layer_is_called_by_keyword() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.act, self.last = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(input=self.act(self.hidden(x)))

    activation, features = capture(
        ByKeyword(), [(torch.randn(6, 4), torch.arange(6) % 3)], sites=["act", "features"]
    )
    assert (features.tap.layer, features.tap.site) == ("last", "features")
    assert torch.equal(features.activations, activation.activations)


def test_an_empty_selection_of_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers=\[\] selects no module"):
        capture(cnn(), batches(), layers=[])


@pytest.mark.parametrize(
    ("patterns", "sites", "expected"),
    [
        (["block02.*"], None, [("block02", "conv"), ("block02", "norm"), ("block02", "act")]),
        (["block0?.act"], None, [("block01", "act"), ("block02", "act"), ("block03", "act")]),
        (["block02"], None, [("block02", "output")]),
        (["flatten", "classifier"], None, [("flatten", "output"), ("classifier", "output")]),
        (["block0[13]*"], ["norm"], [("block01", "norm"), ("block03", "norm")]),
        (
            ["*.conv", "*.act"],
            ["act"],
            [("block01", "act"), ("block02", "act"), ("block03", "act")],
        ),
        (["pool02"], ["features"], [("classifier", "features")]),
    ],
)
def test_modules_are_chosen_by_name(
    patterns: list[str], sites: list[str] | None, expected: list[tuple[str, str]]
) -> None:
    assert [name[1:] for name in names(read(cnn(), patterns, sites))] == expected


def test_any_module_can_be_read() -> None:
    (block,) = read(cnn(), ["block02"])
    (act,) = read(cnn(), ["block02.act"])
    assert torch.equal(block.activations, act.activations)
    (logits,) = read(cnn(), ["classifier"])
    assert torch.equal(logits.activations.squeeze(2), logits.network.logits)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["blok02.act"], None), r"no module matches blok02.act; did you mean .*block02\.act"),
        (
            (["block01.*", "xyz"], None),
            r"no module matches xyz; the network has block.*, \.\.\.$",
        ),
        ((["pool02"], ["act"]), "no module that matches pool02 is at act"),
        ((None, ["nonsense"]), "no module of the network is at nonsense"),
    ],
)
def test_an_unknown_module_or_site_is_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        capture(cnn(), batches(), *arguments)  # type: ignore[arg-type]


def test_a_layers_name_does_not_depend_on_what_else_is_read() -> None:
    features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    classifier = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    network = nn.Sequential(OrderedDict(features=features, classifier=classifier))
    for sites in (["conv"], ["conv", "act"]):
        assert read(network, sites=sites)[0].name == "features.0"
    chosen = read(network, ["features.*"], ["act", "features"])
    assert [layer.name for layer in chosen] == ["features.1", "classifier.2"]


def test_a_residual_network_and_modules_that_are_called_again() -> None:
    model = resnet18(num_classes=3)
    layers = list(capture(model, batches(channels=3), sites=["act", "features"]))
    blocks = [f"layer{stage}.{block}.relu" for stage in (1, 2, 3, 4) for block in (0, 1)]
    expected = ["relu", *(name + call for name in blocks for call in ("", "#2")), "fc"]
    assert names(layers) == [
        (index, name, "features" if name == "fc" else "act") for index, name in enumerate(expected)
    ]
    convolutions = list(capture(model, batches(channels=3), sites=["conv"]))
    assert [one.name for one in convolutions][:4] == [
        "conv1",
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer1.1.conv1",
    ]
    (stage,) = capture(model, batches(channels=3), ["layer2"])
    assert torch.equal(stage.activations, layers[8].activations)


class Shared(nn.Module):
    """Network with a module that has two names and is called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.first = self.second = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.linear(self.second(self.linear(self.first(x)))))


def test_a_module_with_two_names_is_read_at_each_call() -> None:
    data = [(torch.randn(3, 4), torch.arange(3)), (torch.randn(2, 4), torch.arange(2))]
    model = Shared()
    layers = list(capture(model, data, sites=["act"]))
    assert [one.name for one in layers] == ["first", "first#2", "first#3"]
    inputs = torch.cat([inputs for inputs, _ in data])
    assert torch.equal(layers[0].activations.squeeze(2), inputs.relu())
    with torch.no_grad():
        again = model.linear(inputs.relu()).relu()
    torch.testing.assert_close(layers[1].activations.squeeze(2), again)


def test_either_name_of_a_module_finds_it() -> None:
    data = [(torch.randn(3, 4), torch.arange(3))]
    assert len(list(capture(Shared(), data, ["second"]))) == 3


def with_unusual_state(model: nn.Module) -> nn.Module:
    """Give a model an unusual state: modes, hooks and gradients."""
    model.train()
    model.block02.norm.eval()
    model.block03.eval()
    model.block01.conv.weight.requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    model.block01.register_forward_hook(lambda *_: None)
    model.classifier.register_forward_pre_hook(lambda *_: None)
    return model


SITES = ["conv", "norm", "act", "features"]


def test_the_model_is_left_as_it_was() -> None:
    model = with_unusual_state(cnn())
    before = state(model)
    for layer in capture(model, batches(), sites=SITES):
        assert state(model) == before
        evaluate(METRICS.values(), layer)
        assert state(model) == before
    assert state(model) == before


def test_a_generator_that_is_abandoned_leaves_the_model_as_it_was() -> None:
    model = with_unusual_state(cnn())
    before = state(model)
    layers = capture(model, batches(), sites=SITES)
    assert state(model) == before
    next(layers)
    assert state(model) == before
    layers.close()
    assert state(model) == before


class Failing(nn.Module):
    """Module that fails from a given call on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.calls, self.at = 0, at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.at:
            raise RuntimeError("as planned")
        return x


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_error_leaves_the_model_as_it_was(at: int) -> None:
    model = with_unusual_state(cnn())
    model.block03.act = Failing(at)
    before = state(model)
    with pytest.raises(RuntimeError, match="as planned"):
        list(capture(model, batches(), sites=SITES))
    assert state(model) == before


def test_an_error_in_a_metric_leaves_the_model_as_it_was() -> None:
    model = with_unusual_state(cnn())
    model.block03.act = Failing(at=5)  # after the trial run and three batches
    before = state(model)
    (layer,) = capture(model, batches(), ["block01.act"])
    with pytest.raises(RuntimeError, match="as planned"):
        METRICS["margin_mean"](layer)
    assert state(model) == before
    model.block03.act.at = model.block03.act.calls + 1
    with pytest.raises(RuntimeError, match="as planned"):
        METRICS["mixup_accuracy"](layer)
    assert state(model) == before


def test_batch_statistics_are_neither_used_nor_moved() -> None:
    model = cnn().train()
    one, many = (list(capture(model, batches(size=size))) for size in (1, 10))
    for single, together in zip(one, many, strict=True):
        torch.testing.assert_close(single.activations, together.activations, rtol=1e-4, atol=1e-5)
    assert model.block01.norm.num_batches_tracked == 0


def test_an_activation_is_copied_before_an_in_place_layer_overwrites_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    conv, norm, act = read(model, sites=["conv", "norm", "act"])
    assert (norm.activations < 0).any()
    assert torch.equal(norm.activations.relu(), act.activations)
    assert not torch.equal(conv.activations, norm.activations)
    alone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    assert (read(alone, ["0"])[0].activations < 0).any()


def test_a_network_that_changes_its_input_leaves_the_batches_as_they_were() -> None:
    model, data = ChangesItsInput(), batches(size=5)
    first = None
    for _ in range(2):
        (layer,) = capture(model, data)
        measured = (
            layer.activations.tolist(),
            layer.network.margins.tolist(),
            layer.network.mixed_accuracy,
        )
        first = first or measured
        assert measured == first
    for (images, _), (before, _) in zip(data, batches(size=5), strict=True):
        assert torch.equal(images, before)


@pytest.mark.parametrize("sizes", [(2, 7, 1), (10,), (1, 9), (9, 1)])
def test_batches_may_come_from_a_generator_and_be_uneven(sizes: tuple[int, ...]) -> None:
    model = cnn()
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    uneven = zip(images.split(sizes), labels.split(sizes), strict=True)
    layers = list(capture(model, uneven, sites=["act", "features"]))
    for ours, expected in zip(layers, read(model, sites=["act", "features"]), strict=True):
        torch.testing.assert_close(ours.activations, expected.activations)
        assert torch.equal(ours.labels, expected.labels)
        assert METRICS["margin_mean"](ours) == pytest.approx(METRICS["margin_mean"](expected))
        torch.testing.assert_close(ours.network.logits, expected.network.logits)


def test_a_data_loader_is_read() -> None:
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 4)
    for ours, expected in zip(capture(cnn(), loader), read(cnn()), strict=True):
        torch.testing.assert_close(ours.activations, expected.activations)


@pytest.mark.parametrize("none", [[], [(torch.zeros(0, 1, 16, 16), torch.zeros(0).long())]])
def test_data_without_samples_are_refused(none: Batches) -> None:
    with pytest.raises(ValueError, match="no samples"):
        list(capture(cnn(), none))


def test_gradients_are_computed_in_inference_mode_as_well() -> None:
    model = cnn()
    expected = METRICS["margin_mean"](read(model)[1])
    with torch.inference_mode():
        assert METRICS["margin_mean"](read(model)[1]) == pytest.approx(expected)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-4), (torch.bfloat16, 0.15)])
def test_a_model_of_another_type_has_nearly_the_same_values(dtype: torch.dtype, rel: float) -> None:
    layers = read(cnn().to(dtype), sites=["act", "features"])
    for ours, expected in zip(layers, read(cnn(), sites=["act", "features"]), strict=True):
        assert ours.activations.dtype == (torch.float32 if dtype == torch.float64 else dtype)
        values = evaluate(METRICS.values(), ours)
        for name in ("silhouette", "participation_ratio", "norm_mean", "margin_normalized"):
            assert values[name].number == pytest.approx(METRICS[name](expected), rel=rel)
        for name, (number, reason, _) in values.items():
            assert (number != number) == (reason is not None), name


class Two(nn.Module):
    """Module that returns a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_an_output_that_is_no_tensor_is_told() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two, self.act = Two(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.two(x)[0])

    model = Model().train()
    before = state(model)
    with pytest.raises(TypeError, match=r"two returns a tuple, expected a tensor; exclude it"):
        read(model, ["*"])
    assert state(model) == before
    assert [one.name for one in read(model)] == ["act"]


def test_an_output_without_channels_is_told() -> None:
    with pytest.raises(TypeError, match=r"1 returns shape \(512,\) for 2 samples"):
        read(nn.Sequential(nn.Flatten(), nn.Flatten(0)), ["1"])


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def with_a_compiled_part(model: nn.Module) -> nn.Module:
    model.block02 = compiled(model.block02)
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def with_a_part_compiled_in_place(model: nn.Module) -> nn.Module:
    model.block02.compile(backend="eager")
    return model


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "a compiled part": with_a_compiled_part,
    "compiled in place": compiled_in_place,
    "a part compiled in place": with_a_part_compiled_in_place,
    "data-parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "compiled and distributed": lambda model: nn.parallel.DistributedDataParallel(compiled(model)),
}


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_wrapping_changes_nothing(wrapping: str, used_before: bool) -> None:
    plain, model = cnn().train(), WRAPPINGS[wrapping](cnn()).train()
    if used_before:
        with torch.no_grad():
            for one in (plain, model):
                one(batches()[0][0])
    before = state(model)
    for arguments in ({"sites": SITES}, {"layers": ["*block*"]}, {"layers": ["*"]}):
        layers, expected = read(model, **arguments), read(plain, **arguments)
        assert names(layers) == names(expected)
        for ours, theirs in zip(layers, expected, strict=True):
            torch.testing.assert_close(ours.activations, theirs.activations)
    assert METRICS["margin_mean"](layers[0]) == pytest.approx(
        METRICS["margin_mean"](expected[0]), rel=1e-4
    )
    assert state(model) == before


@pytest.mark.usefixtures("_process_group")
def test_a_distributed_network_that_is_compiled_has_its_own_names() -> None:
    model = compiled(nn.parallel.DistributedDataParallel(cnn()))
    assert names(read(model, sites=SITES)) == names(read(cnn(), sites=SITES))
    assert names(read(model, ["block02.*"])) == names(read(cnn(), ["block02.*"]))


@pytest.mark.parametrize(
    "convert",
    [
        lambda labels: labels[:, None],
        lambda labels: nn.functional.one_hot(labels, 3),
        lambda labels: nn.functional.one_hot(labels, 3).float(),
        lambda labels: labels.tolist(),
        lambda labels: labels.float(),
        lambda labels: labels.int().numpy(),
    ],
    ids=["N x 1", "one-hot", "one-hot of floats", "list", "float", "array"],
)
def test_labels_of_classes_may_have_any_form(convert: Callable[[Tensor], object]) -> None:
    converted = [(images, convert(labels)) for images, labels in batches()]
    for ours, expected in zip(capture(cnn(), converted), read(cnn()), strict=True):
        assert ours.labels.dtype == torch.int64
        assert torch.equal(ours.labels, expected.labels)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda images, labels: {"x": images, "y": labels}, r"a dict of x, y, expected \(inputs,"),
        (lambda images, labels: (images, labels, labels), "a tuple of 3 parts, expected"),
        (lambda images, labels: images, "a batch is a Tensor, expected"),
        (lambda images, labels: (images, labels + 0.5), "float32 of shape"),
        (lambda images, labels: (images, labels.repeat(2, 1).T), r"int64 of shape \(\d+, 2\)"),
        (lambda images, labels: (images, ["a"] * len(labels)), "samples are list"),
        (lambda images, labels: (images, labels[:-1]), r"the labels of \d+ samples"),
    ],
    ids=["dict", "three parts", "inputs", "fractions", "two labels", "names", "too few"],
)
def test_other_batches_are_refused_in_two_lines(
    convert: Callable[[Tensor, Tensor], object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        list(capture(cnn(), [convert(*batch) for batch in batches()]))  # type: ignore[misc]
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda images: images[:0], "batch 2 has no samples; leave empty batches out"),
        (lambda images: images[..., :9], r"block01 has outputs of .*: 4x256 and 4x144\nPass"),
    ],
    ids=["empty", "smaller"],
)
@pytest.mark.parametrize("sized", [True, False])
def test_a_batch_unlike_the_first_is_refused(
    convert: Callable[[Tensor], Tensor], message: str, sized: bool
) -> None:
    (first, labels), *_ = batches()
    images = convert(first)
    data = [(first, labels), (images, labels[: len(images)])]
    with pytest.raises(UserError, match=message):
        list(capture(cnn(), data if sized else iter(data), layers=["block01"]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.complex64])
def test_inputs_of_a_type_that_the_network_does_not_accept_are_refused(dtype: torch.dtype) -> None:
    data = [(images.to(dtype), labels) for images, labels in batches()]
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"fails on inputs of type {kind}: .*\n.*inputs.float\(\)"):
        capture(cnn(), data)


class CallsInTurn(nn.Module):
    """Network that calls a module in every other forward pass, or with every other sample."""

    def __init__(self, every: str) -> None:
        super().__init__()
        self.every, self.passes = every, 0
        self.act, self.extra = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.every == "sample" and len(x) > 2:  # not in the trial run
            self.extra(x[::2])
        elif self.every == "sample" or self.passes % 2:
            self.extra(x)
        return self.act(x)


@pytest.mark.parametrize(("every", "count", "rows"), [("pass", 10, 4), ("sample", 10, 6)])
def test_a_module_that_is_not_called_with_every_sample_is_refused(
    every: str, count: int, rows: int
) -> None:
    with pytest.raises(UserError, match=rf"extra returned {rows} rows for {count} .*\n.*layers="):
        list(capture(CallsInTurn(every), batches(count=count)))


def test_a_module_that_is_called_in_the_trial_run_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"extra returned 0 rows for 4 samples"):
        list(capture(CallsInTurn("pass"), batches(count=4), layers=["extra"]))


class NeedsTwoSamples(nn.Module):
    """Network that fails on a batch of a single sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, kernel_size=3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)
        self.act = nn.ReLU()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.act(self.norm(self.pool(self.conv(x)).squeeze())))


def test_a_network_is_never_given_a_single_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_FORWARD_FRACTION", "MAX_BACKWARD_FRACTION"):  # the smallest batches
        monkeypatch.setattr(sys.modules[capture.__module__], limit, 1e-9)
    (layer,) = capture(NeedsTwoSamples(), batches(count=9, size=9))
    assert layer.num_samples == 9
    assert isfinite(METRICS["margin_mean"](layer))
