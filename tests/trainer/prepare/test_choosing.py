"""Which rows stay, and that each of the others is kept in a file with its place and its one reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kubedistill_api.base import Task
from kubedistill_api.data import Data
from kubedistill_trainer.core.rows import Row, parse_row
from kubedistill_trainer.errors import BadData
from kubedistill_trainer.preparation.choosing import AT_ONCE, CHARACTERS_AT_ONCE, Choice, choose, fit
from kubedistill_trainer.preparation.forms import RawRow
from kubedistill_trainer.preparation.left_out import SHOWN, LeftOut, Reason, left_out
from kubedistill_trainer.preparation.measuring import Lengths, with_special_tokens


def data(**fields: Any) -> Data:
    return Data.model_validate({"train": {"uri": "file:///data"}, "validationFraction": 0.3} | fields)


def raw(values: Sequence[object], name: str = "train") -> list[RawRow]:
    return [RawRow(f"{name}, line {number}", value) for number, value in enumerate(values, start=1)]


def asked(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"How do I do thing number {number}?", **more}


class Chosen:
    """What came of rows, and the lines of the file."""

    def __init__(self, tmp_path: Path, train: Sequence[RawRow], valid: Sequence[RawRow] | None = None, **fields: Any):
        task = fields.pop("task", Task.CONVERSATION)
        with left_out(tmp_path) as (out, path):
            try:
                self.choice: Choice = choose(data(**fields), task, iter(train), iter(valid) if valid else None, out)
            finally:
                self.out: LeftOut = out
                out.flush()
                self.lines = [json.loads(line) for line in path.read_text().split("\n") if line]
        assert not path.exists()

    def because(self, reason: Reason) -> list[str]:
        return [line["place"] for line in self.lines if line["reason"] == reason]


def test_every_row_stays_or_is_in_the_file_with_its_reason(tmp_path: Path) -> None:
    train = [*raw([asked(n) for n in range(20)]), RawRow("train, line 21", '{"x', "column 3: this is not JSON")]
    train += [RawRow("train, line 22", {"prompt": ""}), RawRow("train, line 23", asked(3))]
    train += [RawRow("train, line 24", asked(99))]
    chosen = Chosen(tmp_path, train, raw([asked(99), asked(99)], "valid"), maxInvalidShare=0.2)
    assert (len(chosen.choice.train), len(chosen.choice.valid)) == (20, 1)
    assert chosen.because(Reason.BROKEN) == ["train, line 21", "train, line 22"]
    assert chosen.because(Reason.DUPLICATE) == ["valid, line 2", "train, line 23"]
    assert chosen.because(Reason.HELD_OUT) == ["train, line 24"]
    assert chosen.lines[1] | {"why": ""} == {
        "place": "train, line 21", "reason": "Broken", "why": "", "row": '{"x'
    }  # fmt: skip
    [twin] = [line for line in chosen.lines if line["place"] == "train, line 23"]
    assert twin["why"] == "an equal row is train, line 4"
    assert parse_row(twin["row"]) == parse_row(asked(3))
    assert sum(chosen.out.counts.values()) == len(chosen.lines) == 5


rows = st.lists(
    st.one_of(
        st.integers(0, 12).map(asked),
        st.builds(asked, st.integers(0, 12), label=st.sampled_from(["a", "b"])),
        st.sampled_from(
            [{"prompt": ""}, {}, 7, None, {"prompt": "half \ud800"}, {"prompt": "x", "label": float("nan")}]
        ),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60)
@given(rows, st.none() | rows)
def test_no_row_is_lost_none_stays_twice_and_no_prompt_is_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, train: list[Any], valid: list[Any] | None
) -> None:
    place = tmp_path_factory.mktemp("rows")
    try:
        chosen = Chosen(place, raw(train), raw(valid, "valid") if valid else None, maxInvalidShare=1.0)
    except BadData:
        assume(False)  # none could be used
    choice = chosen.choice
    assert len(choice.train) + len(choice.valid) + len(chosen.lines) == len(train) + len(valid or ())
    for side in (choice.train, choice.valid):
        assert len({row.row_id for row in side}) == len(side)
    assert not {row.prompt_key for row in choice.train} & {row.prompt_key for row in choice.valid}
    assert Counter(line["reason"] for line in chosen.lines) == chosen.out.counts


def test_rows_beyond_the_most_that_are_read_are_counted_and_not_called_rejected(tmp_path: Path) -> None:
    chosen = Chosen(tmp_path, raw([asked(n) for n in range(50)]), raw([asked(99)], "valid"), maxRows=20)
    assert (len(chosen.choice.train), chosen.choice.beyond, chosen.lines) == (20, 30, [])


@pytest.mark.parametrize(("broken", "share"), [(29, 0.29), (7, 0.07), (10, 0.1), (1, 0.01)])
def test_a_share_bears_exactly_so_many_rows(tmp_path: Path, broken: int, share: float) -> None:
    sound = [asked(n) for n in range(100 - broken)]
    assert Chosen(tmp_path, raw([*sound, *[{}] * broken]), maxInvalidShare=share).out.unusable == broken
    with pytest.raises(BadData, match=f"{broken + 1} of 100 rows cannot be used"):
        Chosen(tmp_path, raw([*sound[1:], *[{}] * (broken + 1)]), maxInvalidShare=share)


def test_memory_does_not_grow_with_broken_rows(tmp_path: Path) -> None:
    chosen = Chosen(tmp_path, raw([asked(1), *[{}] * 500]), maxInvalidShare=1.0)
    assert (len(chosen.out.shown), len(chosen.lines)) == (SHOWN, 500)


LABELS = {
    "several-numbers": (Task.MATH, "(3, 4)", "could mean more than one number"),
    "two-solutions": (Task.MATH, "x = 2 or 3", 'as "#### 42"'),
    "no-number": (Task.MATH, "a few", "holds no number"),
    "out-of-set": (Task.CLASSIFICATION, "yes", "none of data.labels"),
}


@pytest.mark.parametrize(("task", "label", "words"), LABELS.values(), ids=LABELS)
def test_a_label_that_no_answer_can_agree_with_is_named(tmp_path: Path, task: Task, label: str, words: str) -> None:
    good = [asked(n, label="up" if task is Task.CLASSIFICATION else "#### 18") for n in range(9)]
    chosen = Chosen(
        tmp_path, raw([*good, asked(9, label=label)]), task=task, labels=["up", "down"], maxInvalidShare=0.1
    )
    assert chosen.because(Reason.WRONG_LABEL) == ["train, line 10"]
    assert words in chosen.lines[0]["why"]
    assert chosen.lines[0]["row"]["label"] == label
    assert chosen.out.unusable == 1


def a_choice() -> Choice:
    made = [parse_row(asked(n), place=f"line {n}") for n in range(1200)]
    return Choice(train=made[:1000], valid=made[1000:])


def test_prompts_that_do_not_fit_and_those_that_the_template_refuses_are_told_apart(tmp_path: Path) -> None:
    def measured(some: Sequence[Row]) -> list[int | str]:
        numbers = [int(row.place.split()[1]) for row in some]
        return ["it alternates not" if n % 100 == 7 else 99 if n % 100 == 8 else 3 for n in numbers]

    choice = a_choice()
    with left_out(tmp_path) as (out, path):
        fit(choice, measured, 10, out)
        out.flush()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (len(choice.train), len(choice.valid)) == (980, 196)
    assert out.counts == {Reason.TEMPLATE: 12, Reason.TOO_LONG: 12}
    assert lines[0]["why"] == "it alternates not"
    assert lines[1]["why"] == "its prompt has 99 tokens, and 10 fit"


def test_long_prompts_are_measured_in_small_groups(tmp_path: Path) -> None:
    short = [parse_row(asked(n), place=f"line {n}") for n in range(600)]
    long = [parse_row({"prompt": "x" * (CHARACTERS_AT_ONCE // 2 - 10)}, place=f"line {n}") for n in range(5)]
    groups: list[int] = []

    def measured(some: Sequence[Row]) -> list[int | str]:
        groups.append(len(some))
        return [1] * len(some)

    with left_out(tmp_path) as (out, _):
        fit(Choice(train=[*short, *long], valid=short[:1]), measured, 10, out)
    assert groups == [AT_ONCE, 600 - AT_ONCE + 1, 2, 2, 1]


def test_a_template_that_refuses_all_is_quoted(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with left_out(tmp_path) as (out, _), pytest.raises(BadData, match=r"1200 because .*First: line 0: System role not"):
        fit(a_choice(), Lengths(tokenizer).measured, 10, out)


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    """One of its own, since its template is changed."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tiny_folder))


CHATS = [
    {"prompt": "Hi"},
    {"prompt": "Grüße 你好", "system": "Be brief."},
    {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]},
    {"prompt": "x" * 300},
]


def test_prompts_that_are_measured_together_have_the_lengths_that_the_template_gives_each(tokenizer: Any) -> None:
    made = [parse_row(chat) for chat in CHATS]
    alone = [
        len(
            tokenizer.apply_chat_template(
                [m.as_dict() for m in row.messages], add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
        )
        for row in made
    ]
    lengths = Lengths(tokenizer)
    assert lengths.measured(made) == alone == [lengths(row) for row in made]


def test_one_refusal_leaves_the_others_measured(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    found = Lengths(tokenizer).measured([parse_row(chat) for chat in CHATS])
    assert [type(one) for one in found] == [int, str, int, int]
    assert found[1] == "No system here"


def test_special_tokens_in_texts_are_found(tokenizer: Any) -> None:
    special = next(token for token in tokenizer.all_special_tokens if len(token) > 2)
    made = [parse_row({"prompt": text}) for text in ("plain", f"a {special} b", special[:-1])]
    assert with_special_tokens(made, tokenizer) == 1
