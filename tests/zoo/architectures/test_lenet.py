import pytest
import torch

from bench.counting.complexity import count_params
from zoo import ZooError, create_model
from zoo.architectures.lenet import C3_INPUTS, LeNet5Original, ScaledTanh, output_codes
from zoo.pretrained import replace_head


def test_lenet5_of_one_channel_has_the_textbook_count() -> None:
    assert count_params(create_model("lenet5", in_chans=1)) == 61_706


def test_lenet5_1998_has_the_layers_of_the_paper() -> None:
    model = create_model("lenet5_1998", in_chans=1)
    assert isinstance(model, LeNet5Original)
    counts = {name: count_params(getattr(model, name)) for name in ("c1", "s2", "c3", "s4", "c5", "f6", "output")}
    assert counts == {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164, "output": 0}
    assert model.count_connections() == 340_908


def test_c3_sees_what_table_one_says() -> None:
    # Columns of the table: the maps of S2 that each of the sixteen maps of C3 combines.
    table = "012 123 234 345 045 015 0123 1234 2345 0345 0145 0125 0134 1245 0235 012345"
    assert ["".join(map(str, chans)) for chans in C3_INPUTS] == table.split()


def test_scaled_tanh_keeps_one_at_one() -> None:
    torch.testing.assert_close(ScaledTanh()(torch.tensor([1.0, -1.0])), torch.tensor([1.0, -1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_output_codes_are_distinct_signs(num_classes: int) -> None:
    codes = output_codes(num_classes)
    assert codes.shape == (num_classes, 84)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    assert len({tuple(code) for code in codes.tolist()}) == num_classes
    assert torch.equal(codes, output_codes(num_classes))


def test_output_is_the_negative_squared_distance_to_the_codes() -> None:
    model = create_model("lenet5_1998")
    logits = model.output(model.output.codes[3:4])
    assert logits[0, 3] == 0
    assert logits.argmax() == 3


@pytest.mark.parametrize("name", ["lenet5", "lenet5_1998"])
def test_small_digits_are_centred_in_a_field_of_32(name: str) -> None:
    model = create_model(name, input_size=28, in_chans=1).eval()
    digits = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(model(digits), model(torch.nn.functional.pad(digits, [2] * 4)))


def test_the_paper_s_head_cannot_be_replaced() -> None:
    with pytest.raises(ZooError, match="fixed"):
        replace_head(create_model("lenet5_1998"), 5)
