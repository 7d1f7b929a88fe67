"""Published recipes give what they gave: the same seed leads to the same float32 weights, whatever options came since.

Bits depend on the processor's kernels, so hashes are compared where they were written, and losses everywhere.
To write them anew: ``python tests/bench/training/test_published_recipes.py``, and say in the changelog what changed.
"""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch

import zoo
from bench.config import Budget, load_recipe
from bench.data.augment import BatchStream, Normalization
from bench.data.sources import load_dataset
from bench.data.transforms import Augmentation
from bench.machine import describe_machine
from bench.training.loop import fit
from bench.training.optim import create_optimizer, peak_lr, weight_decay
from bench.training.weights import hash_weights
from zoo.pretrained import head_names

GOLDEN = Path(__file__).with_name("published_recipes.json")
RECIPES = ("baseline", "classic", "fast", "quick", "steady")
MODELS = ("lenet5", "simple_cnn", "resnet20")
IMAGES, BATCH_SIZE, EPOCHS = 48, 16, 2


def machine():
    return f"{describe_machine('cpu')['cpu']}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


@functools.cache
def digits():
    train = load_dataset("digits").train
    return torch.tensor(train.images[:IMAGES]), torch.tensor(train.labels[:IMAGES])


def train_a_little(recipe_name, model_name):
    """Weights' hash and losses of two epochs of three steps; where the head trains first, one epoch of each."""
    recipe = load_recipe(recipe_name)
    if recipe.head_epochs:
        recipe = recipe.model_copy(update={"head_epochs": 1})
    images, labels = digits()
    options = {option.name: getattr(recipe, option.name) for option in dataclasses.fields(Augmentation)}
    stream = BatchStream(
        images,
        labels,
        BATCH_SIZE,
        Normalization.of(images),
        device=torch.device("cpu"),
        channels_last=True,
        augmentation=Augmentation(**options),
        num_classes=10,
        seed=3,
    )
    torch.manual_seed(3)
    hints = zoo.model_info(model_name).recipe
    wanted = {k: v for k, v in recipe.model_options.items() if k != "drop_rate" or model_name == "simple_cnn"}
    net = zoo.create_model(model_name, **wanted).to(memory_format=torch.channels_last)
    rates = peak_lr(recipe, hints.get("lr"), recipe.batch_size), weight_decay(recipe, hints.get("weight_decay"))
    training = fit(
        net,
        create_optimizer(net, recipe, *rates),
        stream,
        recipe,
        Budget(epochs=EPOCHS),
        head=head_names(net) if recipe.head_epochs else (),
    )
    return hash_weights(net), [row["train_loss"] for row in training.history]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_published_recipe_gives_what_it_gave(recipe, model):
    golden = json.loads(GOLDEN.read_text())
    sha256, losses = train_a_little(recipe, model)
    expected = golden["results"][f"{recipe} {model}"]
    assert losses[0] == pytest.approx(expected["train_loss"][0], rel=1e-3)
    # High rates carry the rounding of other kernels into the next epoch.
    same_kernels = f" {torch.backends.cpu.get_cpu_capability()}," in golden["machine"]
    assert losses == pytest.approx(expected["train_loss"], rel=1e-3 if same_kernels else 0.03)
    if machine() == golden["machine"]:
        assert sha256 == expected["weights_sha256"]


def write_golden():
    torch.set_num_threads(1)
    results = {}
    for recipe in RECIPES:
        for model in MODELS:
            sha256, losses = train_a_little(recipe, model)
            results[f"{recipe} {model}"] = {"weights_sha256": sha256, "train_loss": losses}
    GOLDEN.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
