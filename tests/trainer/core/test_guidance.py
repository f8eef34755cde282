"""What the teacher is told, and where in its reply the answer is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubedistill_api.base import Task
from kubedistill_api.generation import Generation, Reasoning, ReasoningTarget
from kubedistill_trainer.core.guidance import Guidance

THOUGHT = Guidance(Task.MATH, Reasoning.CHAIN_OF_THOUGHT)
WHOLE = Guidance(Task.MATH, Reasoning.CHAIN_OF_THOUGHT, ReasoningTarget.REASONING_AND_ANSWER)
DENSE = Guidance(Task.SUMMARIZATION, Reasoning.CHAIN_OF_DENSITY, words=40)
ALL = {
    "thought": THOUGHT,
    "whole": WHOLE,
    "dense": DENSE,
    "length": Guidance(Task.SUMMARIZATION, words=30),
    "labels": Guidance(Task.CLASSIFICATION, Reasoning.CHAIN_OF_THOUGHT, labels=("yes", "no")),
}

texts = st.text(min_size=1, max_size=40)
chats = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": texts}), max_size=5
).map(lambda chat: [*chat, {"role": "user", "content": "Why?"}])
systems = st.one_of(
    st.none(), st.fixed_dictionaries({"role": st.sampled_from(["system", "developer"]), "content": texts})
)


@given(st.sampled_from(list(ALL.values())), systems, chats)
def test_an_instruction_is_added_to_what_the_user_wrote_and_replaces_nothing(guidance, system, chat):
    given_chat = [system, *chat] if system else chat
    asked = guidance.asked(given_chat)
    changed = [(old, new) for old, new in zip(given_chat, asked, strict=True) if old != new]
    ((old, new),) = changed
    assert new == {**old, "content": f"{old['content']}\n\n{guidance.instruction}"}
    assert old["role"] in ("system", "developer") if system else old is [m for m in chat if m["role"] == "user"][-1]


@given(systems, chats)
def test_without_guidance_the_teacher_gets_what_the_student_gets(system, chat):
    given_chat = [system, *chat] if system else chat
    assert Guidance().asked(given_chat) == given_chat
    assert Guidance().answer_in("Any text") == Guidance().taught("Any text") == "Any text"


def test_an_instruction_says_what_the_task_needs():
    assert "the final number" in THOUGHT.instruction
    assert "yes, no" in ALL["labels"].instruction
    assert "about 30 words" in ALL["length"].instruction
    assert "about 40 words" in DENSE.instruction
    assert "letter alone" in Guidance(Task.QUESTION_ANSWERING, Reasoning.CHAIN_OF_THOUGHT).instruction
    many = tuple(f"label-{number}" for number in range(51))
    assert "label-7" not in Guidance(Task.CLASSIFICATION, Reasoning.CHAIN_OF_THOUGHT, labels=many).instruction


def test_a_jobs_guidance_is_what_its_generation_says():
    asked = Generation(reasoning=Reasoning.CHAIN_OF_DENSITY, summary_words=40)
    assert Guidance.of(Task.SUMMARIZATION, asked, []) == DENSE


THOUGHTS = {
    "one-line": ("Six times seven.\nAnswer: 42", "42"),
    "markdown": ("So.\n**Answer:** 42", "42"),
    "markdown-around-all": ("So.\n**Answer: 42**", "42"),
    "markdown-around-the-word": ("So.\n**Answer**: `x`", "`x`"),
    "a-heading": ("So.\n### Final Answer: 42", "42"),
    "another-case": ("So.\nANSWER : 42", "42"),
    "on-the-next-line": ("So.\nAnswer:\n\n42\n", "42"),
    "several-lines": ("So.\nAnswer: Dear Ada,\n\nit is late.", "Dear Ada,\n\nit is late."),
    "the-last-counts": ("Answer: 41? No.\nAnswer: 42", "42"),
    "thinking-tags": ("<think>Answer: 1</think>\n\nAnswer: 42", "42"),
    "thinking-tags-alone": ("<think>six sevens</think>\n\nIt is 42.", "It is 42."),
    "nothing-else": ("Answer: 42", "42"),
    "within-a-line-is-none": ("I think the answer: 42", None),
    "none": ("It is 42.", None),
    "nothing-after-it": ("So.\nAnswer:\n", None),
    "nothing-after-the-thought": ("<think>hm</think>\n", None),
    "empty": ("", None),
}


@pytest.mark.parametrize(("reply", "answer"), THOUGHTS.values(), ids=THOUGHTS)
def test_the_answer_follows_the_thought(reply, answer):
    assert THOUGHT.answer_in(reply) == THOUGHT.taught(reply) == answer
    assert WHOLE.answer_in(reply) == answer
    assert WHOLE.taught(reply) == (None if answer is None else reply)


lines = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
plain_lines = lines.map(str.strip).filter(lambda line: line and "nswer" not in line.lower() and line[0] not in "*_")


@given(st.lists(lines.filter(lambda line: "think" not in line), max_size=4), plain_lines)
def test_any_thought_before_any_answer_is_taken_away(thought, answer):
    assert THOUGHT.answer_in("\n".join([*thought, f"Answer: {answer}"])) == answer


def test_a_student_that_was_never_told_is_taken_at_its_word():
    assert THOUGHT.said_by_student("It is 42.") == "It is 42."
    assert THOUGHT.said_by_student("Six sevens.\nAnswer: 42") == "42"
    assert DENSE.said_by_student("A summary.") == "A summary."


JUDGED = {
    "behind-the-word": ("9*2=18\nAnswer: 18 (9 eggs at $2 each)", "Answer: 18 (9 eggs at $2 each)"),
    "learned-without-the-word": ("18 (9 eggs at $2 each)", "Answer: 18 (9 eggs at $2 each)"),
    "learned-with-a-currency": ("$18, because 9.5 is no price", "Answer: $18, because 9.5 is no price"),
    "never-told": ("She sells 9 eggs at $2. It is 18.", "She sells 9 eggs at $2. It is 18."),
    "several-sentences": ("16 eggs are laid. 9 * 2 = 18.", "16 eggs are laid. 9 * 2 = 18."),
    "thinking-tags-alone": ("<think>Answer: 1</think>It is 42.", "It is 42."),
}


@pytest.mark.parametrize(("text", "judged"), JUDGED.values(), ids=JUDGED)
def test_a_number_is_judged_behind_its_lead_in(text, judged):
    assert THOUGHT.judged(text) == judged
    assert Guidance(Task.MATH).judged(text) == text
    assert Guidance(Task.CONVERSATION, Reasoning.CHAIN_OF_THOUGHT).judged(text) == THOUGHT.said_by_student(text)


GOOD = '[{"missing": "a", "summary": "One."}, {"missing": "b", "summary": "One and two."}]'
CHAINS = {
    "as-asked": (GOOD, "One and two."),
    "code-fence": (f"```json\n{GOOD}\n```", "One and two."),
    "words-around": (f"Here it is:\n{GOOD}\nI hope this helps.", "One and two."),
    "trailing-commas": ('[{"missing": "a", "summary": "One.",}, {"summary": "Two.",},]', "Two."),
    "a-missing-field": ('[{"summary": "One."}, {"missing": "b"}]', "One."),
    "another-name": ('[{"Missing_Entities": "a", "Denser_Summary": "One."}]', "One."),
    "names-with-numbers": ('{"summary_1": "One.", "summary_2": "Two."}', "Two."),
    "cut-off": ('[{"summary": "One."}, {"summary": "One and tw', "One."),
    "cut-off-after-a-summary": ('[{"summary": "One."}, {"summary": "Two."', "Two."),
    "an-empty-last-summary": ('[{"summary": "One."}, {"summary": " "}]', "One."),
    "unescaped-quotes": ('[{"summary": "One."}, {"summary": "He said "two" there."}]', "One."),
    "line-breaks": ('[{"summary": "One\nand two."}]', "One\nand two."),
    "escapes": (r'[{"summary": "\"A\" \u00e9 \\ \$5 it\'s"}]', '"A" é \\ $5 it\'s'),
    "half-of-a-pair": (r'[{"summary": "One."}, {"summary": "\ud83d"}]', "One."),
    "a-list-of-texts": ('["One.", "Two."]', None),
    "prose": ("The parcel is late.", None),
    "a-summary-of-another-kind": ('{"summary": ["One."]}', None),
    "empty": ("", None),
}


@pytest.mark.parametrize(("reply", "summary"), CHAINS.values(), ids=CHAINS)
def test_the_last_readable_summary_of_a_chain_counts(reply, summary):
    assert DENSE.answer_in(reply) == DENSE.taught(reply) == summary


summaries = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(str.strip)


@given(
    st.lists(st.tuples(texts, summaries), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.sampled_from(["{}", "```json\n{}\n```", "Sure!\n{}\nDone."]),
)
def test_any_summary_survives_its_json(rounds, ascii_only, indent, frame):
    chain = [{"missing": missing, "summary": summary} for missing, summary in rounds]
    reply = frame.format(json.dumps(chain, ensure_ascii=ascii_only, indent=indent))
    assert DENSE.answer_in(reply) == rounds[-1][1].strip()
