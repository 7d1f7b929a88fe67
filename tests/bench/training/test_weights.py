import torch

import zoo
from bench.training.dense import ImageLogits
from bench.training.weights import renew_head


def saved(tmp_path, name, classes):
    path = tmp_path / "weights.pt"
    torch.save(zoo.create_model(name, classes).state_dict(), path)
    return path


def spread(layer):
    """The deviation of a layer's weights over that of ``nn.Linear`` or ``nn.Conv2d``: uniform in ±1/sqrt(fan in)."""
    return float(layer.weight.detach().std() * (3 * layer.weight[0].numel()) ** 0.5)


def test_a_head_that_the_weights_do_not_have_begins_as_a_fresh_linear_layer(tmp_path):
    name = "timm/tf_efficientnet_lite0"
    model = zoo.create_model(name, 10, pretrained=saved(tmp_path, name, 7))
    assert spread(model.classifier) > 2  # timm draws weights much larger, for training from scratch
    backbone = model.conv_stem.weight.clone()
    renew_head(model, always=False)
    assert abs(spread(model.classifier) - 1) < 0.05
    assert torch.equal(model.conv_stem.weight, backbone)


def test_a_head_that_fits_is_kept_unless_a_fresh_one_is_wanted(tmp_path):
    path = saved(tmp_path, "simple_cnn", 10)
    model = zoo.create_model("simple_cnn", 10, pretrained=path)
    loaded = model.fc.weight.clone()
    renew_head(model, always=False)
    assert torch.equal(model.fc.weight, loaded)
    renew_head(model, always=True)
    assert not torch.equal(model.fc.weight, loaded)


def test_the_head_of_a_segmentation_network_that_answers_for_images_is_found():
    model = ImageLogits(zoo.create_model("fcn_resnet18", 3))
    before = {name: value.clone() for name, value in model.named_parameters()}
    renew_head(model, always=True)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {f"network.{name}.{part}" for name, part in HEAD}


HEAD = [("classifier.4", "weight"), ("classifier.4", "bias")]


def test_a_fixed_head_stays():
    model = zoo.create_model("lenet5_1998", 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    renew_head(model, always=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
