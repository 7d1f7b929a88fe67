"""The time of `speedrun` against that of airbench94's own recipe in float32, on this machine, in one call.

Training steps of either are timed in turn, in this process: batches of 1,024 at 32 pixels in float32 for that recipe,
the recipe's own batches, sizes and precision for ours. Times are then images × seconds an image.
``python tests/perf/speedrun_ratio.py [--autocast] [--threads N] [--rounds N]``
"""

import argparse
import json
import statistics
import time

from bench.device import keep_allocator_pages

keep_allocator_pages()  # as runs do, and before torch is imported

import torch  # noqa: E402

import zoo  # noqa: E402
from bench.config import load_recipe  # noqa: E402
from bench.training.step import create_timed_step  # noqa: E402

TRAIN_IMAGES = 50_000
THEIR_EPOCHS, THEIR_BATCH = 9.9, 1024


def create_block(recipe, batch_size: int, size: int, autocast: bool):
    """A function that times one step, in seconds an image, after a first one."""
    torch.manual_seed(0)
    model = zoo.create_model("airbench94").to(memory_format=torch.channels_last)
    model.stem.weight.requires_grad_(False)  # whitened and frozen in both
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    step = create_timed_step(model, model, images, autocast, recipe=recipe)
    step()

    def block() -> float:
        begun = time.perf_counter()
        step()
        return (time.perf_counter() - begun) / batch_size

    return block


def main() -> None:
    """Print the seconds of both, and their ratio in each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autocast", action="store_true", help="ours in bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe("speedrun")
    small = recipe.small_size or 32
    theirs = create_block(recipe, THEIR_BATCH, 32, autocast=False)
    ours = create_block(recipe, recipe.batch_size, 32, options.autocast)
    ours_small = create_block(recipe, recipe.batch_size, small, options.autocast)
    rounds = []
    for _ in range(options.rounds):
        whole = recipe.epochs - recipe.small_epochs
        their_seconds = THEIR_EPOCHS * TRAIN_IMAGES * theirs()
        our_seconds = TRAIN_IMAGES * (recipe.small_epochs * ours_small() + whole * ours())
        rounds.append((their_seconds, our_seconds))
    ratios = [our / their for their, our in rounds]
    print(json.dumps({
        "their_seconds": statistics.median(their for their, _ in rounds),
        "our_seconds": statistics.median(our for _, our in rounds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "threads": options.threads,
        "autocast": options.autocast,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
