"""Published results of timm beside ours: its files as they are, and files that are something else."""

import math

import pytest

from bench.errors import ConfigError
from reports.data.published import load_published, match_published
from reports.data.report_data import load_report_data
from reports.figures.comparison import plot_accuracy_against, plot_roofline
from reports.pages.snapshot import take_snapshot
from reports.pages.verify import verify_page
from reports.report import write_report

SPEED = """\
model,infer_img_size,infer_samples_per_sec,infer_step_time,infer_batch_size,param_count,infer_gmacs,infer_macts
resnet18,160,35956.09,14.229,512,11.69,0.93,1.27
resnet18,224,18247.43,28.048,512,11.69,1.82,2.48
eva_giant_patch14_336,336,74.64,850.0,64,"1,013.01",620.64,550.67
"""
ACCURACY = """\
model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation
resnet18.fb_swsl_ig1b_ft_in1k,73.288,26.712,91.730,8.270,11.69,224,0.875,bilinear
resnet18.a1_in1k,71.498,28.502,90.086,9.914,11.69,224,0.950,bicubic
"""


@pytest.fixture
def files(tmp_path):
    paths = tmp_path / "benchmark-infer-amp.csv", tmp_path / "results-imagenet.csv"
    for path, text in zip(paths, (SPEED, ACCURACY), strict=True):
        path.write_text(text)
    return paths


def test_numbers_come_in_our_units(files):
    published = load_published(files)
    assert [file["kind"] for file in published.files] == ["speed", "accuracy"]
    giant = published.rows[2]
    assert (giant.params, giant.macs, giant.activations) == pytest.approx((1013.01e6, 620.64e9, 550.67e6))
    assert (giant.throughput_img_per_s, giant.batch_size, giant.input_size) == (74.64, 64, 336)
    assert published.rows[3].top1 == pytest.approx(0.73288)


@pytest.mark.parametrize(
    "model",
    ["resnet18", "timm/resnet18.a1_in1k", "torchvision/resnet18", "resnet18,drop_rate=0.1", "resnet18 [best.pth]"],
)
def test_a_model_is_matched_by_its_architecture_at_the_nearest_size(files, model):
    published = load_published(files)
    for size, speed in ((32.0, 35956.09), (224.0, 18247.43), (math.nan, 35956.09)):
        found = match_published(published, {model: size, "lenet5": 32.0})
        assert list(found["models"]) == [model]
        assert found["models"][model]["speed"]["throughput_img_per_s"] == speed
        assert found["models"][model]["accuracy"]["top1"] == pytest.approx(0.73288)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no columns"),
        ("some words\nand a line, with, commas\n", "found some words"),
        ("a,b\n1,2\n", r"lacks the columns .*Expected model, infer_img_size"),
        (SPEED.replace("infer_samples_per_sec", "infer_samples_per_second"), "Did you mean 'infer_samples_per_second'"),
        (SPEED.replace("18247.43", "fast"), r"line 3 of .*infer_samples_per_sec = 'fast' is not a number"),
        (SPEED.replace("18247.43", "nan"), r"line 3 of .*is not a number"),
        ("model,infer_img_size,infer_samples_per_sec,infer_batch_size,param_count\nresnet18,224\n", "= None is not"),
        (b"\xff\xfe\x00", "not CSV in UTF-8"),
    ],
)
def test_a_file_that_is_none_of_timms_says_why(tmp_path, text, message):
    path = tmp_path / "numbers.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        load_published([path])


def test_a_file_that_is_missing_says_so(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_published([tmp_path / "none.csv"])


def test_a_page_with_published_numbers_marks_them_as_others_and_verifies(zoo_results, files, tmp_path):
    page = write_report(zoo_results, tmp_path / "report", beside=files)[0]
    text = page.read_text()
    assert "Inference, published (images/s)" in text
    assert "36,000 at 160 px" in text
    assert "73.29 at 224 px" in text
    assert "measured by others" in text
    assert "published, on others&#39; machines" in text or "published, on others' machines" in text
    verified = verify_page(page, zoo_results)
    assert verified.ok, verified.problems
    page.write_text(text.replace("36,000 at 160 px", "46,000 at 160 px"))
    assert any("published" in problem for problem in verify_page(page, zoo_results).problems)
    without = write_report(zoo_results, tmp_path / "plain")[0].read_text()
    assert "published (images/s)" not in without


def test_hollow_points_stand_at_our_accuracy_and_their_speed(zoo_results, files):
    data = load_report_data(zoo_results, files)
    speeds = {"resnet18": 35956.09, "nothing": 1.0}
    figure = plot_accuracy_against(data.table, "throughput_img_per_s", published=speeds)
    (hollow,) = [each for each in figure.axes[0].collections if each.get_gid() == "published"]
    shown = [point for point in hollow.get_offsets().filled(math.nan).tolist() if not math.isnan(point[0])]
    own = data.table[data.table.model == "resnet18"].test_top1.item()
    assert shown == [pytest.approx([35956.09, 100 * own])]
    assert figure.axes[0].get_xlim()[1] > 35956.09

    speed = take_snapshot(data)["published"]["models"]["resnet18"]["speed"]
    pair = (speed["macs"] / speed["activations"], speed["macs"] * speed["throughput_img_per_s"])
    figure = plot_roofline(data.table, 1e11, [pair])
    (hollow,) = [each for each in figure.axes[0].collections if each.get_gid() == "published"]
    assert hollow.get_offsets().tolist() == [pytest.approx([0.93e9 / 1.27e6, 0.93 * 35956.09])]
