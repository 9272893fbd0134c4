"""Reader of the representations of a network's layers, within a memory budget."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from bnstudy.batching import batch_sizes
from bnstudy.errors import UserError
from bnstudy.representations.layer import Layer
from bnstudy.representations.memory import release_memory
from bnstudy.representations.network import Batch, NetworkAtCall, ProbedNetwork, is_logits
from bnstudy.representations.precision import (
    Precision,
    check_precision,
    choose_multiplication,
    on_float64_device,
)
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
        model: Network. It gets copies of the inputs, on its device and in its floating-point type.
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
        distances: Whether the metrics to compute need products or distances of pairs of samples.
            If not, a layer that is read in blocks has none.
        precision: Precision of the products of representations, as for `Layer`.

    Yields:
        Layers, in the order of computation if one forward pass is enough.

    Raises:
        TypeError: The output of a module selected by `layers` is not a tensor with one row per
            sample.
        UserError: The budget is no finite number or too small for the number of samples, the
            precision is unknown, an output does not have the given channel axis, a batch is empty
            or not a pair of inputs and class labels, the network fails on inputs that are not
            floating-point, or a module does not return a row of the same shape for each sample.
        ValueError: No module that can be read matches `layers` or `sites`, there are no samples, or
            the samples change between iterations over the batches.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, kernel_size=3), nn.ReLU())
        >>> batches = [(torch.randn(8, 1, 6, 6), torch.arange(8) % 2)]
        >>> [layer.activations.shape for layer in capture(network, batches)]
        [torch.Size([8, 4, 16])]
    """
    budget = _to_bytes(memory_budget)
    check_precision(precision)
    batches = _CheckedBatches(batches if _has_length(batches) else list(batches))
    taps = Taps(model, layers, sites)
    first_inputs, _ = next(iter(batches), (None, None))
    if first_inputs is None or not len(first_inputs):
        raise ValueError("batches: there are no samples, or none in the first batch")
    max_samples = batches.max_samples()
    outputs, sample_bytes = try_out(taps, first_inputs, channel_axis or {})
    # Memory that does not depend on the layer: matrices and working memory.
    fixed_bytes = NUM_MATRICES * 4 * max_samples**2 * distances + 2 * 4 * BLOCK_NUMEL
    min_block_bytes = max_samples * max(map(_channel_bytes, outputs.values()))
    if budget < fixed_bytes + min_block_bytes:
        raise UserError(
            f"memory_budget={memory_budget} (GiB) is too small: measuring {max_samples} samples "
            f"needs at least {(fixed_bytes + min_block_bytes) / GIBIBYTE:.2f} GiB\n"
            "Increase it (metrics.memory_budget, or --memory-budget of the commands map and "
            "similarity), or measure fewer samples"
        )
    network = ProbedNetwork(
        taps,
        _SmallBatches(batches, int(budget * MAX_FORWARD_FRACTION / max(sample_bytes))),
        # A pass with gradients holds up to three times the outputs of all modules: the outputs,
        # their clones (see `ProbedNetwork.margins`) and their gradients.
        _SmallBatches(batches, int(budget * MAX_BACKWARD_FRACTION / (3 * sum(sample_bytes)))),
    )
    return _read(network, outputs, max_samples, budget - fixed_bytes, distances, precision)


@dataclass(frozen=True)
class _ChannelBlock:
    """Channels `start` to `stop` - 1 of a call's output, which are held in memory together."""

    call: Call
    start: int
    stop: int
    num_bytes: int


class _CheckedBatches:
    """Batches as pairs (inputs, labels), with the labels as int64 of shape (N,)."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.batches, start=1):
            inputs, labels = as_pair(batch)
            if number > 1 and inputs.shape[:1] == (0,):
                raise UserError(f"batches: batch {number} has no samples; leave empty batches out")
            yield inputs, labels

    def max_samples(self) -> int:
        """Return an upper bound of the number of samples, if the first batch is the largest."""
        if isinstance(self.batches, list):
            return sum(len(labels) for _, labels in self)
        if hasattr(self.batches, "num_samples"):  # batches of `bnstudy.data`
            return int(self.batches.num_samples)
        _, labels = next(iter(self))
        return len(labels) * len(self.batches)  # type: ignore[arg-type]


class _SmallBatches:
    """Batches split into smaller ones, so that a pass takes little memory."""

    def __init__(self, batches: Iterable[Batch], max_samples: int) -> None:
        self.batches = batches
        self.max_samples = max(1, max_samples)

    def __iter__(self) -> Iterator[Batch]:
        for inputs, labels in self.batches:
            sizes = batch_sizes(len(labels), self.max_samples)
            yield from zip(inputs.split(sizes), labels.split(sizes), strict=True)


def _to_bytes(memory_budget: object) -> float:
    """Convert GiB to bytes; raise UserError if the result is no finite number."""
    try:
        num_bytes = float(memory_budget) * GIBIBYTE if isinstance(memory_budget, Real) else nan
    except OverflowError:
        num_bytes = nan
    if not isfinite(num_bytes):
        raise UserError(
            f"memory_budget={memory_budget!r} is not allowed; expected a finite number above 0, in "
            "GiB"
        )
    return num_bytes


def _has_length(batches: Iterable[Batch]) -> bool:
    try:
        return isinstance(batches, Sized) and len(batches) > 0
    except TypeError:  # a DataLoader over an iterable data set
        return False


def as_pair(batch: Any) -> Batch:
    """Return a batch's inputs and its labels, of type int64 and shape (N,).

    Raises:
        UserError: The batch is not a pair of a tensor and class labels.
    """
    inputs, given = split_pair(batch)
    try:
        labels = torch.as_tensor(given)
    except (RuntimeError, TypeError, ValueError):
        labels = torch.empty(0)
    if labels.ndim == 2 and labels.shape[1] > 1 and _is_one_hot(labels):
        labels = labels.argmax(1)
    integers = labels.long()
    has_fractions = labels.is_floating_point() and bool((integers != labels).any())
    if has_fractions or labels.squeeze().ndim > 1 or labels.numel() != len(inputs):
        raise UserError(
            f"batches: the labels of {len(inputs)} samples are {_describe(given)}\n"
            f"Expected one class for each sample: {len(inputs)} integers, or as many one-hot rows"
        )
    return inputs, integers.flatten()


def split_pair(batch: Any) -> tuple[Tensor, Any]:
    """Return a batch's inputs and labels as they are.

    Raises:
        UserError: The batch is not a pair that begins with a tensor.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        contents = f" of {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        contents = f" of {len(batch)} parts" if isinstance(batch, list | tuple) else contents
        raise UserError(
            f"batches: a batch is a {type(batch).__name__}{contents}, expected (inputs, labels)\n"
            "Pass a list of such pairs, for example [(batch[0], batch[1]) for batch in batches]"
        )
    inputs, labels = batch
    return inputs, labels


def _is_one_hot(labels: Tensor) -> bool:
    return bool(((labels != 0).sum(1) == 1).all() and (labels.sum(1) == 1).all())


def _describe(labels: Any) -> str:
    shape = getattr(labels, "shape", None)
    kind = str(getattr(labels, "dtype", type(labels).__name__)).removeprefix("torch.")
    return kind if shape is None else f"{kind} of shape {tuple(shape)}"


def _split_channels(
    call: Call, output: Output, samples: int, max_bytes: float
) -> Iterator[_ChannelBlock]:
    """Yield all channels of a call's output, in blocks of at most `max_bytes`."""
    channel_bytes = samples * _channel_bytes(output)
    num_channels = min(output.channels, int(max_bytes // channel_bytes))
    for start in range(0, output.channels, num_channels):
        stop = min(start + num_channels, output.channels)
        yield _ChannelBlock(call, start, stop, (stop - start) * channel_bytes)


def _plan_passes(
    outputs: dict[Call, Output], samples: int, max_bytes: float
) -> list[list[_ChannelBlock]]:
    """Assign blocks of channels to forward passes over the samples: first fit, largest first."""
    blocks = [
        block
        for call, output in outputs.items()
        for block in _split_channels(call, output, samples, max_bytes)
    ]
    passes: list[list[_ChannelBlock]] = []
    for block in sorted(blocks, key=lambda block: -block.num_bytes):
        for planned in passes:
            if sum(other.num_bytes for other in planned) + block.num_bytes <= max_bytes:
                planned.append(block)
                break
        else:
            passes.append([block])
    order = {call: number for number, call in enumerate(outputs)}
    for planned in passes:
        planned.sort(key=lambda block: order[block.call])
    return sorted(passes, key=lambda planned: order[planned[0].call])


def _channel_bytes(output: Output) -> int:
    """Return the size of a channel in memory, in bytes per sample."""
    return output.positions * _stored_dtype(output.dtype).itemsize


def _stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which activations are held in memory: float32 instead of float64."""
    return torch.float32 if dtype == torch.float64 else dtype


def _read(
    network: ProbedNetwork,
    outputs: dict[Call, Output],
    max_samples: int,
    max_bytes: float,
    distances: bool,
    precision: Precision,
) -> Iterator[Layer]:
    """Yield the layers, each as soon as all its channels have been read.

    Each pass holds at most `max_bytes` of activations.
    """
    tap_of = network.taps.make_taps(list(outputs))
    unread = {call: output.channels for call, output in outputs.items()}
    sums_of: dict[Call, list[Sums]] = {}  # of layers that are read in several blocks
    for blocks in _plan_passes(outputs, max_samples, max_bytes):
        release_memory()
        held, labels = _run_pass(network, blocks, outputs)
        release_memory()
        for block in blocks:
            call, output = block.call, outputs[block.call]
            at_call = NetworkAtCall(network, call)
            if block.stop - block.start == output.channels:
                yield Layer(held.pop(block).tensor(), labels, tap_of[call], at_call, precision)
                continue
            if call not in sums_of:
                shape = (len(labels), output.channels, output.positions)
                classes = Classes(labels)
                units = output.channels * output.positions
                multiplication = choose_multiplication(precision, units, labels.device)
                sums_of[call] = [
                    Activity(shape, classes),
                    Moments(shape, classes),
                    Products(shape, classes, multiplication=multiplication)
                    if distances
                    else ClassSums(shape, classes),
                ]
            values = held.pop(block).tensor()
            for sums in sums_of[call]:
                sums.add_all(values, block.start)
            del values, sums
            unread[call] -= block.stop - block.start
            if not unread[call]:
                again = partial(_read_again, network, call, outputs, len(labels), held, max_bytes)
                yield Layer.from_sums(sums_of.pop(call), labels, tap_of[call], at_call, again)


def _read_again(
    network: ProbedNetwork,
    call: Call,
    outputs: dict[Call, Output],
    samples: int,
    held: dict[_ChannelBlock, "_GrowingTensor"],
    max_bytes: float,
) -> Iterator[tuple[Tensor, int]]:
    """Yield a call's output in blocks of channels that fit next to the blocks already held.

    Yields:
        Activations of a block: N x channels x positions; and the index of its first channel.
    """
    free = max_bytes - sum(block.num_bytes for block in held)
    for block in _split_channels(call, outputs[call], samples, free):
        read, _ = _run_pass(network, [block], outputs)
        yield read.pop(block).tensor(), block.start


def _run_pass(
    network: ProbedNetwork, blocks: Sequence[_ChannelBlock], outputs: dict[Call, Output]
) -> tuple[dict[_ChannelBlock, "_GrowingTensor"], Tensor]:
    """Run the model over all batches; return copies of the blocks' channels, and the labels.

    The logits and the checksums of the samples are recorded in `network`.
    """
    blocks_of: dict[Call, list[_ChannelBlock]] = {}
    for block in blocks:
        blocks_of.setdefault(block.call, []).append(block)
    held: dict[_ChannelBlock, _GrowingTensor] = {}
    all_labels: list[Tensor] = []
    checksums: list[Tensor] = []
    logits: list[Tensor] = []

    def keep(call: Call, output: Tensor) -> None:
        for block in blocks_of.get(call, ()):
            part = output.movedim(outputs[call].channel_axis, 1)[:, block.start : block.stop]
            part = part.flatten(2) if part.ndim > 2 else part.unsqueeze(2)
            # Metrics compute sums in float64.
            part = on_float64_device(part.to(_stored_dtype(part.dtype)))
            if block not in held:
                held[block] = _GrowingTensor(part, block.num_bytes)
            elif part.shape[1:] != held[block].buffer.shape[1:]:
                raise UserError(
                    f"batches: {call.numbered(call.module)} has outputs of different sizes "
                    f"(channels x positions): {_format_size(held[block].buffer)} and "
                    f"{_format_size(part)}\n"
                    "Pass inputs of one size, or choose other layers=[...]"
                )
            held[block].append(part)

    with torch.no_grad(), network.taps.hooked(keep) as run:
        for inputs, labels in network.batches:
            checksums.append(_checksums(inputs))
            output = run(inputs)
            all_labels.append(labels)
            if is_logits(output, labels):
                logits.append(on_float64_device(output))
    labels = torch.cat(all_labels)
    for block in blocks:
        if (count := held[block].count if block in held else 0) != len(labels):
            name = block.call.numbered(block.call.module)
            raise UserError(
                f"{name} returned {count} rows for {len(labels)} samples: the network does not "
                "call it in every forward pass, or with every sample\n"
                "Choose other sites, or in Python leave it out with layers=[...]"
            )
    if len(logits) == len(all_labels):
        network.logits = torch.cat(logits)
    network.check_samples(labels.cpu(), torch.cat(checksums))
    return held, labels.to(held[blocks[0]].buffer.device)


def _format_size(part: Tensor) -> str:
    return "x".join(map(str, part.shape[1:]))


def _checksums(inputs: Tensor) -> Tensor:
    """Sum each sample's bit patterns, weighted by their positions: int64, on the CPU.

    Sums of integers are exact, so the numbers do not depend on the batch size.
    """
    bits = inputs.reshape(len(inputs), -1).view(INTEGER_TYPES[inputs.element_size()]).long()
    positions = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    return (bits * positions).sum(1).cpu()


class _GrowingTensor:
    """Tensor to which batches are appended along its first axis.

    Args:
        batch: Example of a batch; it is not appended.
        num_bytes: Initial capacity.
    """

    def __init__(self, batch: Tensor, num_bytes: int) -> None:
        self.count = 0
        rows = max(1, num_bytes // (batch[:1].numel() * batch.element_size()))
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
