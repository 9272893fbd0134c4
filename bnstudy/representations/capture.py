"""Reading the representations of a network's layers, within a budget of memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bnstudy.errors import UserError
from bnstudy.representations.layer import Layer
from bnstudy.representations.memory import give_back_memory
from bnstudy.representations.network import Batch, NetworkView, View, is_logits
from bnstudy.representations.sums import (
    BLOCK,
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
MATRICES = 6  # of N x N in float32 that a layer's metrics hold at once
FORWARD_SHARE = 32  # of the budget, what the largest activation of a forward pass may take
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a value
BACKWARD_SHARE = 8  # of the budget, what is kept for gradients


def capture(
    model: nn.Module,
    batches: Iterable[Batch],
    layers: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    *,
    channel_axis: Mapping[str, int] | None = None,
    memory_budget: float = 2,
    distances: bool = True,
) -> Iterator[Layer]:
    """Run a model in eval mode and read what its modules put out, layer by layer.

    Which modules: see `Taps`. The channels of a layer are found by following them through the
    functions that the network calls: convolutions put them first, linear layers and layer
    normalization last. What was chosen by `sites` and cannot be read is reported in a warning, once
    for each network, and so are activation functions that are not modules.

    Layers are read together as far as they fit into the budget, with as
    few forward passes as possible; a layer that does not fit alone is read in blocks of channels,
    and what its metrics need is added up on the way. Ask for the next layer only when you are done
    with one, and let go of it, and the budget holds.

    The model is left as it was: its mode, its hooks, its gradients. BatchNorm normalizes by its
    running statistics, as in eval mode; where these are still the 0 and 1 that the layer was made
    with, it normalizes nothing, and there is a warning: `bnstudy.recalibrate` sets them.

    Args:
        model: Called with the inputs of each batch, on its device and in its floating type.
        batches: (inputs, labels), the same ones each time they are passed through, in the same
            order: a `DataLoader` does not shuffle, and its data set does not augment.
        layers: Patterns of modules' names, as in a shell, such as `layer4.*`.
        sites: Any of conv, norm, act and features; `act`, where neither layers nor sites are given.
        channel_axis: By pattern of modules' names, the axis of the channels in what they put out,
            such as `{"blocks.*": -1}`, where it is not the one that is found.
        memory_budget: GiB that activations and the distances between samples may take.
        distances: Whether metrics will be asked for that need the distances between samples.

    Yields:
        The layers, in the order of computation where one forward pass is enough.

    Raises:
        TypeError: A module in `layers` puts out something that is no tensor, or not one row for
            each sample.
        UserError: The budget is too small for so many samples, or an output has no such axis.
        ValueError: There is no such layer, no layer at such a site, or no sample; or the samples
            come in another order when they are passed through again.
    """
    batches = batches if _has_length(batches) else list(batches)
    taps = Taps(model, layers, sites)
    samples, first = _samples(batches)
    outputs, sizes = try_out(taps, first, channel_axis or {})
    apart = MATRICES * 4 * samples**2 * distances + 2 * 4 * BLOCK
    smallest = samples * max(map(_channel_bytes, outputs.values()))
    budget = memory_budget * GIBIBYTE
    if budget < apart + smallest:
        raise UserError(
            f"memory_budget={memory_budget} (GiB) is too small: what is measured of {samples} "
            f"samples takes at least {(apart + smallest) / GIBIBYTE:.2f}\n"
            "Raise it (metrics.memory_budget; for map and similarity --memory-budget), or measure "
            "fewer samples"
        )
    network = NetworkView(
        taps,
        _Split(batches, max(1, int(budget / FORWARD_SHARE / max(sizes)))),
        # A forward pass that keeps everything for its gradients, and these.
        _Split(batches, max(1, int(budget / BACKWARD_SHARE / (3 * sum(sizes))))),
    )
    return _read(network, outputs, samples, budget - apart, distances)


@dataclass(frozen=True)
class _Item:
    """Some channels of what a call puts out, to be held in memory at once."""

    call: Call
    first: int
    last: int
    bytes: int


class _Split:
    """Batches split so that a forward pass takes little memory."""

    def __init__(self, batches: Iterable[Batch], rows: int) -> None:
        self.batches = batches
        self.rows = rows

    def __iter__(self) -> Iterator[Batch]:
        for inputs, labels in self.batches:
            yield from zip(inputs.split(self.rows), labels.split(self.rows), strict=True)


def _has_length(batches: Iterable[Batch]) -> bool:
    try:
        return isinstance(batches, Sized) and len(batches) > 0
    except TypeError:  # a DataLoader over an iterable data set
        return False


def _samples(batches: Iterable[Batch]) -> tuple[int, Tensor]:
    """At most how many samples there are; the inputs of the first batch."""
    inputs, labels = next(iter(batches), (None, ()))
    if inputs is None or not len(labels):
        raise ValueError("batches: there are no samples, or none in the first batch")
    if isinstance(batches, list):
        return sum(len(labels) for _, labels in batches), inputs
    return len(labels) * len(batches), inputs  # type: ignore[arg-type]


def _items(call: Call, output: Output, samples: int, limit: float) -> Iterator[_Item]:
    """All channels of what a call puts out, as many at once as fit."""
    channel = samples * _channel_bytes(output)
    at_once = min(output.channels, int(limit // channel))
    for first in range(0, output.channels, at_once):
        last = min(first + at_once, output.channels)
        yield _Item(call, first, last, (last - first) * channel)


def _passes(outputs: dict[Call, Output], samples: int, limit: float) -> list[list[_Item]]:
    """What to hold in memory in each forward pass over the samples: first fit, largest first."""
    items: list[_Item] = []
    for call, output in outputs.items():
        items += _items(call, output, samples, limit)
    passes: list[list[_Item]] = []
    for item in sorted(items, key=lambda item: -item.bytes):
        for held in passes:
            if sum(other.bytes for other in held) + item.bytes <= limit:
                held.append(item)
                break
        else:
            passes.append([item])
    order = {call: number for number, call in enumerate(outputs)}
    for held in passes:
        held.sort(key=lambda item: order[item.call])
    return sorted(passes, key=lambda held: order[held[0].call])


def _channel_bytes(output: Output) -> int:
    return output.positions * _held_as(output.dtype).itemsize


def _held_as(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def _read(
    network: NetworkView,
    outputs: dict[Call, Output],
    samples: int,
    limit: float,
    distances: bool,
) -> Iterator[Layer]:
    tap_of = network.taps.taps(list(outputs))
    unread = {call: output.channels for call, output in outputs.items()}
    in_blocks: dict[Call, list[Sums]] = {}
    for items in _passes(outputs, samples, limit):
        give_back_memory()
        held, labels = _hold(network, items, outputs)
        give_back_memory()
        for item in items:
            call, output = item.call, outputs[item.call]
            view = View(network, item.call)
            if item.last - item.first == output.channels:
                yield Layer(held.pop(item).tensor(), labels, tap_of[call], view)
                continue
            shape = (len(labels), output.channels, output.positions)
            kinds = (Activity, Moments, Products if distances else ClassSums)
            sums = in_blocks.setdefault(call, [kind(shape, Classes(labels)) for kind in kinds])
            values = held.pop(item).tensor()
            for one in sums:
                one.add_all(values, item.first)
            del values
            unread[call] -= item.last - item.first
            if not unread[call]:
                again = partial(_read_again, network, call, outputs, len(labels), held, limit)
                yield Layer.of_sums(in_blocks.pop(call), labels, tap_of[call], view, again)


def _read_again(
    network: NetworkView,
    call: Call,
    outputs: dict[Call, Output],
    samples: int,
    held: dict[_Item, "_Rows"],
    limit: float,
) -> Iterator[tuple[Tensor, int]]:
    """What a call puts out, in blocks of channels that fit beside what is held, as for `Layer`."""
    free = limit - sum(item.bytes for item in held)
    for item in _items(call, outputs[call], samples, free):
        rows, _ = _hold(network, [item], outputs)
        yield rows.pop(item).tensor(), item.first


def _hold(
    network: NetworkView, items: Sequence[_Item], outputs: dict[Call, Output]
) -> tuple[dict[_Item, "_Rows"], Tensor]:
    """Run the model over all batches: what the items ask for, copied; and the labels."""
    wanted: dict[Call, list[_Item]] = {}
    for item in items:
        wanted.setdefault(item.call, []).append(item)
    held: dict[_Item, _Rows] = {}
    all_labels: list[Tensor] = []
    checksums: list[Tensor] = []
    logits: list[Tensor] = []

    def keep(call: Call, output: Tensor) -> None:
        for item in wanted.get(call, ()):
            part = output.movedim(outputs[call].channel_axis, 1)[:, item.first : item.last]
            part = part.flatten(2) if part.ndim > 2 else part.unsqueeze(2)
            part = part.to(_held_as(part.dtype))
            if item not in held:
                held[item] = _Rows(part, item.bytes)
            held[item].append(part)

    with torch.no_grad(), network.taps.hooked(keep) as run:
        for inputs, labels in network.batches:
            checksums.append(_checksums(inputs))  # first: a network may change its input in place
            output = run(inputs)
            all_labels.append(labels.to(next(iter(held.values())).buffer.device))
            if is_logits(output, labels):
                logits.append(output)
    if len(logits) == len(all_labels):
        network.logits = torch.cat(logits)
    network.identify(torch.cat(all_labels).cpu(), torch.cat(checksums))
    return held, torch.cat(all_labels)


def _checksums(inputs: Tensor) -> Tensor:
    """A number for each sample that depends on its bits and their places: int64, on the CPU.

    Sums of integers do not depend on how the samples are divided into batches.
    """
    bits = inputs.reshape(len(inputs), -1).view(BITS[inputs.element_size()]).long()
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    return (bits * places).sum(1).cpu()


class _Rows:
    """A tensor that grows by batches, channels first in memory; it starts with so many bytes."""

    def __init__(self, batch: Tensor, size: int) -> None:
        self.count = 0
        # Memory is taken up only as it is written to.
        rows = max(1, size // (batch[:1].numel() * batch.element_size()))
        self.buffer = batch.new_empty(rows, *batch.shape[1:])

    def append(self, batch: Tensor) -> None:
        """Copy a batch behind the others."""
        end = self.count + len(batch)
        if end > len(self.buffer):
            larger = batch.new_empty(2 * end, *batch.shape[1:])
            larger[: self.count] = self.buffer[: self.count]
            self.buffer = larger
        self.buffer[self.count : end] = batch
        self.count = end

    def tensor(self) -> Tensor:
        """All batches."""
        return self.buffer[: self.count]
