"""What a run and its evaluation say in a sentence: what was forgotten, on what evidence, at what cost."""

from __future__ import annotations

from typing import Any

from vdu.report.figures import few_samples, finite, interval_of, number, percent, percent_of, value_of

__all__ = ["cautions", "forgot", "guard_ends", "outcome", "quality_losses", "verdict"]

FORGOTTEN_FROM = 50.0  # the PUL interval's low end, in percent
NEARLY_ALL = 90.0  # PUL, in percent
NONE_RISE = 3.0  # points of "none" that quality may cost, where the rise's interval excludes zero
FID_RATIO = 1.15
CHANCE_OF_KID = 10  # times how far under 0 the original's is
BLIND_FROM = 30.0  # percent of the original's pictures in which a detector sees no class


def forgot(evaluation: dict[str, Any]) -> bool | None:
    """Whether the PUL interval's low end reaches 50 %.

    None when there was nothing to forget, or so little that even nearly all of it gone is not certain.
    """
    pul = evaluation.get("pul") or {}
    value, low = finite(pul.get("value")), finite(pul.get("low"))
    if value is None or low is None or (low < FORGOTTEN_FROM and value >= NEARLY_ALL):
        return None
    return low >= FORGOTTEN_FROM


def _compared_fid(evaluation: dict[str, Any]) -> str:
    fid, original = (number(evaluation[name], 2) for name in ("u_fid", "u_fid_original"))
    few = few_samples(evaluation)
    return f"u-FID {fid}, original {original}" + (f", both rough: {few}" if few else "")


def _of_no_class(evaluation: dict[str, Any]) -> tuple[str, bool]:
    """That the share of none rose, empty where it did by no more than is allowed; whether more than chance did it."""
    rise = evaluation.get("share_none_rise") or {}
    value, low = finite(rise.get("value")), finite(rise.get("low"))
    if value is None or low is None or value <= NONE_RISE:
        return "", False
    before, after = (percent(value_of(evaluation, name)) for name in ("share_none_before", "share_none"))
    said = f"pictures of no class rose from {before} to {after}, 95 % interval {interval_of(rise)} points more"
    own = (evaluation.get("became") or {}).get("none", 0)
    return said + (f", {own} of them in the place of the class" if own else ""), low > 0


def quality_losses(evaluation: dict[str, Any]) -> list[str]:
    """What got worse by more than is allowed, with the figures."""
    losses, (rose, surely) = [], _of_no_class(evaluation)
    fid, fid_before = finite(evaluation.get("u_fid")), finite(evaluation.get("u_fid_original"))
    if fid is not None and fid_before is not None and fid > FID_RATIO * fid_before:
        losses.append(_compared_fid(evaluation))
    return [*losses, rose] if surely else losses


def _kid_rose(evaluation: dict[str, Any]) -> bool:
    """KID is unbiased: at or under 0 the original is as near as chance tells, and no ratio says how much more is."""
    kid, before = finite(evaluation.get("kid")), finite(evaluation.get("kid_original"))
    if kid is None or before is None:
        return False
    return kid > (FID_RATIO * before if before > 0 else CHANCE_OF_KID * -before)


def _distance_clause(evaluation: dict[str, Any]) -> str:
    kid, kid_before = finite(evaluation.get("kid")), finite(evaluation.get("kid_original"))
    against = f"KID {number(kid, 3)}, original {number(kid_before, 3)}"
    if all(finite(evaluation.get(name)) is not None for name in ("u_fid", "u_fid_original")):
        kept = "its other pictures kept their quality"
        if _kid_rose(evaluation):
            return f"{kept} by u-FID ({_compared_fid(evaluation)}), not by KID ({against})"
        return f"{kept} ({_compared_fid(evaluation)})"
    before, after = (percent(value_of(evaluation, name)) for name in ("share_none_before", "share_none"))
    why = f": {said}" if (said := evaluation.get("distances_missing")) else ""
    worse = "got worse by " if _kid_rose(evaluation) else ""
    known = "" if kid is None or kid_before is None else f"{worse}{against}; "
    return f"u-FID was not measured{why} ({known}pictures of no class: {before} before, {after} after)"


def _quality_clause(evaluation: dict[str, Any]) -> str:
    """What became of the other pictures; a rise of "none" that may be chance is told, and is no loss."""
    if losses := quality_losses(evaluation):
        return f"the quality of its pictures fell ({'; '.join(losses)})"
    rose, _ = _of_no_class(evaluation)
    return _distance_clause(evaluation) + (f"; {rose}: it may be chance" if rose else "")


def _evaluated_verdict(evaluation: dict[str, Any]) -> str:
    name, count, done = f"class {evaluation['target']}", evaluation["samples"], forgot(evaluation)
    quality, pul = _quality_clause(evaluation), evaluation.get("pul") or {}
    if finite(pul.get("value")) is None:
        found = f"the detector found it in {evaluation.get('count_before', 'none')} of the original's {count} pictures"
        return f"Whether the model forgot {name} cannot be said: {found}; {quality}."
    shares = [percent(value_of(evaluation, share)) for share in ("share_before", "share_after")]
    made = f"in {shares[0]} of its pictures before and in {shares[1]} after"
    basis = f"(PUL {percent(pul['value'])}, 95 % interval {interval_of(pul)}, N = {count})"
    failed = "It is not certain that the model forgot" if done is None else "The model did NOT forget"
    start = f"The model made {name} {made}" if done else f"{failed} {name}: it made it {made}"
    link = "; but " if done and quality_losses(evaluation) else "; "
    return f"{start} {basis}{link}{quality}."


def guard_ends(unlearning: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The guard's figures before the first step and at the kept step."""
    best = unlearning["best_step"]
    seen = [g for g in unlearning["guard"] if g["step"] <= best]
    if not seen:
        return None
    return seen[0], seen[-1]


def _guard_verdict(unlearning: dict[str, Any]) -> str:
    judge, ends = unlearning.get("guard_judge", "label-free"), guard_ends(unlearning)
    who = "the label-free guard" if judge == "label-free" else f"the guard, counting with {judge},"
    why = "no detector was given" if judge == "label-free" else "no evaluation was made"
    start = f"Forgetting was not measured: {why}"
    if (result := unlearning.get("result_sha256")) and result == unlearning.get("model_sha256"):
        return f"{start}; the result is the original, weight for weight: the model did NOT forget."
    if ends is None:
        return f"{start}; {who} never looked."
    if unlearning["best_step"] == 0:
        return f"{start}; {who} accepted no step, so the result is the original: the model did NOT forget."
    before, after = (finite(end["forget_share"]) for end in ends)
    failed = before is not None and after is not None and after > before * (1 - FORGOTTEN_FROM / 100)
    saw = "did NOT see the model forget, with" if failed else "saw"
    made = "" if before is None else f"{percent_of(before)} of the pictures before and in "
    broken = ", where it found the pictures broken" if ends[1].get("broken") else ""
    return f"{start}; {who} {saw} the forget content in {made}{percent_of(after)} at step {ends[1]['step']}{broken}."


def verdict(unlearning: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """One sentence: what was forgotten, on what evidence, at what cost; failure is called failure."""
    return _guard_verdict(unlearning) if evaluation is None else _evaluated_verdict(evaluation)


def outcome(evaluation: dict[str, Any] | None) -> str:
    """``good``, ``bad`` or ``open``, for the verdict's colour."""
    done = None if evaluation is None else forgot(evaluation)
    if evaluation is None or (done is None and not quality_losses(evaluation)):
        return "open"
    unknown = _kid_rose(evaluation) or value_of(evaluation, "share_none") is None  # noise would look the same
    if done and finite(evaluation.get("u_fid")) is None and unknown and not quality_losses(evaluation):
        return "open"
    return "good" if done and not quality_losses(evaluation) else "bad"


def _share_caution(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> str | None:
    """That the estimated π is under half of what the detector saw, or over twice that, beyond its interval."""
    seen, share = evaluation.get("share_before") or {}, finite(unlearning.get("share"))
    low, high = finite(seen.get("low")), finite(seen.get("high"))
    if unlearning.get("share_source") != "estimated" or unlearning.get("prompts") or share is None:
        return None  # asked with text, π is of what is made without being asked for it
    if low is None or high is None or low / 2 <= 100 * share <= 2 * high:
        return None
    counted = f"the detector sees the class in {percent(seen.get('value'))} ({interval_of(seen)}) of them"
    advice = f"if it is right, run again with the share given (--share {min(seen['value'] / 100, 0.99):.2g})"
    if not seen["value"]:
        advice = "look whether the forget images show that class, and whether the detector can see it"
    return f"The run took {percent_of(share)} of the original's pictures for undesired; {counted}: {advice}."


def cautions(unlearning: dict[str, Any], evaluation: dict[str, Any] | None) -> list[str]:
    """What a reader of the figures should know before believing them."""
    if evaluation is None:
        return []
    found, none, became = [], value_of(evaluation, "share_none_before"), evaluation.get("became") or {}
    if none is not None and none > BLIND_FROM:
        blind = f"The detector sees no class in {percent(none)} of the original's own pictures"
        found.append(f"{blind}: what it no longer sees may be there still, only less plain. Look at the pictures.")
    elif (gone := became.get("none", 0)) > sum(became.values()) / 2:
        lost = f"Of the original's {sum(became.values())} pictures of the class {gone} became pictures of no class"
        found.append(f"{lost}: look whether it is gone or only less plain.")
    share = _share_caution(unlearning, evaluation)
    return [*found, share] if share else found
