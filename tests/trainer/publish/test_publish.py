"""Publish gives a model an address only when the model is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubedistill_api.output import Format, Overwrite
from kubedistill_api.results import PublishResult
from kubedistill_trainer import runtime
from kubedistill_trainer.errors import BadConfiguration, NotFound, Stopped, Transient
from kubedistill_trainer.stages import publish
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.artifacts import CLAIM, MANIFEST, look
from kubedistill_trainer.store.workspace import Workspace


def test_the_published_model_loads_and_answers_as_its_card_says(
    finished: Any, output: Workspace, tmp_path: Path
) -> None:
    result = finished.to(output.root).publish()
    assert result.model_uri == output.root
    folder = tmp_path / "downloaded"
    output.fetch("", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "Hello!"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_the_result_tells_where_everything_is(finished: Any) -> None:
    result = finished.publish()
    assert result.report_uri == f"{result.model_uri}/report.html"
    assert result.dataset_uri == f"{finished.run.workspace}/answers", "the folder that both teachers' answers lie in"
    written = json.loads((Path(finished.run.output.uri.removeprefix("file://")) / MANIFEST).read_text())
    assert (result.digest, result.size_bytes) == (written["digest"], written["sizeBytes"])
    assert set(written["files"]) >= {"README.md", "report.html", "config.json", "model.safetensors"}


def test_the_adapter_goes_beside_the_merged_weights(finished: Any) -> None:
    both = finished.to(finished.run.output.uri, formats=[Format.MERGED, Format.ADAPTER])
    result = both.publish()
    files = look(Workspace.open(both.run.output.uri)).files
    assert {"adapter/adapter_config.json", "config.json"} <= files
    assert result.formats == ["Merged", "Adapter"]


def test_an_adapter_alone_has_its_own_address(finished: Any) -> None:
    result = finished.to(finished.run.output.uri, formats=[Format.ADAPTER]).publish()
    assert result.model_uri.endswith("/output/adapter")
    assert "config.json" not in look(Workspace.open(finished.run.output.uri)).files


def test_a_format_that_was_never_made_is_said_in_a_sentence(finished: Any) -> None:
    finished.context.workspace.remove("trained/adapter")
    with pytest.raises(BadConfiguration, match=r"Training left no adapter .* write output\.formats: \[Merged\]"):
        finished.to(finished.run.output.uri, formats=[Format.ADAPTER]).publish()


def test_a_file_that_changed_since_training_is_not_published(finished: Any) -> None:
    finished.context.workspace.write_bytes("trained/model/config.json", b"{}")
    with pytest.raises(Transient, match=r"trained/model/config\.json is not what Train wrote"):
        finished.publish()
    assert look(Workspace.open(finished.run.output.uri)).files == frozenset()


def test_a_file_that_vanished_since_training_is_not_published(finished: Any) -> None:
    finished.context.workspace.remove("trained/model/generation_config.json")
    with pytest.raises(Transient, match=r"generation_config\.json is not what Train wrote"):
        finished.publish()


def test_the_card_tells_the_lineage_and_whose_terms_apply(finished: Any) -> None:
    finished.publish()
    text = (Path(finished.run.output.uri.removeprefix("file://")) / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["base_model"] == ["acme/base"]
    assert matter["license"] == "other"
    for line in (
        "| Student | hf://acme/base, revision 4e53f73, 99.0 M parameters, LoRA of rank 8 |",
        "| Teacher | api: acme-large at https://api.example/v1, its terms were accepted for this use, "
        "7 of the answers |",
        "| Prompts | s3://acme/prompts.jsonl |",
        "| Digest of the spec | sha256:spec |",
        "| KL to the teacher | 3.10 nats | 0.70 nats | 0.00 nats | – |",
        "(termsAccepted: true)",
        "hf://acme/base, whose licence applies",
    ):
        assert line in body


def test_the_stage_again_repeats_its_result(finished: Any) -> None:
    first = runtime.execute(finished.run, finished.context, publish)
    again = runtime.execute(finished.run, finished.context, publish)
    assert isinstance(first, PublishResult)
    assert isinstance(again, PublishResult)
    assert again.reused
    assert again.digest == first.digest


@pytest.mark.parametrize("lost", ["model.safetensors", MANIFEST])
def test_the_stage_again_publishes_again_if_somebody_removed_the_model(finished: Any, lost: str) -> None:
    runtime.execute(finished.run, finished.context, publish)
    output = Workspace.open(finished.run.output.uri)
    output.remove(lost)
    if lost == MANIFEST:
        output.remove("")
    again = runtime.execute(finished.run, finished.context, publish)
    assert isinstance(again, PublishResult)
    assert not again.reused
    assert lost in look(output).files


def test_an_attempt_that_was_stopped_in_the_middle_is_gone_on_with(finished: Any) -> None:
    finished.context.stopping.set()
    with pytest.raises(Stopped):
        finished.publish()
    output = Workspace.open(finished.run.output.uri)
    assert CLAIM in look(output).files
    assert MANIFEST not in look(output).files
    finished.context.stopping.clear()
    finished.publish()
    assert CLAIM not in look(output).files


def test_a_retrained_model_replaces_its_forerunner_only_if_told_so(finished: Any) -> None:
    finished.publish()
    finished.context.workspace.write_bytes("evaluated/report.html", b"<!doctype html><title>another</title>")
    job = finished.run.job.model_copy(update={"uid": "uid-2"})
    with pytest.raises(BadConfiguration, match="write overwrite: IfOwned"):
        finished.asking(job=job).publish()
    finished.asking(job=job).to(finished.run.output.uri, overwrite=Overwrite.IF_OWNED).publish()
    assert look(Workspace.open(finished.run.output.uri)).artifact.owner.uid == "uid-2"


def test_without_an_evaluation_nothing_is_published(finished: Any) -> None:
    finished.context.workspace.remove("evaluated")
    with pytest.raises(NotFound, match="evaluated"):
        finished.publish()
    assert manifests.load(finished.context.workspace, "published") is None


def test_progress_counts_every_byte_twice(finished: Any) -> None:
    result = finished.publish()
    progress = finished.context.progress.report().progress
    assert (progress.done, progress.total, progress.unit) == (2 * result.size_bytes, 2 * result.size_bytes, "bytes")


def test_nothing_is_left_in_scratch(finished: Any) -> None:
    finished.publish()
    assert [path for path in finished.context.scratch.rglob("*") if path.is_file()] == []
