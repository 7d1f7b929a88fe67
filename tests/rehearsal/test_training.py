"""The training loop and evaluation on a GPU that is not there: where the host waits, and why that is all."""

import pytest
import torch
from fake_cuda import DEVICE, DOWNLOAD, READ, UPLOAD, WAIT, fake_cuda, train
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import zoo
from bench.config import Budget, Recipe
from bench.data.augment import BatchStream, Normalization
from bench.training import loop
from bench.training.dense import ImageLogits
from bench.training.evaluation import evaluate
from bench.training.loop import fit
from bench.training.optim import create_optimizer

STEPS = 60
EVERY_50_STEPS = {
    (READ, "bench/training/progress.py:Meter.is_finite"): "whether training has diverged",
    (READ, "bench/training/progress.py:Meter.row"): "loss and accuracy for the display, at most twice a second",
}
AN_EPOCH = EVERY_50_STEPS | {
    (WAIT, "bench/training/progress.py:synchronize"): "the clock of training, at both ends of an epoch",
    (UPLOAD, "bench/data/augment.py:BatchStream.epoch"): "where each crop begins, and the order of the labels",
}
AN_EVALUATION = {
    (UPLOAD, "bench/data/augment.py:BatchStream.in_order"): "where each image begins",
    (DOWNLOAD, "bench/training/evaluation.py:evaluate"): "logits and labels of each batch, to be counted on the host",
    (READ, "bench/training/evaluation.py:evaluate"): "right answers of single views, once at the end",
}
RECIPES = {
    "sgd": Recipe(lr=0.1),
    "adam": Recipe(lr=1e-3, optimizer="adam"),
    "adamw": Recipe(lr=1e-3, optimizer="adamw", clip_grad_norm=1.0, label_smoothing=0.1),
    "averaged": Recipe(lr=0.1, ema=0.99),
    "head first": Recipe(lr=0.1, head_epochs=1, head_lr=1e-2),
    "mixed": Recipe(lr=0.1, mixup=0.2),
}


def stream(images=STEPS * 2, batch_size=2, **options):
    data = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,))
    normalization = Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    return BatchStream(data, labels, batch_size, normalization, device=DEVICE, channels_last=True, **options)


def train_for(epochs, recipe, watch, name="lenet5", **options):
    """What an epoch notes once the training is under way."""
    with DEVICE:
        model = train(zoo.create_model(name, 10, 32))
    optimizer, batches = create_optimizer(model, recipe, 0.1, 1e-4), stream()
    watch.seen.clear()
    head = ("fc3",) if recipe.head_epochs else ()
    training = fit(model, optimizer, batches, recipe, Budget(epochs=epochs), autocast=True, head=head, **options)
    assert training.status == "completed"
    assert training.step == epochs * STEPS
    return watch.seen


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_steady_loop_does_not_wait(recipe):
    with fake_cuda() as watch:
        epochs = 1 + recipe.head_epochs
        seen = train_for(epochs, recipe, watch)
    assert seen.keys() <= AN_EPOCH.keys()
    assert max(seen.values()) <= (epochs + 1) * 6 < epochs * STEPS


def test_averaging_that_keeps_its_count_on_the_device_is_found(monkeypatch):
    class Stalls(AveragedModel):
        def __init__(self, model, decay):
            super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

        update = AveragedModel.update_parameters
        updates = property(lambda self: 1)

    monkeypatch.setattr(loop, "WeightAverage", Stalls)
    with fake_cuda() as watch:
        seen = train_for(1, RECIPES["averaged"], watch)
    assert seen[UPLOAD, "bench/training/loop.py:fit"] >= STEPS


def test_a_loss_that_is_read_in_each_step_is_found(monkeypatch):
    monkeypatch.setattr(loop.Meter, "add", lambda meter, loss, logits, targets: float(loss))
    monkeypatch.setattr(loop.Meter, "row", lambda meter, seconds, optimizer: {})
    with fake_cuda() as watch:
        seen = train_for(1, RECIPES["sgd"], watch)
    assert seen.keys() - AN_EPOCH.keys() == {(READ, "bench/training/loop.py:fit")}
    assert seen[READ, "bench/training/loop.py:fit"] == STEPS


@pytest.mark.parametrize("name", ["resnet20", "fcn_resnet18"])
def test_evaluation_waits_once_a_batch(name):
    with fake_cuda() as watch:
        with DEVICE:
            model = zoo.create_model(name, 10, 32).eval()
        if name.startswith("fcn"):
            model = ImageLogits(model)
        batches = stream(16, 4)
        watch.seen.clear()
        evaluation = evaluate(model, batches, 10, autocast=True, test_flip=True)
    assert watch.seen.keys() <= AN_EVALUATION.keys()
    assert watch.seen[DOWNLOAD, "bench/training/evaluation.py:evaluate"] == 2 * 4
    assert watch.seen[READ, "bench/training/evaluation.py:evaluate"] == 1
    assert len(evaluation.predictions.labels) == 16


@pytest.mark.parametrize("name", ["resnet20", "lenet5_1998", "mobilenet_v2", "xception", "fcn_resnet18"])
def test_backward_reads_no_value(name):
    """On the meta device, where there is none to be read."""
    with torch.device("meta"):
        size = 64 if name.startswith("fcn") else 32
        model = zoo.create_model(name, 10, size)
        outputs = model(torch.randn(2, 3, size, size))
    logits = outputs["out"] if isinstance(outputs, dict) else outputs
    labels = torch.zeros(2, *logits.shape[2:], dtype=torch.int64, device="meta")
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_real_device_is_not_waited_for_inside_the_loop():
    recipe = Recipe(lr=0.1, ema=0.99, flip=True)
    model = zoo.create_model("resnet20", 10, 32).to(DEVICE)
    batches = stream(64, 2)
    optimizer = create_optimizer(model, recipe, 0.1, 1e-4)
    given = iter(list(batches.epoch(0)))

    class Ready:
        batch_size = 2

        def __len__(self):
            return 32

        def epoch(self, epoch, start=0):
            for index, batch in enumerate(given):
                if index == 1:
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
            torch.cuda.set_sync_debug_mode("default")

    try:
        fit(model, optimizer, Ready(), recipe, Budget(epochs=1), autocast=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
