"""The sections of a recipe, with their defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from haqsearch.spec.ptq import ptq_steps


class Section(BaseModel):
    """Checked when it is made; unknown keys are errors, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSettings(Section):
    """Sizes of the splits in samples; ``report`` None: the data set's test part, or a quarter of it.

    ``sensitivity``: of the search samples, those that a sensitivity table is measured on, the first; None: all."""

    calibrate: int = Field(1024, ge=1)
    search: int = Field(2000, ge=1)
    sensitivity: int | None = Field(None, ge=1)
    report: int | None = Field(None, ge=1)

    @field_validator("sensitivity")
    @classmethod
    def _of_the_search_split(cls, value: int | None, known: ValidationInfo) -> int | None:
        if value and value > known.data.get("search", value):
            raise ValueError(f"{value} samples are more than the search split has, which they are taken from")
        return value


class PtqSettings(Section):
    """Post-training quantization. ``plain``: least-squared-error ranges and nearest rounding. ``fast``: weights rounded, once
    per layer and width, so that the layer's output stays close, with bias correction; better below 6 bits. ``accurate``: the
    search as ``fast``, the chosen policies rounded once more in network order, against the inputs they really get.

    ``steps``: in place of a preset, the steps of ``haqsearch.spec.ptq`` one by one.

    ``refine``: evaluations of a second search that begins with the best policies of the first and rounds each policy in network
    order, quickly; what is best so is not always what is best rounded layer by layer. It wants the step ``in_order``.

    ``finalists``: best policies that are rounded in network order, with all care, for one of them to be chosen."""

    preset: Literal["plain", "fast", "accurate"] = "plain"
    steps: tuple[str, ...] = ()
    refine: int = Field(0, ge=0)
    finalists: int = Field(4, ge=1)

    @field_validator("steps")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return ptq_steps("plain", value) if value else value

    @model_validator(mode="after")
    def _refines_what_is_finished(self) -> PtqSettings:
        if self.refine and "in_order" not in self.pipeline:
            raise ValueError(
                'refine rounds in network order, which the chosen policies then need too: preset = "accurate", or the step '
                '"in_order"'
            )
        return self

    @property
    def pipeline(self) -> tuple[str, ...]:
        """The steps to be done, in order."""
        return ptq_steps(self.preset, self.steps)


class LadderSettings(Section):
    """Samples of the search split that every policy is scored on first: on each of ``rungs`` one in ``reduction`` is promoted.

    ``trial_run`` policies go all the way; a rung whose rank correlation with the next over them is below ``least_correlation``
    is dropped. Defaults as of ``haqsearch.search.ladder.Ladder``.
    """

    rungs: tuple[int, ...] = ()
    reduction: int = Field(2, ge=2)
    trial_run: int = Field(8, ge=3)
    least_correlation: float = Field(0.8, ge=-1, le=1)

    @field_validator("rungs")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in zip((0, *value), value, strict=False)):
            raise ValueError("numbers of samples, from few to many")
        return value


class QatSettings(Section):
    """The best ``candidates`` policies - of the finalists, where the preset has some - enter a last ladder: they are fine-tuned
    for a quarter of ``steps`` steps, and the best of these in full; a single one in full at once. 0: no training.

    ``baseline``: the best uniform policy is fine-tuned likewise, so that the search is compared with its equal.
    """

    candidates: int = Field(2, ge=0)
    baseline: bool = True
    steps: int = Field(300, ge=1)
    batch: int = Field(128, ge=1)
    learning_rate: float = Field(3e-5, gt=0)


class TrainSettings(Section):
    """Training of the float network, where the recipe names no weights."""

    epochs: int = Field(60, ge=1)
    batch: int = Field(64, ge=1)
    learning_rate: float = Field(4e-3, gt=0)
