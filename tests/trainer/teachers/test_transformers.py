from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

from kubedistill_trainer.core.signals import top_k
from kubedistill_trainer.teachers.decoding import draw
from kubedistill_trainer.teachers.protocol import Answered, Failed, ListOfWork, Request, Sampling
from kubedistill_trainer.teachers.transformers import TransformersTeacher

PROMPTS = [
    "Hi",
    "Why is the sky blue?",
    "a" * 60,
    "Name three rivers.",
    "?",
    "What does a robot vacuum do at night?" * 3,
]


def ask(model: Any, tokenizer: Any, sampling: Sampling, batch_size: int, prompts: list[str]) -> dict[str, Answered]:
    work = ListOfWork(
        [Request(str(i), 0, 0, [{"role": "user", "content": text}], seed=i) for i, text in enumerate(prompts)]
    )
    TransformersTeacher(model, tokenizer, [0], sampling, batch_size).answer(work, threading.Event())
    assert len(work.outcomes) == len(prompts)
    return {key.split("/")[0]: answer for key, answer in work.outcomes.items() if isinstance(answer, Answered)}


def encode(tokenizer: Any, text: str) -> list[int]:
    chat = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


@torch.no_grad()
def logits_of(model: Any, tokenizer: Any, prompt: list[int], answer: tuple[int, ...]) -> torch.Tensor:
    """The logits that predict each token of the answer, from one pass without a cache."""
    ids = torch.tensor([[*prompt, *answer]])
    return model(ids).logits[0, len(prompt) - 1 : -1, : len(tokenizer)]


@pytest.mark.parametrize("batch_size", [1, 3, 8], ids=["one by one", "rows join a running batch", "all at once"])
def test_greedy_answers_are_those_of_a_plain_forward_pass(
    tiny_model: Any, tiny_tokenizer: Any, batch_size: int
) -> None:
    answers = ask(tiny_model, tiny_tokenizer, Sampling(temperature=0, max_tokens=150), batch_size, PROMPTS)
    for key, answer in answers.items():
        assert answer.token_ids is not None
        logits = logits_of(tiny_model, tiny_tokenizer, encode(tiny_tokenizer, PROMPTS[int(key)]), answer.token_ids)
        best = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(chosen, best, atol=1e-3, rtol=0)


def test_stored_scores_are_those_of_a_plain_forward_pass(tiny_model: Any, tiny_tokenizer: Any) -> None:
    answers = ask(tiny_model, tiny_tokenizer, Sampling(max_tokens=140, k=8), 4, PROMPTS)
    for key, answer in answers.items():
        assert answer.token_ids is not None
        assert answer.signal is not None
        logits = logits_of(tiny_model, tiny_tokenizer, encode(tiny_tokenizer, PROMPTS[int(key)]), answer.token_ids)
        expected = top_k(logits, torch.tensor(answer.token_ids), 8)
        stored = answer.signal
        assert len(stored.tail_logprob_N) == len(answer.token_ids)
        torch.testing.assert_close(torch.from_numpy(stored.tail_logprob_N), expected.tail_N, atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.from_numpy(stored.target_logprob_N), expected.target_N, atol=1e-3, rtol=0)
        logprobs = torch.from_numpy(stored.topk_logprobs_NK).float()
        torch.testing.assert_close(logprobs, expected.logprobs_NK, atol=6e-3, rtol=0)
        assert (stored.topk_ids_NK < len(tiny_tokenizer)).all()


def test_an_answer_does_not_depend_on_what_is_answered_beside_it(tiny_model: Any, tiny_tokenizer: Any) -> None:
    alone = ask(tiny_model, tiny_tokenizer, Sampling(temperature=0.8, top_p=0.9, max_tokens=40), 1, PROMPTS)
    together = ask(tiny_model, tiny_tokenizer, Sampling(temperature=0.8, top_p=0.9, max_tokens=40), 6, PROMPTS)
    assert {key: answer.text for key, answer in alone.items()} == {key: a.text for key, a in together.items()}


def test_an_answer_ends_with_the_end_token_or_at_the_limit(tiny_model: Any, tiny_tokenizer: Any) -> None:
    answers = ask(tiny_model, tiny_tokenizer, Sampling(max_tokens=60), 4, [f"Question {i}" for i in range(24)])
    assert {answer.complete for answer in answers.values()} == {True, False}
    for answer in answers.values():
        assert answer.token_ids is not None
        assert answer.complete == (answer.token_ids[-1] == 0)
        assert answer.complete or len(answer.token_ids) == 60
        assert 0 not in answer.token_ids[:-1]


def test_a_prompt_that_leaves_no_room_is_given_back_with_the_numbers(tiny_model: Any, tiny_tokenizer: Any) -> None:
    work = ListOfWork([Request("long", 0, 0, [{"role": "user", "content": "x" * 600}])])
    TransformersTeacher(tiny_model, tiny_tokenizer, [0], Sampling(), 4).answer(work, threading.Event())
    outcome = work.outcomes["long/0/0"]
    assert isinstance(outcome, Failed)
    assert "the teacher takes 512" in outcome.reason
    assert outcome.by_request


def test_a_chat_that_the_teachers_template_refuses_is_given_back_in_its_words(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}Hi"
    )
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    work = ListOfWork([Request("a", 0, 0, [system, user]), Request("b", 0, 0, [user])])
    TransformersTeacher(tiny_model, strict, [0], Sampling(max_tokens=3), 4).answer(work, threading.Event())
    expected = Failed("the teacher's chat template refuses it: System role not supported", by_request=True)
    assert work.outcomes["a/0/0"] == expected
    assert isinstance(work.outcomes["b/0/0"], Answered)


def test_stopping_leaves_at_once(tiny_model: Any, tiny_tokenizer: Any) -> None:
    stopping = threading.Event()
    stopping.set()
    work = ListOfWork([Request("a", 0, 0, [{"role": "user", "content": "Hi"}])])
    TransformersTeacher(tiny_model, tiny_tokenizer, [0], Sampling(), 4).answer(work, stopping)
    assert work.outcomes == {}


@pytest.mark.parametrize("top_p", [1.0, 0.5], ids=["whole distribution", "nucleus"])
def test_drawn_tokens_follow_the_distribution(top_p: float) -> None:
    torch.manual_seed(1)
    logits_V = torch.randn(200)  # flat enough that the 64 likeliest do not hold everything
    draws = 20_000
    tokens = draw(logits_V.expand(draws, -1), torch.rand(draws), 1.0, top_p)
    wanted = logits_V.softmax(-1)
    order = wanted.argsort(descending=True)
    inside = wanted[order].cumsum(-1) - wanted[order] < top_p
    wanted = torch.zeros(200).scatter(0, order[inside], wanted[order[inside]])
    counted = torch.bincount(tokens, minlength=200) / draws
    assert (counted - wanted / wanted.sum()).abs().sum() < 0.1
    assert not counted[wanted == 0].any()
