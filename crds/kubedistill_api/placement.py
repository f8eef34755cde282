"""Where the stages run and what they may use: workspace, credentials, overrides for one stage, queues and limits."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kubedistill_api.base import Model, ObjectName, Seconds, Text, Uri, Word
from kubedistill_api.rules import Rule
from kubedistill_api.uris import STORE_SCHEMES, cel_scheme_is, scheme_is

Quantity = Annotated[int | str, Field(json_schema_extra={"x-kubernetes-int-or-string": True})]


class AccessMode(StrEnum):
    """How many nodes may mount a volume."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_MANY = "ReadWriteMany"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"


class WorkspaceClaim(Model):
    """A PersistentVolumeClaim: one that exists (`claimName`), or one the job makes and owns."""

    rules: ClassVar = (
        Rule(
            cel="self.claimName == '' || (!has(self.storageClassName) && self.size == '50Gi')",
            message="claimName names a claim that exists: leave size and storageClassName out, or leave claimName out",
            holds=lambda claim: not claim.claim_name or (claim.storage_class_name is None and claim.size == "50Gi"),
            field="claimName",
        ),
        Rule(
            cel="!('ReadWriteOncePod' in self.accessModes)",
            message="the stages mount the workspace from several pods: write ReadWriteOnce or ReadWriteMany",
            holds=lambda claim: AccessMode.READ_WRITE_ONCE_POD not in claim.access_modes,
            field="accessModes",
        ),
    )

    claim_name: ObjectName = ""
    """A claim of the job's namespace."""
    size: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$", max_length=32)] = "50Gi"
    """Of a claim that the job makes."""
    storage_class_name: ObjectName | None = None
    """Absent: the cluster's default."""
    access_modes: Annotated[list[AccessMode], Field(min_length=1, max_length=3)] = [AccessMode.READ_WRITE_ONCE]
    """ReadWriteOnce keeps all stages on one node; `training.nodes` above 1 need ReadWriteMany, also of `claimName`."""


class Workspace(Model):
    """Where stages leave their files for the next: an object store or a volume."""

    rules: ClassVar = (
        Rule(
            cel="!(has(self.uri) && has(self.pvc))",
            message="write one of uri (an object store) or pvc (a volume)",
            holds=lambda workspace: workspace.uri is None or workspace.pvc is None,
        ),
        Rule(
            cel="!has(self.uri) || " + cel_scheme_is("self.uri", STORE_SCHEMES),
            message="workspace.uri begins with s3://, pvc:// or file:// (gs:// and abfs:// are not built yet)",
            holds=lambda workspace: workspace.uri is None or scheme_is(workspace.uri, STORE_SCHEMES),
            field="uri",
        ),
    )

    uri: Uri | None = None
    """`s3://bucket/prefix` or `pvc://claim/path`; `file:///path` with the local runner."""
    pvc: WorkspaceClaim | None = None
    """A volume. With neither: a claim of 50Gi owned by the job."""

    @property
    def for_several_nodes(self) -> bool:
        """Whether pods on several nodes can use it at one time, as far as the spec says."""
        shared = self.pvc is not None and AccessMode.READ_WRITE_MANY in self.pvc.access_modes
        return self.uri is not None or shared


class Credentials(Model):
    """Credentials for stores and hubs, mounted as environment by the kubelet; the operator never reads them."""

    secret_name: ObjectName = ""
    """A Secret of the job's namespace whose keys become variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_ENDPOINT_URL, HF_TOKEN …"""
    service_account_name: ObjectName = ""
    """For workload identity; no token of the API server is mounted."""


class TemplateStage(StrEnum):
    """What an override is for: a stage, or the teacher's server."""

    PREPARE = "Prepare"
    GENERATE = "Generate"
    TEACHER = "Teacher"
    TRAIN = "Train"
    EVALUATE = "Evaluate"
    PUBLISH = "Publish"


class Resources(Model):
    """Requests and limits of the container, as Kubernetes takes them."""

    requests: Annotated[dict[Word, Quantity], Field(max_length=16)] = {}
    """What the scheduler reserves."""
    limits: Annotated[dict[Word, Quantity], Field(max_length=16)] = {}
    """What the kubelet bounds."""


class TolerationOperator(StrEnum):
    """How a toleration compares."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class Toleration(Model):
    """A taint that the pods bear."""

    key: ObjectName = ""
    """The taint's key; empty with `Exists`: every taint."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """How the value is compared."""
    value: Word = ""
    """The taint's value."""
    effect: Annotated[str, Field(pattern="^(|NoSchedule|PreferNoSchedule|NoExecute)$")] = ""
    """Empty: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """How long NoExecute is borne."""


class EnvVar(Model):
    """An environment variable; secrets come through `credentials`."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Its name."""
    value: Text = ""
    """Its value."""


class VolumeMount(Model):
    """Where a volume of `volumes` is mounted."""

    name: Word
    """The volume."""
    mount_path: Annotated[str, Field(min_length=1, max_length=512, pattern="^/")]
    """An absolute path."""
    sub_path: Annotated[str, Field(max_length=512)] = ""
    """A path inside the volume."""
    read_only: bool = False
    """Mounted without write access."""


class Volume(Model):
    """A volume, from a claim, a ConfigMap, a Secret or memory."""

    name: Word
    """Its name in the pod."""
    persistent_volume_claim: Annotated[dict[str, Any], Field(max_length=4)] | None = None
    """As in a pod."""
    config_map: Annotated[dict[str, Any], Field(max_length=8)] | None = None
    """As in a pod."""
    secret: Annotated[dict[str, Any], Field(max_length=8)] | None = None
    """As in a pod."""
    empty_dir: Annotated[dict[str, Any], Field(max_length=4)] | None = None
    """As in a pod."""


class StageTemplate(Model):
    """Narrow overrides for the pods of one stage, never a whole pod template."""

    stage: TemplateStage
    """Whose pods."""
    resources: Resources = Resources()
    """Merged over the defaults, key by key."""
    node_selector: Annotated[dict[ObjectName, Word], Field(max_length=32)] = {}
    """Labels a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that are borne."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """More environment variables."""
    volumes: Annotated[list[Volume], Field(max_length=16)] = []
    """More volumes."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=16)] = []
    """Where they are mounted."""


class Scheduling(Model):
    """Who schedules the pods, and in what order."""

    queue_name: Annotated[str, Field(max_length=63)] = ""
    """A Kueue LocalQueue: its label is put on every child."""
    priority_class_name: ObjectName = ""
    """Of every pod."""
    scheduler_name: ObjectName = ""
    """Empty: the cluster's default."""


class RunPolicy(Model):
    """How long and how often is tried."""

    rules: ClassVar = (
        Rule(
            cel="!has(self.activeDeadlineSeconds) || !has(self.pendingDeadlineSeconds) || "
            "self.pendingDeadlineSeconds <= self.activeDeadlineSeconds",
            message="pendingDeadlineSeconds cannot be longer than activeDeadlineSeconds",
            holds=lambda policy: (
                policy.active_deadline_seconds is None
                or policy.pending_deadline_seconds is None
                or policy.pending_deadline_seconds <= policy.active_deadline_seconds
            ),
            field="pendingDeadlineSeconds",
        ),
        Rule(
            cel="!has(self.maxGpuHours)",
            message="a budget in GPU-hours is not built yet: use activeDeadlineSeconds",
            holds=lambda policy: policy.max_gpu_hours is None,
            field="maxGpuHours",
        ),
    )

    active_deadline_seconds: Seconds | None = None
    """The whole job must end within this time, suspensions left out."""
    pending_deadline_seconds: Seconds | None = None
    """A pod must be scheduled, and what the API server refuses (a full quota) be taken, within this time."""
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 3
    """New attempts of a stage after failures that may pass; preemptions are not counted."""
    max_gpu_hours: Annotated[float, Field(gt=0, le=10**9)] | None = None
    """A budget."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """Remove the finished DistillationJob after this time; absent: keep it."""
