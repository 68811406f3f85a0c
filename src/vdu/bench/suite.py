"""What a suite is: a TOML file that says model × methods × targets × seeds, and how the outcome is sampled.

A suite of a text-to-image model has a table ``[concept]`` and is measured by UA, IRA and CRA, see
`vdu.bench.concept_runs`; one without has ``samples`` and is measured by PUL and u-FID, see `vdu.bench.class_runs`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vdu.bench.rows import RETRAIN
from vdu.bounds import Seed
from vdu.errors import VduError, nearest
from vdu.evaluation.prompt_attack import AttackBudget
from vdu.methods import find_method, make_settings
from vdu.model_zoo import ZooModel, find_zoo_model
from vdu.prompts import DEFAULT_GUIDANCE_SCALE
from vdu.settings_file import checked, read_toml

__all__ = [
    "Arm",
    "ConceptPlan",
    "Run",
    "Suite",
    "read_suite",
    "result_name",
    "result_path",
    "zoo_model",
]

SUITES = Path(__file__).parent / "suites"


class Arm(BaseModel):
    """A method with settings, under a label; ``forget_images`` takes the first few of the shipped ones.

    ``targets``: those of the suite's that it is measured on; all where it names none.
    ``checkpoints``: K, its posterior is made of the last K of the suite's checkpoints, not the shipped one.
    ``prompt``: with which words a text-to-image model is given the images; ``none`` is the images alone.
    ``things``: its neutral prompts ask for the suite's things too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: str
    settings: dict[str, Any] = {}
    share: float | None = Field(None, gt=0, lt=1)
    targets: list[str] | None = None
    forget_images: int | None = Field(None, ge=1)
    checkpoints: int | None = Field(None, ge=2)
    prompt: Literal["none", "concept"] = "none"
    things: bool = False


class ConceptPlan(BaseModel):
    """``template``: how a class is put into words, e.g. ``{target} style``; without ``attack`` none is made.

    ``things``: what users of the model ask for beside its neutral prompts, some of it of what is to go.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    template: str = Field(pattern=r"\{target\}")
    samples_per_prompt: int = Field(ge=1)
    guidance_scale: float = Field(DEFAULT_GUIDANCE_SCALE, ge=1)
    attack: AttackBudget | None = None
    things: list[str] = []

    def asked_for(self, styles: Sequence[str]) -> list[str]:
        """Prompts for the things: each in two of ``styles``, which take turns, and without one."""
        named = [style.replace("-", " ") for style in styles]
        in_style = [
            f"{thing} in {named[(i + k) % len(named)]} style" for k in (0, 1) for i, thing in enumerate(self.things)
        ]
        return in_style + self.things

    def words(self, class_name: str) -> str:
        """The concept prompt of a class, whose name is written with spaces."""
        return self.template.replace("{target}", class_name.replace("-", " "))


class Suite(BaseModel):
    """What to run. ``model`` is a zoo name, or a folder that is laid out as those are (`vdu.model_zoo`), of which
    pipeline/ and forget/ are enough with a ``detector`` of its own and a folder of real images as ``reference``.
    ``forget``: images by class where the model has none; ``checkpoints``: of its training run, for arms that ask.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    model: str
    targets: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    samples: int | None = Field(None, ge=100)
    concept: ConceptPlan | None = None
    sampler_steps: int = Field(ge=1)
    methods: Annotated[dict[str, Arm], Field(min_length=1)]
    detector: str | None = None
    reference: Path | None = None
    forget: Path | None = None
    checkpoints: Path | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """What every run is made and measured with."""
        concept = self.concept.model_dump(mode="json", exclude_defaults=True) if self.concept else None
        others = {"model", "samples", "sampler_steps", "detector", "reference"}
        return self.model_dump(mode="json", include=others) | {"concept": concept}

    def last_checkpoints(self, count: int) -> list[Path]:
        """The ``count`` latest, by name. Raises `VduError` where there are fewer."""
        files = sorted(self.checkpoints.glob("*.safetensors")) if self.checkpoints else []
        if len(files) < count:
            where = f"{self.checkpoints} has {len(files)}" if self.checkpoints else "none are given"
            advice = f"give --checkpoints RUN/checkpoints of a run of `vdu train {self.model}`"
            raise VduError(f"suite {self.name} takes {count} checkpoints, {where}: {advice}")
        return files[-count:]

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed, so that an unfinished suite has every target once before any twice."""
        for seed in self.seeds:
            for label, arm in self.methods.items():
                for target in arm.targets or self.targets:
                    if target in self.targets:
                        yield Run(label, arm, target, seed)

    def part(self, *, methods: Sequence[str] = (), targets: Sequence[str] = (), seeds: Sequence[int] = ()) -> Suite:
        """The suite of some of its methods, targets and seeds; all where none is named.

        Raises `VduError` for one that it has not.
        """
        chosen: dict[str, Any] = {}
        for field, wanted in {"methods": methods, "targets": targets, "seeds": seeds}.items():
            known = getattr(self, field)
            for value in wanted:
                if value not in known:
                    hint = nearest(str(value), map(str, known))
                    raise VduError(f"no {field.removesuffix('s')} {value!r} in suite {self.name}: {hint}")
            kept = [value for value in known if value in (wanted or known)]
            chosen[field] = {label: known[label] for label in kept} if field == "methods" else kept
        return self.model_copy(update=chosen)


@dataclass(frozen=True)
class Run:
    """One cell of a suite."""

    label: str
    arm: Arm
    target: str
    seed: int

    @property
    def heading(self) -> dict[str, Any]:
        """What a row of results starts with."""
        return {"method": self.label, "target": self.target, "seed": self.seed}

    @property
    def name(self) -> str:
        """How it is called in what is said."""
        return f"{self.label} {self.target} seed {self.seed}"

    @property
    def sampling_seed(self) -> int:
        """Of the evaluation's samples: never the unlearning seed."""
        return 1000 + self.seed


def read_suite(
    name: str, forget: Path | None = None, checkpoints: Path | None = None, also: Iterable[str] = ()
) -> Suite:
    """A shipped suite by name or a TOML file by path; ``forget`` and ``checkpoints`` as of `Suite`.

    ``also``: further names that a caller knows, to offer for one that is misspelt. Raises `VduError` for unknown
    names, settings and classes.
    """
    table = read_toml("suite", name, SUITES, also)
    given = {"forget": forget, "checkpoints": checkpoints}
    given = {key: value for key, value in given.items() if value is not None}
    suite = checked("suite", name, Suite, table | given | {"name": Path(name).stem})
    for label, arm in suite.methods.items():
        method = find_method(arm.method)
        make_settings(method, arm.settings)
        if arm.checkpoints and "posterior" not in method.settings.needs:
            raise VduError(f"suite {suite.name}: the method of {label!r} takes no posterior: leave checkpoints out")
    _check_protocol(suite, zoo_model(suite))
    _check_names(suite)
    return suite


def _check_names(suite: Suite) -> None:
    """Two runs must not write one file, nor one an oracle's."""
    lists = {"seeds": list(map(str, suite.seeds)), "targets": suite.targets}
    lists |= {f"methods.{label}.targets": arm.targets or [] for label, arm in suite.methods.items()}
    for field, named in lists.items():
        if twice := [value for value in named if named.count(value) > 1]:
            raise VduError(f"suite {suite.name}: {field} has {twice[0]} more than once: name each once")
    if RETRAIN in suite.methods:
        raise VduError(f"suite {suite.name}: {RETRAIN!r} is the name of rows of retrained models: give another")
    seen: dict[Path, Run] = {}
    for run in suite.runs():
        other = seen.setdefault(result_path(Path(), suite, run), run)
        if other != run:
            both = f"{other.label!r} on {other.target} and {run.label!r} on {run.target}"
            raise VduError(f"suite {suite.name}: {both} would have one result file: give one another name")


def _check_protocol(suite: Suite, zoo: ZooModel) -> None:
    """The model must bring what the suite measures with."""
    said = f"suite {suite.name}:"
    if (suite.samples is None) == (suite.concept is None):
        raise VduError(f"{said} give samples, or for a text-to-image model a table [concept], and not both")
    if zoo.shipped and bool(suite.concept) != bool(zoo.concept_classifiers):
        wanted = "a table [concept]" if zoo.concept_classifiers else "samples and no table [concept]"
        raise VduError(f"{said} the model {zoo.name} needs {wanted}")
    if suite.concept is None and any(arm.prompt != "none" for arm in suite.methods.values()):
        raise VduError(f"{said} the model {zoo.name} takes no prompts: leave prompt out")
    if suite.concept is not None and any(arm.checkpoints for arm in suite.methods.values()):
        raise VduError(f"{said} a posterior of checkpoints is measured on models without text: leave checkpoints out")
    if any(arm.things for arm in suite.methods.values()) and not (suite.concept and suite.concept.things):
        raise VduError(f"{said} a method asks for things, of which [concept] names none: add them there")
    if any(arm.things for arm in suite.methods.values()) and "style" not in zoo.concept_classifiers:
        raise VduError(f"{said} things are asked for in styles, of which {zoo.name} has no classifier: leave them out")
    others = [t for arm in suite.methods.values() for t in arm.targets or [] if t not in suite.targets]
    if others:
        raise VduError(f"{said} the target {others[0]!r} of a method is not one of the suite's targets")
    for target in suite.targets:
        if target not in zoo.class_names:
            raise VduError(f"{said} {zoo.name} knows no class {target!r}: {nearest(target, zoo.class_names)}")


@cache
def _classes(judge: str | Path) -> tuple[str, ...]:
    """That a detector knows."""
    from vdu.detector.contract import load_detector

    return load_detector(judge).class_names


def zoo_model(suite: Suite) -> ZooModel:
    """The model that the suite is about, with the suite's images. Raises `VduError` where there is none."""
    if zoo := find_zoo_model(suite.model):
        if suite.detector or suite.reference:
            raise VduError(f"suite {suite.name}: {zoo.name} brings its own detector and reference: leave them out")
        return replace(zoo, images=suite.forget)
    own = ZooModel(Path(suite.model))
    if not own.pipeline.is_dir():
        wanted = "give a name of `vdu zoo list`, or a folder with the model in pipeline/ and forget images in forget/"
        raise VduError(f"suite {suite.name} needs the model {suite.model!r}, which is not there: {wanted}")
    if suite.concept is not None:
        wanted = "name one of `vdu zoo list`, or leave [concept] out and give samples and a detector"
        raise VduError(f"suite {suite.name}: a table [concept] is for shipped models only, not for a folder: {wanted}")
    if suite.detector is None and not own.classifier.is_dir():
        raise VduError(f"suite {suite.name}: {own.folder} has no classifier/: give detector in the suite")
    known = _classes(suite.detector or own.classifier)
    return replace(own, images=suite.forget, detector=suite.detector, classes=known)


def result_path(results: Path, suite: Suite, run: Run) -> Path:
    """Where the result of one run lies."""
    return results / suite.name / result_name(run.label, run.target, run.seed)


def result_name(*parts: str | int) -> str:
    """A file name of label, target and the like, without what a path or a shell reads otherwise."""
    return re.sub(r"[^\w.-]+", "-", "-".join(map(str, parts)).replace(",", "")) + ".json"
