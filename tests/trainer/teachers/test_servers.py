"""An external teacher's key is sent, and is never told."""

from __future__ import annotations

import json

import httpx
import pytest

from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.teachers.servers import key_of, words_of

KEY = "sk-abc123"


@pytest.mark.parametrize("stored", [KEY, f"{KEY}\n", f" {KEY}\r\n"])
def test_what_surrounds_a_key_in_its_secret_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    monkeypatch.setenv("KUBEDISTILL_TEACHER_API_KEY_BIG", stored)
    assert key_of("big") == KEY


@pytest.mark.parametrize("stored", [f"{KEY}\n{KEY}", f"{KEY}\x07", f"{KEY}\u00e9"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_told(
    monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    monkeypatch.setenv("KUBEDISTILL_TEACHER_API_KEY", stored)
    monkeypatch.delenv("KUBEDISTILL_TEACHER_API_KEY_BIG", raising=False)
    with pytest.raises(BadConfiguration) as raised:
        key_of("big")
    assert "teacher big" in raised.value.message
    assert KEY not in raised.value.message


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}),
        json.dumps({"error": f"no such key: {KEY}"}),
        f"<html>Bearer {KEY}</html>",
    ],
)
def test_a_server_that_repeats_the_key_is_quoted_without_it(text: str) -> None:
    words = words_of(httpx.Response(401, text=text), KEY)
    assert KEY not in words
    assert "***" in words
