"""The servers that tests start as plain processes do what the project relies on."""

from __future__ import annotations

import json
import time
import urllib.request

import pytest
import s3fs
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from rig import services
from rig.services import ObjectStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def files(s3_server: ObjectStore) -> s3fs.S3FileSystem:
    """A client with a bucket named `bucket`. Not cached: another test's server had other keys."""
    client = s3fs.S3FileSystem(
        key=s3_server.access_key, secret=s3_server.secret_key, endpoint_url=s3_server.endpoint, skip_instance_cache=True
    )
    client.mkdirs("bucket", exist_ok=True)
    return client


@pytest.mark.s3
def test_the_object_store_gives_back_what_it_got(files: s3fs.S3FileSystem) -> None:
    files.pipe("bucket/folder/file", b"content" * 1_000_000)
    assert files.ls("bucket/folder") == ["bucket/folder/file"]
    assert files.cat("bucket/folder/file") == b"content" * 1_000_000


@pytest.mark.s3
def test_the_object_store_refuses_a_second_first_writer(files: s3fs.S3FileSystem) -> None:
    files.call_s3("put_object", Bucket="bucket", Key="once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(OSError, match="pre-conditions"):
        files.call_s3("put_object", Bucket="bucket", Key="once", Body=b"second", IfNoneMatch="*")
    assert files.cat("bucket/once") == b"first"


@pytest.mark.s3
def test_the_object_store_refuses_a_stranger(s3_server: ObjectStore) -> None:
    stranger = s3fs.S3FileSystem(key="a", secret="b", endpoint_url=s3_server.endpoint, skip_instance_cache=True)
    with pytest.raises(PermissionError):
        stranger.ls("bucket")


@pytest.mark.cluster
def test_prometheus_scrapes_what_its_configuration_names() -> None:
    registry = CollectorRegistry()
    Gauge("answer", "What is asked for.", registry=registry).set(42)
    exporter, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    target = f"127.0.0.1:{exporter.server_port}"
    jobs = [{"job_name": "test", "static_configs": [{"targets": [target]}]}]
    try:
        # JSON is YAML.
        with services.prometheus(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs})) as url:
            assert sample(url, "answer") == 42
    finally:
        exporter.shutdown()
        exporter.server_close()
        thread.join()


def sample(url: str, query: str) -> float:
    """The value of a metric once Prometheus has one."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(100):
        with opener.open(f"{url}/api/v1/query?query={query}", timeout=10) as response:
            result = json.load(response)["data"]["result"]
        if result:
            return float(result[0]["value"][1])
        time.sleep(0.2)
    raise AssertionError(f"no sample of {query} within 20 s")
