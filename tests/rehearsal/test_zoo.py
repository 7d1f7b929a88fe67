"""Each network of the zoo on a GPU that is not there."""

import pytest
import torch
from fake_cuda import DEVICE, UPLOAD, fake_cuda
from shallow import shallow_models
from torch import nn

import zoo
from zoo.architectures.lenet import C3_INPUTS, SparseConv


def dense(name):
    return zoo.model_info(name).task == "segmentation"


def forward(model, size=32):
    images = torch.randn(2, 3, size, size, device=DEVICE).to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        outputs = model(images)
    return outputs["out"] if isinstance(outputs, dict) else outputs


@pytest.mark.parametrize("name", shallow_models())
def test_a_forward_pass_copies_nothing_and_is_read_by_nobody(name):
    size = 64 if dense(name) else 32
    with fake_cuda() as watch:
        with DEVICE:
            model = zoo.create_model(name, 10, size)
        assert {tensor.device for tensor in model.state_dict().values()} == {DEVICE}
        watch.seen.clear()
        logits = forward(model.train(), size)
        assert logits.device == DEVICE
        assert not watch.seen


def test_channel_lists_that_are_copied_in_each_forward_pass_are_found(monkeypatch):
    def with_lists(conv, x):
        return torch.cat([one(x[:, list(chans)]) for chans, one in zip(C3_INPUTS, conv.convs, strict=True)], dim=1)

    monkeypatch.setattr(SparseConv, "forward", with_lists)
    with fake_cuda() as watch:
        with DEVICE:
            model = zoo.create_model("lenet5_1998", 10, 32)
        watch.seen.clear()
        forward(model)
        assert watch.seen.total() == len(C3_INPUTS)
        assert {kind for kind, _ in watch.seen} == {UPLOAD}


def test_tensors_of_two_devices_raise():
    class Mixes(nn.Module):
        def forward(self, x):
            return x + torch.ones(32, device="cpu")

    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        forward(Mixes())
