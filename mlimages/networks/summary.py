"""Summarize a network layer by layer: output shapes, parameters and multiply-adds at one input size."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mlimages.core import Layer, LayerState, ModelError, NetworkSummary, summarize_error
from mlimages.networks import freezing
from mlimages.networks.input_size import get_window
from mlimages.networks.models import build_model

Shape = tuple[int, ...]

_LAYER_KINDS = (
    (nn.Conv2d, "conv"),
    (nn.Linear, "linear"),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), "pool"),
    ((nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm), "norm"),
    (nn.MultiheadAttention, "attention"),
)


def summarize_model(
    name: str,
    *,
    size: int | tuple[int, int] | None = None,
    gray: bool | None = None,
    num_classes: int = 1000,
    freeze: str = "none",
) -> NetworkSummary:
    """Summarize the network that `mlimages finetune --model NAME --freeze LAYER` trains.

    Args:
        name: the name that `build_model` accepts.
        size: width and height of the input in pixels, one number for a square; by default the size that the
            network is designed for.
        gray: convert images to grayscale.
        num_classes: number of outputs of the last layer.
        freeze: the last frozen layer, `head` or `none`, as for the function `freeze`.

    Returns:
        For each layer, the output shape, the numbers of parameters and multiply-adds, and whether it is frozen.

    Raises:
        ModelError: there is no such network or layer, or the network does not accept this size.

    Examples:
        >>> from mlimages import summarize_model
        >>> summary = summarize_model("lenet5", num_classes=10, freeze="conv2")
        >>> summary.parameters, summary.trained_parameters
        (61706, 59134)
        >>> summary.layers[0].name, summary.layers[0].output, summary.layers[0].state
        ('conv1', (6, 28, 28), 'frozen')
    """
    model = build_model(name, num_classes=num_classes, weights="none", size=size, gray=gray)
    freezing.freeze(model, freeze)
    names = {path: name for name, path in reversed([*model.layer_aliases.items()])}
    title = f"{name}, frozen: {freeze}" if freeze != "none" else name
    return summarize(model.network, model.preprocessing.input_shape, title=title, names=names)


def summarize(
    network: nn.Module, input_shape: tuple[int, int, int], *, title: str = "", names: Mapping[str, str] | None = None
) -> NetworkSummary:
    """Summarize a network for images of one shape; no values are computed and the network is not changed.

    Args:
        network: a network with float32 input `(N, C, H, W)`.
        input_shape: shape of one image, `(C, H, W)`.
        title: heading of the summary.
        names: names to show for modules, by module path, such as {"features.0": "conv1"}.

    Returns:
        The layers with their output shapes; `print` shows them as a table.

    Raises:
        ModelError: the network does not accept images of this size, or its code reads the values of tensors; the
            message names the layer, unless the network's own `forward` fails.

    Examples:
        >>> from torch import nn
        >>> from mlimages import summarize
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Flatten(), nn.Linear(8 * 28 * 28, 2))
        >>> summary = summarize(network, (3, 32, 32))
        >>> [(layer.kind, layer.output) for layer in summary.layers]
        [('conv', (8, 28, 28)), ('flatten', (6272,)), ('linear', (2,))]
        >>> print(str(summary).splitlines()[3])
        0     conv    8x28x28    608    470.4K trained (32 + 2*0 - 5)/1 + 1 = 28
    """
    meta_network = _copy_to_meta_device(network).eval()
    recorder = _CallRecorder(meta_network, names or {})
    counter, parameter_uses = FlopCounterMode(display=False), _ParameterUses()
    try:
        with counter, parameter_uses:
            meta_network(torch.empty(2, *input_shape, device="meta"))  # some batch norms raise on a batch of one
    except Exception as error:  # the network's code may raise any error on an invalid size
        name, problem = title or "the network", summarize_error(error)
        if recorder.current_layer:
            problem = f"layer {recorder.current_layer} fails: {problem}"
        if "meta tensor" in str(error):
            raise ModelError(
                f"{name} cannot be summarized, since its code reads the values of tensors: {problem}"
            ) from error
        raise ModelError(f"{name} does not support {input_shape[2]} x {input_shape[1]} px: {problem}") from error
    flops = {path.partition(".")[2]: sum(counts.values()) for path, counts in counter.get_flop_counts().items()}
    parameters = list(network.parameters())
    return NetworkSummary(
        title=title,
        input=input_shape,
        layers=tuple(
            recorder.summarize_layer(path, flops.get(path, 0) // 4) for path in recorder.find_layers(parameter_uses.ids)
        ),
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        multiply_adds=counter.get_total_flops() // 4,  # two operations per multiply-add, two images
    )


def _copy_to_meta_device(network: nn.Module) -> nn.Module:
    """Copy a network to the meta device, where parameters and buffers have shapes but no values."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(network, memo)


@dataclass(frozen=True, slots=True)
class _ModuleCall:
    """Shapes, without the batch dimension, in the first call of a module.

    Attributes:
        input_shape, output_shape: shapes of its input and output.
        previous_feature_map_shape: shape `(C, H, W)` of the most recent feature map of an earlier module; () if there
            was none. For a linear layer after flattening, it is the shape before flattening.
    """

    input_shape: Shape
    output_shape: Shape
    previous_feature_map_shape: Shape


class _ParameterUses(TorchFunctionMode):
    """Records the ids of the parameters that are passed to torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.ids.update(id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, nn.Parameter))
        return func(*args, **(kwargs or {}))


class _CallRecorder:
    """Registers hooks that record the first call of every module: `calls`, by module path, children before parents."""

    def __init__(self, network: nn.Module, names: Mapping[str, str]) -> None:
        self._running: list[str] = []
        self.calls: dict[str, _ModuleCall] = {}
        self._names = names
        self._modules = dict(network.named_modules())
        self._feature_map: Shape = ()
        for module_path, module in self._modules.items():
            module.register_forward_pre_hook(partial(self._record_start, module_path))
            module.register_forward_hook(partial(self._record_call, module_path), with_kwargs=True)

    @property
    def current_layer(self) -> str:
        """Name of the innermost running module or, after an error, of the module that raised it.

        It is "" for the network itself.
        """
        return self._running[-1] if self._running else ""

    def find_layers(self, parameter_ids: Set[int]) -> list[str]:
        """Return the paths of the called modules that the summary lists as layers, in the order of the calls.

        These are the modules without a called submodule, and those of `_find_composite_layers`, whose submodules are
        not listed. `parameter_ids` are the ids of the parameters that the network uses.
        """
        parents = {parent for path in self.calls for parent in _list_parents(path)}
        composite = self._find_composite_layers(parameter_ids)
        layers = (path for path in self.calls if path and (path not in parents or path in composite))
        return [path for path in layers if composite.isdisjoint(_list_parents(path))]

    def _find_composite_layers(self, parameter_ids: Set[int]) -> set[str]:
        """Return the paths of the called modules that form one layer together with any submodules.

        Either the module has parameters and its submodules have none, like a batch norm with an activation; or the
        module uses the parameters of a submodule without calling it, like an attention layer.
        """
        found = set()
        for path, module in self._modules.items():
            num_own, num_all = (sum(1 for _ in module.parameters(recurse=recurse)) for recurse in (False, True))
            if path in self.calls and 0 < num_own == num_all:
                found.add(path)
            elif path not in self.calls and not parameter_ids.isdisjoint(map(id, module.parameters(recurse=False))):
                found.update([parent for parent in _list_parents(path) if parent in self.calls][-1:])
        return found - {""}

    def summarize_layer(self, module_path: str, multiply_adds: int) -> Layer:
        module, call = self._modules[module_path], self.calls[module_path]
        width = call.input_shape[-1]
        window = get_window(module) if len(call.input_shape) == 3 else None
        if window and window.output_width(width) != call.output_shape[-1]:
            window = None
        return Layer(
            name=self._names.get(module_path, module_path),
            kind=next((k for types, k in _LAYER_KINDS if isinstance(module, types)), type(module).__name__.lower()),
            output=call.output_shape,
            parameters=sum(p.numel() for p in module.parameters()),
            state=_get_layer_state(module),
            multiply_adds=multiply_adds,
            arithmetic=window.width_formula(width) if window else _describe_size_change(module, call),
            even=window is None or window.exact_output_width(width).denominator == 1,
            lost_px=window.lost_px(width) if window else 0,
        )

    def _record_start(self, module_path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._running.append(self._names.get(module_path, module_path))

    def _record_call(
        self, module_path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self._running.pop()
        value = next(iter((*args, *kwargs.values())), None)
        output = output[0] if isinstance(output, tuple) else output  # attention also returns its weights
        if module_path not in self.calls and isinstance(value, Tensor) and isinstance(output, Tensor):
            call = _ModuleCall(tuple(value.shape[1:]), tuple(output.shape[1:]), self._feature_map)
            self.calls[module_path] = call
            self._feature_map = call.output_shape if len(call.output_shape) == 3 else self._feature_map


def _list_parents(module_path: str) -> list[str]:
    return [module_path[:end] for end, char in enumerate(module_path) if char == "."]


def _get_layer_state(module: nn.Module) -> LayerState:
    """Return whether the parameters are frozen, trained or partly trained; "" for a module without parameters."""
    is_trained = {p.requires_grad for p in module.parameters()}
    if not is_trained:
        return ""
    return "partly" if len(is_trained) == 2 else "trained" if is_trained.pop() else "frozen"


def _describe_size_change(module: nn.Module, call: _ModuleCall) -> str:
    """Return how a linear, flattening or resizing layer changes the size, such as `9216 -> 4096`; "" for others."""
    if isinstance(module, nn.Linear):
        maps = call.previous_feature_map_shape
        is_flattened = call.input_shape == (math.prod(maps),) and math.prod(maps[1:]) > 1
        product = "*".join(map(str, maps)) + " = " if is_flattened else ""
        return f"{product}{module.in_features} -> {module.out_features}"
    if isinstance(module, nn.Flatten) and call.input_shape != call.output_shape:
        return "*".join(map(str, call.input_shape)) + f" = {call.output_shape[-1]}"
    is_resized = len(call.input_shape) == len(call.output_shape) == 3 and call.input_shape[1:] != call.output_shape[1:]
    return f"{call.input_shape[-1]} -> {call.output_shape[-1]}" if is_resized else ""
