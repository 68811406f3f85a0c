"""`vdu evaluate`: original and unlearned model sampled with equal seeds, judged by a detector, as one dictionary.

Every figure's meaning stands in `vdu.evaluation.metrics`. What could not be measured is None, never a default.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone, load_backbone, placed, weights_sha256
from vdu.detector.contract import Detection, Detector, DetectorSource, load_detector
from vdu.diffusion.sampling import DEFAULT_STEPS, SAMPLER, sample
from vdu.errors import VduError
from vdu.evaluation import metrics
from vdu.evaluation.reference import Reference, load_reference
from vdu.precision import resolve_precision
from vdu.provenance import made_by

__all__ = ["Evaluation", "Sampler", "Seen", "evaluate", "figures", "load_alike"]

JUDGED_AT_ONCE = 500
SHOWN = 64
DISTANCES = ("u_fid", "kid", "precision", "recall")


@dataclass(frozen=True)
class Seen:
    """What a detector sees in all samples of a model, and the ``first`` pictures ``(n, C, H, W)``, to look at."""

    detection: Detection
    first: Tensor


@dataclass(frozen=True)
class Sampler:
    """How evaluation samples are made; the solver is `vdu.diffusion.sampling`'s."""

    steps: int = DEFAULT_STEPS
    precision: str = "auto"
    seed: int = 1000
    count: int = 2000
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.count < 2 or self.steps < 1:
            raise VduError(f"{self.count} samples in {self.steps} steps measure nothing: take 2 in 1 step, or more")
        object.__setattr__(self, "seed", int(self.seed))  # a numpy number would name other samples

    def record(self) -> dict[str, Any]:
        """What a result file says of it, with the precision that ``auto`` stands for."""
        return {"name": SAMPLER, "steps": self.steps, "precision": resolve_precision(self.precision, self.device)}

    def draw(self, backbone: Backbone, network: nn.Module | None = None) -> Tensor:
        """Pictures ``(count, C, H, W)`` in [-1, 1] on the CPU; of ``network`` where it is not the backbone's own."""
        network, steps = network or backbone.network, self.steps
        with placed(network, self.device):
            return backbone.decode(
                sample(backbone, network, self.count, self.seed, steps=steps, precision=self.precision)
            )

    def judged(self, backbone: Backbone, judge: Detector, network: nn.Module | None = None) -> Seen:
        """What ``judge`` sees in what `draw` gives, of which no more than `JUDGED_AT_ONCE` pictures are held."""
        network, steps = network or backbone.network, self.steps
        with placed(network, self.device):
            x_0 = sample(backbone, network, self.count, self.seed, steps=steps, precision=self.precision)
            parts = [judge(backbone.decode(part)) for part in x_0.split(JUDGED_AT_ONCE)]
            first = backbone.decode(x_0[:SHOWN])
        features = [part.features for part in parts if part.features is not None]
        whole = torch.cat(features) if len(features) == len(parts) else None
        return Seen(Detection(torch.cat([part.predicted for part in parts]), whole), first)


@dataclass(frozen=True)
class Evaluation:
    """The record (JSON-able), the first samples of both models, and which of all originals were of the target."""

    record: dict[str, Any]
    before: Tensor
    after: Tensor
    marks: list[bool]


def _share(flags: Tensor) -> dict[str, float | None]:
    return asdict(metrics.share_interval(flags))


def _became(after: Tensor, target: int, rejects: bool) -> dict[str, int]:
    """How many of the pictures that showed the target still do, show another class, or none."""
    still, none = int((after == target).sum()), int((after < 0).sum())
    counts = {"still": still, "other": len(after) - still - none}
    return counts | {"none": none} if rejects else counts


def _class_figures(before: Tensor, after: Tensor, target: int, classes: int, rejects: bool) -> dict[str, Any]:
    """PUL, shares, shift: from class indices ``(N,)`` of paired samples; "none" only where the detector can say so.

    What is no picture at all is none of the classes to every detector.
    """
    rejects = rejects or bool((torch.cat([before, after]) < 0).any())
    nothing = asdict(metrics.Interval(None, None, None))
    shares_before, shares_after = (metrics.class_shares(x, classes) for x in (before, after))
    kept = [i for i in range(classes) if i != target]
    return {
        "pul": asdict(metrics.pul(before == target, after == target)),
        "count_before": int((before == target).sum()),
        "count_after": int((after == target).sum()),
        "became": _became(after[before == target], target, rejects),
        "share_before": _share(before == target),
        "share_after": _share(after == target),
        "share_none_before": _share(before < 0) if rejects else nothing,
        "share_none": _share(after < 0) if rejects else nothing,
        "share_none_rise": asdict(metrics.paired_rise(before < 0, after < 0)) if rejects else nothing,
        "share_retained_before": _share((before != target) & (before >= 0)),
        "share_retained": _share((after != target) & (after >= 0)),
        "shares_before": shares_before,
        "shares_after": shares_after,
        "total_variation": metrics.total_variation([shares_before[i] for i in kept], [shares_after[i] for i in kept]),
        "changed": metrics.paired_changes(before, after, target),
    }


def _retained(detection: Detection, target: int) -> Tensor | None:
    """Features ``(N, D)`` of the samples that are not of the target."""
    return None if detection.features is None else detection.features[detection.predicted != target]


def _distances(samples: metrics.Features, real: metrics.Features, drawn: metrics.Features) -> dict[str, float | None]:
    """The four figures of one model's samples; ``drawn``: as many of ``real``, for precision and recall."""
    found = (
        metrics.frechet_distance(samples, real),
        metrics.kernel_distance(samples, real),
        *metrics.precision_recall(samples, drawn),
    )
    return dict(zip(DISTANCES, found, strict=True))


def _distances_missing(sets: list[Tensor], wanted: int, count: int, reference: Reference | None) -> str | None:
    """Why the first ``count`` features of each model are not compared with real ones; None where they are."""
    if reference is None:
        return "no reference was given"
    if len(sets) < wanted:
        return "the detector gives no features"
    if count < metrics.FEWEST_SAMPLES:
        return f"only {count} samples are not of the class, {metrics.FEWEST_SAMPLES} are needed"
    finite = all(bool(kept[:count].isfinite().all()) for kept in sets)
    return None if finite else "the features of some samples are not finite"


def _feature_figures(
    before: Detection, after: Detection, oracle: Detection | None, reference: Reference | None, target: int
) -> dict[str, Any]:
    """u-FID, KID, precision, recall of what is not of the target, original and unlearned alike; the oracle's u-FID.

    The Fréchet distance of few samples is too large, so all are measured on the first ``u_fid_samples`` retained ones,
    as many as the model with the fewest has. ``distances_missing`` says why there are none.
    """
    names = (*DISTANCES, *(f"{name}_original" for name in DISTANCES), "u_fid_oracle", "u_fid_samples")
    figures: dict[str, Any] = dict.fromkeys((*names, "distances_missing"))
    seen = [after, before] if oracle is None else [after, before, oracle]
    sets = [kept for detection in seen if (kept := _retained(detection, target)) is not None]
    count = min((len(kept) for kept in sets), default=0)
    missing = _distances_missing(sets, len(seen), count, reference)
    if missing or reference is None:
        return figures | {"distances_missing": missing}
    if reference.features.shape[1] != sets[0].shape[1]:
        widths = f"{reference.features.shape[1]} numbers of an image, the detector's {sets[0].shape[1]}"
        raise VduError(f"the reference's features are {widths}: make it with this detector")
    real = metrics.Features(reference.retained(target))
    first, drawn = [metrics.Features(kept[:count]) for kept in sets], real.drawn(count)
    figures |= _distances(first[0], real, drawn) | {"u_fid_samples": count}
    figures |= {f"{name}_original": value for name, value in _distances(first[1], real, drawn).items()}
    if figures["u_fid"] is None:
        figures["distances_missing"] = _too_few_for_u_fid(count, real)
    return figures | {"u_fid_oracle": metrics.frechet_distance(first[2], real) if oracle is not None else None}


def _too_few_for_u_fid(count: int, real: metrics.Features) -> str:
    """Of so few no covariance can be told; KID, precision and recall need none."""
    fewest, which = min((count, "samples that are not of the class"), (len(real), "real images"))
    return f"only {fewest} {which}, u-FID needs more than the {real.rows.shape[1]} features"


def figures(
    before: Detection,
    after: Detection,
    target: int,
    classes: int,
    reference: Reference | None = None,
    rejects: bool = True,
    oracle: Detection | None = None,
) -> dict[str, Any]:
    """All figures of the protocol from two detections of paired samples and, where there is one, the oracle's.

    ``rejects``: as of `Detector`.
    """
    shares = _class_figures(before.predicted, after.predicted, target, classes, rejects)
    return shares | _feature_figures(before, after, oracle, reference, target)


def evaluate(
    original: Any,
    unlearned: Any,
    detector: DetectorSource,
    target: str | int,
    *,
    reference: str | Path | Reference | None = None,
    oracle: Any = None,
    sampler: Sampler | None = None,
    before: Seen | None = None,
) -> Evaluation:
    """Compare two models (pipelines, folders or `Backbone`s) on ``sampler.count`` paired samples.

    ``before``: what the detector saw in the original's samples, where the same sampler has made them already. Raises
    `VduError` for an unknown class, models of different shape, a reference of another extractor, or an oracle without a
    reference.
    """
    started, sampler, judge = time.monotonic(), sampler or Sampler(), load_detector(detector)
    first = original if isinstance(original, Backbone) else load_backbone(original)
    second, third = load_alike(first, unlearned), None if oracle is None else load_alike(first, oracle)
    index = judge.class_index(target)
    judge.check(first.shape)
    if isinstance(reference, (str, Path)):
        reference = load_reference(Path(reference), judge, first.shape)
    if not isinstance(reference, (Reference, type(None))):
        raise VduError(
            f"the reference is a {type(reference).__name__}: give a folder of real images, or a feature file"
        )
    if third is not None and reference is None:
        raise VduError("an oracle is measured by its distance to real images: give --reference")
    before = sampler.judged(first, judge) if before is None else before
    record = _heading(first, second, judge, judge.class_names[index], sampler, reference)
    after = sampler.judged(second, judge)
    ideal = None if third is None else sampler.judged(third, judge).detection
    seen = before.detection, after.detection
    record |= figures(*seen, index, len(judge.class_names), reference, judge.rejects, ideal)
    record["seconds"] = round(time.monotonic() - started, 2)
    return Evaluation(record, before.first, after.first, (seen[0].predicted == index).tolist())


def load_alike(first: Backbone, model: Any) -> Backbone:
    """A model that is to be sampled as ``first`` is. Raises `VduError` where its images have another shape."""
    second = model if isinstance(model, Backbone) else load_backbone(model, first.prompts)
    if first.shape != second.shape:
        raise VduError(f"the models make images of different shape: {first.shape} and {second.shape}")
    return second


def _heading(
    first: Backbone, second: Backbone, judge: Detector, target: str, sampler: Sampler, reference: Reference | None
) -> dict[str, Any]:
    extractor = None
    if reference is not None:
        dimensions, count = reference.features.shape[1], len(reference.features)
        extractor = {"name": judge.name, "sha256": judge.sha256, "dimensions": dimensions, "reference_images": count}
        extractor["reference_notices"] = list(reference.notices)
    return {
        "schema": 1,
        "original_sha256": weights_sha256(first.network),
        "unlearned_sha256": weights_sha256(second.network),
        "target": target,
        "samples": sampler.count,
        "seed": sampler.seed,
        "sampler": sampler.record(),
        "prompts": asdict(first.prompts) if first.prompts else None,
        "detector": judge.record(),
        "class_names": list(judge.class_names),
        "extractor": extractor,
        **made_by(),
    }
