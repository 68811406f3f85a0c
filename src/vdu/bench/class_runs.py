"""Runs on a model of classes without text: PUL, u-FID and collateral (`vdu.evaluation.comparison`).

The original's samples are made once for each evaluation seed (and process).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from vdu.backbone import Backbone, load_backbone
from vdu.bench.suite import Run, Suite, zoo_model
from vdu.detector.contract import load_detector
from vdu.device import resolve_device
from vdu.evaluation.comparison import Evaluation, Sampler, Seen, evaluate
from vdu.evaluation.reference import load_reference
from vdu.images.grids import before_after, thumbnails
from vdu.methods import find_method
from vdu.posterior import Posterior, from_checkpoints
from vdu.result import Result
from vdu.unlearning import unlearn

__all__ = ["ClassRuns", "first_pairs"]

PAIRS, COLUMNS = 48, 16

SHARES = ("share_before", "share_after", "share_none_before", "share_none")
DISTANCES = ("u_fid", "u_fid_original", "u_fid_samples", "kid", "kid_original")
FIGURES = (*DISTANCES, "total_variation", "changed", "samples")


def first_pairs(evaluation: Evaluation) -> Image.Image:
    """The first samples, original above unlearned with the same seed; framed are those that were of the target."""
    before, after = (thumbnails(images[:PAIRS]) for images in (evaluation.before, evaluation.after))
    return before_after(before, after, COLUMNS, scale=1, marks=evaluation.marks[:PAIRS])


class ClassRuns:
    """What all runs of one suite share. Raises `VduError` for a judge that cannot look at the model's pictures."""

    def __init__(self, suite: Suite) -> None:
        self.suite, self.zoo = suite, zoo_model(suite)
        self.original = load_backbone(self.zoo.pipeline)
        self.detector = load_detector(self.zoo.judge)
        self.detector.check(self.original.shape)
        real = suite.reference or self.zoo.shipped_reference
        self.reference = load_reference(real, self.detector, self.original.shape) if real else None
        self._before: dict[int, Seen] = {}

    def unlearn(self, run: Run, images: list[Path], retain: list[Path] | None) -> Result:
        """From images alone, and the posterior that the arm asks for."""
        arm = run.arm
        posterior: Path | Posterior | None
        posterior = self.zoo.shipped_posterior if "posterior" in find_method(arm.method).settings.needs else None
        if arm.checkpoints:
            posterior = from_checkpoints(self.original, self.suite.last_checkpoints(arm.checkpoints))
        return unlearn(
            self.zoo.source,
            images,
            arm.method,
            retain=retain,
            settings=arm.settings,
            share=arm.share,
            posterior=posterior,
            seed=run.seed,
        )

    def evaluate(self, done: Result, run: Run) -> tuple[dict[str, Any], Image.Image | None]:
        """Figures, and the first samples of both models."""
        evaluation = self.compare(load_backbone(done.pipeline), run)
        return evaluation.record, first_pairs(evaluation)

    def compare(self, unlearned: Backbone, run: Run) -> Evaluation:
        """Any model beside the original."""
        assert self.suite.samples is not None
        sampler = Sampler(
            steps=self.suite.sampler_steps,
            seed=run.sampling_seed,
            count=self.suite.samples,
            device=str(resolve_device(None)),
        )
        if run.seed not in self._before:
            self._before[run.seed] = sampler.judged(self.original, self.detector)
        return evaluate(
            self.original,
            unlearned,
            self.detector,
            run.target,
            reference=self.reference,
            sampler=sampler,
            before=self._before[run.seed],
        )

    def row(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """PUL with its interval, shares, distances."""
        pul = evaluation["pul"]
        row = {"pul": pul["value"], "pul_low": pul["low"], "pul_high": pul["high"]}
        return row | {k: evaluation[k]["value"] for k in SHARES} | {k: evaluation[k] for k in FIGURES}

    def said(self, row: dict[str, Any]) -> str:
        """PUL, u-FID of both models, share of none."""
        shown = {"PUL": row["pul"], "u-FID": row["u_fid"], "original": row["u_fid_original"], "none": row["share_none"]}
        return ", ".join(f"{name} {value:.2f}" for name, value in shown.items() if value is not None)
