"""What single runs answered, from the files that a run writes to the ranks of a leaderboard."""

import numpy as np
import pytest
import torch

from bench.runs.predictions import save_predictions
from bench.training.evaluation import Predictions
from reports.data.leaderboard import leaderboard, separations, to_markdown
from reports.data.loading import load_runs
from reports.data.predictions import compare_images, load_answers
from reports.pages.verify import verify_page
from reports.report import write_report

IMAGES = 400
WRONG = {"good": range(20), "middling": range(60), "alike": range(5, 67), "poor": range(200)}


def _store(folder, run_id: str, wrong, *, data: str = "ab", labels=None) -> None:
    labels = torch.arange(IMAGES) % 4 if labels is None else labels
    predicted = labels.clone()
    predicted[list(wrong)] = (labels[list(wrong)] + 1) % 4
    images = np.arange(IMAGES * 3 * 4, dtype=np.uint32).reshape(IMAGES, 3, 2, 2).astype(np.uint8)
    save_predictions(str(folder), run_id, Predictions(labels, predicted, torch.full((IMAGES,), 0.75)), images, data)


@pytest.fixture
def one_seed(save, make_record):
    """A results folder of four models, one seed of each, with what they answered."""
    records = [
        make_record(model, run_id=model, metrics={"test_top1": 1 - len(wrong) / IMAGES, "macs": 10})
        for model, wrong in WRONG.items()
    ]
    folder = save(records)
    for model, wrong in WRONG.items():
        _store(folder, model, wrong)
    return folder


def test_answers_are_read_as_they_were_stored(one_seed) -> None:
    ((setting, answers),) = load_answers(one_seed, load_runs(one_seed)).items()
    assert setting.startswith("digits")
    assert sorted(answers.models) == sorted(WRONG)
    assert answers.labels.tolist() == [k % 4 for k in range(IMAGES)]
    assert answers.confidence.max() == answers.confidence.min() == 0.75
    assert answers.wrong_in_all().tolist() == list(range(5, 20))
    assert sorted(answers.thumbnails) == list(range(5, 20))
    assert answers.thumbnails[5].tolist() == (np.arange(60, 72) % 256).reshape(3, 2, 2).tolist()


def test_one_seed_of_each_is_ranked_image_by_image(one_seed) -> None:
    runs = load_runs(one_seed)
    images = compare_images(one_seed, runs)
    pairs = separations(runs, runs.setting[0], images).set_index(["a", "b"])
    assert pairs.loc[("good", "middling"), ["only_a", "only_b"]].tolist() == [40, 0]
    assert pairs.loc[("middling", "alike"), ["only_a", "only_b", "separated"]].tolist() == [7, 5, False]
    table = leaderboard(runs, images).set_index("model")
    assert table["rank"].to_dict() == {"good": 1, "middling": 2, "alike": 2, "poor": 4}
    assert set(table.rank_basis) == {"images"}
    assert "the weights of each model's first seed, not the architectures" in to_markdown(leaderboard(runs, images))
    assert set(leaderboard(runs).rank_basis) == {"order"}


def test_seeds_go_before_images(one_seed, make_record) -> None:
    from bench.records import save_record

    for model, accuracy in (("good", 0.951), ("poor", 0.502)):
        save_record(make_record(model, 1, run_id=f"{model}-1", metrics={"test_top1": accuracy}), one_seed)
    runs = load_runs(one_seed)
    table = leaderboard(runs, compare_images(one_seed, runs)).set_index("model")
    assert table.rank_basis.to_dict() == {"good": "seeds", "poor": "seeds", "middling": "order", "alike": "order"}


def test_agreement_counts_equal_answers_right_or_wrong(one_seed) -> None:
    (comparison,) = compare_images(one_seed, load_runs(one_seed)).values()
    i, j = comparison.models.index("good"), comparison.models.index("alike")
    assert comparison.agreeing[i][i] == IMAGES
    assert comparison.agreeing[i][j] == comparison.agreeing[j][i] == IMAGES - 5 - 47


@pytest.mark.parametrize("damage", ["missing", "torn", "another accuracy", "another test set", "another shape"])
def test_a_file_that_cannot_be_used_leaves_the_setting_untested(one_seed, damage: str) -> None:
    path = one_seed / "predictions" / "poor.npz"
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "another shape":
        np.savez(path, labels=np.zeros((2, 2)), predicted=np.zeros(3), confidence=np.zeros(1))
    else:
        _store(one_seed, "poor", WRONG["good" if "accuracy" in damage else "poor"], data="cd")
    runs = load_runs(one_seed)
    images = compare_images(one_seed, runs)
    assert sorted(images[runs.setting[0]].models) == ["alike", "good", "middling"]
    assert set(leaderboard(runs, images).rank_basis) == {"order"}


def test_runs_without_predictions_are_no_error(zoo_results) -> None:
    assert compare_images(zoo_results, load_runs(zoo_results)) == {}


def test_the_page_says_that_one_seed_speaks_of_these_weights(one_seed, tmp_path) -> None:
    page = write_report(one_seed, tmp_path / "out")[0]
    text = page.read_text(encoding="utf-8")
    assert "this speaks of these weights only, and others may turn the order" in text
    assert "middling alone is right on 7 images, alike alone on 5" in text
    assert '<figure id="agreement">' in text
    assert "All 4 models, one seed each, get 15 test images of 400 wrong; shown are 12." in text
    assert verify_page(page, one_seed).problems == []
    (one_seed / "predictions" / "good.npz").unlink()
    assert any("comparisons" in problem for problem in verify_page(page, one_seed).problems)
