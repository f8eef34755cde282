"""Environment variables as an installation."""

from __future__ import annotations

import pytest

from kubedistill_operator.core.settings import Settings
from kubedistill_operator.handlers.installation import _SETTINGS, HELP, InvalidEnvironmentError, read_installation


def test_an_empty_environment_gives_the_defaults() -> None:
    installation = read_installation({})
    assert installation.settings == Settings()
    assert installation.namespaces == ()
    assert installation.lease.enabled


def test_what_is_set_is_used() -> None:
    installation = read_installation(
        {
            "KUBEDISTILL_TRAINER_IMAGE": "x/trainer:1",
            "KUBEDISTILL_STAGE_TTL_SECONDS": "20",
            "KUBEDISTILL_NAMESPACES": "a, b",
            "KUBEDISTILL_LEADER_ELECTION": "false",
            "KUBEDISTILL_PORT": "0",
            "UNRELATED": "1",
        }
    )
    assert installation.settings.trainer_image == "x/trainer:1"
    assert installation.settings.stage_ttl_seconds == 20
    assert installation.namespaces == ("a", "b")
    assert not installation.lease.enabled
    assert installation.port == 0


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert read_installation({"KUBEDISTILL_PORT": "", "KUBEDISTILL_NAMESPACES": ""}).port == 8080


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KUBEDISTILL_STAGE_TTL_SECONDS", "soon"),
        ("KUBEDISTILL_WORKERS", "-1"),
        ("KUBEDISTILL_AUDIT_SECONDS", "0"),
        ("KUBEDISTILL_AUDIT_SECONDS", "600"),
        ("KUBEDISTILL_LEADER_ELECTION", "maybe"),
    ],
)
def test_what_cannot_be_understood_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidEnvironmentError, match=name):
        read_installation({name: value})


def test_two_processes_of_one_host_have_identities_of_their_own() -> None:
    assert read_installation({}).lease.identity != read_installation({}).lease.identity


@pytest.mark.parametrize("name", _SETTINGS)
def test_every_setting_stands_in_the_help(name: str) -> None:
    assert f"KUBEDISTILL_{name} " in HELP
