"""What `summary` says of a network is what the network does."""

import pytest
import torch
from torch import nn

from mlimages.errors import ModelError
from mlimages.insight.layers import NetworkSummary, Window, lines_of
from mlimages.learning.summary import summarize_network


@pytest.fixture
def small_net() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 11, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(8, 4, 3, padding=2, dilation=2),
        nn.Flatten(),
        nn.Linear(4 * 27 * 27, 5),
    )
    net[0].requires_grad_(False)
    return net


def summary_of(net: nn.Module, size: int = 227) -> NetworkSummary:
    return summarize_network(net, (3, size, size), title="net")


def test_each_row_holds_shape_parameters_state_and_multiply_adds(small_net: nn.Sequential) -> None:
    conv, relu, pool, dilated, flatten, linear = summary_of(small_net).layers
    assert (conv.name, conv.kind, conv.output, conv.state) == ("0", "conv", (8, 55, 55), "frozen")
    assert (conv.parameters, conv.multiply_adds) == (8 * 3 * 11 * 11 + 8, 8 * 3 * 11 * 11 * 55 * 55)
    assert (relu.parameters, relu.state, relu.arithmetic) == (0, "", "")
    assert (pool.output, dilated.output, flatten.output) == ((8, 27, 27), (4, 27, 27), (2916,))
    assert (dilated.state, linear.multiply_adds) == ("trained", 2916 * 5)


def test_the_arithmetic_behind_each_width_is_shown(small_net: nn.Sequential) -> None:
    shown = {layer.name: layer.arithmetic for layer in summary_of(small_net).layers}
    assert shown["0"] == "(227 + 2*0 - 11)/4 + 1 = 55"
    assert shown["2"] == "(55 + 2*0 - 3)/2 + 1 = 27"
    assert shown["3"] == "(27 + 2*2 - 5)/1 + 1 = 27"
    assert shown["4"] == "4*27*27 = 2916"
    assert shown["5"] == "4*27*27 = 2916 -> 5"


def test_a_size_that_does_not_divide_evenly_is_marked() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 11, stride=4))
    summary = summary_of(net, 230)
    assert (summary.layers[0].even, summary.layers[0].lost_px) == (False, 3)
    text = "\n".join(lines_of(summary))
    assert "(230 + 2*0 - 11)/4 + 1 = 55.75 !" in text
    assert "lost at the edge: 0 3" in text
    assert all(layer.even for layer in summary_of(net, 227).layers)


@pytest.mark.parametrize("n", range(7, 40))
@pytest.mark.parametrize(
    ("size", "stride", "padding", "ceil"), [(3, 2, 0, False), (3, 2, 0, True), (2, 2, 1, True), (7, 4, 3, False)]
)
def test_the_formula_is_torchs_own(n: int, size: int, stride: int, padding: int, ceil: bool) -> None:
    pool = nn.MaxPool2d(size, stride, padding=padding, ceil_mode=ceil)
    made = pool(torch.zeros(1, 1, n, n)).shape[-1]
    layer = summarize_network(nn.Sequential(pool), (1, n, n)).layers[0]
    assert layer.output == (1, made, made)
    expected = Window(size, stride, padding, ceil).arithmetic(n)
    assert layer.arithmetic in (expected, f"{n} -> {made}")  # torch drops a last window that holds padding alone


def test_lost_columns_are_those_that_change_nothing() -> None:
    conv = nn.Conv2d(1, 1, 5, stride=3, padding=1)
    lost = summarize_network(nn.Sequential(conv), (1, 14, 14)).layers[0].lost_px
    picture = torch.rand(1, 1, 14, 14)
    changed = picture.clone()
    changed[..., 14 - lost :] = 9.0
    assert lost > 0
    assert torch.equal(conv(picture), conv(changed))
    changed[..., 14 - lost - 1] = 9.0
    assert not torch.equal(conv(picture), conv(changed))


def test_totals_count_shared_parameters_once_and_work_between_layers_too() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8, bias=False)
            self.again = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.again(self.first(x.flatten(2)))  # (N, 3, 8)
            return nn.functional.scaled_dot_product_attention(y, y, y)

    summary = summarize_network(Attends(), (3, 2, 4))
    assert summary.parameters == 64
    assert summary.multiply_adds == 2 * 3 * 64 + 2 * 3 * 3 * 8
    assert any("between the layers" in line for line in lines_of(summary))


def test_summing_up_leaves_the_network_as_it_was(small_net: nn.Sequential) -> None:
    small_net.train()
    before = {name: value.clone() for name, value in small_net.state_dict().items()}
    summary_of(small_net)
    assert small_net.training
    assert all(torch.equal(before[name], value) for name, value in small_net.state_dict().items())
    assert not any(module._forward_hooks for module in small_net.modules())


def test_a_size_that_cannot_work_names_the_layer(small_net: nn.Sequential) -> None:
    with pytest.raises(ModelError, match=r"net cannot take 20 x 20 pixels: 5: "):
        summary_of(small_net, 20)
