"""The pipeline as data: which steps a spec asks for, in their order, and what each needs."""

from __future__ import annotations

from dataclasses import dataclass

from kubedistill_api.base import Stage
from kubedistill_api.identity import StageKey
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.status import ConditionType, Phase


@dataclass(frozen=True)
class Step:
    """One step: a stage, and for Generate the teacher that it asks."""

    key: StageKey
    needs: tuple[StageKey, ...] = ()
    """Steps whose output this one reads."""
    served_teacher: bool = False
    """Whether a vLLM is made for it. The teacher is no step: it is what this one needs while it runs."""

    @property
    def name(self) -> str:
        """As in the status."""
        return str(self.key)

    @property
    def first_phase(self) -> Phase:
        """The phase until its work begins: a teacher of its own must start first, in every attempt."""
        return Phase.STARTING_TEACHER if self.served_teacher else PHASE[self.key.stage]


def pipeline(spec: DistillationJobSpec) -> tuple[Step, ...]:
    """The steps of a job, one after the other.

    Teachers are asked one after the other too: together they would need the GPUs of all of them at once.
    """
    prepare = StageKey(Stage.PREPARE)
    asked = tuple(StageKey(Stage.GENERATE, teacher.name) for teacher in spec.teachers)
    train, evaluate = StageKey(Stage.TRAIN), StageKey(Stage.EVALUATE)
    return (
        Step(prepare),
        *(Step(key, (prepare,), spec.teacher(key.teacher).serving is not None) for key in asked),
        Step(train, (prepare, *asked)),
        Step(evaluate, (prepare, *asked, train)),
        Step(StageKey(Stage.PUBLISH), (prepare, *asked, train, evaluate)),
    )


CONDITION = {
    Stage.PREPARE: ConditionType.PREPARED,
    Stage.GENERATE: ConditionType.GENERATED,
    Stage.TRAIN: ConditionType.TRAINED,
    Stage.EVALUATE: ConditionType.EVALUATED,
    Stage.PUBLISH: ConditionType.PUBLISHED,
}
"""What is True once a stage is done."""

PHASE = {
    Stage.PREPARE: Phase.PREPARING,
    Stage.GENERATE: Phase.GENERATING,
    Stage.TRAIN: Phase.TRAINING,
    Stage.EVALUATE: Phase.EVALUATING,
    Stage.PUBLISH: Phase.PUBLISHING,
}
