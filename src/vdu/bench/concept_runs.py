"""Runs on a text-to-image model: UA, IRA, CRA, paraphrases and an attack (`vdu.evaluation.concept_evaluation`).

The original's samples are made once for each evaluation seed (and process).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vdu.backbone import load_backbone
from vdu.bench.suite import ConceptPlan, Run, Suite, zoo_model
from vdu.concept_prompts import ConceptPrompt, asking_for, of_kind, read_concept_prompts, spread
from vdu.detector.contract import load_detector
from vdu.device import resolve_device
from vdu.diffusion.noising import Clean
from vdu.diffusion.sampling import sample
from vdu.evaluation.concept_evaluation import ConceptEvaluation, evaluate_concept
from vdu.evaluation.concept_sampling import ConceptJudge, ConceptSampler, Drawn
from vdu.evaluation.prompt_attack import require_room
from vdu.images.grids import before_after
from vdu.methods import find_method
from vdu.posterior import Posterior, from_fisher
from vdu.prompts import Prompts, read_prompts
from vdu.result import Result
from vdu.unlearning import unlearn

__all__ = ["ConceptRuns"]

WHOLE = ("ua", "ira", "cra", "ua_paraphrase", "ua_attack")  # with their intervals
PARTS = ("ua_none", "ua_other", "cra_target", "ua_random", "ua_bare")
ORIGINAL = ("ua", "ua_none", "ira", "cra", "cra_target", "ua_paraphrase", "ua_attack")
FISHER_SAMPLES = 256
GRID_PROMPTS, GRID_SEEDS = 6, 2


class ConceptRuns:
    """What all runs of one suite share."""

    def __init__(self, suite: Suite, plan: ConceptPlan) -> None:
        self.suite, self.plan, self.zoo = suite, plan, zoo_model(suite)
        self.original = load_backbone(self.zoo.pipeline)
        self.judge = ConceptJudge({d: load_detector(f) for d, f in self.zoo.concept_classifiers.items()})
        classes = {domain: detector.class_names for domain, detector in self.judge.detectors.items()}
        self.prompts = read_concept_prompts(self.zoo.concept_prompts, classes)
        if plan.attack is not None:
            require_room(self.original, [prompt.text for prompt in of_kind(self.prompts, "plain")], plan.attack)
        self.neutral = read_prompts(self.zoo.neutral_prompts)
        self._posterior: Posterior | None = None
        self._known: dict[int, dict[tuple[ConceptPrompt, ...], Drawn]] = {}

    def unlearn(self, run: Run, images: list[Path], retain: list[Path] | None) -> Result:
        """From images alone, or with the concept in words; each image to keep then has its own class's words."""
        named = run.arm.prompt == "concept"
        forget = (self.plan.words(run.target),) if named else ()
        kept: list[Any] | None = retain
        if retain is not None and named:
            kept = [
                {"image": Image.open(path).convert("RGB"), "text": self.plan.words(path.parent.name)} for path in retain
            ]
        return unlearn(
            self.zoo.source,
            images,
            run.arm.method,
            retain=kept,
            settings=run.arm.settings,
            posterior=self._prior() if "posterior" in find_method(run.arm.method).settings.needs else None,
            share=run.arm.share,
            prompts=Prompts(self._neutral(run), forget, self.plan.guidance_scale),
            seed=run.seed,
        )

    def _neutral(self, run: Run) -> tuple[str, ...]:
        """The model's neutral prompts, and where the run has them those for the things spread evenly among them."""
        asked = self.plan.asked_for(self.judge.detectors["style"].class_names) if run.arm.things else []
        placed = [((i + 0.5) / len(texts), text) for texts in (self.neutral, asked) for i, text in enumerate(texts)]
        return tuple(text for _, text in sorted(placed, key=lambda place: place[0]))

    def _prior(self) -> Posterior | None:
        """The shipped posterior (None stands for it), or the Fisher information of the model's own samples."""
        if self._posterior is None and self.zoo.shipped_posterior is None:
            backbone = load_backbone(self.zoo.pipeline, self.zoo.prompts)
            own = Clean(
                sample(backbone, backbone.network, FISHER_SAMPLES, 0), backbone.sample_conditions(FISHER_SAMPLES)
            )
            self._posterior = from_fisher(backbone, own)
        return self._posterior

    def evaluate(self, done: Result, run: Run) -> tuple[dict[str, Any], Image.Image | None]:
        """Figures, and the grid of some prompts with the target and some without."""
        plan, seed = self.plan, run.sampling_seed
        sampler = ConceptSampler(
            plan.samples_per_prompt,
            self.suite.sampler_steps,
            plan.guidance_scale,
            seed,
            device=str(resolve_device(None)),
        )
        evaluation = evaluate_concept(
            self.original,
            load_backbone(done.pipeline),
            self.judge,
            self.prompts,
            run.target,
            sampler,
            budget=plan.attack,
            known=self._known.setdefault(run.seed, {}),
        )
        texts, picture = _grid(evaluation, self.judge, run.target)
        return evaluation.record | {"grid_prompts": texts}, picture

    def row(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """Every figure beside the original's; intervals of those of the unlearned model."""
        row: dict[str, Any] = {}
        for name in WHOLE:
            interval = evaluation[name] or dict.fromkeys(("value", "low", "high"))
            row |= {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
        for name in (*PARTS, *(f"{name}_original" for name in ORIGINAL)):
            row[name] = evaluation[name]["value"] if evaluation[name] else None
        distances = {name: evaluation[name] for name in ("fid_to_original", "kid_to_original")}
        return row | distances | {"samples": evaluation["samples"]}

    def said(self, row: dict[str, Any]) -> str:
        """UA, IRA and CRA, the original's in brackets."""
        shown = [(name, row[name], row[f"{name}_original"]) for name in ("ua", "ira", "cra")]
        return ", ".join(f"{n.upper()} {a:.1f} ({b:.1f})" for n, a, b in shown if a is not None and b is not None)


def _grid(evaluation: ConceptEvaluation, judge: ConceptJudge, target: str) -> tuple[list[str], Image.Image]:
    """Columns: prompts with the target, then prompts without; rows: seeds, before above after. And the prompts."""
    before, after, inside = evaluation.before, evaluation.after, judge.domain(target)
    prompts, wanted = before.prompts, asking_for(before.prompts, target)
    groups = [[i for i, p in enumerate(prompts) if (p in wanted) == asked] for asked in (True, False)]
    columns = [i for group in groups for i in spread(group, GRID_PROMPTS)]
    rows = min(GRID_SEEDS, len(before.pictures) // len(prompts))
    shown = torch.tensor([row * len(prompts) + column for row in range(rows) for column in columns])
    marks = before.seen[inside][shown] == judge.detectors[inside].class_index(target)
    picture = before_after(before.pictures[shown], after.pictures[shown], len(columns), marks=marks.tolist())
    return [prompts[i].text for i in columns], picture
