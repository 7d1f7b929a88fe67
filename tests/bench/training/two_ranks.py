"""A program of two ranks, each a fork of a process that has computed nothing: prints what the tests look at, as JSON.

Run with a folder of its own as its argument.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.config import Budget, Recipe
from bench.data.augment import BatchStream, Normalization
from bench.data.transforms import Augmentation
from bench.training.checkpoint import Checkpoints
from bench.training.distributed import ALONE, joined
from bench.training.evaluation import evaluate
from bench.training.loop import fit
from bench.training.optim import create_optimizer
from bench.training.progress import Training
from bench.training.step import fitting_step
from bench.training.weights import hash_weights

RECIPE = Recipe(batch_size=33, clip_grad_norm=1.0)
CPU = torch.device("cpu")


class Net(nn.Module):
    """With what makes ranks differ: batch norm's statistics, dropout, and layers that some images do not reach."""

    def __init__(self, norm=False, limit=None):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.drop = nn.Dropout(0.5 if norm else 0.0)
        self.head, self.bright, self.unused = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)
        self.limit = limit

    def forward(self, images):
        if self.limit is not None and len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        features = self.drop(self.norm(self.features(images)).relu().mean((2, 3)))
        logits = self.head(features)
        bright = (images.amax((1, 2, 3)) > 5).nonzero().flatten()
        return logits.index_add(0, bright, self.bright(features[bright])) if len(bright) else logits


def stream(seed=0, batch_size=33, **augmentation):
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (100, 3, 12, 12), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 4, (100,), generator=random)
    return BatchStream(
        images,
        labels,
        batch_size,
        Normalization.of(images),
        device=CPU,
        augmentation=Augmentation(**augmentation),
        num_classes=4,
        seed=seed,
    )


def gradients(model):
    return [None if each.grad is None else each.grad.flatten().tolist() for each in model.parameters()]


def gradients_of_a_step(model, images, targets, ranks):
    """The gradients, the loss, and the micro-batch that was found to fit."""
    part = ranks.part(len(images))
    training = Training(micro_batch_size=ranks.largest_part(len(images)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    arguments = model, optimizer, images[part], targets[part], Recipe(), False, training
    loss, _ = fitting_step(*arguments, ranks, len(images))
    return {"gradients": gradients(model), "loss": float(loss), "micro_batch_size": training.micro_batch_size}


def compare_gradients(ranks):
    images, targets = next(stream().epoch(0))
    images[0] += 10  # in the first slice alone there is a bright image
    found = {"images": len(images), "sizes": ranks.gather(ranks.part(len(images)).stop)}
    found["alone"] = gradients_of_a_step(Net(), images, targets, ALONE)
    found["together"] = gradients_of_a_step(Net(), images, targets, ranks)
    limit = 5 if ranks.rank == 1 else None
    found["out_of_memory"] = ranks.gather(gradients_of_a_step(Net(limit=limit), images, targets, ranks))
    ddp = DistributedDataParallel(Net(), find_unused_parameters=True)
    part = ranks.part(32)
    nn.functional.cross_entropy(ddp(images[:32][part]), targets[:32][part]).backward()
    found["ddp"] = gradients(ddp.module)
    found["as_ddp"] = gradients_of_a_step(Net(), images[:32], targets[:32], ranks)["gradients"]
    return found


def compare_evaluations(ranks):
    model = Net(norm=True)
    if ranks.rank == 1:  # its own statistics must not count
        model.norm.running_mean += 1
    batches = stream(batch_size=17)
    views = (True, 1, 0.5)
    together = evaluate(model, batches, 4, False, *views, ranks)
    alone = evaluate(model, batches, 4, False, *views)
    same = [
        torch.equal(getattr(alone.predictions, name), getattr(together.predictions, name))
        for name in ("labels", "predicted", "confidence")
    ]
    counts = torch.tensor(together.confusion).sum()
    return {"equal": alone == together, "same_predictions": same, "images": int(counts)}


def train(ranks, budget, recipe=RECIPE, **options):
    model = Net(norm=True)
    torch.manual_seed(100 + ranks.rank)
    optimizer = create_optimizer(model, recipe, 0.1, 5e-4)
    batches = stream(batch_size=recipe.batch_size, flip=True, crop_padding=1, mixup=0.2)
    training = fit(model, optimizer, batches, recipe, budget, ranks=ranks, **options)
    evaluate(model, batches, 4, ranks=ranks)  # shares the buffers
    return {
        "weights": hash_weights(model),
        "steps": training.step,
        "losses": [row["train_loss"] for row in training.history],
    }


class InterruptedError(Exception):
    pass


def interrupt(model):
    raise InterruptedError


def resume(ranks, folder):
    """A training that was interrupted in its last epoch, by all ranks, and goes on; and one that never was."""
    recipe = RECIPE.model_copy(update={"ema": 0.9, "lookahead": 2})
    whole = train(ranks, Budget(epochs=2), recipe)
    checkpoints = Checkpoints(folder, every_seconds=0.0)
    try:
        train(ranks, Budget(epochs=2), recipe, checkpoints=checkpoints, evaluate_val=interrupt)
    except InterruptedError:
        step = checkpoints.load()[1]["training"]["step"] if ranks.rank == 0 else None
    resumed = train(ranks, Budget(epochs=2), recipe, checkpoints=checkpoints)
    return {"whole": ranks.gather(whole), "resumed": ranks.gather(resumed), "interrupted_at": step}


def main(rank, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    with joined("cpu") as ranks:
        found = {
            "gradients": compare_gradients(ranks),
            "evaluations": compare_evaluations(ranks),
            "resumed": resume(ranks, f"{folder}/checkpoints"),
            "seconds": ranks.gather(train(ranks, Budget(seconds=0.2))),
        }
        if rank == 0:
            Path(folder, "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.multiprocessing.start_processes(main, args=(sys.argv[1],), nprocs=2, start_method="fork")
