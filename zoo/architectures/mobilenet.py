"""MobileNets: networks for phones (Howard et al. 2017, arXiv:1704.04861; Sandler et al. 2018, arXiv:1801.04381).

Known for: V1 replaced standard convolutions by depthwise separable ones throughout and scales all widths by one
multiplier (``separable=false`` builds the network with standard convolutions that the paper's table 4 compares with,
``width`` any width); V2 turned the residual block inside out (narrow between blocks, wide and depthwise within).

Departures: V1 uses ReLU6 as timm's weights do (the paper says ReLU, its released code ReLU6; ``act=relu`` chooses the
paper's, which weights of kuangliu/pytorch-cifar need) and pads symmetrically where TensorFlow pads to the right; V2 is
torchvision's, with dropout 0.2 before the classifier. V1's parts have names of our own; `MobileNetV1.reference_keys`
translates timm's.

Small images (64 pixels or less): early strides are 1; no weight changes its shape. V1: the stem's (kuangliu/
pytorch-cifar, 46 million multiply-accumulates at 32×32); V2: the stem's and that of the 24-channel stage (kuangliu and
chenyaofo/pytorch-cifar-models, 88 million).
"""

from typing import Any, ClassVar

import torch
from torch import nn

from zoo.info import SMALL_INPUT_SIZE, Published, ZooError, did_you_mean
from zoo.layers import ConvNormAct, DepthwiseSeparableConv, init_kaiming
from zoo.registry import register_model

RECIPE = {"lr": 0.1, "weight_decay": 4e-5}  # the small decay alone is worth three points to V2

ACTS: dict[str, type[nn.Module]] = {"relu6": nn.ReLU6, "relu": nn.ReLU}

# Stages of table 1: (output channels, blocks, stride of the first block).
V1_STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
# Table 2 of V2: (expansion, output channels, blocks, stride of the first block).
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV1(nn.Module):
    """Stem, thirteen depthwise separable convolutions in five stages, global average pooling, linear head."""

    # Regular expressions over timm's names; ours on the right.
    reference_keys: ClassVar[dict[str, str]] = {
        r"^conv_stem\.": "stem.0.",
        r"^bn1\.": "stem.1.",
        r"^blocks\.(\d+)\.(\d+)\.conv_dw\.": r"stages.\1.\2.depthwise.",
        r"^blocks\.(\d+)\.(\d+)\.bn(\d)\.": r"stages.\1.\2.norm\3.",
        r"^blocks\.(\d+)\.(\d+)\.conv_pw\.": r"stages.\1.\2.pointwise.",
    }

    def __init__(
        self,
        num_classes: int,
        input_size: int,
        in_chans: int,
        width: float,
        drop_rate: float,
        act: str,
        separable: bool = True,
    ) -> None:
        super().__init__()
        if act not in ACTS:
            raise ZooError(f"act={act} is not possible: expected {' or '.join(ACTS)}.{did_you_mean(act, ACTS)}")
        if width <= 0:
            raise ZooError(f"width={width} is not possible: expected a number above 0.")
        chans = max(int(32 * width), 1)
        stem_stride = 1 if input_size <= SMALL_INPUT_SIZE else 2
        self.stem = ConvNormAct(in_chans, chans, kernel_size=3, stride=stem_stride, act=ACTS[act])
        self.stages = nn.Sequential()
        for base_chans, depth, stride in V1_STAGES:
            out_chans = max(int(base_chans * width), 1)
            stage = nn.Sequential()
            for index in range(depth):
                block_stride = stride if index == 0 else 1
                block = DepthwiseSeparableConv if separable else ConvNormAct
                stage.append(block(chans, out_chans, kernel_size=3, stride=block_stride, act=ACTS[act]))
                chans = out_chans
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(chans, num_classes)
        init_kaiming(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        x = self.pool(self.stages(self.stem(x))).flatten(1)
        logits: torch.Tensor = self.classifier(self.dropout(x))
        return logits


def _register_v1(name: str, base_width: float, *, params: int, gmacs: float, source: str, **facts: Any) -> None:
    @register_model(
        name=name,
        paper="Howard et al. 2017, MobileNets, arXiv:1704.04861",
        year=2017,
        published=Published(params=params, gmacs=gmacs, source=source),
        recipe=RECIPE,
        small_image="the stem's stride is 1",
        **facts,
    )
    def build(
        num_classes: int = 1000,
        input_size: int = 224,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        act: str = "relu6",
        separable: bool = True,
        width: float = base_width,
    ) -> MobileNetV1:
        return MobileNetV1(num_classes, input_size, in_chans, width, drop_rate, act, separable)


_register_v1(
    "mobilenet_v1",
    base_width=1.0,
    params=4_231_976,
    gmacs=0.569,
    source="the paper, table 6 (4.2 M, 569 M); timm mobilenetv1_100",
    weights="timm/mobilenetv1_100",
    representative=True,
)
KERAS = "the paper, table 6 (2.6 M, 325 M; 1.3 M, 149 M; 0.5 M, 41 M); Keras MobileNet to the digit"
_register_v1("mobilenet_v1_075", base_width=0.75, params=2_585_560, gmacs=0.325, source=KERAS)
_register_v1("mobilenet_v1_050", base_width=0.5, params=1_331_592, gmacs=0.149, source=KERAS)
_register_v1("mobilenet_v1_025", base_width=0.25, params=470_072, gmacs=0.041, source=KERAS)


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise, 1×1 projection without activation; the input added where shapes agree."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_chans * expansion
        self.add_input = stride == 1 and in_chans == out_chans
        self.conv = nn.Sequential(
            *([ConvNormAct(in_chans, wide, act=nn.ReLU6)] if expansion != 1 else []),
            ConvNormAct(wide, wide, kernel_size=3, stride=stride, groups=wide, act=nn.ReLU6),
            *ConvNormAct(wide, out_chans, act=None),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×out_chans×H/stride×W/stride``."""
        out: torch.Tensor = self.conv(x)
        return x + out if self.add_input else out


class MobileNetV2(nn.Module):
    """Stem, seventeen inverted residuals, a 1×1 convolution to 1,280 channels, pooling, linear head."""

    def __init__(self, num_classes: int, input_size: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        small = input_size <= SMALL_INPUT_SIZE
        chans = 32
        self.features = nn.Sequential(
            ConvNormAct(in_chans, chans, kernel_size=3, stride=1 if small else 2, act=nn.ReLU6)
        )
        for expansion, out_chans, depth, stride in V2_STAGES:
            for index in range(depth):
                strides_here = index == 0 and not (small and out_chans == 24)
                self.features.append(InvertedResidual(chans, out_chans, stride if strides_here else 1, expansion))
                chans = out_chans
        self.features.append(ConvNormAct(chans, 1280, act=nn.ReLU6))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(drop_rate), nn.Linear(1280, num_classes))
        init_kaiming(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        logits: torch.Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


@register_model(
    paper="Sandler et al. 2018, MobileNetV2: inverted residuals and linear bottlenecks, arXiv:1801.04381",
    year=2018,
    published=Published(params=3_504_872, gmacs=0.301, source="torchvision weights metadata"),
    weights="torchvision/mobilenet_v2",
    recipe=RECIPE,
    small_image="the strides of the stem and of the 24-channel stage are 1",
    representative=True,
)
def mobilenet_v2(
    num_classes: int = 1000, input_size: int = 224, in_chans: int = 3, drop_rate: float = 0.2
) -> MobileNetV2:
    """The full width."""
    return MobileNetV2(num_classes, input_size, in_chans, drop_rate)
