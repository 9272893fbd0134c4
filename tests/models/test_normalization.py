"""Tests of every norm against an explicit formula, in training and in eval mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import special
from torch import Tensor, distributed, multiprocessing, nn

from bnstudy.errors import UserError
from bnstudy.models import FrozenBatchNorm, Normalization, recalibrate
from tests.models.conftest import NORMS, normalization

EPS, CHANNELS = 1e-5, 8
Statistics = tuple[Tensor, Tensor]


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(6, CHANNELS, 5, 5, generator=generator) + 1 for _ in range(3)]


def layer(norm: str, **options: Any) -> nn.Module:
    """Create a layer whose scale and shift are not 1 and 0."""
    made = normalization(norm, **options).layer(CHANNELS)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        nn.init.normal_(parameter, 1, generator=generator)
    return made


def affine(made: nn.Module, y: Tensor) -> Tensor:
    weight, bias = (getattr(made, name, None) for name in ("weight", "bias"))
    if weight is None:
        return y
    y = y * weight[:, None, None]
    return y if bias is None else y + bias[:, None, None]


def over(x: Tensor, *dimensions: int) -> Statistics:
    mean = x.mean(dimensions, keepdim=True)
    return mean, ((x - mean) ** 2).mean(dimensions, keepdim=True)


def standardized(x: Tensor, statistics: Statistics) -> Tensor:
    mean, variance = statistics
    return (x - mean) / (variance + EPS).sqrt()


OF_ONE_SAMPLE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "affine": lambda x: x,
    "layernorm": lambda x: standardized(x, over(x, 1, 2, 3)),
    "instancenorm": lambda x: standardized(x, over(x, 2, 3)),
    "groupnorm": lambda x: grouped(x),
    "weightstandardization": lambda x: grouped(x),
    "filterresponse": lambda x: x / ((x**2).mean((2, 3), keepdim=True) + 1e-6).sqrt(),
    "layernorm_channels": lambda x: standardized(x, over(x, 1)),
    "rmsnorm": lambda x: x / ((x**2).mean((1, 2, 3), keepdim=True) + 1e-6).sqrt(),
}
WITH_PARAMETERS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "dyt": lambda made, x: torch.tanh(made.alpha * x),
    "derf": lambda made, x: torch.from_numpy(
        special.erf((made.alpha * x + made.shift).detach().numpy())
    ),
    "evonorm_s0": lambda made, x: (
        x / (1 + torch.exp(-made.v[:, None, None] * x)) / group_deviation(x)
    ),
}
OF_A_BATCH: dict[str, Callable[[Tensor, Statistics], Tensor]] = {
    "batchnorm": standardized,
    "batchnorm_noaffine": standardized,
    "batchnorm_centering": lambda x, statistics: x - statistics[0],
    "batchnorm_scaling": lambda x, statistics: x / (statistics[1] + EPS).sqrt(),
    "evonorm_b0": lambda x, statistics: (
        x / torch.maximum((statistics[1] + EPS).sqrt(), 0.3 * x + (over(x, 2, 3)[1] + EPS).sqrt())
    ),
}
KEEPING_TYPES = (
    *("affine", "filterresponse", "batchnorm_centering", "batchnorm_scaling"),
    *("rmsnorm", "dyt", "derf", "batch_renorm", "evonorm_b0", "evonorm_s0"),
)
PARAMETERS = {
    "none": 0,
    "batchnorm_noaffine": 0,
    "rmsnorm": 8,
    "dyt": 17,
    "derf": 18,
} | dict.fromkeys(("evonorm_b0", "evonorm_s0"), 24)


def grouped(x: Tensor) -> Tensor:
    parts = x.view(len(x), 4, CHANNELS // 4, *x.shape[2:])
    return standardized(parts, over(parts, 2, 3, 4)).view_as(x)


def group_deviation(x: Tensor) -> Tensor:
    parts = x.view(len(x), 4, CHANNELS // 4, *x.shape[2:])
    return (over(parts, 2, 3, 4)[1] + EPS).sqrt().expand_as(parts).reshape(x.shape)


def test_every_norm_has_its_formula_here() -> None:
    of_their_own = {"batch_renorm", "batchnorm_frozen", "ghostbatchnorm"}
    with_formula = OF_ONE_SAMPLE.keys() | WITH_PARAMETERS.keys() | OF_A_BATCH.keys()
    assert with_formula | of_their_own == NORMS.keys()


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_has_its_number_of_parameters(norm: str) -> None:
    made = normalization(norm).layer(CHANNELS)
    assert sum(one.numel() for one in made.parameters()) == PARAMETERS.get(norm, 2 * CHANNELS)


@pytest.mark.parametrize("norm", WITH_PARAMETERS)
@pytest.mark.parametrize("training", [True, False])
def test_norms_with_other_parameters_are_their_formulas(norm: str, training: bool) -> None:
    made = layer(norm).train(training)
    for x in batches():
        expected = affine(made, WITH_PARAMETERS[norm](made, x))
        torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("norm", "initial"),
    [("dyt", {"alpha": 0.5}), ("derf", {"alpha": 0.5, "shift": 0.0}), ("evonorm_s0", {"v": 1.0})],
)
def test_parameters_start_at_the_published_values(norm: str, initial: dict[str, float]) -> None:
    made = normalization(norm).layer(CHANNELS)
    for name, value in (initial | {"weight": 1.0, "bias": 0.0}).items():
        assert (getattr(made, name) == value).all()


def test_batch_renorm_corrects_the_batch_statistics() -> None:
    made = layer("batch_renorm", momentum=0.3, ramp_batches=2, r_max=3, d_max=5)
    mean, variance = torch.zeros(1, CHANNELS, 1, 1), torch.ones(1, CHANNELS, 1, 1)
    for number, x in enumerate(batches()):
        limits = ((1, 0), (2, 2.5), (3, 5))[number]
        of_batch = over(x, 0, 2, 3)
        std, running = (of_batch[1] + EPS).sqrt(), (variance + EPS).sqrt()
        r = (std / running).clamp(1 / limits[0], limits[0])
        d = ((of_batch[0] - mean) / running).clamp(-limits[1], limits[1])
        expected = affine(made, (x - of_batch[0]) / std * r + d)
        torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-4)
        mean = 0.7 * mean + 0.3 * of_batch[0]
        variance = 0.7 * variance + 0.3 * of_batch[1] * 150 / 149
    x = batches()[2]
    expected = affine(made, standardized(x, (mean, variance)))
    torch.testing.assert_close(made.eval()(x), expected, rtol=1e-4, atol=1e-4)


def test_batch_renorm_passes_no_gradient_through_its_corrections() -> None:
    made = layer("batch_renorm", ramp_batches=1)
    made(batches()[0])  # the corrections take effect
    x = batches()[1].requires_grad_()
    std = (made.running_var + EPS).sqrt()
    mean, variance = over(x, 0, 2, 3)
    r = ((variance + EPS).sqrt().flatten() / std).clamp(1 / 3, 3).detach()
    d = ((mean.flatten() - made.running_mean) / std).clamp(-5, 5).detach()
    ours = torch.autograd.grad((made(x) ** 3).sum(), x)[0]
    y = standardized(x, (mean, variance)) * r[:, None, None] + d[:, None, None]
    (expected,) = torch.autograd.grad((affine(made, y) ** 3).sum(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_recalibration_averages_batch_statistics_of_batch_renorm() -> None:
    ours, plain = layer("batch_renorm", ramp_batches=1), layer("batchnorm")
    labels = torch.zeros(6)
    for made in (ours, plain):
        recalibrate(made, [(x, labels) for x in batches()])
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)


@pytest.mark.parametrize("norm", OF_ONE_SAMPLE)
@pytest.mark.parametrize("training", [True, False])
def test_norms_of_one_sample_are_their_formulas(norm: str, training: bool) -> None:
    made = layer(norm).train(training)
    for x in batches():
        expected = affine(made, OF_ONE_SAMPLE[norm](x))
        torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", OF_A_BATCH)
def test_norms_of_a_batch_are_their_formulas(norm: str) -> None:
    made = layer(norm, momentum=0.3)
    if norm == "evonorm_b0":
        nn.init.constant_(made.v, 0.3)
    mean, variance = torch.zeros(1, CHANNELS, 1, 1), torch.ones(1, CHANNELS, 1, 1)
    for x in batches()[:2]:
        of_batch = over(x, 0, 2, 3)
        expected = affine(made, OF_A_BATCH[norm](x, of_batch))
        torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-4)
        mean = 0.7 * mean + 0.3 * of_batch[0]
        variance = 0.7 * variance + 0.3 * of_batch[1] * 150 / 149  # 6 x 5 x 5 values
    x = batches()[2]
    expected = affine(made, OF_A_BATCH[norm](x, (mean, variance)))
    torch.testing.assert_close(made.eval()(x), expected, rtol=1e-4, atol=1e-4)


def test_ghost_batchnorm_normalizes_parts_of_a_batch() -> None:
    made, parts = layer("ghostbatchnorm", ghost_size=4), layer("batchnorm")
    parts.load_state_dict(made.state_dict())
    for x in batches()[:2]:  # 6 samples: parts of 3 and 3
        expected = torch.cat([parts(x[:3]), parts(x[3:])])
        torch.testing.assert_close(made(x), expected)
    torch.testing.assert_close(made.running_mean, parts.running_mean)
    torch.testing.assert_close(made.running_var, parts.running_var)
    x = batches()[2]
    torch.testing.assert_close(made.eval()(x), parts.eval()(x))


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_no_part_of_ghost_batchnorm_is_one_sample(count: int) -> None:
    made = layer("ghostbatchnorm", ghost_size=2)
    assert made(torch.randn(count, CHANNELS, 1, 1)).isfinite().all()  # one sample would be refused


def test_frozen_batchnorm_keeps_the_statistics_of_initialization() -> None:
    first, second, third = batches()
    made = layer("batchnorm_frozen")
    assert isinstance(made, FrozenBatchNorm)
    labels = torch.zeros(6)
    recalibrate(made, [(first, labels), (second, labels)])
    of_batches = [over(x, 0, 2, 3) for x in (first, second)]
    mean = sum(mean for mean, _ in of_batches) / 2
    variance = sum(variance for _, variance in of_batches) / 2 * 150 / 149
    assert isinstance(mean, Tensor)
    expected = affine(made, standardized(third, (mean, variance)))
    for training in (True, False, True):
        made.train(training)
        torch.testing.assert_close(made(third), expected, rtol=1e-4, atol=1e-4)


def test_weights_are_standardized() -> None:
    torch.manual_seed(0)
    convolution = normalization("weightstandardization").convolution(3, 5, 3, padding=1)
    weight = convolution.weight
    mean, variance = over(weight, 1, 2, 3)
    x = torch.randn(2, 3, 7, 7)
    expected = nn.functional.conv2d(
        x, (weight - mean) / (variance + 1e-5).sqrt(), convolution.bias, padding=1
    )
    torch.testing.assert_close(convolution(x), expected)
    assert type(normalization("groupnorm").convolution(3, 5, 3)) is nn.Conv2d


@pytest.mark.parametrize("norm", [*OF_A_BATCH, "ghostbatchnorm", *KEEPING_TYPES])
def test_types_and_memory_formats_are_kept(norm: str) -> None:
    made = layer(norm)
    x = batches()[0].to(memory_format=torch.channels_last)
    assert made(x).is_contiguous(memory_format=torch.channels_last)
    if norm in KEEPING_TYPES:
        assert made(x.bfloat16()).dtype == torch.bfloat16


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"norm.num_groups=3 does not divide the 8 channels"):
        Normalization("groupnorm", num_groups=3, eps=1e-5).layer(8)


@pytest.mark.long
@pytest.mark.parametrize(
    "norm", ["batchnorm_centering", "batchnorm_scaling", "batch_renorm", "evonorm_b0"]
)
def test_synchronized_statistics_are_those_of_all_processes(norm: str, tmp_path: Path) -> None:
    multiprocessing.spawn(_one_of_two, (norm, str(tmp_path)), nprocs=2)
    whole = layer(norm)
    x = batches()[0].requires_grad_()
    y = whole(x)
    (y**3).sum().backward()
    for rank in range(2):
        # Shares of unequal size: 4 and 2 samples.
        share = slice(0, 4) if rank == 0 else slice(4, 6)
        ours = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(ours["y"], y[share])
        torch.testing.assert_close(ours["gradient"], x.grad[share], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours["mean"], whole.running_mean)
        torch.testing.assert_close(ours["variance"], whole.running_var)


def _one_of_two(rank: int, norm: str, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    made = layer(norm, synchronized=True)
    x = batches()[0][slice(0, 4) if rank == 0 else slice(4, 6)].requires_grad_()
    y = made(x)
    (y**3).sum().backward()
    torch.save(
        {
            "y": y.detach(),
            "gradient": x.grad,
            "mean": made.running_mean,
            "variance": made.running_var,
        },
        f"{folder}/{rank}.pt",
    )
    distributed.destroy_process_group()
