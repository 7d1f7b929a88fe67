"""What a run answered for each test image: stored by the run, small, and read again by the report."""

import numpy as np
import pytest
import torch

from bench.records import read_records
from bench.runs.predictions import save_predictions
from bench.training.evaluation import Predictions, evaluate


class Batches:
    """Two batches of fixed images."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def in_order(self):
        yield from zip(self.images.split(3), self.labels.split(3), strict=True)


def test_evaluation_keeps_each_images_answer_and_its_probability() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [0, 1, 0], [5, 0, 0]])
    found = evaluate(torch.nn.Identity(), Batches(logits, torch.tensor([0, 1, 2, 0, 1])), 3)
    assert found.top1 == 0.6
    assert found.predictions.labels.tolist() == [0, 1, 2, 0, 1]
    assert found.predictions.predicted.tolist() == [0, 1, 2, 1, 0]
    torch.testing.assert_close(found.predictions.confidence, logits.softmax(1).max(1).values)


def test_pixels_have_no_predictions_of_their_own() -> None:
    maps = torch.zeros(2, 3, 4, 4)
    assert evaluate(torch.nn.Identity(), Batches(maps, torch.zeros(2, 4, 4, dtype=torch.long)), 3).predictions is None


def _predictions(labels: list[int], predicted: list[int]) -> Predictions:
    return Predictions(torch.tensor(labels), torch.tensor(predicted), torch.rand(len(labels)))


def test_thumbnails_are_of_the_images_that_every_run_gets_wrong(tmp_path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 48, 96), dtype=np.uint8)
    labels = [0, 1, 2, 300, 1]
    for run, predicted in (("a", [1, 0, 2, 1, 0]), ("b", [1, 0, 0, 300, 1]), ("c", [2, 1, 2, 300, 1])):
        save_predictions(str(tmp_path), run, _predictions(labels, predicted), images, "ab")
    save_predictions(str(tmp_path), "others", _predictions(labels, labels), images, "of another data set")
    ours, theirs = sorted((tmp_path / "predictions" / "images").glob("*.npz"), key=lambda p: -np.load(p)["index"].size)
    assert np.load(ours)["index"].tolist() == [0]
    assert np.load(ours)["images"].shape == (1, 3, 16, 32)
    assert np.load(ours)["images"].mean() == pytest.approx(images[0].mean(), abs=2)
    assert np.load(theirs)["images"].size == 0
    assert np.load(tmp_path / "predictions" / "a.npz")["predicted"].dtype == np.uint16  # class 300


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive"])
def test_a_damaged_neighbour_counts_as_absent(tmp_path, content) -> None:
    images = np.zeros((3, 3, 32, 32), dtype=np.uint8)
    save_predictions(str(tmp_path), "a", _predictions([0, 1, 2], [1, 1, 2]), images, "ab")
    (tmp_path / "predictions" / "b.npz").write_bytes(content)
    save_predictions(str(tmp_path), "c", _predictions([0, 1, 2], [1, 0, 2]), images, "ab")
    (thumbnails,) = (tmp_path / "predictions" / "images").glob("*.npz")
    assert np.load(thumbnails)["index"].tolist() == [0]


def test_ten_thousand_answers_take_thirty_kilobytes(tmp_path) -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (10_000,), generator=rng)
    predicted = torch.where(torch.rand(10_000, generator=rng) < 0.9, labels, (labels + 1) % 10)
    answers = Predictions(labels, predicted, torch.rand(10_000, generator=rng))
    save_predictions(str(tmp_path), "a", answers, np.zeros((10_000, 3, 32, 32), dtype=np.uint8), "ab")
    assert (tmp_path / "predictions" / "a.npz").stat().st_size < 30_000


def test_from_a_run_to_the_page(tmp_path, zoobench_here) -> None:
    """Two models with a seed each, trained on digits: the report compares them by their answers."""
    from reports.data.loading import load_runs
    from reports.data.predictions import load_answers

    command = (
        "run quick --models lenet5,simple_cnn --data digits --recipe quick --epochs 1 --seeds 0 --limit-train 200 "
        "--limit-test 50 --set measure.seconds=0.1 --set measure.probes=false"
    )
    done = zoobench_here(*command.split(), "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the weights of each model's first seed" in " ".join(done.stdout.split())
    records, _ = read_records(tmp_path)
    for record in records:
        with np.load(tmp_path / "predictions" / f"{record.run_id}.npz") as stored:
            counted = np.zeros((10, 10))
            np.add.at(counted, (stored["labels"], stored["predicted"]), 1)
        assert counted.tolist() == record.samples["test_confusion"]
    (answers,) = load_answers(tmp_path, load_runs(tmp_path)).values()
    assert answers.models == ["lenet5", "simple_cnn"]
    assert set(answers.thumbnails) == set(answers.wrong_in_all()[:24])
