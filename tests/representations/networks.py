"""Networks for the tests, their inputs, and a snapshot of their state."""

from typing import Any

import torch
from torch import Tensor, nn

from bnstudy.models import CNN, Normalization

Batches = list[tuple[Tensor, Tensor]]


def batches(count: int = 10, size: int = 4, channels: int = 1, num_classes: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, 16, 16, generator=generator)
    labels = torch.arange(count) % num_classes
    return list(zip(images.split(size), labels.split(size), strict=True))


def cnn(norm: str = "batchnorm", depth: int = 3) -> CNN:
    torch.manual_seed(0)
    return CNN(depth, 4, input_shape=(1, 16, 16), num_classes=3, norm=Normalization(norm))


class ChangesItsInput(nn.Module):
    """Network that standardizes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.act = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x.sub_(0.5).div_(2))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def state(model: nn.Module) -> dict[str, Any]:
    """Return all state that reading a model could change."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [{kind: list(getattr(one, kind)) for kind in HOOKS} for one in model.modules()],
        "values": {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        "gradients": [
            (parameter.requires_grad, None if parameter.grad is None else parameter.grad.tolist())
            for parameter in model.parameters()
        ],
    }
