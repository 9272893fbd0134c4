"""What a network makes of its representations, for the metrics that need to know."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bnstudy.representations.memory import give_back_memory
from bnstudy.representations.taps import FEATURES, Call, Taps

Batch = tuple[Tensor, Tensor]

TRIED = 16  # samples with which it is tried whether all places can be mixed in one pass
BATCHES = 8  # after which memory is given back: it takes a while, and so does getting it again
SAME = 0.01  # of the spread of the logits over samples: by how much two ways may differ


class NetworkView:
    """A network and the samples that it is probed with.

    Args:
        taps: Of the network.
        batches: (inputs, labels), which can be passed through again and again.
        small_batches: The same samples, in batches that are small enough for gradients.

    Attributes:
        logits: What the network puts out: N x classes; None where that is not so.
        checksums: Number for each sample that identifies its input: int64, N; None before the
            first pass.
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

    def identify(self, labels: Tensor, checksums: Tensor) -> None:
        """Note the samples of a pass.

        Raises:
            ValueError: They are not those of the first pass, in the same order.
        """
        if self._labels is None or self.checksums is None:
            self._labels, self.checksums = labels, checksums
        elif not (torch.equal(labels, self._labels) and torch.equal(checksums, self.checksums)):
            raise ValueError(
                "batches: not the same samples in the same order again; give a DataLoader with "
                "shuffle=False, of a data set without random augmentation"
            )

    @cached_property
    def margins(self) -> dict[Call, Tensor]:
        """First-order margins of each sample at each place: float64, N.

        Infinite where the gradient is 0; NaN where a logit or the gradient is not finite.

        The logit of the sample's class minus the largest other one, over the norm of that
        difference's gradient with respect to the representation (Elsayed et al. 2018, arXiv
        1803.05598; Jiang et al. 2019, arXiv 1810.00113).
        """
        margins: dict[Call, list[Tensor]] = {}
        for number, (inputs, labels) in enumerate(self.small_batches, start=1):
            kept: dict[Call, Tensor] = {}

            def keep(call: Call, output: Tensor, kept: dict[Call, Tensor] = kept) -> Tensor:
                kept[call] = output if output.requires_grad else output.requires_grad_()
                return kept[call].clone()  # may be overwritten in place; what is kept is not

            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                self.taps.hooked(keep) as run,
            ):
                logits = run(inputs.clone())
                own = labels.to(logits.device).clone()[:, None]
                others = logits.scatter(1, own, -torch.inf).amax(1)
                gaps = logits.gather(1, own).squeeze(1) - others
                at = list(kept.values())
                if gaps.requires_grad:
                    gradients = torch.autograd.grad(gaps.sum(), at, materialize_grads=True)
                else:  # the logits depend on none of these places
                    gradients = tuple(map(torch.zeros_like, at))
            for call, gradient in zip(kept, gradients, strict=True):
                dims = list(range(1, gradient.ndim))
                slope = torch.linalg.vector_norm(gradient, dim=dims, dtype=torch.float64)
                margin = torch.where(slope == 0, torch.inf, gaps.detach().double() / slope)
                known = logits.isfinite().all(1) & slope.isfinite()
                margins.setdefault(call, []).append(margin.masked_fill(~known, torch.nan))
            del kept, at, logits, others, gaps, gradients, gradient
            if number % BATCHES == 0:
                give_back_memory()
        return {call: torch.cat(parts) for call, parts in margins.items()}

    def mixed_accuracy(self, at: Call) -> float:
        """Accuracy when two representations of a class are averaged at one place and sent on.

        Each two consecutive samples of a class are mixed. What does not pass through the layer, a
        shortcut around it, stays each sample's own. NaN where no class has two samples.
        """
        if self._mixed_accuracies is not None:
            return self._mixed_accuracies[at]
        correct = count = 0
        for inputs, labels in _pairs(self.batches):
            correct += _correct(self._mixed_at(at, inputs), labels)
            count += len(labels)
        return correct / count if count else torch.nan

    @cached_property
    def _mixed_accuracies(self) -> dict[Call, float] | None:
        """The accuracies at all places from one pass; None where the network does not allow it."""
        correct: Counter[Call] = Counter()
        count = 0
        for number, (inputs, labels) in enumerate(_pairs(self.small_batches), start=1):
            if number == 1 and not self._mixes_together(inputs[:TRIED]):
                return None
            for call, logits in self._mixed_everywhere(inputs).items():
                correct[call] += _correct(logits, labels[::2])
            count += len(labels) // 2
            if number % BATCHES == 0:
                give_back_memory()
        return {call: correct[call] / count for call in correct} or None

    def _mixed_at(self, at: Call, inputs: Tensor) -> Tensor:
        """Logits of N inputs, each two consecutive ones mixed at one place: N x classes."""

        def mix(call: Call, output: Tensor) -> Tensor | None:
            if call != at:
                return None
            instead = torch.empty_like(output)
            instead[0::2] = instead[1::2] = _mixed(output)
            return instead

        with torch.no_grad(), self.taps.hooked(mix) as run:
            logits: Tensor = run(inputs)
        return logits

    def _mixed_everywhere(self, inputs: Tensor) -> dict[Call, Tensor]:
        """Logits of the mixed pairs of N inputs, by place: N/2 x classes each.

        At each place the samples are mixed, and the pairs go on behind the samples, and behind the
        pairs that were mixed before, as if they were more samples.

        Raises:
            RuntimeError: There is a way around one of the places.
        """
        pairs = len(inputs) // 2
        places: list[Call] = []

        def mix(call: Call, output: Tensor) -> Tensor:
            places.append(call)
            if len(output) != (len(places) + 1) * pairs:
                raise RuntimeError(f"{call.module} does not read what the places before it put out")
            return torch.cat([output, _mixed(output[: 2 * pairs])])

        with torch.no_grad(), self.taps.hooked(mix) as run:
            logits: Tensor = run(inputs)
        if len(logits) != (len(places) + 2) * pairs:
            raise RuntimeError("the output does not depend on the last place")
        return dict(zip(places, logits.split(pairs)[2:], strict=True))

    def _mixes_together(self, inputs: Tensor) -> bool:
        """Whether mixing at all places at once comes to the same as at one after the other."""
        try:
            together = self._mixed_everywhere(inputs)
        except Exception:  # whatever a network makes of more samples than it was given
            return False
        for call, logits in together.items():
            alone = self._mixed_at(call, inputs)[::2]
            spread = (alone.amax(0) - alone.amin(0)).amax()
            if not (logits - alone).abs().amax() <= SAME * spread:
                return False
        return True


@dataclass(frozen=True)
class View:
    """What a network makes of the representations at one place.

    Attributes:
        of: The network.
        call: The place.
    """

    of: NetworkView
    call: Call

    @property
    def logits(self) -> Tensor | None:
        """What the network puts out: N x classes; None where that is not so."""
        return self.of.logits

    @property
    def checksums(self) -> Tensor | None:
        """Number for each sample that identifies its input: int64, N."""
        return self.of.checksums

    @property
    def margins(self) -> Tensor:
        """First-order margins of each sample here: float64, N."""
        return self.of.margins[self.call]

    @property
    def mixed_accuracy(self) -> float:
        """Accuracy when two representations of a class are averaged here and sent on."""
        return self.of.mixed_accuracy(self.call)

    @property
    def classifier_weights(self) -> Tensor | None:
        """Classes x D, where what is read here is what the last linear layer reads; else None."""
        taps = self.of.taps
        module = taps.modules[self.call.module]
        is_features = taps.places[self.call.module][1] == FEATURES
        return module.weight.detach() if is_features and isinstance(module, nn.Linear) else None


def _mixed(output: Tensor) -> Tensor:
    """The mean of each two consecutive samples."""
    return (output[0::2] + output[1::2]) / 2  # keeps the memory format that convolutions like


def _correct(logits: Tensor, labels: Tensor) -> int:
    """Number of correct predictions; one from logits that are not finite is wrong."""
    is_right = logits.argmax(1) == labels.to(logits.device)
    return int((is_right & logits.isfinite().all(1)).sum())


def is_logits(output: object, labels: Tensor) -> bool:
    """Whether an output is a number for each sample and class."""
    return (
        isinstance(output, Tensor)
        and output.ndim == 2
        and len(output) == len(labels)
        and bool((labels >= 0).all() and (labels < output.shape[1]).all())
    )


def _pairs(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The samples in another order: the first two of a class, the next two of a class, and so on.

    However they are shared out over the batches: a sample whose partner is still to come waits for
    it, and one that stays alone is left out.
    """
    waiting: Batch | None = None
    for inputs, labels in batches:
        if waiting is not None:
            inputs, labels = torch.cat([waiting[0], inputs]), torch.cat([waiting[1], labels])
        order = labels.argsort(stable=True)
        _, sizes = labels[order].unique_consecutive(return_counts=True)
        last = sizes.cumsum(0) - 1
        alone = torch.zeros_like(order, dtype=torch.bool)
        alone[last[sizes % 2 == 1]] = True
        waiting = inputs[order[alone]], labels[order[alone]]
        paired = order[~alone]
        if len(paired):
            yield inputs[paired], labels[paired]
