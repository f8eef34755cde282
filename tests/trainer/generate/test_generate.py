"""Generate from run file to manifest, against a real HTTP server that can misbehave."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from teaching.scores import ROUNDED, check_candidates
from teaching.server import TestTeacher
from teaching.work import context_of, prepare, prompt_row

from kubedistill_api.base import Task
from kubedistill_api.exits import Exit
from kubedistill_api.results import FailedResult, GenerateResult
from kubedistill_api.run import GenerateRun
from kubedistill_trainer import runtime
from kubedistill_trainer.errors import BadConfiguration, BadData, NotFound, Stopped, Transient
from kubedistill_trainer.models import tokenizer_digest
from kubedistill_trainer.stages import generate
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.shards import SCHEMA_VERSION, AnswerRow, Signal, read_answers
from kubedistill_trainer.store.workspace import Workspace

Run = Callable[..., GenerateRun]


def answers(workspace: Workspace, split: Any = "train") -> list[AnswerRow]:
    return list(read_answers(workspace, ["answers/t-1"], split))


def reasons(result: GenerateResult) -> dict[str, int]:
    return {reason.reason: reason.count for reason in result.ledger.top_reasons}


def test_every_prompt_is_answered_once_and_the_manifest_comes_last(
    workspace: Workspace, a_run: Run, tmp_path: Path
) -> None:
    with TestTeacher() as teacher:
        result = generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    assert result.ledger.accepted == 44
    assert set(teacher.prompts().values()) == {1}
    assert {row.text for row in answers(workspace)} == {f"Echo: Question {i}?" for i in range(40)}
    assert len(answers(workspace, "valid")) == 4
    manifest = manifests.load(workspace, "answers/t-1")
    assert manifest is not None
    assert manifest.result == result
    lines = workspace.read_bytes("answers/t-1/answers.jsonl").decode().splitlines()
    assert json.loads(lines[0])["messages"][1]["content"].startswith("Echo: ")


def test_the_row_that_is_stored_is_prompt_and_answer_in_the_students_template(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    with TestTeacher() as teacher:
        generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    row = answers(workspace)[0]
    question = row.text.removeprefix("Echo: ")
    assert tiny_tokenizer.decode(row.input_ids) == f"<s>user: {question}</s><s>assistant: {row.text}</s>"
    assert tiny_tokenizer.decode(row.input_ids[row.target_mask]) == f"{row.text}</s>"


def test_a_second_worker_makes_what_the_first_leaves_and_merges(
    workspace: Workspace, a_run: Run, tmp_path: Path
) -> None:
    with TestTeacher() as teacher:
        first = generate.run(a_run(teacher.url, workers=2), context_of(workspace, tmp_path, worker=0))
        assert manifests.load(workspace, "answers/t-1") is None
        second = generate.run(a_run(teacher.url, workers=2), context_of(workspace, tmp_path, worker=1))
    assert set(teacher.prompts().values()) == {1}
    assert first.output_digest == second.output_digest
    assert first.missing_shards > second.missing_shards == 0
    assert 0 < first.ledger.accepted < second.ledger.accepted == 44


@pytest.mark.parametrize("kept", [0, 3], ids=["nothing", "a-part"])
def test_a_look_asks_nobody_and_says_how_many_shards_are_missing(
    workspace: Workspace, a_run: Run, tmp_path: Path, kept: int
) -> None:
    with TestTeacher() as teacher:
        run = a_run(teacher.url)
        if kept:
            generate.run(run, context_of(workspace, tmp_path))
        workspace.remove("answers/t-1/manifest.json")
        for path in workspace.list("answers/t-1/shards")[kept:]:
            workspace.remove(path)
        asked = len(teacher.seen)
        result = generate.run(run.model_copy(update={"look_only": True}), context_of(workspace, tmp_path))
        assert len(teacher.seen) == asked
    assert result.missing_shards == 9 - kept
    assert manifests.load(workspace, "answers/t-1") is None


def test_a_look_merges_what_only_waits_for_that(workspace: Workspace, a_run: Run, tmp_path: Path) -> None:
    with TestTeacher() as teacher:
        run = a_run(teacher.url)
        made = generate.run(run, context_of(workspace, tmp_path))
    workspace.remove("answers/t-1/manifest.json")
    found = generate.run(run.model_copy(update={"look_only": True}), context_of(workspace, tmp_path))
    assert found.missing_shards == 0
    assert (found.ledger, found.output_digest) == (made.ledger, made.output_digest)
    assert manifests.load(workspace, "answers/t-1") is not None


def test_finished_shards_are_not_made_again_after_a_stop(workspace: Workspace, a_run: Run, tmp_path: Path) -> None:
    context = context_of(workspace, tmp_path)

    def stop_later(number: int, body: dict[str, Any]) -> None:
        if number == 25:
            context.stopping.set()

    with TestTeacher(fault=stop_later, delay_seconds=0.01) as teacher:
        with pytest.raises(Stopped):
            generate.run(a_run(teacher.url), context)
        finished = workspace.list("answers/t-1/shards")
        kept = {path: workspace.read_bytes(path) for path in finished}
        asked_before = len(teacher.seen)
        generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    assert 0 < len(finished) < 9
    assert {path: workspace.read_bytes(path) for path in finished} == kept
    made = sum(len(row) for row in [list(answers(workspace)), answers(workspace, "valid")])
    assert made == 44
    assert len(teacher.seen) - asked_before < 44


def test_the_same_request_has_the_same_seed_whenever_it_is_asked(
    workspace: Workspace, a_run: Run, tmp_path: Path
) -> None:
    def fail_once(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
        return (429, {"Retry-After": "0"}) if number <= 5 else None

    with TestTeacher(fault=fail_once) as teacher:
        generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    by_prompt: dict[str, set[int]] = {}
    for body in teacher.seen:
        by_prompt.setdefault(body["messages"][-1]["content"], set()).add(body["seed"])
    assert len(teacher.seen) == 49
    assert all(len(seeds) == 1 for seeds in by_prompt.values())
    assert len({seed for seeds in by_prompt.values() for seed in seeds}) == 44


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(workspace: Workspace, a_run: Run, tmp_path: Path, status: int) -> None:
    def sometimes(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
        return (status, {"Retry-After": "0"}) if number % 11 == 3 else None

    with TestTeacher(fault=sometimes) as teacher:
        result = generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    assert result.ledger.accepted == 44
    assert len(teacher.seen) == 49  # the third and every eleventh after it, the repetitions counted too


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_will_not_pass_is_asked_once_and_has_its_line(
    workspace: Workspace, a_run: Run, tmp_path: Path, status: int
) -> None:
    def refuse(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
        return (status, {}) if body["messages"][-1]["content"] in ("Question 3?", "Question 7?") else None

    with TestTeacher(fault=refuse) as teacher:
        result = generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    assert len(teacher.seen) == 44
    assert reasons(result) == {"RequestFailed": 2}
    lines = [json.loads(line) for line in workspace.read_bytes("answers/t-1/rejected.jsonl").decode().splitlines()]
    assert {line["reason"] for line in lines} == {"RequestFailed"}
    assert f"HTTP {status}: told to say {status}" in lines[0]["detail"]


def test_a_refused_credential_ends_the_stage_with_a_sentence(workspace: Workspace, a_run: Run, tmp_path: Path) -> None:
    with TestTeacher(fault=lambda number, body: (401, {})) as teacher, pytest.raises(NotFound) as error:
        generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    assert error.value.reason == "CredentialRefused"
    assert "credentialsSecret" in error.value.message


def test_the_window_is_kept_full_but_never_wider_than_asked(workspace: Workspace, a_run: Run, tmp_path: Path) -> None:
    with TestTeacher(delay_seconds=0.03) as teacher:
        generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    assert teacher.most_at_once == 4


def test_when_most_of_the_first_sixteen_fail_nothing_more_is_asked(
    workspace: Workspace, a_run: Run, tmp_path: Path
) -> None:
    teacher = TestTeacher(reply=lambda messages: "I'm sorry, but I cannot help with that.")
    with teacher, pytest.raises(BadData) as error:
        generate.run(a_run(teacher.url, minYield=0.01), context_of(workspace, tmp_path))
    assert error.value.reason == "SmokeTestFailed"
    assert "Refusal (16)" in error.value.message
    assert "I'm sorry, but I cannot" in error.value.message
    assert len(teacher.seen) == 16


def test_a_yield_that_cannot_be_reached_stops_early_and_keeps_the_rows(
    workspace: Workspace, a_run: Run, tmp_path: Path
) -> None:
    def reply(messages: list[dict[str, Any]]) -> str:
        return "" if int(messages[-1]["content"].strip("?").split()[-1]) % 3 == 0 else "Fine."

    teacher = TestTeacher(reply=reply)
    with teacher, pytest.raises(BadData) as error:
        generate.run(a_run(teacher.url, minYield=0.9), context_of(workspace, tmp_path))
    assert error.value.reason == "YieldTooLow"
    assert "Empty" in error.value.message
    assert error.value.ledger is not None
    assert error.value.ledger.rejected == 5
    assert len(teacher.seen) < 44
    kept = workspace.read_bytes("answers/t-1/rejected/given-up-0.jsonl").decode().splitlines()
    assert len(kept) == 5


def test_finished_answers_are_reused_only_while_they_are_enough(
    workspace: Workspace, a_run: Run, tmp_path: Path
) -> None:
    """The yield that is asked for names no folder: another job may ask for more of the same answers."""

    def reply(messages: list[dict[str, Any]]) -> str:
        return "" if int(messages[-1]["content"].strip("?").split()[-1]) % 4 == 0 else "Fine."

    with TestTeacher(reply=reply) as teacher:
        made = generate.run(a_run(teacher.url, minYield=0.5), context_of(workspace, tmp_path))
        asked = len(teacher.seen)
        enough = made.ledger.accepted / 44
        again = runtime.execute(a_run(teacher.url, minYield=enough - 0.01), context_of(workspace, tmp_path), generate)
        refused = runtime.execute(a_run(teacher.url, minYield=enough + 0.01), context_of(workspace, tmp_path), generate)
        assert len(teacher.seen) == asked
    assert isinstance(again, GenerateResult)
    assert again.reused
    assert isinstance(refused, FailedResult)
    assert (refused.exit_code, refused.reason) == (Exit.BAD_DATA, "YieldTooLow")
    assert "Empty" in refused.message


def test_a_server_that_is_away_is_a_reason_to_try_the_stage_again(
    workspace: Workspace, a_run: Run, tmp_path: Path
) -> None:
    from kubedistill_trainer.teachers.http import HttpTeacher
    from kubedistill_trainer.teachers.protocol import ListOfWork, Request, Sampling
    from kubedistill_trainer.teachers.servers import Server

    server = Server("http://127.0.0.1:9/v1", "teacher", patience_seconds=0.2)
    work = ListOfWork([Request("a", 0, 0, [{"role": "user", "content": "Hi"}])])
    with pytest.raises(Transient) as error:
        HttpTeacher(server, Sampling()).answer(work, threading.Event())
    assert error.value.exit_code is Exit.TRANSIENT
    assert "has not answered" in error.value.message


def test_later_turns_are_asked_with_the_teachers_own_earlier_answers(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any
) -> None:
    more = [{"role": "assistant", "content": "recorded"}, {"role": "user", "content": "And then?"}]
    prepare(workspace, tiny_folder, [prompt_row("First?", *more)])
    with TestTeacher() as teacher:
        generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    asked = next(body["messages"] for body in teacher.seen if len(body["messages"]) == 3)
    assert [message["content"] for message in asked] == ["First?", "Echo: First?", "And then?"]
    (row,) = answers(workspace)
    assert tiny_tokenizer.decode(row.input_ids[row.target_mask]) == "Echo: First?</s>Echo: And then?</s>"
    assert tiny_tokenizer.decode(row.input_ids).count("recorded") == 0


@pytest.mark.parametrize(
    ("task", "reply", "reason"),
    [
        (Task.CLASSIFICATION, "blue", None),
        (Task.CLASSIFICATION, "purple", "OutOfLabelSet"),
        (Task.CLASSIFICATION, "red", "LabelMismatch"),
    ],
    ids=["agrees", "no label", "another label"],
)
def test_labels_decide_over_an_answer(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path, task: Task, reply: str, reason: str | None
) -> None:
    prepare(workspace, tiny_folder, [prompt_row("Sky?", label="blue"), *(prompt_row(f"Sky {i}?") for i in range(3))])

    def say(messages: list[dict[str, Any]]) -> str:
        return reply if messages[-1]["content"] == "Sky?" else "red"

    with TestTeacher(reply=say) as teacher:
        run = a_run(teacher.url, task=task, labels=("red", "blue"), filters={"requireLabelMatch": True}, minYield=0.1)
        result = generate.run(run, context_of(workspace, tmp_path))
    assert reasons(result) == ({reason: 1} if reason else {})


def test_of_equal_answers_to_one_prompt_one_is_kept(workspace: Workspace, a_run: Run, tmp_path: Path) -> None:
    with TestTeacher() as teacher:
        result = generate.run(a_run(teacher.url, samplesPerPrompt=2, minYield=0.1), context_of(workspace, tmp_path))
    assert result.ledger.accepted == 44
    assert reasons(result) == {"Duplicate": 44}


def test_two_teachers_share_the_prompts_without_overlap(workspace: Workspace, a_run: Run, tmp_path: Path) -> None:
    with TestTeacher() as teacher:
        first = a_run(teacher.url).model_copy(update={"share_to": 0.4})
        second = a_run(teacher.url).model_copy(update={"share_from": 0.4, "folder": "answers/u-1"})
        generate.run(first, context_of(workspace, tmp_path))
        generate.run(second, context_of(workspace, tmp_path))
    one = {row.row_id for row in answers(workspace)}
    other = {row.row_id for row in read_answers(workspace, ["answers/u-1"], "train")}
    assert not one & other
    assert len(one | other) == 40


def test_scores_over_http_are_those_of_the_engine_in_process(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    """The same greedy answers by two ways: token ids over HTTP, as vLLM takes them, and the batch engine. With a real
    vLLM: tests/pipeline/test_serving.py. By OpenAI's top_logprobs: below.
    """
    more: dict[str, Any] = {"signal": "TopK", "topK": 5, "temperature": 0, "filters": PERMISSIVE}
    generate.run(a_run(kind="batch", **more), context_of(workspace, tmp_path))
    local = {row.row_id: row for row in answers(workspace)}
    workspace.remove("answers")
    with TestTeacher(tiny_tokenizer, tiny_model) as teacher:
        generate.run(a_run(teacher.url, kind="serving", **more), context_of(workspace, tmp_path))
    served = {row.row_id: row for row in answers(workspace)}
    assert served.keys() == local.keys()
    assert served
    for row_id, row in served.items():
        assert row.input_ids.tolist() == local[row_id].input_ids.tolist()
        assert row.target_mask.tolist() == local[row_id].target_mask.tolist()
        ours, theirs = row.signal, local[row_id].signal
        assert ours is not None
        assert theirs is not None
        logprobs_NV = logprobs_of(tiny_model, tiny_tokenizer, row)
        for each in (ours, theirs):
            check_candidates(each, logprobs_NV, 1e-3, ROUNDED)
        close(ours.target_logprob_N, theirs.target_logprob_N, 1e-3)
        close(ours.tail_logprob_N, theirs.tail_logprob_N, 1e-2)


def test_answers_that_were_cut_off_are_counted_or_taught_without_an_end(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    short: dict[str, Any] = {"kind": "batch", "temperature": 0, "maxTokens": 3, "minYield": 0.0}
    generate.run(a_run(**short, filters=PERMISSIVE), context_of(workspace, tmp_path))
    rows = [*answers(workspace), *answers(workspace, "valid")]
    cut = [row for row in rows if row.finish_reason == "length"]
    assert cut
    end = tiny_tokenizer.eos_token_id
    assert all(end not in row.input_ids[row.target_mask] for row in cut)
    assert all(list(row.input_ids[row.target_mask]).count(end) == 1 for row in rows if row.finish_reason == "stop")
    workspace.remove("answers")
    strict = {**PERMISSIVE, "dropTruncated": True}
    with pytest.raises(BadData) as error:
        generate.run(a_run(**{**short, "minYield": 0.01}, filters=strict), context_of(workspace, tmp_path))
    assert "Truncated" in error.value.message


@pytest.mark.parametrize("signal", ["Text", "TopK"])
def test_every_shard_says_how_its_answers_were_drawn_and_in_whose_tokens(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_tokenizer: Any, signal: str
) -> None:
    """To any reader of Parquet; no run file is needed to know what the scores are of."""
    how: dict[str, Any] = {"signal": signal, "topK": 3, "temperature": 0.6, "topP": 0.9, "maxTokens": 9, "seed": 11}
    generate.run(a_run(kind="batch", filters=PERMISSIVE, **how), context_of(workspace, tmp_path))
    paths = workspace.list("answers/t-1/shards")
    assert len(paths) == 9
    k = 3 if signal == "TopK" else 0
    for path in paths:
        schema = pq.read_schema(io.BytesIO(workspace.read_bytes(path)))
        meta = json.loads(schema.metadata[b"kubedistill.shard"])
        assert meta["sampling"] == {"temperature": 0.6, "top_p": 0.9, "max_tokens": 9, "seed": 11, "k": k}
        assert (meta["k"], meta["teacher"], meta["schema_version"]) == (k, "t", SCHEMA_VERSION)
        assert meta["tokenizer_digest"] == tokenizer_digest(tiny_tokenizer)
        assert f"{meta['split']}-{meta['index']:05}.parquet" == path.rpartition("/")[2]


PERMISSIVE = {"dropTruncated": False, "dropRepetitive": False, "minTokens": 0}


def test_an_openai_servers_logprobs_become_scores_of_the_teachers_own_tokens(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    with TestTeacher(tiny_tokenizer, tiny_model, reply=lambda messages: "Yes, café.") as teacher:
        generate.run(a_run(teacher.url, signal="TopK", topK=5), context_of(workspace, tmp_path))
    row = answers(workspace)[0]
    assert row.signal is not None
    written = row.input_ids[row.target_mask]
    assert tiny_tokenizer.decode(written) == "Yes, café.</s>"
    logprobs_NV = logprobs_of(tiny_model, tiny_tokenizer, row)
    own_N = logprobs_NV.gather(-1, torch.tensor(written).long()[:, None])[:, 0]
    close(row.signal.target_logprob_N[:-1], own_N[:-1].numpy(), 1e-3)
    said = Signal(*(column[:-1] for column in vars(row.signal).values()))  # of the end, such a server says nothing
    check_candidates(said, logprobs_NV[:-1], 1e-3, ROUNDED)
    assert row.signal.topk_ids_NK[-1, 0] == tiny_tokenizer.eos_token_id


def test_tokens_that_the_tokenizer_does_not_know_are_refused(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    class Foreign(TestTeacher):
        def said(self, token: Any, row: Any) -> dict[str, Any]:
            return super().said(token, row) | {"token": "▁Yes", "bytes": None}

    with Foreign(tiny_tokenizer, tiny_model) as teacher, pytest.raises(BadConfiguration) as error:
        generate.run(a_run(teacher.url, signal="TopK", topK=5), context_of(workspace, tmp_path))
    assert error.value.reason == "TeacherTokensUnknown"
    assert "signal: Text" in error.value.message


@torch.no_grad()
def logprobs_of(model: Any, tokenizer: Any, row: AnswerRow) -> torch.Tensor:
    """The model's own logprobs [N, V] where a row's targets are predicted."""
    ids_T, at_N = torch.tensor(row.input_ids).long(), torch.tensor(row.target_mask).nonzero()[:, 0]
    logits_NV: torch.Tensor = model(ids_T[None]).logits[0, at_N - 1, : len(tokenizer)]
    return logits_NV.log_softmax(-1)


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    torch.testing.assert_close(torch.tensor(ours).float(), torch.tensor(theirs).float(), atol=tolerance, rtol=1e-2)
