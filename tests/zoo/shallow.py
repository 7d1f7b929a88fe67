"""The zoo without the deeper members of families, for tests of blocks, which these only repeat."""

from zoo import list_models

DEEPER = {
    *("resnet34", "resnet101", "resnet152", "resnet32", "resnet44", "resnet56", "resnet110", "plain56"),
    *("vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn", "mobilenet_v1_075", "mobilenet_v1_050"),
    "deeplabv3_resnet101",
}


def shallow_models() -> list[str]:
    """All names but those; a new architecture is among them."""
    return sorted({*list_models()} - DEEPER)
