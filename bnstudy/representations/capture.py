"""Reader of the representations of a network's layers, within a memory budget."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnstudy.batching import batch_sizes
from bnstudy.errors import UserError
from bnstudy.representations.layer import Layer
from bnstudy.representations.memory import release_memory
from bnstudy.representations.network import Batch, NetworkAtCall, ProbedNetwork, is_logits
from bnstudy.representations.precision import Precision, choose_multiplication, on_float64_device
from bnstudy.representations.sums import (
    BLOCK_NUMEL,
    Activity,
    Classes,
    ClassSums,
    Moments,
    Products,
    Sums,
)
from bnstudy.representations.taps import Call, Taps
from bnstudy.representations.trial import Output, try_out

GIBIBYTE = 2**30
NUM_MATRICES = 6  # N x N float32 matrices that a layer's metrics hold at the same time
# Fractions of the budget:
MAX_FORWARD_FRACTION = 1 / 32  # largest activation of a forward pass
MAX_BACKWARD_FRACTION = 1 / 8  # activations and gradients of a backward pass
# Integer type by the number of bytes per value.
INTEGER_TYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def capture(
    model: nn.Module,
    batches: Iterable[Batch],
    layers: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    *,
    channel_axis: Mapping[str, int] | None = None,
    memory_budget: float = 2,
    distances: bool = True,
    precision: Precision = "float32",
) -> Iterator[Layer]:
    """Run a model in eval mode and yield the activations of its modules, layer by layer.

    `Taps` describes which modules are read. The channel axis of each output is found by following
    the channels through the functions that the network calls. For example, convolutions put the
    channels first, linear layers put them last. Modules that were selected by `sites` but cannot be
    read, and activation functions that are not modules, are listed in a warning, once per network.

    Each forward pass reads as many layers as fit into the budget. A layer that does not fit on its
    own is read in blocks of channels, and the sums that its metrics need are accumulated over the
    blocks. To stay within the budget, delete each layer before you request the next one.

    The mode, the hooks and the gradients of the model are left unchanged. As always in eval mode,
    BatchNorm uses its running statistics. If these still have their initial values 0 and 1,
    BatchNorm normalizes nothing, and a warning is issued; `bnstudy.recalibrate` computes them.

    Args:
        model: Network. Inputs are moved to its device and floating-point type.
        batches: (inputs, labels) pairs. They are iterated several times and must contain the same
            samples in the same order each time: use a `DataLoader` without shuffling, and a data
            set without random augmentation. Labels are integers, N or N x 1, as a tensor, an array
            or a list; or one-hot, N x classes.
        layers: Shell-style patterns of module names, such as `layer4.*`.
        sites: Sites to read: any of conv, norm, act and features. If neither layers nor sites are
            given, `act`.
        channel_axis: Channel axis of the output of modules, by shell-style pattern of module names,
            such as `{"blocks.*": -1}`. It replaces the axis that is found automatically.
        memory_budget: Memory for activations and the distances between samples, in GiB.
        distances: Whether the metrics to compute need the distances between samples.
        precision: Precision of the products of representations, as for `Layer`.

    Yields:
        Layers, in the order of computation if one forward pass is enough.

    Raises:
        TypeError: The output of a module selected by `layers` is not a tensor with one row per
            sample.
        UserError: The budget is too small for the number of samples, an output does not have the
            given channel axis, or a batch is not a pair of inputs and labels of classes.
        ValueError: No module matches `layers` or `sites`, there are no samples, or the samples
            change between iterations over the batches.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, kernel_size=3), nn.ReLU())
        >>> batches = [(torch.randn(8, 1, 6, 6), torch.arange(8) % 2)]
        >>> [layer.activations.shape for layer in capture(network, batches)]
        [torch.Size([8, 4, 16])]
    """
    batches = _Pairs(batches if _has_length(batches) else list(batches))
    taps = Taps(model, layers, sites)
    samples, first = _inspect_first_batch(batches)
    outputs, sizes = try_out(taps, first, channel_axis or {})
    # Memory that does not depend on the layer: matrices and working memory.
    fixed = NUM_MATRICES * 4 * samples**2 * distances + 2 * 4 * BLOCK_NUMEL
    smallest = samples * max(map(_channel_bytes, outputs.values()))
    budget = memory_budget * GIBIBYTE
    if budget < fixed + smallest:
        raise UserError(
            f"memory_budget={memory_budget} (GiB) is too small: measuring {samples} samples "
            f"needs at least {(fixed + smallest) / GIBIBYTE:.2f} GiB\n"
            "Increase metrics.memory_budget (--memory-budget for map and similarity), or measure "
            "fewer samples"
        )
    network = ProbedNetwork(
        taps,
        _SmallBatches(batches, max(1, int(budget * MAX_FORWARD_FRACTION / max(sizes)))),
        # A pass with gradients holds the activations of all layers and their gradients.
        _SmallBatches(batches, max(1, int(budget * MAX_BACKWARD_FRACTION / (3 * sum(sizes))))),
    )
    return _read(network, outputs, samples, budget - fixed, distances, precision)


@dataclass(frozen=True)
class _ChannelBlock:
    """Channels of a call's output that are held in memory together."""

    call: Call
    first: int
    last: int
    bytes: int


class _Pairs:
    """Batches whose labels have type int64 and shape (N,)."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return map(as_pair, self.batches)

    def max_samples(self) -> int:
        """Return an upper bound of the number of samples."""
        if isinstance(self.batches, list):
            return sum(len(labels) for _, labels in self)
        if hasattr(self.batches, "num_samples"):  # batches of `bnstudy.data`
            return int(self.batches.num_samples)
        _, labels = next(iter(self))
        return len(labels) * len(self.batches)  # type: ignore[arg-type]


class _SmallBatches:
    """Batches split into smaller ones, so that a forward pass takes little memory."""

    def __init__(self, batches: Iterable[Batch], rows: int) -> None:
        self.batches = batches
        self.rows = rows

    def __iter__(self) -> Iterator[Batch]:
        for inputs, labels in self.batches:
            sizes = batch_sizes(len(labels), self.rows)
            yield from zip(inputs.split(sizes), labels.split(sizes), strict=True)


def _has_length(batches: Iterable[Batch]) -> bool:
    try:
        return isinstance(batches, Sized) and len(batches) > 0
    except TypeError:  # a DataLoader over an iterable data set
        return False


def _inspect_first_batch(batches: _Pairs) -> tuple[int, Tensor]:
    """Return an upper bound of the number of samples, and the inputs of the first batch."""
    inputs, labels = next(iter(batches), (None, ()))
    if inputs is None or not len(labels):
        raise ValueError("batches: there are no samples, or none in the first batch")
    return batches.max_samples(), inputs


def as_pair(batch: Any) -> Batch:
    """Return a batch's inputs and its labels, of type int64 and shape (N,).

    Raises:
        UserError: The batch is not a pair of a tensor and labels of classes.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        parts = f" of {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        parts = f" of {len(batch)} parts" if isinstance(batch, list | tuple) else parts
        raise UserError(
            f"batches: a batch is a {type(batch).__name__}{parts}, expected (inputs, labels)\n"
            "Pass a list of such pairs, for example [(batch[0], batch[1]) for batch in batches]"
        )
    inputs, given = batch
    try:
        labels = torch.as_tensor(given)
    except (RuntimeError, TypeError, ValueError):
        labels = torch.empty(0)
    if labels.ndim == 2 and labels.shape[1] > 1 and _is_one_hot(labels):
        labels = labels.argmax(1)
    whole = labels.long()
    has_fractions = labels.is_floating_point() and bool((whole != labels).any())
    if has_fractions or labels.squeeze().ndim > 1 or labels.numel() != len(inputs):
        raise UserError(
            f"batches: the labels of {len(inputs)} samples are {_describe(given)}\n"
            f"Expected one class for each sample: {len(inputs)} integers, or as many one-hot rows"
        )
    return inputs, whole.flatten()


def _is_one_hot(labels: Tensor) -> bool:
    return bool(((labels != 0).sum(1) == 1).all() and (labels.sum(1) == 1).all())


def _describe(labels: Any) -> str:
    shape = getattr(labels, "shape", None)
    kind = str(getattr(labels, "dtype", type(labels).__name__)).removeprefix("torch.")
    return kind if shape is None else f"{kind} of shape {tuple(shape)}"


def _split_channels(
    call: Call, output: Output, samples: int, limit: float
) -> Iterator[_ChannelBlock]:
    """Yield all channels of a call's output, in groups that take at most `limit` bytes."""
    channel = samples * _channel_bytes(output)
    at_once = min(output.channels, int(limit // channel))
    for first in range(0, output.channels, at_once):
        last = min(first + at_once, output.channels)
        yield _ChannelBlock(call, first, last, (last - first) * channel)


def _plan_passes(
    outputs: dict[Call, Output], samples: int, limit: float
) -> list[list[_ChannelBlock]]:
    """Assign blocks of channels to forward passes over the samples: first fit, largest first."""
    blocks: list[_ChannelBlock] = []
    for call, output in outputs.items():
        blocks += _split_channels(call, output, samples, limit)
    passes: list[list[_ChannelBlock]] = []
    for block in sorted(blocks, key=lambda block: -block.bytes):
        for together in passes:
            if sum(other.bytes for other in together) + block.bytes <= limit:
                together.append(block)
                break
        else:
            passes.append([block])
    order = {call: number for number, call in enumerate(outputs)}
    for together in passes:
        together.sort(key=lambda block: order[block.call])
    return sorted(passes, key=lambda together: order[together[0].call])


def _channel_bytes(output: Output) -> int:
    return output.positions * _held_as(output.dtype).itemsize


def _held_as(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def _read(
    network: ProbedNetwork,
    outputs: dict[Call, Output],
    samples: int,
    limit: float,
    distances: bool,
    precision: Precision,
) -> Iterator[Layer]:
    tap_of = network.taps.taps(list(outputs))
    unread = {call: output.channels for call, output in outputs.items()}
    in_blocks: dict[Call, list[Sums]] = {}
    for items in _plan_passes(outputs, samples, limit):
        release_memory()
        held, labels = _run_pass(network, items, outputs)
        release_memory()
        for item in items:
            call, output = item.call, outputs[item.call]
            at_call = NetworkAtCall(network, item.call)
            if item.last - item.first == output.channels:
                yield Layer(held.pop(item).tensor(), labels, tap_of[call], at_call, precision)
                continue
            shape = (len(labels), output.channels, output.positions)
            if call not in in_blocks:
                classes = Classes(labels)
                units = output.channels * output.positions
                multiplication = choose_multiplication(precision, units, labels.device)
                in_blocks[call] = [
                    Activity(shape, classes),
                    Moments(shape, classes),
                    Products(shape, classes, multiplication=multiplication)
                    if distances
                    else ClassSums(shape, classes),
                ]
            sums = in_blocks[call]
            values = held.pop(item).tensor()
            for accumulator in sums:
                accumulator.add_all(values, item.first)
            del values
            unread[call] -= item.last - item.first
            if not unread[call]:
                again = partial(_read_again, network, call, outputs, len(labels), held, limit)
                yield Layer.from_sums(in_blocks.pop(call), labels, tap_of[call], at_call, again)


def _read_again(
    network: ProbedNetwork,
    call: Call,
    outputs: dict[Call, Output],
    samples: int,
    held: dict[_ChannelBlock, "_GrowingTensor"],
    limit: float,
) -> Iterator[tuple[Tensor, int]]:
    """Yield a call's output in blocks of channels that fit next to the items already held."""
    free = limit - sum(item.bytes for item in held)
    for item in _split_channels(call, outputs[call], samples, free):
        rows, _ = _run_pass(network, [item], outputs)
        yield rows.pop(item).tensor(), item.first


def _run_pass(
    network: ProbedNetwork, items: Sequence[_ChannelBlock], outputs: dict[Call, Output]
) -> tuple[dict[_ChannelBlock, "_GrowingTensor"], Tensor]:
    """Run the model over all batches; return copies of the items' channels, and the labels."""
    wanted: dict[Call, list[_ChannelBlock]] = {}
    for item in items:
        wanted.setdefault(item.call, []).append(item)
    held: dict[_ChannelBlock, _GrowingTensor] = {}
    all_labels: list[Tensor] = []
    checksums: list[Tensor] = []
    logits: list[Tensor] = []

    def keep(call: Call, output: Tensor) -> None:
        for item in wanted.get(call, ()):
            part = output.movedim(outputs[call].channel_axis, 1)[:, item.first : item.last]
            part = part.flatten(2) if part.ndim > 2 else part.unsqueeze(2)
            part = on_float64_device(part.to(_held_as(part.dtype)))
            if item not in held:
                held[item] = _GrowingTensor(part, item.bytes)
            held[item].append(part)

    with torch.no_grad(), network.taps.hooked(keep) as run:
        for inputs, labels in network.batches:
            checksums.append(_checksums(inputs))  # before the model can change its input in place
            output = run(inputs)
            all_labels.append(labels.to(next(iter(held.values())).buffer.device))
            if is_logits(output, labels):
                logits.append(on_float64_device(output))
    if len(logits) == len(all_labels):
        network.logits = torch.cat(logits)
    network.identify(torch.cat(all_labels).cpu(), torch.cat(checksums))
    return held, torch.cat(all_labels)


def _checksums(inputs: Tensor) -> Tensor:
    """Compute a number for each sample from its bits and their positions: int64, on the CPU.

    Sums of integers are exact, so the numbers do not depend on the batch size.
    """
    bits = inputs.reshape(len(inputs), -1).view(INTEGER_TYPES[inputs.element_size()]).long()
    positions = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    return (bits * positions).sum(1).cpu()


class _GrowingTensor:
    """Tensor that grows batch by batch; `size` is its initial capacity in bytes."""

    def __init__(self, batch: Tensor, size: int) -> None:
        self.count = 0
        rows = max(1, size // (batch[:1].numel() * batch.element_size()))
        self.buffer = batch.new_empty(rows, *batch.shape[1:])

    def append(self, batch: Tensor) -> None:
        """Copy a batch to the end."""
        end = self.count + len(batch)
        if end > len(self.buffer):
            larger = batch.new_empty(2 * end, *batch.shape[1:])
            larger[: self.count] = self.buffer[: self.count]
            self.buffer = larger
        self.buffer[self.count : end] = batch
        self.count = end

    def tensor(self) -> Tensor:
        """Return all batches as one tensor."""
        return self.buffer[: self.count]
