"""Evaluating weights that exist: those of our own runs, and those of another project by its own code."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Compose, Normalize, ToTensor

import zoo
from bench.config import MeasureConfig, load_plan
from bench.data.corruptions import CORRUPTIONS, corrupt
from bench.data.sources import limit, load_dataset
from bench.errors import ConfigError, ModelError
from bench.records import find_stored, save_record
from bench.runs.evaluation import EvaluationRun
from bench.runs.resolve_evaluation import EvaluationRequest, parse_statistics, resolve_evaluation
from bench.runs.runner import run_plan
from reports.data.leaderboard import leaderboard
from reports.data.loading import load_runs
from reports.data.predictions import compare_images
from reports.pages.verify import verify_page
from reports.report import write_report

NO_PROBES = MeasureConfig(seconds=0.1, batch_size=4, probes=False)


def evaluate(model, weights, results, data="digits", *, allow_fresh_head=False, **asked):
    request = EvaluationRequest(
        model=model, weights=str(weights), data=data, results=str(results), threads=1, **{"measure": NO_PROBES} | asked
    )
    config, dataset, _ = resolve_evaluation(request)
    run = EvaluationRun(config, dataset, str(results))
    run.load(allow_fresh_head=allow_fresh_head)
    record = run.to_record()
    assert record.error is None, record.error.traceback
    save_record(record, results)
    return record


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on digits that kept its weights, with an option of the builder and a mirrored test from its recipe."""
    results = tmp_path_factory.mktemp("results")
    recipe = {"base": "quick", "batch_norm": False, "test_flip": True}
    plan = load_plan(
        "quick",
        {"measure": {"seconds": 0.1, "batch_size": 4, "probes": False}, "models": ["simple_cnn"], "threads": 1}
        | {"recipe": recipe, "limit_train": 160, "limit_test": 60, "budget": {"epochs": 1}},
    )
    (record,) = run_plan(plan, str(results), save_weights=True).records
    assert record.status == "completed", record.error
    return results, record


def test_the_weights_of_a_run_give_what_its_record_says(trained):
    results, record = trained
    for weights in (record.run_id, results / "weights" / f"{record.run_id}.safetensors"):
        again = evaluate("simple_cnn", weights, results, limit_test=60)
        assert again.status == "completed"
        assert again.metrics["test_top1"] == record.metrics["test_top1"]
        assert again.metrics["weights_sha256"] == record.metrics["weights_sha256"]
        assert again.samples["test_confusion"] == record.samples["test_confusion"]
        assert again.metrics["params"] == record.metrics["params"]
        assert again.config["test_flip"]
        assert again.config["budget"] is None
        assert len(again.environment["weights"]["loaded"]) == record_tensors(results, record)
    probed = MeasureConfig(seconds=0.1, batch_size=4)
    on_val = evaluate("simple_cnn", record.run_id, results, split="val", measure=probed)
    assert on_val.metrics["val_top1"] == record.metrics["val_top1"]
    assert "test_top1" not in on_val.metrics
    assert [flag.kind for flag in on_val.flags if flag.kind == "no_probes"] == []
    with np.load(find_stored(str(results), "probes", on_val.run_id)) as probes:
        assert len(probes["map_images"]) > 0
        assert (probes["layer_seconds"] > 0).all()


def record_tensors(results, record):
    return len(load_file(results / "weights" / f"{record.run_id}.safetensors"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two checkpoints of one architecture that differ by noise, in one results folder."""
    folder = tmp_path_factory.mktemp("evaluations")
    torch.manual_seed(0)
    network = zoo.create_model("simple_cnn")
    records = []
    for name in ("first.pth", "second.pth"):
        torch.save(network.state_dict(), folder / name)
        records.append(evaluate("simple_cnn", folder / name, folder, normalization="data", limit_test=100))
        with torch.no_grad():
            network.fc.bias += torch.linspace(-0.3, 0.3, 10)
    return folder, records


def test_two_checkpoints_of_a_model_are_two_rows_and_are_compared_image_by_image(evaluated):
    folder, records = evaluated
    runs = load_runs(folder)
    assert sorted(runs.model) == ["simple_cnn [first.pth]", "simple_cnn [second.pth]"]
    assert runs.setting.nunique() == 1
    compared = compare_images(folder, runs)
    (own,) = compared.values()
    assert own.images == 100
    table = leaderboard(runs, compared)
    assert set(table.rank_basis) <= {"images", "order"}
    assert set(table.test_top1) == {record.metrics["test_top1"] for record in records}


def test_checkpoints_whose_files_are_called_alike_are_not_seeds_of_one_model(evaluated, tmp_path):
    folder, _ = evaluated
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / f"{name}.pth", tmp_path / name / "best.pth")
        evaluate("simple_cnn", tmp_path / name / "best.pth", tmp_path, normalization="data", limit_test=100)
    runs = load_runs(tmp_path)
    table = leaderboard(runs, compare_images(tmp_path, runs))
    assert len(table) == 2
    assert set(table.seeds) == {1}
    assert all(name.startswith("simple_cnn [best.pth ") for name in table.model)
    assert set(table.rank_basis) <= {"images", "order"}


def test_the_report_of_an_evaluation_has_its_page_and_verifies(evaluated, tmp_path):
    folder, _ = evaluated
    probed = MeasureConfig(seconds=0.1, batch_size=4)
    record = evaluate(
        "simple_cnn", folder / "first.pth", tmp_path, normalization="data", limit_test=40, measure=probed, speed=True
    )
    assert record.metrics["throughput_img_per_s"] > 0
    assert "train_throughput_img_per_s" not in record.metrics
    card = json.loads(Path(find_stored(tmp_path, "cards", record.run_id)).read_text())
    assert card["params"] == record.metrics["params"]
    page, *others = write_report(tmp_path, tmp_path / "report")
    assert any("simple_cnn" in path.name and path.suffix == ".html" for path in others)
    assert verify_page(page, tmp_path).ok
    assert "simple_cnn [first.pth]" in page.read_text()


def test_what_is_not_known_or_would_be_random_is_refused(trained, evaluated, tmp_path):
    (results, record), (folder, _) = trained, evaluated
    weights = folder / "first.pth"
    with pytest.raises(ConfigError, match="do not say how their images were normalised"):
        evaluate("simple_cnn", weights, tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'imagenet'"):
        evaluate("simple_cnn", weights, tmp_path, normalization="imagnet")
    with pytest.raises(ConfigError, match="--mean and --std are given together"):
        evaluate("simple_cnn", weights, tmp_path, mean=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match=r"'simple_cnn'.*'lenet5' was asked for"):
        evaluate("lenet5", record.run_id, results)
    with pytest.raises(ConfigError, match=f"Did you mean '{record.run_id}'"):
        evaluate("simple_cnn", record.run_id[:-2], results)
    with pytest.raises(ConfigError, match="there is no file"):
        evaluate("simple_cnn", tmp_path / "none.pth", tmp_path)
    three = {"data": "digits", "classes": ("0", "1", "2"), "normalization": "data"}
    with pytest.raises(ConfigError, match=r"left as initialised: fc\.weight.*--allow-fresh-head"):
        evaluate("simple_cnn", weights, tmp_path, **three)
    fresh = evaluate("simple_cnn", weights, tmp_path, allow_fresh_head=True, **three)
    assert fresh.environment["weights"]["fresh"] == ("fc.weight", "fc.bias")


@pytest.mark.parametrize("text", ["", "a", "0.5,0.5", "125,123,114", "-0.1"])
def test_a_mean_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--mean"):
        parse_statistics(text, "--mean")


def test_one_number_stands_for_all_channels_and_a_deviation_is_not_zero():
    assert parse_statistics("0.5", "--std") == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="--std"):
        parse_statistics("0.2,0,0.2", "--std")


def test_outputs_that_are_no_logits_are_a_users_error(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.architectures.simple_cnn.SimpleCNN.forward", lambda self, x: [x])
    torch.save(zoo.create_model("simple_cnn").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="list"):
        evaluate("simple_cnn", tmp_path / "w.pth", tmp_path, normalization="data")


def test_logits_that_are_not_finite_are_no_result(tmp_path):
    state = zoo.create_model("simple_cnn").state_dict()
    state["fc.bias"][3] = torch.nan
    torch.save(state, tmp_path / "w.pth")
    record = evaluate("simple_cnn", tmp_path / "w.pth", tmp_path, normalization="data", limit_test=20)
    assert record.status == "diverged"
    assert "test_top1" not in record.metrics
    assert any(flag.kind == "not_finite" for flag in record.flags)


def test_corruptions_are_evaluated_at_each_severity_and_computed_once(evaluated, tmp_path, monkeypatch):
    folder, _ = evaluated
    asked = {"normalization": "data", "limit_test": 20, "corruptions": True}
    record = evaluate("simple_cnn", folder / "first.pth", tmp_path, **asked)
    shares = np.array(record.samples["corruption_top1"])
    assert shares.shape == (15, 5)
    assert record.metrics["corruption_top1"] == pytest.approx(shares.mean())
    assert record.environment["corruptions"]["names"] == list(CORRUPTIONS)
    assert set(record.environment["corruptions"]["sha256"]) == set(CORRUPTIONS)
    for name in CORRUPTIONS:
        monkeypatch.setitem(CORRUPTIONS, name, None)  # whoever computes again fails
    assert evaluate("simple_cnn", folder / "first.pth", tmp_path, **asked).samples == record.samples

    dataset = load_dataset("digits")
    images = dataset.test.images[limit(len(dataset.test), 20)]
    with pytest.raises(TypeError, match="not callable"):
        corrupt(images, "contrast", "other images")


class Block(nn.Module):
    """A basic block with the shortcut A of akamaster/pytorch_resnet_cifar10: padded on both sides."""

    def __init__(self, in_planes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pad = planes // 4 if stride != 1 else None

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad is not None:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class AuthorsResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.size()[3]).flatten(1))


def authors_images(folder, split, indices):
    """Images and labels as the authors' own loader gives them: decoded by Pillow, ToTensor, ImageNet's statistics."""
    (file,) = sorted(folder.glob(f"**/{split}-*.parquet"))
    table = pyarrow.parquet.read_table(file).take(np.asarray(indices)).to_pydict()
    (pictures,) = (column for column in table.values() if isinstance(column[0], dict))
    (labels,) = (column for column in table.values() if isinstance(column[0], int))
    prepare = Compose([ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    images = [prepare(Image.open(io.BytesIO(each["bytes"])).convert("RGB")) for each in pictures]
    return torch.stack(images), torch.tensor(labels)


def test_a_checkpoint_of_another_zoo_gives_the_number_of_its_authors_own_code(cifar10_jpeg, tmp_path):
    torch.manual_seed(0)
    network = AuthorsResNet20()
    optimizer = torch.optim.SGD(network.parameters(), 0.03, momentum=0.9)
    images, labels = authors_images(cifar10_jpeg, "train", range(0, 40_960, 32))
    network.train()
    for step in range(60):
        batch = slice(step * 64 % 1_280, step * 64 % 1_280 + 64)
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet20.th")

    images, labels = authors_images(cifar10_jpeg, "test", limit(10_000, 2_000))
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(128)])
    right = int((logits.argmax(1) == labels).sum())
    assert right > 400  # it has learned something, or equality would say little

    def evaluate_here(model):
        return evaluate(
            model,
            tmp_path / "resnet20.th",
            tmp_path,
            f"parquet:{cifar10_jpeg}",
            normalization="imagenet",
            limit_test=2_000,
        )

    record = evaluate_here("resnet20,shortcut_padding=both")
    assert record.metrics["test_top1"] * 2_000 == right
    assert evaluate_here("resnet20").metrics["test_top1"] * 2_000 == right  # the file's layout says it
    assert evaluate_here("resnet20,shortcut_padding=end").metrics["test_top1"] * 2_000 != right
