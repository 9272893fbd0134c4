"""Logits, margins and mixing accuracies of a network, for the metrics that use them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bnstudy.representations.memory import release_memory
from bnstudy.representations.precision import on_float64_device
from bnstudy.representations.taps import FEATURES, Call, Taps

Batch = tuple[Tensor, Tensor]  # inputs and labels

NUM_TRIAL_SAMPLES = 16  # for the check whether pairs can be averaged at all calls in one pass
RELEASE_INTERVAL = 8  # batches between releases of memory, which take time
LOGIT_TOLERANCE = 0.01  # relative to the spread of the logits over samples
SOFTMAX_TOLERANCE = 1e-4  # of the sum of a sample's outputs, if these are probabilities


class ProbedNetwork:
    """Network together with the samples that it is probed with.

    Args:
        taps: Taps of the network.
        batches: (inputs, labels) pairs, which can be iterated repeatedly.
        small_batches: Same samples in batches that are small enough for gradients.

    Attributes:
        logits: Output of the network: N x classes; None if it is not one logit per class.
        checksums: Checksum that identifies each sample's input: int64, N; None before the first
            pass.
    """

    def __init__(
        self, taps: Taps, batches: Iterable[Batch], small_batches: Iterable[Batch]
    ) -> None:
        self.taps = taps
        self.batches = batches
        self.small_batches = small_batches
        self.logits: Tensor | None = None
        self.checksums: Tensor | None = None
        self._labels: Tensor | None = None

    def check_samples(self, labels: Tensor, checksums: Tensor) -> None:
        """Record the samples of a pass and check that they are those of the first pass.

        Raises:
            ValueError: The samples or their order differ from the first pass.
        """
        if self._labels is None or self.checksums is None:
            self._labels, self.checksums = labels, checksums
        elif not (torch.equal(labels, self._labels) and torch.equal(checksums, self.checksums)):
            raise ValueError(
                "batches: a later pass did not return the same samples in the same order; use a "
                "DataLoader with shuffle=False and a data set without random augmentation"
            )

    @cached_property
    def margins(self) -> dict[Call, Tensor]:
        """First-order margin of each sample, by call: float64, N.

        The margin is the logit of the sample's class minus the largest other logit, divided by the
        norm of the gradient of that difference with respect to the representation (Elsayed et al.
        2018, arXiv 1803.05598; Jiang et al. 2019, arXiv 1810.00113). It is infinite if the gradient
        is 0, and NaN if a logit or the gradient is not finite.
        """
        margins: dict[Call, list[Tensor]] = {}
        for number, (inputs, labels) in enumerate(self.small_batches, start=1):
            kept: dict[Call, Tensor] = {}

            def keep(call: Call, output: Tensor, kept: dict[Call, Tensor] = kept) -> Tensor:
                kept[call] = output if output.requires_grad else output.requires_grad_()
                return kept[call].clone()  # the network may overwrite the clone in place

            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                self.taps.hooked(keep) as run,
            ):
                # `run` copies the inputs: autograd cannot save those created in inference mode.
                logits = run(inputs)
                own = labels.to(logits.device).clone()[:, None]
                others = logits.scatter(1, own, -torch.inf).amax(1)
                gaps = logits.gather(1, own).squeeze(1) - others
                outputs = list(kept.values())
                if gaps.requires_grad:
                    gradients = torch.autograd.grad(gaps.sum(), outputs, materialize_grads=True)
                else:  # the logits depend on none of these calls
                    gradients = tuple(map(torch.zeros_like, outputs))
            gaps, logits = on_float64_device(gaps.detach()).double(), on_float64_device(logits)
            for call, gradient in zip(kept, map(on_float64_device, gradients), strict=True):
                dims = list(range(1, gradient.ndim))
                slope = torch.linalg.vector_norm(gradient, dim=dims, dtype=torch.float64)
                margin = torch.where(slope == 0, torch.inf, gaps / slope)
                is_finite = logits.isfinite().all(1) & slope.isfinite()
                margins.setdefault(call, []).append(margin.masked_fill(~is_finite, torch.nan))
            del kept, outputs, logits, others, gaps, gradients, gradient
            if number % RELEASE_INTERVAL == 0:
                release_memory()
        return {call: torch.cat(of_batches) for call, of_batches in margins.items()}

    def mixed_accuracy(self, at: Call) -> float:
        """Compute the accuracy after pairs of same-class representations are averaged at a call.

        Consecutive samples of a class form a pair, and the rest of the network runs on the average.
        Shortcuts that bypass the call keep the values of each sample; then the accuracy counts both
        samples of a pair. The result is NaN if no class has two samples.
        """
        if self._mixed_accuracies is not None:
            return self._mixed_accuracies[at]
        correct = count = 0
        for inputs, labels in _sort_into_pairs(self.batches):
            correct += _count_correct(self._mix_at(at, inputs), labels)
            count += len(labels)
        return correct / count if count else torch.nan

    @cached_property
    def _mixed_accuracies(self) -> dict[Call, float] | None:
        """Accuracies by call, computed in one pass.

        None if the network does not allow one pass for all calls, or if there are no pairs.
        """
        correct: Counter[Call] = Counter()
        count = 0
        for number, (inputs, labels) in enumerate(_sort_into_pairs(self.small_batches), 1):
            if number == 1 and not self._can_mix_together(inputs[:NUM_TRIAL_SAMPLES]):
                return None
            for call, logits in self._mix_everywhere(inputs).items():
                correct[call] += _count_correct(logits, labels[::2])
            count += len(labels) // 2
            if number % RELEASE_INTERVAL == 0:
                release_memory()
        return {call: correct[call] / count for call in correct} or None

    def _mix_at(self, at: Call, inputs: Tensor) -> Tensor:
        """Compute logits of N inputs after averaging consecutive pairs at a call: N x classes."""

        def mix(call: Call, output: Tensor) -> Tensor | None:
            if call != at:
                return None
            mixed = torch.empty_like(output)
            mixed[0::2] = mixed[1::2] = _average_pairs(output)
            return mixed

        with torch.no_grad(), self.taps.hooked(mix) as run:
            logits: Tensor = run(inputs)
        return logits

    def _mix_everywhere(self, inputs: Tensor) -> dict[Call, Tensor]:
        """Compute logits of the averaged pairs of N inputs, by call: N/2 x classes each.

        At each call, the averages of the pairs are appended to the batch, after the samples and the
        averages from earlier calls, and pass through the rest of the network like other samples.

        Raises:
            RuntimeError: A path through the network bypasses one of the calls.
        """
        pairs = len(inputs) // 2
        calls: list[Call] = []

        def mix(call: Call, output: Tensor) -> Tensor:
            calls.append(call)
            if len(output) != (len(calls) + 1) * pairs:
                raise RuntimeError(f"the input of {call.module} bypasses an earlier call")
            return torch.cat([output, _average_pairs(output[: 2 * pairs])])

        with torch.no_grad(), self.taps.hooked(mix) as run:
            logits: Tensor = run(inputs)
        if len(logits) != (len(calls) + 2) * pairs:
            raise RuntimeError("the output does not depend on the last call")
        return dict(zip(calls, logits.split(pairs)[2:], strict=True))

    def _can_mix_together(self, inputs: Tensor) -> bool:
        """Return True if mixing at all calls at once gives the same logits as at each alone."""
        try:
            together = self._mix_everywhere(inputs)
        except Exception:  # a network may fail in any way if the batch grows
            return False
        for call, logits in together.items():
            alone = self._mix_at(call, inputs)[::2]
            spread = (alone.amax(0) - alone.amin(0)).amax()
            if not (logits - alone).abs().amax() <= LOGIT_TOLERANCE * spread:
                return False
        return True


@dataclass(frozen=True)
class NetworkAtCall:
    """Network as seen from one call, at which representations are read.

    Attributes:
        network: Network and its samples.
        call: Call at which representations are read.
    """

    network: ProbedNetwork
    call: Call

    @property
    def logits(self) -> Tensor | None:
        """Output of the network: N x classes; None if it is not one logit per class."""
        return self.network.logits

    @property
    def checksums(self) -> Tensor | None:
        """Checksum that identifies each sample's input: int64, N; None before the first pass."""
        return self.network.checksums

    @property
    def margins(self) -> Tensor:
        """First-order margin of each sample: float64, N."""
        return self.network.margins[self.call]

    @property
    def mixed_accuracy(self) -> float:
        """Accuracy after pairs of same-class representations are averaged at this call."""
        return self.network.mixed_accuracy(self.call)

    @property
    def classifier_weights(self) -> Tensor | None:
        """Weights of the last linear layer, classes x D; None if the call is not at its input."""
        taps = self.network.taps
        module = taps.modules[self.call.module]
        is_features = taps.places[self.call.module][1] == FEATURES
        is_read = is_features and isinstance(module, nn.Linear)
        return on_float64_device(module.weight.detach()) if is_read else None


def _average_pairs(output: Tensor) -> Tensor:
    """Average consecutive pairs of samples."""
    return (output[0::2] + output[1::2]) / 2  # slicing keeps the memory format


def _count_correct(logits: Tensor, labels: Tensor) -> int:
    """Count correct predictions; a prediction from logits that are not finite is wrong."""
    is_right = logits.argmax(1) == labels.to(logits.device)
    return int((is_right & logits.isfinite().all(1)).sum())


def is_logits(output: object, labels: Tensor) -> bool:
    """Return True if an output is one number per sample and class."""
    return (
        isinstance(output, Tensor)
        and output.ndim == 2
        and len(output) == len(labels)
        and bool((labels >= 0).all() and (labels < output.shape[1]).all())
    )


def is_softmax(output: Tensor) -> bool:
    """Return True if an output, N x classes, consists of probabilities instead of logits."""
    sums = output.float().sum(1)
    return bool((output >= 0).all() and ((sums - 1).abs() <= SOFTMAX_TOLERANCE).all())


def _sort_into_pairs(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the samples reordered so that samples 2i and 2i + 1 of a batch are of the same class.

    A sample without a partner in its batch is carried over to the next batch. Samples that have no
    partner after the last batch are left out.
    """
    waiting: Batch | None = None
    for inputs, labels in batches:
        if waiting is not None:
            inputs, labels = torch.cat([waiting[0], inputs]), torch.cat([waiting[1], labels])
        order = labels.argsort(stable=True)
        _, sizes = labels[order].unique_consecutive(return_counts=True)
        last = sizes.cumsum(0) - 1  # last sample of each class
        is_alone = torch.zeros_like(order, dtype=torch.bool)
        is_alone[last[sizes % 2 == 1]] = True
        waiting = inputs[order[is_alone]], labels[order[is_alone]]
        paired = order[~is_alone]
        if len(paired):
            yield inputs[paired], labels[paired]
