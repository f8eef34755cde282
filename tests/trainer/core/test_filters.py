"""Which answers may not train, and the one reason that is kept."""

from __future__ import annotations

import pytest

from kubedistill_api.base import Task
from kubedistill_api.generation import Filters, Reasoning, ReasoningTarget
from kubedistill_trainer.core.filters import CHECKS, Answer, Asked, Reject, loops, problem, refuses
from kubedistill_trainer.core.guidance import Guidance

GOOD = "Your parcel left our warehouse on Monday and should arrive within three days."
LABELS = ("billing", "shipping")


def an_answer(text: str = GOOD, tokens: int = 20, complete: bool = True) -> Answer:
    return Answer(text, tokens, complete)


def asked(
    task: Task = Task.CONVERSATION, label: str | None = None, kept: tuple[str, ...] = (), **filters: object
) -> Asked:
    return Asked(task, Filters(**filters), LABELS if task is Task.CLASSIFICATION else (), label, kept)


def led(task: Task, how: Reasoning, label: str | None = None, words: int | None = None, **filters: object) -> Asked:
    guidance = Guidance(task, how, ReasoningTarget.ANSWER_ONLY, words, LABELS if task is Task.CLASSIFICATION else ())
    return Asked(task, Filters(**filters), guidance.labels, label, guidance=guidance)


THOUGHT, DENSE = Reasoning.CHAIN_OF_THOUGHT, Reasoning.CHAIN_OF_DENSITY
CHAIN = "[" + ", ".join(['{"missing": "", "summary": "The parcel left on Monday and is due on Friday."}'] * 4) + "]"
CASES = {
    "good": (an_answer(), asked(), None),
    "empty": (an_answer(" \n "), asked(), Reject.EMPTY),
    "cut-off": (an_answer(complete=False), asked(), Reject.TRUNCATED),
    "cut-off-but-wanted": (an_answer(complete=False), asked(drop_truncated=False), None),
    "too-short": (an_answer(tokens=4), asked(min_tokens=5), Reject.TOO_SHORT),
    "just-long-enough": (an_answer(tokens=5), asked(min_tokens=5), None),
    "refusal": (an_answer("I'm sorry, but I can't help with that."), asked(), Reject.REFUSAL),
    "refusal-but-wanted": (an_answer("I'm sorry, but I can't help with that."), asked(drop_refusals=False), None),
    "loop": (an_answer("and so on " * 30), asked(), Reject.REPETITIVE),
    "loop-but-wanted": (an_answer("and so on " * 30), asked(drop_repetitive=False), None),
    "label": (an_answer("Label: Billing"), asked(Task.CLASSIFICATION), None),
    "no-label": (an_answer("maybe"), asked(Task.CLASSIFICATION), Reject.OUT_OF_LABEL_SET),
    "other-label-than-the-rows": (an_answer("billing"), asked(Task.CLASSIFICATION, "shipping"), None),
    "other-label-where-it-must-match": (
        an_answer("billing"),
        asked(Task.CLASSIFICATION, "shipping", require_label_match=True),
        Reject.LABEL_MISMATCH,
    ),
    "same-label-where-it-must-match": (
        an_answer("Shipping."),
        asked(Task.CLASSIFICATION, "shipping", require_label_match=True),
        None,
    ),
    "a-row-without-label-where-it-must-match": (
        an_answer("billing"), asked(Task.CLASSIFICATION, require_label_match=True), None,
    ),
    "choice": (an_answer("B) Paris"), asked(Task.QUESTION_ANSWERING, "C"), None),
    "no-choice-where-one-is-asked": (an_answer("Paris"), asked(Task.QUESTION_ANSWERING, "C"), Reject.UNPARSABLE),
    "free-answer": (an_answer("Paris"), asked(Task.QUESTION_ANSWERING, "Rome"), None),
    "number": (an_answer("She pays $1,200.00."), asked(Task.MATH, "1200"), None),
    "another-number": (an_answer("She pays $1,200.00."), asked(Task.MATH, "120"), Reject.LABEL_MISMATCH),
    "another-number-but-wanted": (
        an_answer("She pays $1,200.00."), asked(Task.MATH, "120", require_label_match=False), None,
    ),
    "number-without-label": (an_answer("She pays $1,200.00."), asked(Task.MATH), None),
    "no-number": (an_answer("She pays a lot."), asked(Task.MATH, "5"), Reject.UNPARSABLE),
    "no-number-without-label": (an_answer("She pays a lot."), asked(Task.MATH), Reject.UNPARSABLE),
    "thought-and-number": (an_answer("2 and 3 make 5.\nAnswer: 5"), led(Task.MATH, THOUGHT, "5"), None),
    "the-thought-is-not-the-answer": (
        an_answer("Not 5.\nAnswer: 6"), led(Task.MATH, THOUGHT, "5"), Reject.LABEL_MISMATCH,
    ),
    "the-number-after-answer-is-the-answer": (
        an_answer("9*2=18\nAnswer: 18 (9 eggs at $2 each)"), led(Task.MATH, THOUGHT, "18"), None,
    ),
    "the-last-number-is-not-the-answer": (
        an_answer("9*2=18\nAnswer: 18 (9 eggs at $2 each)"), led(Task.MATH, THOUGHT, "2"), Reject.LABEL_MISMATCH,
    ),
    "thought-without-answer": (an_answer("2 and 3 make 5."), led(Task.MATH, THOUGHT, "5"), Reject.UNPARSABLE),
    "thought-and-label": (
        an_answer("It is not shipping.\nAnswer: billing"), led(Task.CLASSIFICATION, THOUGHT), None,
    ),
    "thought-and-no-label": (
        an_answer("It is shipping.\nAnswer: maybe"), led(Task.CLASSIFICATION, THOUGHT), Reject.OUT_OF_LABEL_SET,
    ),
    "thought-that-refuses": (
        an_answer("I'm sorry, but I can't help with that."), led(Task.MATH, THOUGHT), Reject.REFUSAL,
    ),
    "refusal-after-the-thought": (
        an_answer("This could be unsafe.\nAnswer: I'm sorry, but I can't help with that."),
        led(Task.CONVERSATION, THOUGHT),
        Reject.REFUSAL,
    ),
    "refusal-after-thinking-tags": (
        an_answer("<think>This could be unsafe.</think>I'm sorry, but I can't assist with that."),
        led(Task.CONVERSATION, THOUGHT),
        Reject.REFUSAL,
    ),
    "chain-of-summaries-does-not-loop": (an_answer(CHAIN), led(Task.SUMMARIZATION, DENSE), None),
    "chain-whose-last-summary-loops": (
        an_answer('[{"summary": "' + "and so on " * 30 + '"}]'), led(Task.SUMMARIZATION, DENSE), Reject.REPETITIVE,
    ),
    "chain-without-summary": (an_answer("The parcel is late."), led(Task.SUMMARIZATION, DENSE), Reject.UNPARSABLE),
    "summary-of-about-the-length": (an_answer(), led(Task.SUMMARIZATION, Reasoning.NONE, words=7), None),
    "summary-of-twice-the-length": (
        an_answer(), led(Task.SUMMARIZATION, Reasoning.NONE, words=6), Reject.TOO_LONG,
    ),
    "duplicate": (an_answer(), asked(kept=(GOOD,)), Reject.DUPLICATE),
    "duplicate-but-wanted": (an_answer(), asked(kept=(GOOD,), deduplicate=False), None),
    "empty-and-cut-off-has-one-reason": (an_answer("", complete=False), asked(), Reject.EMPTY),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "what", "reason"), CASES.values(), ids=CASES)
def test_an_answer_has_one_problem_or_none(answer, what, reason):
    assert problem(answer, what) is reason


def test_every_reason_has_a_check_or_is_known_to_the_caller_only():
    checked = [reason for reason, _ in CHECKS]
    assert len(checked) == len(set(checked))
    assert set(Reject) - set(checked) == {Reject.REQUEST_FAILED, Reject.UNANSWERABLE}


REFUSALS = [
    "I'm sorry, but I can't assist with that request.",
    "I’m sorry, I cannot help you with that.",
    "Sorry, I can't provide legal advice.",
    "I cannot fulfill this request.",
    "I apologize, but I am unable to answer that question.",
    "Unfortunately, I'm not able to share that information.",
    "As an AI language model, I don't have access to real-time data.",
    "I'm sorry, but as an AI assistant I cannot give medical advice.",
    "I must decline to answer.",
    "I won't be able to help with that.",
]
NOT_REFUSALS = [
    "I'm sorry to hear that your parcel is late. I have sent a replacement.",
    "I apologize for the inconvenience. Your refund is on its way.",
    "I can't wait to see what you build! Here is how to start.",
    "Unfortunately, the blue one is sold out, but the green one ships today.",
    "You cannot return opened software, but you can exchange it.",
    "Sorry about that! Please restart the router and try again.",
    "As an example, consider the number seven.",
    "I'm sorry, but I can't help with the firmware itself. " + "Here is what you can do instead. " * 12,
]


@pytest.mark.parametrize("text", REFUSALS)
def test_declining_is_a_refusal(text):
    assert refuses(text)


@pytest.mark.parametrize("text", NOT_REFUSALS, ids=lambda text: text[:30])
def test_regret_and_help_are_no_refusal(text):
    assert not refuses(text)


LOOPS = {
    "one-word": "Well " + "yes " * 30,
    "one-sentence": "The answer follows. " + "I hope this helps you with your order. " * 6,
    "a-list-that-repeats": "\n".join(["1. Restart the router.", "2. Wait a minute."] * 8),
    "caught-in-the-middle": "It is late. " + "we ship and we ship and " * 15 + "then we stop at last today.",
    "one-word-that-stutters": "Ha" + "ha" * 40,
    "one-letter": "Noooooooooooooooooo!",
}
NO_LOOPS = {
    "prose": GOOD,
    "short-and-emphatic": "No, no, no!",
    "a-list": "\n".join(f"{number}. Step {number} of the way to {number * 7}." for number in range(1, 20)),
    "a-rule": "Before\n" + "-" * 60 + "\nAfter the rule the text goes on.",
    "a-table": "| name | price |\n|------------|------------|\n| lamp | 10 |\n| desk | 200 |",
    "an-ellipsis": "And then..............",
    "big-number": "The total is 1000000000000 units",
    "code": "for i in range(10):\n    total += i\n    print(total)\nprint('done')",
}


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_loop_is_noticed(text):
    assert loops(text)


@pytest.mark.parametrize("text", NO_LOOPS.values(), ids=NO_LOOPS)
def test_what_only_looks_alike_is_no_loop(text):
    assert not loops(text)
