"""Numbers that others published, in a file of the user's own: each with its source and its protocol."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from annotate.conditions import CONDITIONS
from evaluate import measures
from pipeline import MillError
from pipeline.manifest import yaml_errors
from pipeline.manifest.section import Real, Section, Text, Whole
from pipeline.manifest.yaml_errors import wrong


class PublishedRow(Section):
    """The fields of leaderboard_data.Published; what of the protocol is left out is not known."""

    condition: Text
    metric: Text  # as printed there, with the network that read the maps
    higher_is_better: bool
    model: Text
    value: Real
    low: Real | None = None
    high: Real | None = None
    source: Text
    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    note: str = ""
    beside: str = ""  # our measure of the same definition, by name
    times: Annotated[Real, Field(gt=0)] = 1.0  # of ours, to stand beside it
    base: Text | None = None
    resolution: Annotated[Whole, Field(ge=1)] | None = None
    data: Text | None = None
    reader: Text | None = None
    sampler: Text | None = None

    @model_validator(mode="after")
    def _means_what_is_known_here(self) -> "PublishedRow":
        if self.condition not in CONDITIONS:
            raise wrong(f"is none of {', '.join(CONDITIONS)}: name one of them", "condition")
        try:
            ours = measures.metric(self.beside) if self.beside else None
        except KeyError:
            raise wrong(
                "is no measure of docs/measures.md, such as edge_f1_bsds or fd (inception): name one, or"
                " leave the key out",
                "beside",
            ) from None
        if ours and ours.higher_is_better != self.higher_is_better:
            better = "true" if ours.higher_is_better else "false"
            raise wrong(
                f"is {better} for {ours.name}, beside which it is to stand: change one", "higher_is_better"
            )
        if ours and ours.kind not in ("", CONDITIONS[self.condition].kind):
            raise wrong(f"is no measure of {self.condition}: name one of its own", "beside")
        if (self.low is None) != (self.high is None):
            raise wrong(
                "an interval has `low` and `high`: give both or none", "high" if self.low is None else "low"
            )
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise wrong("lies outside of `low` and `high`: mend them", "value")
        return self


class PublishedFile(Section):
    published: Annotated[list[PublishedRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _says_each_number_once(self) -> "PublishedFile":
        seen: dict[Any, int] = {}
        for number, row in enumerate(self.published):
            told = (row.condition, row.metric, row.model, row.source)
            if told in seen:
                raise wrong(
                    f"stands in row {1 + seen[told]} too: keep one, or name another source",
                    "published",
                    number,
                )
            seen[told] = number
        return self


def read(path: str, place: Any) -> list[PublishedRow]:
    """MillError has one line for each mistake; `place` is the manifest's key."""
    if not Path(path).is_file():
        raise MillError(
            f"{place}: {path} is no file: write the path of a YAML or JSON file of published numbers."
        )
    return yaml_errors.read(Path(path), PublishedFile, what="a file of published numbers").published
