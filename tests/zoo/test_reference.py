"""The same random weights give torchvision's and timm's logits: our networks are theirs, to the last operation."""

import re

import pytest
import torch
from torch import nn

from zoo import create_model, list_models, model_info
from zoo.external import load_reference_weights
from zoo.info import ZooError

REFERENCES = [name for name in list_models() if model_info(name).weights]
PERIOD = 999_983  # a prime, so that the repeated numbers fall differently on every row


def fill(reference: nn.Module) -> dict[str, torch.Tensor]:
    """Random weights for a model on the meta device, scaled so that activations neither vanish nor explode.

    A hundred million random numbers take longer than the test: one stretch of them is repeated.
    """
    numbers = torch.randn(PERIOD, generator=torch.Generator().manual_seed(1))
    state = {}
    for key, tensor in reference.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.long)
            continue
        values = numbers.repeat(tensor.numel() // PERIOD + 1)[: tensor.numel()].view(tensor.shape)
        if tensor.dim() > 1:
            state[key] = values * (2 / tensor[0].numel()) ** 0.5
        elif key.endswith("running_var"):
            state[key] = 0.5 + values.abs()
        elif key.endswith("weight"):
            state[key] = 1 + 0.1 * values
        else:
            state[key] = 0.1 * values
    return state


def translate(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    names = getattr(type(model), "reference_keys", {})
    translated = {}
    for key, value in state.items():
        for pattern, replacement in names.items():
            key = re.sub(pattern, replacement, key)
        translated[key] = value
    return translated


@pytest.mark.parametrize(("num_classes", "sizes"), [(10, (97, 128)), (37, (160,))])
@pytest.mark.parametrize("name", REFERENCES)
def test_logits_equal_the_reference(name: str, num_classes: int, sizes: tuple[int, ...]) -> None:
    info = model_info(name)
    if num_classes == 37 and not info.representative:
        pytest.skip("one or two networks of each family are enough a second time")
    assert info.weights is not None
    with torch.device("meta"):
        reference = create_model(info.weights, num_classes, info.input_size).eval()
        ours = create_model(name, num_classes, info.input_size).eval()
    state = fill(reference)
    reference.load_state_dict(state, assign=True)
    ours.load_state_dict(translate(state, ours), assign=True)
    for size in sizes:
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            expected, got = reference(images), ours(images)
        if isinstance(expected, torch.Tensor):
            expected, got = {"out": expected}, {"out": got}
        assert got.keys() == expected.keys()
        for head, logits in expected.items():
            assert logits.std() > 1e-3  # logits that say nothing would be equal too
            torch.testing.assert_close(got[head], logits, atol=1e-5, rtol=0)


def test_unknown_reference_weights_are_refused_without_a_download() -> None:
    with pytest.raises(ZooError, match="no model 'resnet51'"):
        load_reference_weights("torchvision/resnet51")
