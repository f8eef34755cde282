"""What an installation decides for all its jobs: images and defaults. Values only; who starts the pass reads them in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """One installation's choices. Frozen, so that a plan depends on nothing else."""

    trainer_image: str = "kubedistill/trainer:latest"
    vllm_image: str = "vllm/vllm-openai:latest"
    image_pull_policy: str = "IfNotPresent"
    workspace_path: str = "/workspace"
    """Where a claim is mounted in the stages; the local runner puts a folder of this machine here."""
    stage_ttl_seconds: int = 300
    """A finished Job, and the teacher it owns, are removed after so long, with no operator alive."""
    generate_deadline_seconds: int = 7 * 24 * 3600
    """The longest generation where the spec gives no deadline: the dead-man's switch needs one."""
    train_grace_seconds: int = 120
    """How long a training may take to write its checkpoint after SIGTERM."""
    retry_base_seconds: int = 10
    retry_limit_seconds: int = 300
    """The backoff between attempts doubles from the base up to the limit."""
    progress_seconds: int = 15
    """Progress is written at most this often."""
