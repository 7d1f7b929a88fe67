"""FCN: fully convolutional networks (Long, Shelhamer, Darrell 2015, arXiv:1411.4038).

Known for: a classifier's linear layers become 1×1 convolutions, so that one pass labels every pixel; the map, coarse
because of the backbone's stride, is upsampled to the size of the image.

Departures from the paper, shared with torchvision: a ResNet in place of VGG, one 3×3 convolution before the scores, no
skip connections from finer maps, and upsampling is bilinear, not learnt. `fcn_resnet50` is torchvision's network,
its parts under its names, at output stride 8 and with the auxiliary head; the output is a dict of logit maps at the
images' size, ``out`` and ``aux``, as there. `fcn_resnet18` keeps the classifier's stride of 32: the baseline against
which `deeplab.py` shows what dilation buys. ``output_stride`` (8, 16 or 32) dilates the last stages instead of
striding; it changes no parameter.

Small images (64 pixels or less): ResNet's small-image stem, so that maps are four times as large as ``output_stride``
says: 4×4 at 32 pixels and output stride 32.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architectures.resnet import ResNetTrunk
from zoo.info import SMALL_INPUT_SIZE, Published, Register
from zoo.layers import BasicBlock, Bottleneck, ConvNormAct
from zoo.registry import register_model

PAPER = "Long et al. 2015, Fully convolutional networks for semantic segmentation, arXiv:1411.4038"
SMALL_IMAGE = "the stem is a 3×3 convolution with stride 1 and there is no max-pooling, so maps are four times as wide"
RECIPE = {"lr": 0.1, "weight_decay": 5e-4}
DROP_RATE = 0.1


class FCNHead(nn.Sequential):
    """3×3 convolution to a quarter of the channels, dropout (0.1 if not given), 1×1 convolution to the classes."""

    def __init__(self, in_chans: int, num_classes: int, drop_rate: float | None = None) -> None:
        width = in_chans // 4
        dropout = nn.Dropout(DROP_RATE if drop_rate is None else drop_rate)
        super().__init__(*ConvNormAct(in_chans, width, kernel_size=3), dropout, nn.Conv2d(width, num_classes, 1))


class SegmentationNet(nn.Module):
    """A backbone, a head on its last stage, perhaps an auxiliary one on the stage before; maps at the images' size.

    Args:
        backbone: maps images to the maps ``layer3`` and ``layer4``.
        classifier: maps ``layer4`` to a logit map.
        aux_classifier: maps ``layer3`` to a logit map, for a second loss in training.
    """

    def __init__(self, backbone: ResNetTrunk, classifier: nn.Module, aux_classifier: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images ``N×C×H×W`` to logits ``N×num_classes×H×W``, under ``out`` and, of the auxiliary head, ``aux``."""
        size = x.shape[-2:]
        maps = self.backbone(x)
        logits = {"out": self.classifier(maps["layer4"])}
        if self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(maps["layer3"])
        return {
            head: F.interpolate(map_, size=size, mode="bilinear", align_corners=False) for head, map_ in logits.items()
        }


def _fcn(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    num_classes: int,
    input_size: int,
    in_chans: int,
    output_stride: int,
    aux_loss: bool,
    drop_rate: float | None,
) -> SegmentationNet:
    backbone = ResNetTrunk(block, depths, in_chans, input_size <= SMALL_INPUT_SIZE, output_stride)
    features = backbone.num_features
    return SegmentationNet(
        backbone,
        FCNHead(features, num_classes, drop_rate),
        FCNHead(features // 2, num_classes, drop_rate) if aux_loss else None,
    )


register: Register = functools.partial(
    register_model, paper=PAPER, year=2015, task="segmentation", recipe=RECIPE, small_image=SMALL_IMAGE
)


@register()
def fcn_resnet18(
    num_classes: int = 21,
    input_size: int = 520,
    in_chans: int = 3,
    output_stride: int = 32,
    aux_loss: bool = False,
    drop_rate: float | None = None,
) -> SegmentationNet:
    """Segmentation on ResNet-18 at its own stride of 32."""
    return _fcn(BasicBlock, (2, 2, 2, 2), num_classes, input_size, in_chans, output_stride, aux_loss, drop_rate)


@register(
    published=Published(params=35_322_218, gmacs=152.717, num_classes=21, source="torchvision weights metadata"),
    weights="torchvision/fcn_resnet50",
)
def fcn_resnet50(
    num_classes: int = 21,
    input_size: int = 520,
    in_chans: int = 3,
    output_stride: int = 8,
    aux_loss: bool = True,
    drop_rate: float | None = None,
) -> SegmentationNet:
    """Segmentation on ResNet-50 at output stride 8."""
    return _fcn(Bottleneck, (3, 4, 6, 3), num_classes, input_size, in_chans, output_stride, aux_loss, drop_rate)
