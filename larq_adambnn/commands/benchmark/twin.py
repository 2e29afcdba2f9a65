"""The published ReActNet-A and its training in plain PyTorch, to compare speeds with.

Operation for operation what the published code computes, under its parameter names, so
that its checkpoints load; the golden vectors hold it.  Only the benchmark uses it.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ReActNetA", "Training"]

_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_UNITS = (1, 2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32)  # channels, in those of the stem


def _sign(x: torch.Tensor) -> torch.Tensor:
    """sign(x) with the gradient of a piecewise polynomial, put together with masks."""
    below, negative, under = (mask.to(x.dtype) for mask in (x < -1, x < 0, x < 1))
    smooth = -below + (1 - below) * (x * x + 2 * x)
    smooth = smooth * negative + (1 - negative) * (2 * x - x * x)
    smooth = smooth * under + (1 - under)
    return torch.sign(x).detach() - smooth.detach() + smooth


class _Bias(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        return x + self.bias.expand_as(x)


class _Conv(nn.Module):
    """A convolution whose kernel is binary in step 2."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, binary: bool):
        super().__init__()
        kernel = torch.empty(outputs, inputs, size, size)
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(kernel, a=5**0.5))
        self.stride, self.binary = stride, binary

    def forward(self, x):
        kernel = self.weight
        if self.binary:
            scale = kernel.abs().mean(dim=(1, 2, 3), keepdim=True).detach()
            clipped = kernel.clamp(-1.0, 1.0)
            kernel = (scale * torch.sign(kernel)).detach() - clipped.detach() + clipped
        return F.conv2d(x, kernel, stride=self.stride, padding=kernel.shape[-1] // 2)


class _Stem(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn1(self.conv1(x))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, binary: bool):
        super().__init__()
        self.stride = stride
        self.move11, self.move12, self.move13 = (_Bias(inputs) for _ in range(3))
        self.move21, self.move22, self.move23 = map(_Bias, (inputs, outputs, outputs))
        self.binary_3x3 = _Conv(inputs, inputs, 3, stride, binary)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.prelu1, self.prelu2 = nn.PReLU(inputs), nn.PReLU(outputs)
        self.branches = [("binary_pw", "bn2")]
        if outputs != inputs:
            self.branches = [("binary_pw_down1", "bn2_1"), ("binary_pw_down2", "bn2_2")]
        for conv, bn in self.branches:
            setattr(self, conv, _Conv(inputs, inputs, 1, 1, binary))
            setattr(self, bn, nn.BatchNorm2d(inputs))

    def forward(self, x):
        y = self.bn1(self.binary_3x3(_sign(self.move11(x))))
        y = y + (x if self.stride == 1 else F.avg_pool2d(x, 2, 2))
        y = self.move13(self.prelu1(self.move12(y)))
        z = _sign(self.move21(y))
        z = [getattr(self, bn)(getattr(self, conv)(z)) + y for conv, bn in self.branches]
        z = z[0] if len(z) == 1 else torch.cat(z, dim=1)
        return self.move23(self.prelu2(self.move22(z)))


class ReActNetA(nn.Module):
    """ReActNet-A: images (B, C, H, W) to logits (B, num_classes).

    Args:
        channels: of the images.
        num_classes, width, stem_stride: as `larq_adambnn.models.reactnet_a` has them.
        binary: whether the weights are (step 2) or not (step 1).
    """

    def __init__(
        self,
        channels: int = 3,
        num_classes: int = 1000,
        width: float = 1.0,
        *,
        stem_stride: int = 2,
        binary: bool = True,
    ):
        super().__init__()
        sizes = [units * max(1, round(32 * width)) for units in _UNITS]
        blocks = zip(sizes, sizes[1:], _STRIDES, strict=False)
        self.feature = nn.ModuleList(
            [_Stem(channels, sizes[0], stem_stride), *(_Block(*block, binary) for block in blocks)]
        )
        self.fc = nn.Linear(sizes[-1], num_classes)

    def forward(self, x):
        for stage in self.feature:
            x = stage(x)
        return self.fc(x.mean(dim=(2, 3)))


class Training:
    """Forward, distribution loss, backward and Adam, with the published set of decays.

    Args:
        channels_last: whether images and kernels lie in memory with their channels last.
        autocast: whether convolutions and what PyTorch thinks fit are computed in bfloat16.
        compiled: whether the network is compiled.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        weight_decay: float,
        *,
        channels_last: bool = False,
        autocast: bool = False,
        compiled: bool = False,
    ):
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.autocast = autocast
        network = network.train().to(memory_format=self.format)
        self.network = torch.compile(network) if compiled else network
        decayed, others = [], []
        for name, parameter in network.named_parameters():
            (decayed if parameter.ndim == 4 or "conv" in name else others).append(parameter)
        self.optimizer = torch.optim.Adam(
            [{"params": others}, {"params": decayed, "weight_decay": weight_decay}],
            lr=learning_rate,
        )

    def __call__(self, images: torch.Tensor, teacher_logits: torch.Tensor) -> float:
        """The loss before the update."""
        images = images.contiguous(memory_format=self.format)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            logits = self.network(images).to(teacher_logits.dtype)
        target = F.softmax(teacher_logits, dim=1)
        loss = -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
