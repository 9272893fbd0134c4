"""Reading the representations of a network's layers, within a budget of memory."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

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

GIBIBYTE = 2**30
MATRICES = 6  # of N x N in float32 that a layer's metrics hold at once
FORWARD_SHARE = 32  # of the budget, what the largest activation of a forward pass may take
BACKWARD_SHARE = 8  # of the budget, what is kept for gradients


def capture(
    model: nn.Module,
    batches: Iterable[Batch],
    layers: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    *,
    memory_budget: float = 2,
    distances: bool = True,
) -> Iterator[Layer]:
    """Run a model in eval mode and read what its modules put out, layer by layer.

    Which modules: see `Taps`. Layers are read together as far as they fit into the budget, with as
    few forward passes as possible; a layer that does not fit alone is read in blocks of channels,
    and what its metrics need is added up on the way. Ask for the next layer only when you are done
    with one, and let go of it, and the budget holds.

    The model is left as it was: its mode, its hooks, its gradients.

    Args:
        model: Called with the inputs of each batch, on its device and in its floating type.
        batches: (inputs, labels), the same ones each time they are passed through.
        layers: Patterns of modules' names, as in a shell, such as `layer4.*`.
        sites: Any of conv, norm, act and features; `act`, where neither layers nor sites are given.
        memory_budget: GiB that activations and the distances between samples may take.
        distances: Whether metrics will be asked for that need the distances between samples.

    Yields:
        The layers, in the order of computation where one forward pass is enough.

    Raises:
        TypeError: A module puts out something that is no tensor.
        UserError: The budget is too small for so many samples.
        ValueError: There is no such layer, no layer at such a site, or no sample; or the samples
            come in another order when they are passed through again.
    """
    batches = batches if _has_length(batches) else list(batches)
    taps = Taps(model, layers, sites)
    outputs, sizes = _outputs(taps, batches)
    samples = max(output.samples for output in outputs.values())
    apart = MATRICES * 4 * samples**2 * distances + 2 * 4 * BLOCK
    smallest = max(output.samples * output.channel_bytes for output in outputs.values())
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
    return _read(network, outputs, budget - apart, distances)


@dataclass(frozen=True)
class _Output:
    """What a call puts out: at most so many samples, channels, positions, of a type."""

    samples: int
    channels: int
    positions: int
    dtype: torch.dtype

    @property
    def channel_bytes(self) -> int:
        return self.positions * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.samples * self.channels * self.channel_bytes


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


def _outputs(taps: Taps, batches: Iterable[Batch]) -> tuple[dict[Call, _Output], list[int]]:
    """What the calls of a forward pass put out, in order; bytes a sample of every activation."""
    inputs, labels = next(iter(batches), (None, ()))
    if inputs is None or not len(labels):
        raise ValueError("batches: there are no samples, or none in the first batch")
    if isinstance(batches, list):
        samples = sum(len(labels) for _, labels in batches)
    else:
        samples = len(labels) * len(batches)  # type: ignore[arg-type]
    outputs: dict[Call, _Output] = {}
    sizes = [1]

    def note(call: Call, output: Tensor) -> None:
        shape = output.shape
        if len(shape) < 2 or shape[0] != 1:
            raise TypeError(
                f"{call.module} puts out {tuple(shape)} for one sample, not (1, channels, ...); "
                "leave it out with layers=[...]"
            )
        outputs[call] = _Output(samples, shape[1], shape[2:].numel(), _held_as(output.dtype))

    def measure(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    handles = [module.register_forward_hook(measure) for module in taps.modules.values()]
    try:
        with torch.no_grad(), taps.hooked(note) as run:
            run(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise ValueError(f"the network does not call any of {', '.join(taps.places)}")
    return outputs, sizes


def _items(call: Call, output: _Output, limit: float) -> Iterator[_Item]:
    """All channels of what a call puts out, as many at once as fit."""
    at_once = min(output.channels, int(limit // (output.samples * output.channel_bytes)))
    for first in range(0, output.channels, at_once):
        last = min(first + at_once, output.channels)
        size = (last - first) * output.samples * output.channel_bytes
        yield _Item(call, first, last, size)


def _check_order(labels: Tensor, again: Tensor) -> None:
    if not torch.equal(again, labels):
        raise ValueError("batches: not the same samples in the same order again")


def _passes(outputs: dict[Call, _Output], limit: float) -> list[list[_Item]]:
    """What to hold in memory in each forward pass over the samples: first fit, largest first."""
    items: list[_Item] = []
    for call, output in outputs.items():
        items += _items(call, output, limit)
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


def _held_as(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def _read(
    network: NetworkView, outputs: dict[Call, _Output], limit: float, distances: bool
) -> Iterator[Layer]:
    tap_of = network.taps.taps(list(outputs))
    first_labels: Tensor | None = None
    unread = {call: output.channels for call, output in outputs.items()}
    in_blocks: dict[Call, list[Sums]] = {}
    for items in _passes(outputs, limit):
        give_back_memory()
        held, labels = _hold(network, items)
        give_back_memory()
        first_labels = labels if first_labels is None else first_labels
        _check_order(first_labels, labels)
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
                again = partial(_read_again, network, call, output, labels, held, limit)
                yield Layer.of_sums(in_blocks.pop(call), labels, tap_of[call], view, again)


def _read_again(
    network: NetworkView,
    call: Call,
    output: _Output,
    labels: Tensor,
    held: dict[_Item, "_Rows"],
    limit: float,
) -> Iterator[tuple[Tensor, int]]:
    """What a call puts out, in blocks of channels that fit beside what is held, as for `Layer`."""
    free = limit - sum(item.bytes for item in held)
    for item in _items(call, output, free):
        rows, labels_again = _hold(network, [item])
        _check_order(labels, labels_again)
        yield rows.pop(item).tensor(), item.first


def _hold(network: NetworkView, items: Sequence[_Item]) -> tuple[dict[_Item, "_Rows"], Tensor]:
    """Run the model over all batches: what the items ask for, copied; and the labels."""
    wanted: dict[Call, list[_Item]] = {}
    for item in items:
        wanted.setdefault(item.call, []).append(item)
    held: dict[_Item, _Rows] = {}
    all_labels: list[Tensor] = []
    logits: list[Tensor] = []

    def keep(call: Call, output: Tensor) -> None:
        for item in wanted.get(call, ()):
            part = output[:, item.first : item.last]
            part = part.flatten(2) if part.ndim > 2 else part.unsqueeze(2)
            part = part.to(_held_as(part.dtype))
            if item not in held:
                held[item] = _Rows(part, item.bytes)
            held[item].append(part)

    with torch.no_grad(), network.taps.hooked(keep) as run:
        for inputs, labels in network.batches:
            output = run(inputs)
            all_labels.append(labels.to(next(iter(held.values())).buffer.device))
            if is_logits(output, labels):
                logits.append(output)
    if len(logits) == len(all_labels):
        network.logits = torch.cat(logits)
    return held, torch.cat(all_labels)


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
