"""Generate for each task, from run file to shards, against a real HTTP server and the batch engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from teaching.server import TestTeacher
from teaching.work import context_of, prepare, prompt_row

from kubedistill_api.base import Task
from kubedistill_api.results import GenerateResult
from kubedistill_api.run import GenerateRun
from kubedistill_trainer.errors import BadData
from kubedistill_trainer.stages import generate
from kubedistill_trainer.store.shards import AnswerRow, read_answers
from kubedistill_trainer.store.workspace import Workspace

Run = Callable[..., GenerateRun]
SUMS = [prompt_row(f"What is {number} and 1000?", label=f"{number + 1000:,}") for number in range(6)]
TEXTS = [prompt_row(f"Summarise: parcel {number} left late and came later.") for number in range(4)]
PAIRS = [prompt_row(f"Premise {number}. Hypothesis?", label="neutral") for number in range(4)]


def train_rows(workspace: Workspace) -> list[AnswerRow]:
    return list(read_answers(workspace, ["answers/t-1"], "train"))


def reasons(result: GenerateResult) -> dict[str, int]:
    return {reason.reason: reason.count for reason in result.ledger.top_reasons}


def number_of(messages: list[dict[str, Any]]) -> int:
    """The number in a question of SUMS."""
    return int(next(word for word in messages[-1]["content"].split() if word.isdigit()))


def test_numbers_that_disagree_and_answers_without_one_have_their_reason(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path
) -> None:
    said = {0: "I cannot say.", 1: "That makes $1.001,00.", 2: "The answer is 1002.", 3: r"\boxed{1{,}003}", 4: "5"}

    def say(messages: list[dict[str, Any]]) -> str:
        held_out = messages[-1]["content"].startswith("Held")
        return "7" if held_out else said.get(number_of(messages), "1,005 in all.")

    prepare(workspace, tiny_folder, SUMS)
    with TestTeacher(reply=say) as teacher:
        result = generate.run(a_run(teacher.url, task=Task.MATH, minYield=0.1), context_of(workspace, tmp_path))
    assert reasons(result) == {"Unparsable": 1, "LabelMismatch": 1}
    assert {row.text for row in train_rows(workspace)} == {said[1], said[2], said[3], "1,005 in all."}
    lines = [json.loads(line) for line in workspace.read_bytes("answers/t-1/rejected.jsonl").decode().splitlines()]
    assert {line["reason"]: line["detail"] for line in lines}["LabelMismatch"] == "expected '1,004'"


def think(messages: list[dict[str, Any]]) -> str:
    """A teacher that does what it is told."""
    if messages[-1]["content"].startswith("Held"):
        return "Nothing to add.\nAnswer: 7"
    return f"I add them.\n**Answer:** {number_of(messages) + 1000}"


@pytest.mark.parametrize(
    ("target", "learnt"),
    [("AnswerOnly", "1000"), ("ReasoningAndAnswer", "I add them.\n**Answer:** 1000")],
    ids=["answer only", "reasoning and answer"],
)
def test_the_student_learns_of_a_thought_what_was_asked_for_and_keeps_its_own_prompt(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any, target: str, learnt: str
) -> None:
    system = {"role": "system", "content": "You are a cashier."}
    question = {"role": "user", "content": "What is 0 and 1000?"}
    row = prompt_row("x", label="1000")
    row = type(row)(row.row_id, json.dumps([system, question]), row.label, row.prompt_hash)
    prepare(workspace, tiny_folder, [row])
    with TestTeacher(reply=think) as teacher:
        run = a_run(teacher.url, task=Task.MATH, reasoning="ChainOfThought", reasoningTarget=target)
        result = generate.run(run, context_of(workspace, tmp_path))
    assert result.ledger.rejected == 0
    asked = next(body["messages"] for body in teacher.seen if len(body["messages"]) == 2)
    assert asked[0]["content"].startswith("You are a cashier.\n\nFirst think")
    assert asked[1] == question
    (made,) = train_rows(workspace)
    prompt = "<s>system: You are a cashier.</s><s>user: What is 0 and 1000?</s><s>assistant: "
    assert tiny_tokenizer.decode(made.input_ids) == f"{prompt}{learnt}</s>"
    assert tiny_tokenizer.decode(made.input_ids[made.target_mask]) == f"{learnt}</s>"
    assert made.text == learnt
    (line,) = [
        each
        for each in map(json.loads, workspace.read_bytes("answers/t-1/answers.jsonl").decode().splitlines())
        if each["split"] == "train"
    ]
    assert line.get("written") == (None if target == "ReasoningAndAnswer" else "I add them.\n**Answer:** 1000")


def test_the_scored_tokens_of_a_thought_are_those_that_are_trained(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    """Scores of the teacher's own tokens, after the teacher's own prompt; the student's prompt is another."""
    prepare(workspace, tiny_folder, SUMS[:1])
    with TestTeacher(tiny_tokenizer, tiny_model, reply=think) as teacher:
        run = a_run(
            teacher.url,
            task=Task.MATH,
            signal="TopK",
            topK=5,
            reasoning="ChainOfThought",
            reasoningTarget="ReasoningAndAnswer",
        )
        generate.run(run, context_of(workspace, tmp_path))
    (row,) = train_rows(workspace)
    assert row.signal is not None
    trained = row.input_ids[row.target_mask]
    assert len(row.signal.target_logprob_N) == len(trained)
    assert tiny_tokenizer.decode(trained) == f"{think([{'content': 'What is 0 and 1000?'}])}</s>"
    asked = next(body["messages"] for body in teacher.seen if "What is 0" in body["messages"][-1]["content"])
    assert "step by step" in asked[-1]["content"]
    assert "step by step" not in tiny_tokenizer.decode(row.input_ids)
    prompt = tiny_tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        logits = tiny_model(torch.tensor([[*prompt, *trained.tolist()]])).logits[0, :, : len(tiny_tokenizer)]
    logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    expected = logprobs.gather(-1, torch.tensor(trained.astype("int64"))[:, None]).squeeze(-1)
    torch.testing.assert_close(torch.tensor(row.signal.target_logprob_N[:-1]), expected[:-1], atol=1e-3, rtol=0)


def dense(messages: list[dict[str, Any]]) -> str:
    """Four summaries in a fence, and a trailing comma."""
    subject = " ".join(messages[-1]["content"].split()[1:3])
    chain = ", ".join(f'{{"missing": "x", "summary": "{subject} came late, {n} days."}}' for n in range(1, 5))
    return f"```json\n[{chain},]\n```"


def test_of_a_chain_of_density_the_student_learns_the_last_summary(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any
) -> None:
    prepare(workspace, tiny_folder, TEXTS)

    def say(messages: list[dict[str, Any]]) -> str:
        return "The parcel is late." if "parcel 3" in messages[-1]["content"] else dense(messages)

    with TestTeacher(reply=say) as teacher:
        run = a_run(
            teacher.url,
            task=Task.SUMMARIZATION,
            reasoning="ChainOfDensity",
            summaryWords=8,
            maxTokens=200,
            minYield=0.1,
        )
        result = generate.run(run, context_of(workspace, tmp_path))
    assert reasons(result) == {"Unparsable": 1}
    assert all("of about 8 words" in body["messages"][-1]["content"] for body in teacher.seen)
    rows = train_rows(workspace)
    assert sorted(row.text for row in rows) == [f"parcel {n} came late, 4 days." for n in range(3)]
    assert all(tiny_tokenizer.decode(row.input_ids[row.target_mask]) == f"{row.text}</s>" for row in rows)


def test_summaries_much_longer_than_asked_for_are_rejected(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path
) -> None:
    prepare(workspace, tiny_folder, TEXTS)

    def say(messages: list[dict[str, Any]]) -> str:
        assert "in about 5 words" in messages[-1]["content"]
        return "Late parcel." if "parcel 0" not in messages[-1]["content"] else "It left late and came later " * 2

    with TestTeacher(reply=say) as teacher:
        run = a_run(teacher.url, task=Task.SUMMARIZATION, summaryWords=5, minYield=0.1)
        result = generate.run(run, context_of(workspace, tmp_path))
    assert reasons(result) == {"TooLong": 1}
    line = json.loads(workspace.read_bytes("answers/t-1/rejected.jsonl"))
    assert line["detail"] == "about 5 words were asked for"


def test_inference_labels_are_read_from_statements_and_after_thoughts(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path
) -> None:
    prepare(workspace, tiny_folder, PAIRS)
    labels = ("entailment", "neutral", "contradiction")

    def say(messages: list[dict[str, Any]]) -> str:
        assert "entailment, neutral, contradiction" in messages[-1]["content"]
        verdict = {"0": "**Neutral**.", "1": "It is neutral.", "2": "neutral or entailment"}
        return f"No word of it.\nAnswer: {verdict.get(messages[-1]['content'].split('.')[0][-1], 'contradiction')}"

    with TestTeacher(reply=say) as teacher:
        run = a_run(
            teacher.url,
            task=Task.CLASSIFICATION,
            labels=labels,
            reasoning="ChainOfThought",
            filters={"requireLabelMatch": True},
            minYield=0.1,
        )
        result = generate.run(run, context_of(workspace, tmp_path))
    assert reasons(result) == {"OutOfLabelSet": 1, "LabelMismatch": 1}
    assert {row.text for row in train_rows(workspace)} == {"**Neutral**.", "It is neutral."}


def test_a_question_with_choices_is_answered_by_a_letter_and_a_free_one_by_its_words(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path
) -> None:
    said = {"One": "(B) Paris", "Two": "Paris, I think", "Three": "A) Rome", "Four": "paris.", "Five": "Rome"}
    wanted = {"One": "B", "Two": "B", "Three": "B", "Four": "Paris", "Five": "Paris"}
    prepare(workspace, tiny_folder, [prompt_row(text, label=label) for text, label in wanted.items()])
    with TestTeacher(reply=lambda messages: said.get(messages[-1]["content"], "C")) as teacher:
        run = a_run(teacher.url, task=Task.QUESTION_ANSWERING, filters={"requireLabelMatch": True}, minYield=0.1)
        result = generate.run(run, context_of(workspace, tmp_path))
    assert reasons(result) == {"Unparsable": 1, "LabelMismatch": 2}
    assert {row.text for row in train_rows(workspace)} == {"(B) Paris", "paris."}


LENIENT = {"dropTruncated": False, "dropRepetitive": False, "minTokens": 0}


def test_a_teacher_in_process_is_told_how_long_to_write(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any
) -> None:
    """Greedy answers of random weights differ exactly if the prompts do; the student's prompt is the same."""
    prepare(workspace, tiny_folder, TEXTS)
    found: list[dict[str, str]] = []
    for length in ({}, {"summaryWords": 12}):
        run = a_run(kind="batch", task=Task.SUMMARIZATION, temperature=0, filters=LENIENT, minYield=0.0, **length)
        generate.run(run, context_of(workspace, tmp_path))
        rows = train_rows(workspace)
        assert all("about 12 words" not in tiny_tokenizer.decode(row.input_ids) for row in rows)
        found.append({row.row_id: row.text for row in rows})
        workspace.remove("answers")
    plain, told = found
    assert plain.keys() & told.keys()
    assert all(plain[row_id] != told[row_id] for row_id in plain.keys() & told.keys())


def test_thoughts_without_an_answer_end_the_stage_before_anything_trains(
    workspace: Workspace, a_run: Run, tmp_path: Path, tiny_folder: Path
) -> None:
    prepare(workspace, tiny_folder, SUMS)
    run = a_run(kind="batch", task=Task.MATH, reasoning="ChainOfThought", filters=LENIENT, minYield=0.0)
    with pytest.raises(BadData) as error:
        generate.run(run, context_of(workspace, tmp_path))
    assert error.value.reason == "NoAnswers"
    assert error.value.ledger is not None
    assert error.value.ledger.top_reasons[0].reason == "Unparsable"
