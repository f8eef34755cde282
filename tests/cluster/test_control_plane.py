"""The control plane alone: what tests of the schema and of dry runs stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from rig import access
from rig.errors import RigError

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(120)]

MISSPELT = """
apiVersion: v1
kind: ConfigMap
metadata: {name: strict, namespace: default}
dada: {a: b}
"""


def test_it_is_the_version_that_is_pinned(api_server: Path) -> None:
    assert "Server Version: v1.34.4" in access.kubectl(api_server, "version")


def test_a_dry_run_names_a_field_that_does_not_exist(api_server: Path) -> None:
    with pytest.raises(RigError, match='unknown field "dada"'):
        access.kubectl(api_server, "apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=MISSPELT)


def test_a_user_without_a_role_may_not_read(api_server: Path) -> None:
    with pytest.raises(RigError, match="Forbidden"):
        access.kubectl(api_server, "get", "nodes", "--as=somebody")
