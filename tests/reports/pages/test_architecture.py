import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

from bench.errors import RecordError
from reports.figures import anatomy
from reports.pages.architecture import page_name, write_architecture_report
from reports.pages.verify import verify_page, verify_report
from reports.report import write_report

LAYERS = [
    {"name": "stem.conv", "kind": "Conv2d", "params": 432, "macs": 442_368, "activations": 16_384,
     "output_shape": [16, 32, 32], "receptive_field": 3},
    {"name": "stem.relu", "kind": "ReLU", "params": 0, "macs": 0, "activations": 0, "output_shape": [16, 32, 32],
     "receptive_field": 3},
    {"name": "body.0.conv", "kind": "Conv2d", "params": 4_608, "macs": 1_179_648, "activations": 8_192,
     "output_shape": [32, 16, 16], "receptive_field": 5},
    {"name": "body.1.conv", "kind": "Conv2d", "params": 512, "macs": 131_072, "activations": 8_192,
     "output_shape": [32, 16, 16], "receptive_field": 3},
    {"name": "head", "kind": "Linear", "params": 330, "macs": 320, "activations": 10, "output_shape": [10],
     "receptive_field": None},
]  # fmt: skip
CARD = {
    "name": "lenet5", "paper": "LeCun 1998 <b>", "year": 1998, "params": 5_882, "macs": 1_753_408,
    "activations": 32_778, "receptive_field": 5, "input_size": 32, "in_chans": 3, "layers": LAYERS,
    "small_image": "nothing changes",
}  # fmt: skip


def _probes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "kernels": rng.normal(size=(6, 3, 5, 5)).astype(np.float32),
        "map_layers": np.array(["stem.relu", "body.0.conv"]),
        "map_images": rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8),
        "maps_0": rng.normal(size=(2, 4, 32, 32)).astype(np.float16),
        "maps_1": rng.normal(size=(2, 4, 16, 16)).astype(np.float16),
        "cam_images": rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8),
        "cam_heat": rng.random((3, 16, 16)).astype(np.float16),
        "cam_label": np.array([0, 1, 3]), "cam_predicted": np.array([0, 1, 2]),
        "cam_confidence": np.array([0.9, 0.5, 0.7]),
        "layer_names": np.array(["stem.conv", "body.0.conv", "head"]),
        "layer_seconds": np.array([0.001, 0.003, 0.0005]),
    }  # fmt: skip


@pytest.fixture
def results(zoo_results, tmp_path):
    """The small zoo with a card and probes beside one record of lenet5."""
    folder = tmp_path / "results"
    shutil.copytree(zoo_results, folder)
    (folder / "runs" / "lenet5-s0-000000000000.card.json").write_text(json.dumps(CARD))
    np.savez_compressed(folder / "runs" / "lenet5-s0-000000000000.probes.npz", **_probes())
    return folder


def test_the_page_shows_the_card_the_layers_and_what_it_looked_at(results, tmp_path) -> None:
    page = write_architecture_report(results, "lenet5", tmp_path / "out")
    assert page == tmp_path / "out" / "models" / "lenet5.html"
    text = page.read_text(encoding="utf-8")
    for name in ("place", "stages", "shares", "field", "kernels", "maps0", "maps1", "cam"):
        assert f'<figure id="{name}">' in text
    for shown in ("LeCun 1998 &lt;b&gt;", "body.0.conv", "4,608", "32×16×16", "3×32×32", "nothing changes", "3.00"):
        assert shown in text


def test_the_leaderboard_leads_to_the_page_and_back(results, tmp_path) -> None:
    written = write_report(results, tmp_path)
    assert written[-1] == tmp_path / "models" / "lenet5.html"
    assert '<a href="models/lenet5.html">' in written[0].read_text(encoding="utf-8")
    assert '<a href="../index.html">' in written[-1].read_text(encoding="utf-8")
    assert verify_page(written[0], results).problems == []


def test_the_page_verifies_and_an_altered_number_is_found(results, tmp_path) -> None:
    page = write_architecture_report(results, "lenet5", tmp_path / "out")
    found = verify_page(page, results)
    assert found.problems == []
    assert found.checked > 500
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(">4,608<", ">4,609<"), encoding="utf-8")
    assert verify_page(page).problems == ["layers: '4,609' should be '4,608'"]
    page.write_text(text, encoding="utf-8")
    odd = _probes() | {"layer_seconds": np.array([0.001, 0.004, 0.0005])}
    np.savez_compressed(results / "runs" / "lenet5-s0-000000000000.probes.npz", **odd)
    assert verify_page(page, results).problems == ["data.probes.layer_seconds: the arrays differ"]


def test_all_pages_of_a_report_are_verified(results, tmp_path) -> None:
    index, *_, page = write_report(results, tmp_path)
    assert verify_report(tmp_path, results).checked > verify_page(index, results).checked + 500
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(">4,608<", ">4,609<"), encoding="utf-8")
    assert verify_report(tmp_path, results).problems == ["models/lenet5: layers: '4,609' should be '4,608'"]
    index.unlink()
    with pytest.raises(RecordError, match="cannot be read"):
        verify_report(tmp_path, results)


def test_the_page_works_in_a_browser(chromium, results, tmp_path) -> None:
    page = write_architecture_report(results, "lenet5", tmp_path / "out")
    chromium.get_log("browser")
    for width in (390, 1440):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.get(page.as_uri())
        root = "document.documentElement"
        assert not chromium.execute_script(f"return {root}.scrollWidth > {root}.clientWidth")
    chromium.find_element("xpath", "//th/button[contains(., 'Parameters')]").click()
    first = chromium.find_element("css selector", "tbody tr th").text
    assert first == "body.0.conv"
    assert chromium.get_log("browser") == []


def test_without_anything_beside_the_record_the_page_says_so(zoo_results, tmp_path) -> None:
    text = write_architecture_report(zoo_results, "resnet18", tmp_path).read_text(encoding="utf-8")
    assert "No card and no probes are stored" in text
    assert '<figure id="place">' in text


def test_a_model_alone_has_no_place_among_others(save, make_record, tmp_path) -> None:
    text = write_architecture_report(save([make_record()]), "lenet5", tmp_path / "out").read_text(encoding="utf-8")
    assert "Among the others" not in text


@pytest.mark.parametrize(
    "card", ["", "[]", "{", '{"layers": 3}', '{"layers": [{"name": 5}, 7]}', '{"input_size": "x", "params": NaN}']
)
@pytest.mark.parametrize("probes", [b"", b"PK\x03\x04 torn", b"pickle"])
def test_damage_beside_the_record_does_not_stop_the_report(results, tmp_path, card: str, probes: bytes) -> None:
    (results / "runs" / "lenet5-s0-000000000000.card.json").write_text(card)
    path = results / "runs" / "lenet5-s0-000000000000.probes.npz"
    if probes == b"pickle":
        np.savez(path, kernels=np.array([{"a": 1}], dtype=object), map_layers=np.array(["x"]))
    else:
        path.write_bytes(probes)
    assert write_architecture_report(results, "lenet5", tmp_path / "out").exists()


def test_arrays_of_another_shape_leave_their_figure_out(results, tmp_path) -> None:
    odd = _probes() | {"kernels": np.zeros(3), "maps_0": np.zeros((1, 2)), "cam_label": np.array([9, -1, 99])}
    np.savez_compressed(results / "runs" / "lenet5-s0-000000000000.probes.npz", **odd)
    text = write_architecture_report(results, "lenet5", tmp_path / "out").read_text(encoding="utf-8")
    assert '<figure id="maps1">' in text
    assert '<figure id="cam">' in text


def test_an_unknown_model_gets_a_hint(zoo_results, tmp_path) -> None:
    with pytest.raises(RecordError, match="Did you mean 'resnet18'"):
        write_architecture_report(zoo_results, "resnet81", tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "timm/resnet18", "a b", "", "x" * 999, "é", ".."])
def test_page_names_stay_inside_the_folder_and_differ(name: str) -> None:
    path = page_name(name)
    assert path.startswith("models/")
    assert path.count("/") == 1
    assert len(path) < 100
    assert ".." not in path
    assert path != page_name(name + "!")


def test_layers_have_their_measured_time_and_fold_into_stages() -> None:
    layers = anatomy.layer_table(CARD, _probes())
    assert layers.seconds.tolist()[::2] == [0.001, 0.003, 0.0005]
    assert layers.seconds.isna().tolist() == [False, True, False, True, False]
    stages = anatomy.fold(layers, most=3)
    plain = pd.DataFrame(LAYERS).assign(stage=["stem", "stem", "body", "body", "head"]).groupby("stage", sort=False)
    assert stages.name.tolist() == ["stem", "body", "head"]
    for key in ("params", "macs", "activations"):
        assert stages[key].tolist() == plain[key].sum().tolist()
    assert stages.output_shape.tolist() == plain.output_shape.last().tolist()
    assert anatomy.fold(layers, most=4).name.tolist() == ["stem", "body", "head"]
    assert anatomy.fold(layers, most=5).name.tolist() == ["stem.conv", "stem.relu", "body.0", "body.1", "head"]
    assert anatomy.fold(layers.iloc[:0]).empty


def test_shares_add_up_to_the_whole() -> None:
    axes = anatomy.plot_shares(anatomy.fold(anatomy.layer_table(CARD, _probes()))).axes[0]
    assert len(axes.containers) == 4
    for bars in axes.containers:
        assert sum(bar.get_width() for bar in bars if not math.isnan(bar.get_width())) == pytest.approx(100, abs=1)


def test_the_receptive_field_grows_and_its_branches_are_points() -> None:
    inside = _probes() | {"layer_names": np.array([f"network.{name}" for name in _probes()["layer_names"]])}
    assert anatomy.layer_table(CARD, inside).equals(anatomy.layer_table(CARD, _probes()))  # as one for dense labels
    axes = anatomy.plot_receptive_field(anatomy.layer_table(CARD, {}), 32).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [3, 3, 5, 5]
    assert axes.collections[0].get_offsets()[:, 1].tolist() == [3, 3, 5, 3]
    assert axes.lines[1].get_ydata()[0] == 32
