"""How this process reaches the API server: as a service account in a pod, or by a kubeconfig outside."""

from __future__ import annotations

import os

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME

USER_AGENT = "kubedistill"


async def load_configuration() -> Configuration:
    """The client's configuration; a service account's token is read anew when it rotates.

    Raises:
        kubernetes.aio.config.ConfigException: neither a service account nor a kubeconfig is there.
    """
    configuration = Configuration()
    if SERVICE_HOST_ENV_NAME in os.environ and "KUBECONFIG" not in os.environ:
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(client_configuration=configuration)
    return configuration


def connect(configuration: Configuration) -> ApiClient:
    """A client of its own connection pool; the caller closes it."""
    client = ApiClient(configuration)
    client.user_agent = USER_AGENT
    return client
