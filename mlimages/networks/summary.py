"""Layer by layer what a network makes of a picture, found by sending an empty one through."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlimages.core import Layer, ModelError, NetworkSummary, State, Window
from mlimages.networks.freezing import freeze
from mlimages.networks.models import build_model

Shape = tuple[int, ...]

_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_KINDS = (
    (nn.Conv2d, "conv"),
    (nn.Linear, "linear"),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), "pool"),
    ((nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm), "norm"),
    (nn.MultiheadAttention, "attention"),
)


def summarize_model(
    name: str,
    *,
    size: int | None = None,
    gray: bool | None = None,
    classes: int = 1000,
    upto: str = "none",
) -> NetworkSummary:
    """The network that `finetune --model name --freeze upto` would train.

    Raises:
        ModelError: no such network or layer, or it cannot take this size.
    """
    model = build_model(name, classes=classes, weights="none", size=size, gray=gray)
    freeze(model, upto)
    image = model.preprocessing.image
    names = {path: name for name, path in reversed([*model.layers.items()])}
    title = f"{name}, frozen: {upto}" if upto != "none" else name
    return summarize_network(model.network, (image.channels, image.height, image.width), title=title, names=names)


def summarize_network(
    network: nn.Module, size: tuple[int, int, int], *, title: str = "", names: Mapping[str, str] | None = None
) -> NetworkSummary:
    """Send an empty picture of `(C, H, W)` through a copy without data; nothing is computed or changed.

    Args:
        network: anything that takes `(N, C, H, W)`.
        title: what the table is of.
        names: better names for some modules, by their path ("features.0": "conv1").

    Raises:
        ModelError: the network cannot take a picture of this size; names the layer.
    """
    hollow = _without_data(network).eval()
    trace = _Trace(hollow, names or {})
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            hollow(torch.empty(2, *size, device="meta"))  # two pictures: a batch of one upsets some batch norms
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{title or 'the network'} cannot take {size[1]} x {size[2]} pixels: "
                         f"{trace.at or 'its first layer'}: {reason}") from error  # fmt: skip
    finally:
        trace.close()
    flops = {path.partition(".")[2]: sum(counts.values()) for path, counts in counter.get_flop_counts().items()}
    parameters = list(network.parameters())
    return NetworkSummary(
        title=title,
        input=size,
        layers=tuple(trace.layer(path, flops.get(path, 0) // 4) for path in trace.innermost()),
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        multiply_adds=counter.get_total_flops() // 4,  # two operations each, two pictures
    )


def _without_data(network: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes alone."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(network, memo)


@dataclass(frozen=True, slots=True)
class _Pass:
    """The shapes of one picture before and after a module, and of the last map `(C, H, W)` before it."""

    given: Shape
    made: Shape
    map: Shape


class _Trace:
    """Hooks on every module; what passed each, in order of its first end."""

    def __init__(self, network: nn.Module, names: Mapping[str, str]) -> None:
        self.at = ""
        self.passed: dict[str, _Pass] = {}
        self._names = names
        self._modules = dict(network.named_modules())
        self._map: Shape = ()  # the last shape that was still a picture
        self._handles = [
            handle
            for path, module in self._modules.items()
            for handle in (module.register_forward_pre_hook(self._enter(path)),
                           module.register_forward_hook(self._leave(path)))
        ]  # fmt: skip

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def innermost(self) -> list[str]:
        """The modules in which something happens: attention may use its parts' weights without calling them."""
        holders = {path[:end] for path in self.passed for end, char in enumerate(path) if char == "."}
        return [path for path in self.passed if path not in holders and path]

    def layer(self, path: str, multiply_adds: int) -> Layer:
        module, passed = self._modules[path], self.passed[path]
        window = _window(module, passed)
        n = passed.given[-1]
        return Layer(
            name=self._names.get(path, path),
            kind=_kind(module),
            output=passed.made,
            parameters=sum(p.numel() for p in module.parameters()),
            state=_state(module),
            multiply_adds=multiply_adds,
            arithmetic=window.arithmetic(n) if window else _other_arithmetic(module, passed),
            even=window is None or window.width(n).denominator == 1,
            lost_px=window.lost_px(n) if window else 0,
        )

    def _enter(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.at = self._names.get(path, path)

        return hook

    def _leave(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output  # attention gives its weights too
            if path not in self.passed and inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                given, made = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])
                self.passed[path] = _Pass(given, made, self._map)
                self._map = made if len(made) == 3 else self._map

        return hook


def _kind(module: nn.Module) -> str:
    return next((kind for types, kind in _KINDS if isinstance(module, types)), type(module).__name__.lower())


def _state(module: nn.Module) -> State:
    wanted = {p.requires_grad for p in module.parameters()}
    if not wanted:
        return ""
    return "partly" if len(wanted) == 2 else "trained" if wanted.pop() else "frozen"


def _other_arithmetic(module: nn.Module, passed: _Pass) -> str:
    """How the count of inputs comes about, or the width where no plain window makes it."""
    given, made = passed.given, passed.made
    if isinstance(module, nn.Linear):
        flattened = given == (math.prod(passed.map),) and math.prod(passed.map[1:]) > 1
        product = "*".join(map(str, passed.map)) + " = " if flattened else ""
        return f"{product}{module.in_features} -> {module.out_features}"
    if isinstance(module, nn.Flatten) and given != made:
        return "*".join(map(str, given)) + f" = {made[-1]}"
    changed = len(given) == len(made) == 3 and given[1:] != made[1:]
    return f"{given[-1]} -> {made[-1]}" if changed else ""


def _window(module: nn.Module, passed: _Pass) -> Window | None:
    """The window that makes this width; None where a module pads in its own way."""
    if not isinstance(module, _WINDOWS) or len(passed.given) != 3:
        return None

    def across(value: Any) -> Any:
        return value[-1] if isinstance(value, tuple) else value

    size = across(getattr(module, "dilation", 1)) * (across(module.kernel_size) - 1) + 1
    padding = (
        (size - 1) // 2 if module.padding == "same" else 0 if module.padding == "valid" else across(module.padding)
    )
    window = Window(size, across(module.stride), padding, ceil=getattr(module, "ceil_mode", False))
    return window if window.rounded_width(passed.given[-1]) == passed.made[-1] else None
