"""Fine-tune on JSON Lines from Python, without the command.

    python examples/finetune_jsonl.py MODEL train.jsonl run --epochs 3 --lr 1e-4

Each line is an object with ``messages``, with ``prompt`` and ``completion``, or with ``text``; media paths are relative
to the file. Start it again with the same arguments and it goes on from where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gemma4_core import build_optimizer, load_pretrained
from gemma4_core.training import Batches, Encoding, Plan, Trainer, read_examples


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--trainable", nargs="*", help="patterns over tensor names, such as '*.mlp.*'")
    asked = parser.parse_args(arguments)

    model = load_pretrained(asked.model)
    examples = read_examples(asked.data, model.processor, Encoding(max_length=1024))
    print(f"{len(examples.items)} examples, {examples.targets} of {examples.tokens} tokens are learnt")

    optimizer = build_optimizer(model, "adamw", lr=asked.lr, trainable=asked.trainable)
    print(optimizer.summary)

    batches = Batches(examples, model.processor, batch_size=asked.batch_size)
    trainer = Trainer(model, optimizer, batches, Plan(lr=asked.lr, epochs=asked.epochs, schedule="cosine"))
    if (asked.output / "training_state.json").exists():
        trainer.resume(asked.output)
    for step in trainer:
        print(f"step {step.step} of {trainer.total}: loss {step.loss:.4f}, {step.tokens / step.seconds:.0f} tokens/s")
        if step.step % 100 == 0:
            trainer.save(asked.output)
    trainer.save(asked.output)
    print(f"saved; try: gemma4 generate -m {asked.output} --prompt Hello")


if __name__ == "__main__":
    main()
