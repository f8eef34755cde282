"""GGUF and ONNX are published if they compute the trained model, and not at all if they do not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teaching.work import prompt_row
from toys.families import save
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubedistill_api.output import Format, GgufType
from kubedistill_api.results import PublishResult, TrainResult
from kubedistill_trainer import runtime
from kubedistill_trainer.errors import BadConfiguration, Transient
from kubedistill_trainer.formats import gguf_architectures
from kubedistill_trainer.stages import publish
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.artifacts import MANIFEST, look
from kubedistill_trainer.store.manifests import entries_of
from kubedistill_trainer.store.rows import to_parquet
from kubedistill_trainer.store.workspace import Workspace

Asked = Callable[..., Any]


@pytest.fixture
def asked(finished: Any, tmp_path: Path) -> Asked:
    """What is finished, with a student that merges tokens, asked for these formats."""
    trained = tmp_path / "workspace" / "trained"
    shutil.rmtree(trained / "model")
    save("llama", trained / "model")
    workspace: Workspace = finished.context.workspace
    (trained / "manifest.json").unlink()
    (trained / "result.json").unlink()
    common = {"input_digest": "sha256:in", "output_digest": "sha256:out"}
    train = TrainResult(folder="trained", steps=3, loss=1.0, micro_batch_size=2, parameters=99_000_000, **common)
    manifests.commit(workspace, train, entries_of(trained))
    rows = [prompt_row(f"How do I do thing number {number}?") for number in range(6)]
    workspace.write_bytes("prepared/valid.parquet", to_parquet(rows))
    return lambda *formats, **more: finished.to(finished.run.output.uri, formats=list(formats), **more)


def published(stage: Any) -> Path:
    return Path(stage.run.output.uri.removeprefix("file://"))


def test_gguf_goes_beside_the_merged_weights_and_is_listed_with_its_digest(asked: Asked) -> None:
    stage = asked(Format.MERGED, Format.GGUF, Format.GGUF)
    result = stage.publish()
    assert (result.model_uri, result.formats) == (stage.run.output.uri, ["Merged", "GGUF"])
    written = json.loads((published(stage) / MANIFEST).read_text())
    assert (
        written["files"]["gguf/support-BF16.gguf"]["size"]
        == (published(stage) / "gguf/support-BF16.gguf").stat().st_size
    )
    assert "config.json" in written["files"]
    kept = manifests.load(stage.context.workspace, "published")
    assert kept is not None
    assert re.match(r"the likeliest token is the same at (\d+) of \1 positions", kept.meta["checks"]["GGUF"])


def test_a_gguf_file_alone_has_its_own_address(asked: Asked) -> None:
    stage = asked(Format.GGUF, gguf_type=GgufType.Q8_0)
    assert stage.publish().model_uri.endswith("/output/gguf")
    files = look(Workspace.open(stage.run.output.uri)).files
    assert files == {"gguf/support-Q8_0.gguf", "README.md", "report.html", MANIFEST}
    assert "llama-server -m gguf/support-Q8_0.gguf" in (published(stage) / "README.md").read_text()


def test_what_is_not_the_model_is_never_published(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_architectures, "in_pairs", lambda rows, heads: rows)
    stage = asked(Format.MERGED, Format.GGUF)
    with pytest.raises(
        BadConfiguration, match=r"Nothing was published: .* Leave GGUF out of output\.formats"
    ) as caught:
        stage.publish()
    assert caught.value.reason == "GGUFNotTheModel"
    assert look(Workspace.open(stage.run.output.uri)).files == frozenset()
    assert [path for path in stage.context.scratch.rglob("*") if path.is_file()] == []


def test_a_model_that_changed_since_training_is_not_made_into_another_format(asked: Asked) -> None:
    stage = asked(Format.GGUF)
    stage.context.workspace.write_bytes("trained/model/config.json", b"{}")
    with pytest.raises(Transient, match=r"trained/model/config\.json is not what Train wrote"):
        stage.publish()
    assert look(Workspace.open(stage.run.output.uri)).files == frozenset()


def test_a_file_that_was_lost_since_is_made_again_with_the_same_digest(asked: Asked) -> None:
    stage = asked(Format.GGUF)
    first = runtime.execute(stage.run, stage.context, publish)
    (published(stage) / "gguf/support-BF16.gguf").unlink()
    again = runtime.execute(stage.run, stage.context, publish)
    assert isinstance(first, PublishResult)
    assert isinstance(again, PublishResult), again
    assert not again.reused
    assert again.digest == first.digest
    assert (published(stage) / "gguf/support-BF16.gguf").exists()


@pytest.mark.slow
def test_the_onnx_example_of_the_model_card_answers_as_torch_does(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = asked(Format.ONNX)
    assert stage.publish().model_uri.endswith("/output/onnx")
    folder = published(stage)
    (example,) = re.findall(r"```python\n(import numpy.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(example.replace("128", "12"), {})
    answer = capsys.readouterr().out.rstrip("\n")
    trained = Path(stage.run.workspace.removeprefix("file://")) / "trained" / "model"
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForCausalLM.from_pretrained(trained, dtype="float32")
    chat = [{"role": "user", "content": "Hello!"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer == tokenizer.decode(said, skip_special_tokens=True).rstrip("\n")
    assert answer


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["publish", "prepare"])
def test_who_asks_for_plain_formats_does_not_wait_for_exporters(stage: str) -> None:
    program = (
        f"import sys, kubedistill_trainer.stages.{stage}; print([m for m in sys.modules if m.startswith({PACKAGES})])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PACKAGES = ("gguf", "onnx", "onnxruntime", "onnxscript", "kubedistill_trainer.formats")
