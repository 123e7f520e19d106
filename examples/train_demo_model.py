"""Train the model that ``gemma4 demo`` shows, from random weights, on data that this script makes.

    python examples/train_demo_model.py --run runs/demo            # repeat until it says that it is done
    python examples/train_demo_model.py --run runs/demo --evaluate
    python examples/train_demo_model.py --run runs/demo --export src/gemma4_core/data/demo

Each call trains for ``--minutes`` and saves; the next goes on where it stopped. ``--variant experts`` trains the
second model, with experts and K=V layers. ``--easy`` trains a very small model on easier tasks, for a look without a
GPU. A run keeps what it was begun with, whatever later calls say. docs/demo.md has the recipe.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))

from demo_model.export import export  # noqa: E402
from demo_model.rows import Maker, Recipe  # noqa: E402
from demo_model.scoring import Scorer, scoring_recipe  # noqa: E402
from demo_model.supply import GRID  # noqa: E402
from demo_model.tokens import open_tokenizer  # noqa: E402
from demo_model.training import Run, Settings  # noqa: E402

from gemma4_core.training.run_folder import RunFolder, read_settings  # noqa: E402
from gemma4_plugins.commands.demo.pictures import Choices  # noqa: E402

EASY = Recipe(sentences=2, sums=12, pictures=12, sounds=12, digits=2, keys="123", shortest=3, longest=3,
              choices=Choices(("red", "blue"), ("circle", "square"), ("left of", "right of")))
KEPT = ("variant", "seed", "steps", "lr", "warmup", "optimizer", "dtype", "easy", "only")
"""Options that make a run what it is; the others may differ from call to call."""
KINDS = ("sentences", "sums", "pictures", "sounds")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--evaluate", action="store_true", help="print held-out scores of the newest checkpoint")
    parser.add_argument("--batches", type=int, default=8, help="batches that are scored")
    parser.add_argument("--export", type=Path, help="write the newest checkpoint there, without training state")
    parser.add_argument("--easy", action="store_true", help="a very small model on easier tasks")
    parser.add_argument("--only", choices=KINDS, help="one task alone")
    parser.add_argument("--processes", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)),
                        help="processes that make data; 0 makes it in between")
    defaults = Settings()
    for name, kind in (("variant", str), ("seed", int), ("steps", int), ("lr", float), ("warmup", int),
                       ("optimizer", str), ("dtype", str), ("device", str), ("minutes", float),
                       ("total_minutes", float), ("weights", Path)):
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=getattr(defaults, name))
    return parser.parse_args()


def recipe_of(args: argparse.Namespace) -> Recipe:
    """What a batch holds."""
    recipe = EASY if args.easy else Recipe()
    if args.variant == "experts":
        recipe = replace(recipe, sounds=0)
    if args.only:
        recipe = replace(recipe, **{kind: 0 for kind in KINDS if kind != args.only})
    return recipe


def remembered(args: argparse.Namespace) -> dict[str, Any]:
    """The options that the run was begun with, put in the place of those given now."""
    folder = RunFolder(args.run)
    held = read_settings(folder.settings) if folder.checkpoints() else {}
    for name in KEPT:
        setattr(args, name, held.get(name, getattr(args, name)))
    return {name: getattr(args, name) for name in KEPT}


def main() -> None:
    args = arguments()
    kept = remembered(args)
    asked = {name: getattr(args, name) for name in Settings.__dataclass_fields__ if hasattr(args, name)}
    recipe = recipe_of(args)
    run = Run(args.run, Settings(**asked), recipe, kept, BEGAN)
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    if args.export:
        say(f"written: {export(run.start, args.export)}")
    elif args.evaluate:
        scorer = Scorer(run.model, Maker(open_tokenizer(run.start), scoring_recipe(recipe), GRID))
        for task, (right, asked_for) in scorer.scores(args.seed, args.batches).items():
            print(f"{task:12} {right}/{asked_for} exact, {right / asked_for:.2%}")
    else:
        say(run.optimizer.summary)
        run.train(say)
        say("done" if run.done else f"step {run.step} of {run.steps}: run the same command again to go on")


if __name__ == "__main__":
    # tinygrad reads these once. Sums over the rows of a batch are split sooner than it would by itself: gradients of
    # small matrices have few elements, and would leave most of a GPU idle. Its compiling processes live longer.
    os.environ.setdefault("REDUCEOP_SPLIT_THRESHOLD", "4096")
    os.environ.setdefault("BEAM_MAX_TASKS_PER_CHILD", "1000")
    main()
