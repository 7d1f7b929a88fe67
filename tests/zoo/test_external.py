import pytest
import torch

from zoo import UnknownModelError, ZooError, create_model, list_models, model_info


def test_lists_are_prefixed_sorted_and_filtered() -> None:
    names = list_models("timm/resnet*")
    assert "timm/resnet50" in names
    assert names == sorted(names)
    assert all(name.startswith("timm/resnet") for name in names)
    assert {"torchvision/alexnet", "torchvision/deeplabv3_resnet50"} <= set(list_models("torchvision/*"))
    assert not any("rcnn" in name for name in list_models("torchvision/*"))
    assert list_models("no_library/*") == []


def test_ours_are_listed_without_the_libraries_and_together_with_them() -> None:
    assert not any("/" in name for name in list_models("*"))
    assert {"resnet18", "torchvision/resnet18"} <= set(list_models(["resnet*", "torchvision/resnet*"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5O", "timm has no model 'resnet5O'.*Did you mean.*resnet50"),
        ("torchvision/resnet5O", "torchvision has no model.*Did you mean.*resnet50"),
        ("keras/resnet50", "no library 'keras'"),
        ("timm/resnet18.a1_in2k", "timm has no weights.*Did you mean.*resnet18.a1_in1k"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        create_model(name)


def test_facts_come_from_the_library() -> None:
    info = model_info("torchvision/resnet50")
    assert info.published is not None
    assert (info.published.params, info.published.gmacs) == (25_557_032, 4.089)
    assert (info.input_size, info.num_classes, info.task) == (224, 1000, "classification")
    segmentation = model_info("torchvision/deeplabv3_resnet50")
    assert (segmentation.task, segmentation.num_classes, segmentation.input_size) == ("segmentation", 21, 520)
    assert model_info("timm/legacy_xception").input_size == 299


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(
    "name", ["timm/efficientnet_b0", "torchvision/convnext_tiny", "torchvision/resnet18", "timm/vit_tiny_patch16_224"]
)
def test_models_of_others_take_our_arguments(name: str, in_chans: int) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7, input_size=32, in_chans=in_chans).eval()
        assert model(torch.empty(2, in_chans, 32, 32)).shape == (2, 7)


def test_vision_transformer_of_torchvision_is_built_for_the_size() -> None:
    with torch.device("meta"):
        model = create_model("torchvision/vit_b_16", num_classes=7, input_size=64).eval()
        assert model(torch.empty(1, 3, 64, 64)).shape == (1, 7)


def test_a_network_that_cannot_take_small_images_says_so() -> None:
    with pytest.raises(ZooError, match=r"'torchvision/alexnet' cannot take 3×32×32 images.*Its own input size is 224"):
        create_model("torchvision/alexnet", 10, 32)


def test_options_go_to_the_library_and_wrong_ones_are_refused() -> None:
    with torch.device("meta"):
        assert create_model("timm/resnet10t", 10, 64, drop_rate=0.3).drop_rate == 0.3
        with pytest.raises(ZooError, match="cannot be built"):
            create_model("torchvision/resnet18", 10, 64, no_such_option=1)


@pytest.mark.parametrize(("name", "dropouts"), [("resnet18", 0), ("alexnet", 2), ("densenet121", 0)])
def test_no_dropout_is_what_every_model_of_torchvision_can_have(name: str, dropouts: int) -> None:
    with torch.device("meta"):
        model = create_model(f"torchvision/{name}", 10, 224, drop_rate=0.0)
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)] == [0.0] * dropouts
