"""Make a toy teacher for fast tests: a Llama of 1 M parameters that loads like any other model.

Its tokenizer is a byte-level BPE of 2,048 tokens trained on examples/data, its chat template is ChatML, its weights
are seeded. With `--steps` it is trained for that many steps on the labelled examples, so that it answers shortly and
stops; without, it babbles until it is cut off. The same seed, steps and machine give the same weights.

head_dim is 32: vLLM on CPU dies below that, although its /health answers.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "examples" / "data"
DEFAULT_OUTPUT = REPOSITORY / ".kubedistill" / "models" / "toy"

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Toy:
    """What to make. `steps` are optimizer steps of 16 chats each; 0 leaves the weights random."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    vocabulary: int = 2048
    positions: int = 2048
    steps: int = 0
    seed: int = 42


def make_toy(output: Path = DEFAULT_OUTPUT, toy: Toy = Toy()) -> Path:
    """Make the model folder at `output` unless it exists, and return it. It appears complete or not at all."""
    if output.exists():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        finished = Path(scratch) / "finished"
        tokenizer = toy_tokenizer(toy.vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(toy.seed)
            model = toy_model(toy, tokenizer)
            teach(model, tokenizer, toy)
        model.save_pretrained(finished)
        tokenizer.save_pretrained(finished)
        publish(finished, output)
    return output


def toy_tokenizer(vocabulary: int) -> Any:
    """A byte-level BPE of `vocabulary` tokens over the texts of examples/data; its end token ends a chat turn."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=START, eos_token=END, model_max_length=2048
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def toy_model(toy: Toy, tokenizer: Any) -> Any:
    """A Llama with random weights, wide enough to give peaked distributions: a uniform one teaches nothing."""
    config = LlamaConfig(
        vocab_size=toy.vocabulary,
        hidden_size=toy.hidden,
        intermediate_size=3 * toy.hidden,
        num_hidden_layers=toy.layers,
        num_attention_heads=toy.heads,
        num_key_value_heads=toy.heads // 2,
        head_dim=toy.hidden // toy.heads,
        max_position_embeddings=toy.positions,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def teach(model: Any, tokenizer: Any, toy: Toy, chats_per_step: int = 16) -> None:
    """Train `model` in place for `toy.steps` steps of plain next-token prediction on the labelled chats.

    On one thread: operations are so small that a second one only waits, ten times longer on a busy machine, and the
    result would depend on how many there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in chats()] if toy.steps else []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(toy.steps):
        picked = [rows[i] for i in torch.randint(len(rows), (chats_per_step,)).tolist()]
        batch = tokenizer.pad({"input_ids": picked}, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    torch.set_num_threads(threads)


def chats() -> Iterator[list[dict[str, str]]]:
    """The examples that have an answer, as chats."""
    for row in rows_of("support-labelled.jsonl"):
        yield [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    for row in rows_of("support-qa.jsonl"):
        yield [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["label"]}]


def texts() -> Iterator[str]:
    """Every string of examples/data that a model would read."""
    for path in sorted(DATA.glob("*.jsonl")):
        for row in rows_of(path.name):
            yield from (turn["content"] for turn in row.get("messages", ()))
            yield from (value for value in row.values() if isinstance(value, str))


def rows_of(name: str) -> Iterator[dict[str, Any]]:
    with (DATA / name).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def publish(finished: Path, output: Path) -> None:
    """Rename `finished` to `output`; when another process was faster, its result stands."""
    for path in finished.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which another user, such as a pod's, could not read
    try:
        os.rename(finished, output)
    except OSError:
        if not output.exists():
            raise


def main(arguments: list[str] | None = None) -> int:
    asked = Toy()
    parser = argparse.ArgumentParser(description="Make a toy Llama with tokenizer and chat template for fast tests.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="model folder (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=asked.layers, help="decoder layers (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=asked.steps, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=asked.seed, help="of the weights (default: %(default)s)")
    options = parser.parse_args(arguments)
    print(make_toy(options.output, Toy(layers=options.layers, steps=options.steps, seed=options.seed)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
