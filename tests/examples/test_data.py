"""The example data keeps what examples/data/README.md says of it, and says nothing about a real person."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kubedistill_trainer.core.quantities import number_in

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
FILES = sorted(path.name for path in DATA.glob("*.jsonl"))
LABELS = {"billing", "shipping", "technical", "account", "sales"}

E_MAIL = re.compile(r"[\w.+-]+@[\w-]+\.\w+")
PHONE = re.compile(r"\+?\d(?:[\s()/.-]?\d){6,}")
HOST = re.compile(r"\b(?:[a-z0-9-]+\.)+(?:com|org|net|io|de|eu|uk|fr|co|info|shop|dev|ai)\b|\w+://", re.IGNORECASE)
RESERVED = re.compile(r"\b[\w.-]*example(?:\.com|\.org|\.net)?\b")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def texts(row: dict[str, Any]) -> list[str]:
    """Everything in a row that a model would read or write."""
    turns = [turn["content"] for turn in row.get("messages", [])]
    return turns + [value for value in row.values() if isinstance(value, str)]


def question(row: dict[str, Any]) -> str:
    """What the row asks, case and space apart: two rows that ask the same are duplicates."""
    asked = row["messages"][-1]["content"] if "messages" in row else row.get("prompt") or row["question"]
    return " ".join(asked.casefold().split())


@pytest.mark.parametrize("name", FILES)
def test_the_readme_counts_the_rows_as_they_are(name: str) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    counted = dict(re.findall(r"^\| `([\w.-]+)` \| (\d+) \|", readme, re.MULTILINE))
    assert int(counted[name]) == len(rows(name))


def test_the_readme_names_no_file_that_is_not_there() -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([\w.-]+)`", readme, re.MULTILINE)) == FILES


@pytest.mark.parametrize("name", FILES)
def test_every_row_of_a_file_has_an_expected_shape(name: str) -> None:
    shapes = {
        "support-train.jsonl": [{"prompt"}, {"messages"}],
        "support-valid.jsonl": [{"prompt"}, {"messages"}],
        "support-labelled.jsonl": [{"question", "answer"}],
        "support-labelled-valid.jsonl": [{"question", "answer"}],
        "support-qa.jsonl": [{"prompt", "label"}],
        "support-math.jsonl": [{"question", "answer"}],
        "support-letters.jsonl": [{"prompt"}],
    }[name]
    assert [row for row in rows(name) if set(row) not in shapes] == []
    assert all(text.strip() == text != "" for row in rows(name) for text in texts(row))


@pytest.mark.parametrize("name", ["support-train.jsonl", "support-valid.jsonl"])
def test_chats_alternate_and_wait_for_an_answer(name: str) -> None:
    chats = [[turn["role"] for turn in row["messages"]] for row in rows(name) if "messages" in row]
    assert any("system" in roles for roles in chats)
    assert any("assistant" in roles for roles in chats)
    for roles in chats:
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken == ["user", "assistant"] * (len(spoken) // 2) + ["user"]


@pytest.mark.parametrize("name", FILES)
def test_no_question_is_asked_twice_in_a_file(name: str) -> None:
    assert [text for text, times in Counter(map(question, rows(name))).items() if times > 1] == []


def test_no_question_is_in_two_files() -> None:
    home = Counter(asked for name in FILES for asked in {question(row) for row in rows(name)})
    assert [text for text, files in home.items() if files > 1] == []


@pytest.mark.parametrize("name", ["support-labelled.jsonl", "support-labelled-valid.jsonl"])
def test_labels_are_the_five_of_the_desk_and_balanced(name: str) -> None:
    counts = Counter(row["answer"] for row in rows(name))
    assert set(counts) == LABELS
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_answer_of_the_word_problems_is_a_number() -> None:
    assert [row for row in rows("support-math.jsonl") if number_in(str(row["answer"])) is None] == []


def test_the_letter_of_a_choice_is_one_of_its_options() -> None:
    choices = [row for row in rows("support-qa.jsonl") if "\nA) " in row["prompt"]]
    for row in choices:
        assert re.findall(r"^([A-Z])\) ", row["prompt"], re.MULTILINE) == list("ABCD")
        assert row["label"] in "ABCD"
    letters = Counter(row["label"] for row in choices)
    assert len(choices) == 30
    assert max(letters.values()) - min(letters.values()) <= 2, "a student could learn to guess the letter"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("trace", [E_MAIL, PHONE, HOST], ids=["e-mail address", "phone number", "host name"])
def test_no_row_carries(trace: re.Pattern[str], name: str) -> None:
    found = [text for row in rows(name) for text in texts(row) if trace.search(RESERVED.sub("", text))]
    assert found == []


@pytest.mark.parametrize(
    ("trace", "text"),
    [
        (E_MAIL, "write to jane.doe@mail.test please"),
        (PHONE, "call +49 30 1234567 after six"),
        (HOST, "see shop.brannoquill.com for more"),
    ],
    ids=["e-mail address", "phone number", "host name"],
)
def test_the_search_for_traces_finds_one(trace: re.Pattern[str], text: str) -> None:
    assert trace.search(text)
