"""Prepare: what is wrong ends with a sentence, what is sound is laid out for every later stage."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storing.volumes import a_volume_of
from teaching.server import TestTeacher
from teaching.work import context_of
from toys.families import save
from transformers import Lfm2Config, Lfm2ForCausalLM, Phi3Config, Phi3ForCausalLM

from kubedistill_api.base import Stage
from kubedistill_api.digests import generate_digest
from kubedistill_api.documents import parse_job
from kubedistill_api.identity import StageKey, stage_folder
from kubedistill_api.results import FailedResult, GenerateResult, PrepareResult, Success
from kubedistill_api.run import JobIdentity, PrepareRun
from kubedistill_api.status import Ledger, RejectReason
from kubedistill_trainer import runtime
from kubedistill_trainer.preparation.report import quantile
from kubedistill_trainer.stages import prepare
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.rows import read_prompts
from kubedistill_trainer.store.workspace import Workspace

LINES = [{"prompt": f"How do I do thing number {number}?"} for number in range(40)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def tried(tmp_path: Path, tiny_folder: Path) -> Callable[..., Success | FailedResult]:
    """Runs Prepare on these bytes, with these changes to an ordinary spec."""

    def run(
        content: bytes | None = jsonl(LINES), held_out: bytes | None = None, /, **changes: Any
    ) -> Success | FailedResult:
        if content is not None:
            (tmp_path / "data.jsonl").write_bytes(content)
        if held_out is not None:
            (tmp_path / "valid.jsonl").write_bytes(held_out)
            changes["data"] = {"validation": {"uri": f"file://{tmp_path}/valid.jsonl"}}
        spec: dict[str, Any] = {
            "teachers": [{"name": "t", "model": {"uri": f"file://{tiny_folder}"}, "batch": {"gpus": 0}}],
            "student": {"prunedFrom": {"teacher": "t", "layers": 1}},
            "data": {"train": {"uri": f"file://{tmp_path}/data.jsonl"}, "validationFraction": 0.2},
            "generation": {"maxTokens": 32},
            "training": {"gpusPerNode": 0, "hyperparameters": {"maxSequenceLength": 400}},
            "output": {"uri": f"file://{tmp_path}/output"},
        }
        for part, value in changes.items():
            spec[part] = {**spec[part], **value} if isinstance(spec.get(part), dict) else value
        document = {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": {"name": "j"}}
        job = parse_job({**document, "spec": spec})
        asked = PrepareRun(
            job=JobIdentity(namespace="default", name="j", uid="u", spec_digest="s"),
            workspace=f"file://{tmp_path}/workspace",
            folder="jobs/default.j/prepare-1",
            input_digest="sha256:in",
            spec=job.spec,
        )
        context = context_of(Workspace.open(asked.workspace), tmp_path / "scratch")
        return runtime.execute(asked, context, prepare)

    return run


HEADS = {
    "served": {"serving": {"gpusPerNode": 4, "parallelism": {"tensor": 4}}},
    "in-process": {"batch": {"engine": "VLLM", "gpus": 4}},
}


@pytest.mark.parametrize("way", HEADS.values(), ids=HEADS)
def test_heads_that_gpus_cannot_share_are_refused_before_any_gpu_is_asked_for(
    tried: Callable[..., Any], tiny_folder: Path, way: dict[str, Any]
) -> None:
    result = tried(teachers=[{"name": "t", "model": {"uri": f"file://{tiny_folder}"}, **way}])
    assert (result.exit_code, result.reason) == (64, "HeadsIndivisible")
    assert result.message.endswith("write a number that divides them, such as 2.")


def test_sound_data_are_split_and_laid_out(tried: Callable[..., Any], tmp_path: Path) -> None:
    result = tried()
    assert isinstance(result, PrepareResult)
    place = Workspace.open(f"file://{tmp_path}/workspace")
    train, valid = (read_prompts(place, result.folder, split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (result.estimate.rows, result.estimate.validation_rows)
    assert len(train) + len(valid) == 40
    assert not {row.prompt_hash for row in train} & {row.prompt_hash for row in valid}
    assert place.exists(f"{result.folder}/tokenizer/tokenizer.json")
    assert place.exists(f"{result.folder}/teachers/t/tokenizer.json")
    assert "training prompts" in place.read_bytes(result.report).decode()
    assert result.estimate.tokens_to_generate == 40 * 32


def test_equal_data_give_an_equal_digest_whatever_the_file_looks_like(tried: Callable[..., Any]) -> None:
    plain = tried().output_digest
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(LINES), table)
    windows = b"\xef\xbb\xbf" + jsonl(LINES).replace(b"\n", b"\r\n\r\n")
    array = json.dumps(LINES, indent=1).encode()
    for data in (gzip.compress(jsonl(LINES)), table.getvalue(), windows, array):
        assert tried(data).output_digest == plain


def test_a_second_run_is_reused_until_the_file_changes(tried: Callable[..., Any]) -> None:
    assert not tried().reused
    assert tried(None).reused
    assert not tried(jsonl(LINES[:30])).reused


def test_a_model_that_was_written_anew_is_looked_at_anew_and_answers_anew(
    tried: Callable[..., Any], tmp_path: Path, tiny_folder: Path
) -> None:
    teacher = shutil.copytree(tiny_folder, tmp_path / "teacher")
    teachers = [{"name": "t", "model": {"uri": f"file://{teacher}"}, "batch": {"gpus": 0}}]
    first = tried(teachers=teachers)
    answered(tmp_path, first, Ledger(accepted=40))
    again = tried(None, teachers=teachers)
    assert len(again.answers) == 1
    assert tried(None, teachers=teachers).reused
    os.utime(teacher / "model.safetensors", ns=(1, 1))
    other = tried(None, teachers=teachers)
    assert not other.reused
    assert other.output_digest == first.output_digest, "the prompts are the same"
    assert other.answers == [], "another teacher was asked"


def test_answers_that_are_there_already_are_named(tried: Callable[..., Any], tmp_path: Path) -> None:
    first = tried()
    assert first.answers == []
    folder = answered(tmp_path, first, Ledger(accepted=40))
    assert [answers.folder for answers in tried(None).answers] == [folder]


def test_answers_that_are_there_must_be_enough_for_a_yield_that_was_raised_since(
    tried: Callable[..., Any], tmp_path: Path
) -> None:
    reasons = [RejectReason(reason="Truncated", count=10)]
    answered(tmp_path, tried(), Ledger(accepted=30, rejected=10, top_reasons=reasons))
    assert tried(None, generation={"minYield": 0.75}).answers
    refused = tried(None, generation={"minYield": 0.76})
    assert (refused.exit_code, refused.reason) == (65, "YieldTooLow")
    assert "30 of 40" in refused.message
    assert "Truncated" in refused.message
    assert "reuse: Never" in refused.message


def answered(tmp_path: Path, prepared: PrepareResult, ledger: Ledger) -> str:
    """The folder of a teacher's answers, made by an earlier job."""
    wanted = generate_digest(prepared_spec(tmp_path, prepared), "t", prepared.output_digest, prepared.models, "u")
    folder = stage_folder("default", "j", StageKey(Stage.GENERATE, "t"), wanted)
    made = GenerateResult(input_digest=wanted, output_digest="sha256:out", folder=folder, teacher="t", ledger=ledger)
    manifests.commit(Workspace.open(f"file://{tmp_path}/workspace"), made)
    return folder


def prepared_spec(tmp_path: Path, result: PrepareResult) -> Any:
    """The spec that `tried` used, as its files show it."""
    document = {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": {"name": "j"}}
    model = next(model.uri for model in result.models if model.role == "teacher:t")
    spec = {
        "teachers": [{"name": "t", "model": {"uri": model}, "batch": {"gpus": 0}}],
        "student": {"prunedFrom": {"teacher": "t", "layers": 1}},
        "data": {"train": {"uri": f"file://{tmp_path}/data.jsonl"}, "validationFraction": 0.2},
        "generation": {"maxTokens": 32},
        "training": {"gpusPerNode": 0, "hyperparameters": {"maxSequenceLength": 400}},
        "output": {"uri": f"file://{tmp_path}/output"},
    }
    return parse_job({**document, "spec": spec}).spec


BROKEN = jsonl(LINES) + b'{"prompt": "no end\n' * 10
FAILURES: dict[str, tuple[bytes, dict[str, Any], int, list[str]]] = {
    "an empty file": (b"\n \n", {}, 65, ["data.jsonl is empty"]),
    "wrong columns": (jsonl([{"ask": "x", "reply": "y"}] * 9), {}, 65, ["ask, reply", "data.columns", "line 1"]),
    "broken lines": (BROKEN, {}, 65, ["10 of 50 rows", "10%", "line 41, column", "no end"]),
    "one broken line where none is borne": (
        jsonl(LINES) + b"{\n",
        {"data": {"onInvalidRow": "Fail"}},
        65,
        ["1 of 41 rows", "line 41, column", "Fail bears none"],
    ),
    "not UTF-8": (b'{"prompt": "caf\xe9"}\n', {}, 65, ["line 1, column 16", "not UTF-8"]),
    "a key that stands twice": (
        b'{"prompt": "a", "prompt": "b"}\n',
        {},
        65,
        ["line 1, column 17", "'prompt'", "twice"],
    ),
    "prompts that are all too long": (jsonl([{"prompt": "x" * 500}] * 9), {}, 65, ["longer than"]),
    "no file": (b"x", {"data": {"train": {"uri": "file:///nowhere/data.jsonl"}}}, 66, ["no data at", "data.train.uri"]),
    "an unknown model": (
        jsonl(LINES),
        {"teachers": [{"name": "t", "model": {"uri": "file:///nowhere/model"}, "batch": {"gpus": 0}}]},
        66,
        ["There is no model at file:///nowhere/model"],
    ),
    "a mapping of no field of ours": (
        jsonl(LINES),
        {"data": {"columns": {"question": "prompt"}}},
        64,
        ["data.columns"],
    ),
    "keys that the spec writes itself": (
        jsonl(LINES),
        {"training": {"gpusPerNode": 0, "deepspeed": {"config": {"optimizer": {}}}}},
        64,
        ["sets optimizer, which", "write training.hyperparameters.learningRate"],
    ),
    "a ZeRO stage beside the spec's own": (
        jsonl(LINES),
        {"training": {"gpusPerNode": 0, "deepspeed": {"config": {"zero_optimization": {"stage": 3}}}}},
        64,
        ["sets zero_optimization.stage, which", "write training.deepspeed.zeroStage instead"],
    ),
    "more layers than there are": (
        jsonl(LINES),
        {"student": {"prunedFrom": {"teacher": "t", "layers": 2}}},
        64,
        ["has 2 layers"],
    ),
    "a label that does not count": (
        jsonl([{"prompt": "a", "label": "yes"}]),
        {"task": "Classification", "data": {"labels": ["up", "down"]}},
        65,
        ["'yes'", "up, down"],
    ),
    "labels without a number": (
        jsonl([{"prompt": f"How many, case {n}?", "label": "a few"} for n in range(9)]),
        {"task": "Math"},
        65,
        ["'a few'", "no number", "line 1", "42, -1.5 or 3/4"],
    ),
    "labels of several numbers": (
        jsonl([{"prompt": f"Where, case {n}?", "label": "(3, 4)"} for n in range(9)]),
        {"task": "Math"},
        65,
        ["'(3, 4)'", "more than one number", "line 1", "#### 42", "rejected.jsonl"],
    ),
    "csv": (b"question,answer\nWhat?,That\n", {}, 65, ["neither JSON lines", "'question,answer'", "one JSON object"]),
    "labels to match, and none there": (
        jsonl(LINES),
        {"generation": {"filters": {"requireLabelMatch": True}}},
        65,
        ["requireLabelMatch", "no training row has a label", "data.columns: {label: answer}"],
    ),
    "a gate on accuracy without labels": (
        jsonl(LINES),
        {
            "task": "Math",
            "evaluation": {"metrics": ["Accuracy"], "gates": [{"metric": "Accuracy", "operator": ">=", "value": 0.5}]},
        },
        65,
        ["asks for Accuracy", "no held-out row has a label"],
    ),
    "no room for a prompt beside the instruction": (
        jsonl(LINES),
        {"task": "Math", "generation": {"maxTokens": 380, "reasoning": "ChainOfThought"}},
        64,
        ["no room for a prompt"],
    ),
    "a format that its tokenizer cannot have": (
        jsonl(LINES),
        {"output": {"formats": ["Merged", "GGUF"]}},
        64,
        ["cannot be published as GGUF: its tokenizer merges nothing", "Leave GGUF out of output.formats"],
    ),
    "no room for a prompt": (jsonl(LINES), {"generation": {"maxTokens": 600}}, 64, ["no room for a prompt"]),
}


@pytest.mark.parametrize(("data", "changes", "code", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_what_is_wrong_is_named_and_says_what_to_write(
    tried: Callable[..., Any], data: bytes, changes: dict[str, Any], code: int, words: list[str]
) -> None:
    result = tried(data, **changes)
    assert isinstance(result, FailedResult), result
    assert result.exit_code == code
    assert all(word in result.message for word in words), result.message
    assert "Traceback" not in result.message


def test_a_few_rows_are_left_out_and_kept_with_their_reasons(tried: Callable[..., Any], tmp_path: Path) -> None:
    too_long = {"prompt": "x" * 900}
    result = tried(jsonl([*LINES, LINES[3], too_long]) + b"{nonsense\n")
    assert result.dropped_rows == 1
    place = Workspace.open(f"file://{tmp_path}/workspace")
    lines = [json.loads(line) for line in place.read_bytes(f"{result.folder}/rejected.jsonl").splitlines()]
    assert {(line["place"].rpartition(", ")[2], line["reason"]) for line in lines} == {
        ("line 41", "Duplicate"),
        ("line 42", "TooLong"),
        ("line 43", "Broken"),
    }
    assert "rejected.jsonl" in result.warnings[0]
    report = place.read_bytes(result.report).decode()
    assert "line 43" in report
    assert "[rejected.jsonl](rejected.jsonl)" in report
    manifest = manifests.load(place, result.folder)
    assert manifest is not None
    assert {"rejected.jsonl", "train.parquet", "valid.parquet", "report.md"} <= set(manifest.files)
    assert list((tmp_path / "scratch").rglob("*.jsonl")) == list((tmp_path / "scratch").rglob("*.parquet")) == []


def test_rows_that_made_prepare_fail_are_kept_until_the_data_are_sound(
    tried: Callable[..., Any], tmp_path: Path
) -> None:
    failed = tried(BROKEN)
    kept = tmp_path / "workspace" / "jobs/default.j/prepare-1/rejected.jsonl"
    assert len(kept.read_text().splitlines()) == 10
    assert failed.message.endswith(kept.as_uri())
    assert isinstance(tried(jsonl(LINES)), PrepareResult)
    assert not kept.exists()


def test_data_that_broke_since_leave_what_was_committed_as_it_was(tried: Callable[..., Any], tmp_path: Path) -> None:
    tried(jsonl([*LINES, LINES[3]]))
    kept = tmp_path / "workspace" / "jobs/default.j/prepare-1/rejected.jsonl"
    before = kept.read_bytes()
    assert tried(BROKEN).reason == "InvalidRows"
    assert kept.read_bytes() == before


def test_a_store_that_fails_does_not_hide_why_prepare_failed(tried: Callable[..., Any], tmp_path: Path) -> None:
    in_the_way = tmp_path / "workspace" / "jobs/default.j/prepare-1/rejected.jsonl"
    in_the_way.mkdir(parents=True)
    failed = tried(BROKEN)
    assert (failed.exit_code, failed.reason) == (65, "InvalidRows")
    assert "rejected.jsonl" not in failed.message


@pytest.mark.parametrize(
    ("labelled", "words"),
    [(40, []), (30, ["training rows have no label"]), (0, ["40 training", "Accuracy will be left out"])],
    ids=["all labelled", "some labelled", "none labelled"],
)
def test_of_numbers_it_is_said_how_many_cannot_be_checked(
    tried: Callable[..., Any], labelled: int, words: list[str]
) -> None:
    rows = [{**line, **({"label": 3.5} if number < labelled else {})} for number, line in enumerate(LINES)]
    held_out = jsonl([{"prompt": "Held out?", **({"label": "7"} if labelled else {})}])
    result = tried(jsonl(rows), held_out, task="Math", evaluation={"metrics": ["Accuracy", "ExactMatch"]})
    assert isinstance(result, PrepareResult), result
    notes = [warning for warning in result.warnings if "label" in warning]
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words[::-1], notes, strict=True))


def test_an_output_that_is_taken_is_refused(tried: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "theirs.txt").write_text("keep me")
    result = tried()
    assert (result.exit_code, result.reason) == (64, "OutputTaken")
    assert "output.uri" in result.message
    assert (tmp_path / "output" / "theirs.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("below", "reason"), [("", "OutputTaken"), ("/folder/model", "OutputNotWritable")], ids=["a file", "below a file"]
)
def test_an_output_that_cannot_be_written_is_refused_with_what_to_write(
    tried: Callable[..., Any], tmp_path: Path, below: str, reason: str
) -> None:
    """Also to root, who may write to every folder."""
    (tmp_path / "taken").write_text("a file")
    result = tried(output={"uri": f"file://{tmp_path}/taken{below}"})
    assert isinstance(result, FailedResult), result
    assert (result.exit_code, result.reason) == (64, reason)
    assert result.message.startswith(f"file://{tmp_path}/taken{below} cannot be written")
    assert "output.uri" in result.message
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_refused_as_output(tried: Callable[..., Any], s3_bucket: str) -> None:
    result = tried(output={"uri": "s3://no-such-bucket/model"})
    assert (result.exit_code, result.reason) == (64, "OutputNotWritable")
    assert result.message.startswith("s3://no-such-bucket/model cannot be written")
    assert "bucket" in result.message.replace("s3://no-such-bucket", "")


@pytest.mark.s3
@pytest.mark.parametrize("keys", ["wrong", "none"])
@pytest.mark.parametrize("what", ["output", "data", "model"])
def test_credentials_that_are_refused_or_missing_are_told_with_where_to_write_them(
    tried: Callable[..., Any], s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, keys: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # else an absent key is looked for on the network
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
        if keys == "wrong":
            monkeypatch.setenv(name, "nobody")
    uri = f"{s3_bucket}/{tmp_path.name}"
    asked: dict[str, dict[str, Any]] = {
        "output": {"output": {"uri": uri}},
        "data": {"data": {"train": {"uri": f"{uri}/data.jsonl"}}},
        "model": {"student": {"prunedFrom": None, "model": {"uri": uri}}},
    }
    result = tried(**asked[what])
    assert isinstance(result, FailedResult), result
    assert (result.exit_code, result.reason) == (66, "AccessDenied")
    assert result.message.startswith(f"Access to {uri}")
    assert "check spec.credentials" in result.message


LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=60)


@given(lengths=LENGTHS, share=st.floats(0, 1))
def test_of_the_prompts_no_smaller_share_is_as_short_as_the_quantile_says(lengths: list[int], share: float) -> None:
    found = quantile(lengths, share)
    assert found in lengths
    assert sum(length < found for length in lengths) <= share * len(lengths)
    assert sum(length <= found for length in lengths) >= share * len(lengths)


def test_the_report_has_the_lengths_of_the_prompts_and_the_labels(tried: Callable[..., Any], tmp_path: Path) -> None:
    """Lengths in the student's tokens, template included: here one for each byte, two of them for <s> and </s>."""
    labels = ["up", "up", "down | or so"]
    rows = [{"prompt": "x" * (1 + number), "label": labels[number % 3]} for number in range(90)]
    result = tried(jsonl(rows), task="Classification", data={"labels": ["up", "down | or so"]})
    assert isinstance(result, PrepareResult), result
    place = Workspace.open(f"file://{tmp_path}/workspace")
    beside = 1 + len("user: ") + 1 + 1 + len("assistant: ")
    lengths = sorted(beside + len(row.chat[0]["content"]) for row in read_prompts(place, result.folder, "train"))
    middle, high = lengths[len(lengths) // 2], lengths[int(0.95 * len(lengths))]
    report = place.read_bytes(result.report).decode()
    assert (
        f"A prompt has {middle} tokens in the middle, {high} at the 95th percentile, {lengths[-1]} at most." in report
    )
    assert "| Label | Rows |\n|---|---|\n| up | 60 |\n| down \\| or so | 30 |\n" in report


@pytest.mark.parametrize("kinds", [50, 51])
def test_labels_of_more_kinds_than_one_reads_are_not_listed(
    tried: Callable[..., Any], tmp_path: Path, kinds: int
) -> None:
    rows = [{"prompt": f"Case {number}?", "label": f"line\n{number}"} for number in range(kinds)]
    result = tried(jsonl(rows), task="QuestionAnswering")
    report = (tmp_path / "workspace" / result.report).read_text()
    assert report.count("| line ") == (50 if kinds == 50 else 0)


def test_equal_sizes_with_other_tokens_are_not_one_tokenizer(
    tried: Callable[..., Any], tiny_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    result = tried(student={"model": {"uri": f"file://{other}"}, "prunedFrom": None}, generation={"signal": "TopK"})
    assert (result.exit_code, result.reason) == (64, "TokenizersDiffer")
    assert "signal: Text" in result.message


def test_formats_are_rehearsed_and_their_sizes_told(tried: Callable[..., Any], tmp_path: Path) -> None:
    student = {"model": {"uri": save("llama", tmp_path / "student").as_uri()}, "prunedFrom": None}
    result = tried(student=student, output={"formats": ["Merged", "GGUF"]})
    assert isinstance(result, PrepareResult), result
    report = (tmp_path / "workspace" / result.report).read_text()
    assert "| size as GGUF | 0.00 GiB |" in report
    assert "| memory of Publish | 1.00 GiB |" in report
    assert list((tmp_path / "scratch").rglob("*.gguf")) == []


@pytest.mark.slow
def test_a_format_that_torch_cannot_write_is_refused_before_anything_dear(
    tried: Callable[..., Any], tmp_path: Path
) -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    folder = save("llama", tmp_path / "student")
    shape = Lfm2Config(vocab_size=520, hidden_size=32, intermediate_size=64, num_hidden_layers=2, **config)
    Lfm2ForCausalLM(shape).save_pretrained(folder)
    student = {"model": {"uri": folder.as_uri()}, "prunedFrom": None}
    padded = {"hyperparameters": {"maxSequenceLength": 400, "packing": False}}
    result = tried(student=student, training=padded, output={"formats": ["ONNX"]})
    assert (result.exit_code, result.reason) == (64, "FormatImpossible")
    assert "cannot be published as ONNX: torch cannot export a 'lfm2'" in result.message


def test_a_teacher_beside_the_student_is_in_the_estimate(tried: Callable[..., Any], tiny_model: Any) -> None:
    scores = {"signal": "TopK", "maxTokens": 32}
    hyper = {"maxSequenceLength": 400}
    alone = tried(generation=scores).estimate
    beside = tried(
        generation=scores, training={"objective": {"hiddenStates": {}, "attention": {}}, "hyperparameters": hyper}
    ).estimate
    weights = sum(weight.numel() for weight in tiny_model.parameters())
    assert beside.student_memory_bytes - alone.student_memory_bytes == 2 * weights  # BF16


def test_a_student_that_does_not_fit_the_pod_is_refused_before_its_teacher_is_asked(tried: Callable[..., Any]) -> None:
    def limited(memory: str) -> list[dict[str, Any]]:
        return [{"stage": "Train", "resources": {"limits": {"memory": memory}}}]

    result = tried(stageTemplates=limited("256Ki"))
    assert (result.exit_code, result.reason) == (64, "StudentDoesNotFit")
    assert "limits.memory of stageTemplates Train is 0.25 MiB" in result.message
    assert isinstance(tried(stageTemplates=limited("1Gi")), PrepareResult)


def test_a_workspace_that_cannot_hold_the_checkpoints_is_refused_before_the_teacher_is_asked(
    tried: Callable[..., Any], tmp_path: Path
) -> None:
    hyper = {"maxSequenceLength": 400, "globalBatchSize": 1, "microBatchSize": 1, "epochs": 9}
    many = {"checkpoints": {"everySteps": 1, "keepLast": 9}, "hyperparameters": hyper}
    with a_volume_of(tmp_path / "workspace", "4m"):
        result = tried(training=many)
        assert (result.exit_code, result.reason) == (64, "WorkspaceTooSmall")
        assert "keeps 10 checkpoints of " in result.message
        assert (
            "write a larger workspace.pvc.size, a bucket as workspace.uri, a checkpoints.keepLast below 9"
            in result.message
        )
        assert isinstance(tried(), PrepareResult)


def test_a_student_in_four_bits_is_smaller_in_the_estimate(tried: Callable[..., Any]) -> None:
    memory = {
        kind: tried(
            student={"prunedFrom": {"teacher": "t", "layers": 1}, "adapter": {"type": kind, "rank": 2}},
            training={"deepspeed": {"zeroStage": 0}},
        ).estimate.student_memory_bytes
        for kind in ("LoRA", "QLoRA")
    }
    linear = 48 * (48 + 16 + 16 + 48) + 3 * 48 * 96
    assert memory["LoRA"] - memory["QLoRA"] == pytest.approx((2 - 0.516) * linear, rel=1e-3)  # BF16


@pytest.mark.parametrize("gpus", [0, 1])
def test_four_bits_are_tried_here_if_the_training_is_on_cpus(
    gpus: int, tried: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU can do, no pod without one knows."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # type: ignore[arg-type] # as Python marks what it lacks
    result = tried(
        student={"prunedFrom": {"teacher": "t", "layers": 1}, "adapter": {"type": "QLoRA"}},
        training={"gpusPerNode": gpus},
    )
    if gpus:
        assert isinstance(result, PrepareResult)
    else:
        assert (result.exit_code, result.reason) == (64, "FourBitsUnsupported")
        assert "on the device cpu" in result.message


def test_a_student_that_is_stored_quantised_is_refused_in_four_bits(
    tried: Callable[..., Any], tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "quantised"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    student = {"model": {"uri": folder.as_uri()}, "prunedFrom": None, "adapter": {"type": "QLoRA"}}
    result = tried(student=student)
    assert (result.exit_code, result.reason) == (64, "StudentQuantized")
    assert "is stored quantised (gptq)" in result.message
    assert "write a student.model that is not quantised" in result.message


def test_attentions_of_an_architecture_that_makes_queries_keys_and_values_in_one_are_refused(
    tried: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = Phi3Config(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "fused")
    tiny_tokenizer.save_pretrained(tmp_path / "fused")
    result = tried(
        teachers=[{"name": "t", "model": {"uri": f"file://{tmp_path}/fused"}, "batch": {"gpus": 0}}],
        generation={"signal": "TopK"},
        training={"objective": {"attention": {}}},
    )
    assert (result.exit_code, result.reason) == (64, "AttentionUnsupported")
    assert "Phi3ForCausalLM has no q_proj, k_proj, v_proj" in result.message
    assert "leave training.objective.attention out" in result.message


def test_a_student_that_cannot_be_trained_as_asked_is_refused_before_anything_dear(
    tried: Callable[..., Any], tmp_path: Path
) -> None:
    shape = Lfm2Config(
        vocab_size=520, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, layer_types=["conv"] * 2
    )
    folder = save("llama", tmp_path / "student")
    Lfm2ForCausalLM(shape).save_pretrained(folder)
    result = tried(student={"model": {"uri": folder.as_uri()}, "prunedFrom": None})
    assert (result.exit_code, result.reason) == (64, "PackingUnsupported")
    assert "write training.hyperparameters.packing: false" in result.message


@pytest.mark.parametrize("keys", ["own", "common", "wrong", "missing"])
def test_each_external_teacher_is_tried_with_its_own_key(
    tried: Callable[..., Any], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    """A key for all is enough where one provider has them all."""
    wanted = {"b-c": "key of both"} if keys == "common" else {"a": "key of a", "b-c": "key of b-c"}
    for name in [name for name in os.environ if name.startswith("KUBEDISTILL_TEACHER_API_KEY")]:
        monkeypatch.delenv(name)
    odd = {"wrong": {"_A": "key of a", "_B_C": "key of a"}, "missing": {"_A": "key of a"}}
    shown = {"common": {"": "key of both"}, **odd}.get(keys, {"_A": "key of a", "_B_C": "key of b-c", "": "nobody's"})
    for ending, key in shown.items():
        monkeypatch.setenv(f"KUBEDISTILL_TEACHER_API_KEY{ending}", key)
    with (
        TestTeacher(api_key=wanted.get("a", "key of both")) as one,
        TestTeacher(api_key=wanted["b-c"]) as other,
    ):
        teachers = [
            {"name": name, "external": {"url": server.url, "model": "teacher", "termsAccepted": True}}
            for name, server in (("a", one), ("b-c", other))
        ]
        result = tried(teachers=teachers, student={"prunedFrom": None, "model": {"uri": f"file://{tiny_folder}"}})
    if keys in odd:
        assert isinstance(result, FailedResult)
        assert (result.exit_code, result.reason) == (66, "CredentialRefused")
        assert other.url in result.message
        assert "external.credentialsSecret" in result.message
    else:
        assert isinstance(result, PrepareResult), result
