"""A training step here against one of TRL's trainers, measured in one run: `make bench`.

The same student, rows, precision and optimizer, each way in a process of its own:

- ours: ForwardKL on the teacher's stored top K, as `Train` takes a step.
- gkd: TRL's GKDTrainer with lmbda=0 (the given answers) and beta=0 (forward KL): the nearest that TRL has. Its teacher
  is in the process; here it is no larger than the student, which is kind.
- sft: TRL's SFTTrainer, cross-entropy on the text alone.

Rows are all equally long, so that nobody pays for padding. TRL's trainers do more than the step: SFTTrainer counts
accuracy and entropy on all logits, GKDTrainer empties the allocator's cache. They are measured as they come.

Prints a table and writes a JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import Figure, Options, Spent, medians, peak_mib, report
from students import STUDENTS, answers, student_of

from kubedistill_api.training import Training

WARM_UP = 3
LAUNCHED = {"LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""What would tell TRL that a launcher started it."""
SIZES = {device: replace(size, rows=8) for device, size in STUDENTS.items()}
"""Sixteen rows of a large vocabulary are more than GKDTrainer fits into 80 GB."""


def main() -> int:
    asked = _asked()
    if asked.only:
        print(json.dumps(WAYS[asked.only](asked)))
        return 0
    flags = [f"--{name}={getattr(asked, name)}" for name in ("device", "steps", "k")]
    with report(asked, show, figures) as found:
        found |= {"student": vars(SIZES[asked.device]), "k": asked.k, "steps": asked.steps}
        for name in WAYS:
            found[name] = _alone(name, flags)
        for other in ("gkd", "sft"):
            found[f"{other}_ratios"] = {
                figure: found["ours"][figure] / found[other][figure]
                for figure in ("seconds", "cpu_seconds", "step_mib", "peak_mib")
            }
    return 0


def _alone(name: str, flags: list[str]) -> Any:
    """What one way takes, in a process of its own."""
    command = [sys.executable, __file__, f"--only={name}", *flags]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def _asked() -> argparse.Namespace:
    options = Options(__doc__, "bench-step.json")
    options.device()
    options.number("steps", 15, "optimizer steps of each way")
    options.number("k", 32, "teacher's candidates a position")
    options.part(*WAYS)
    return options.parse_args()


def figures(found: dict[str, Any]) -> list[Figure]:
    """What a step promises beside those of TRL."""
    on_cpu = "gpu" not in found["machine"]
    bounds = {
        ("time of a step", "seconds"): 0.6 if on_cpu else 0.9,
        ("memory of a step", "step_mib"): 0.6 if on_cpu else 0.7,
        ("memory at its peak", "peak_mib"): 0.7,
    }
    return [
        Figure(f"{what}, ours / {name}", found[f"{other}_ratios"][figure], "x", at_most=most)
        for other, name in (("gkd", "TRL GKDTrainer"), ("sft", "TRL SFTTrainer"))
        for (what, figure), most in bounds.items()
    ]


def taken(spent: list[Spent], before_mib: float, device: str) -> dict[str, Any]:
    """Medians of the steps after the warm-up, and what memory rose by since the student was on the CPU."""
    return {
        **medians(spent[WARM_UP:]),
        "peak_mib": peak_mib(device),
        "step_mib": peak_mib(device) - before_mib,
    }


def ours(asked: argparse.Namespace) -> dict[str, Any]:
    """Steps as `Train` takes them: rows read from disk, packed, one micro batch."""
    from kubedistill_trainer.core import attention
    from kubedistill_trainer.core.batching import pack
    from kubedistill_trainer.core.losses import forward_kl_bucket
    from kubedistill_trainer.distiller import Distiller
    from kubedistill_trainer.engine import Engine, Place, together
    from kubedistill_trainer.store.examples import Examples
    from kubedistill_trainer.store.shards import ShardMeta, read_shard, shard_bytes

    size = SIZES[asked.device]
    place = Place(device=torch.device(asked.device, 0) if asked.device == "cuda" else torch.device("cpu"))
    training = Training.model_validate(
        {
            "gpusPerNode": 1 if asked.device == "cuda" else 0,
            "precision": "BF16" if asked.device == "cuda" else "FP32",
            "gradientCheckpointing": False,
            "deepspeed": {"zeroStage": 0},
            "hyperparameters": {"microBatchSize": size.rows, "globalBatchSize": size.rows},
        }
    )
    stored = shard_bytes(ShardMeta(split="train", index=0, teacher="t", k=asked.k), answers(size, asked.k))
    model = student_of(size)
    before = peak_mib(asked.device)
    model.set_attn_implementation(attention.install())
    spent = []
    with tempfile.TemporaryDirectory() as folder, together(place, (Path(folder) / "rendezvous").as_uri()):
        examples = Examples.write(Path(folder) / "examples", read_shard(stored)[1], signals=True)
        engine = Engine(Distiller(model, forward_kl_bucket, size.vocabulary), training, size.rows, place)
        for _ in range(asked.steps + WARM_UP):
            started = Spent.now()
            batch = pack([examples[row] for row in range(size.rows)])
            engine.add_up([engine.step([batch], len(batch.supervision), 1e-4).total])
            spent.append(started.since())
    return taken(spent, before, asked.device)


def gkd(asked: argparse.Namespace) -> dict[str, Any]:
    """Steps of TRL's GKDTrainer."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    teacher = student_of(SIZES[asked.device])
    return _steps_of(asked, GKDTrainer, GKDConfig, {"teacher_model": teacher}, lmbda=0.0, beta=0.0, temperature=1.0)


def sft(asked: argparse.Namespace) -> dict[str, Any]:
    """Steps of TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    return _steps_of(asked, SFTTrainer, SFTConfig, {}, dataset_kwargs={"skip_prepare_dataset": True})


def _steps_of(
    asked: argparse.Namespace, trainer: Any, config: Any, more: dict[str, Any], **settings: Any
) -> dict[str, Any]:
    from datasets import Dataset
    from tokenizers import Tokenizer, models

    size = SIZES[asked.device]
    words = {f"word{token}": token for token in range(size.vocabulary)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "word3")),
        pad_token="word0",
        eos_token="word1",
        bos_token="word2",
    )
    rows = [
        {
            "input_ids": row.input_ids.tolist(),
            "labels": [int(i) if on else -100 for i, on in zip(row.input_ids, row.target_mask, strict=True)],
        }
        for row in answers(size, asked.k)
    ]
    model = student_of(size)
    before = peak_mib(asked.device)
    watch = _Watch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = config(
            output_dir=folder,
            max_steps=asked.steps + WARM_UP,
            per_device_train_batch_size=size.rows,
            gradient_accumulation_steps=1,
            learning_rate=1e-4,
            max_length=size.length,
            optim="adamw_torch_fused",
            bf16=asked.device == "cuda",
            use_cpu=asked.device == "cpu",
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            **settings,
        )
        trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            data_collator=_collate,
            callbacks=[watch],
            **more,
        ).train()
    return taken(watch.spent, before, asked.device)


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    ids_BT = torch.tensor([row["input_ids"] for row in rows])
    labels_BT = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": labels_BT}


class _Watch(transformers.TrainerCallback):  # type: ignore[misc]
    """Notes what each step took. The batch is made before its step begins, so it is not counted."""

    def __init__(self) -> None:
        self.spent: list[Spent] = []
        self._started = Spent.now()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = Spent.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.spent.append(self._started.since())


WAYS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"ours": ours, "gkd": gkd, "sft": sft}
NAMES = {"ours": "ForwardKL, stored top K", "gkd": "TRL GKDTrainer, forward KL", "sft": "TRL SFTTrainer, text alone"}


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    student = found["student"]
    print("{hidden} wide, {layers} layers, vocabulary {vocabulary}; {rows} rows of {length} tokens".format(**student))
    print(f"{'':28}{'clock':>12}{'CPU':>12}{'rise of memory':>18}{'peak':>14}")
    for name, words in NAMES.items():
        row = found[name]
        times = f"{row['seconds'] * 1000:>9.0f} ms{row['cpu_seconds'] * 1000:>9.0f} ms"
        print(f"{words:28}{times}{row['step_mib']:>14,.0f} MiB{row['peak_mib']:>10,.0f} MiB")
    for other in ("gkd", "sft"):
        ratios = found[f"{other}_ratios"]
        times = f"{ratios['seconds']:>12.2f}{ratios['cpu_seconds']:>12.2f}"
        print(f"{'ours / ' + other:28}{times}{ratios['step_mib']:>18.2f}")


if __name__ == "__main__":
    sys.exit(main())
