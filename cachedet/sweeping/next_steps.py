"""What to try after a sweep, by rules that each say what they saw."""

from __future__ import annotations

from itertools import pairwise

from cachedet.progress import count_of
from cachedet.reporting.figures import signed
from cachedet.sweeping.parameters import Parameter, short_value
from cachedet.sweeping.sweep_plan import Space
from cachedet.sweeping.sweep_results import SweepReport, TrialRecord
from cachedet.text import shorten

_EDGE = 0.05  # of a range: nearer to its end than this is at its end
_RISE = 0.01  # AP in the last third of the epochs: still rising
_FEW_TRIALS = 10  # of which the search has learned nothing yet
_MOST = 5  # that a person reads


def next_steps(report: SweepReport, space: Space) -> tuple[str, ...]:
    """At most five sentences, what matters most first."""
    winner = None if report.winner is None else report.trials[report.winner]
    steps = [*_after_failures(report), *_after_verdict(report)]
    if winner is not None:
        steps += _at_edges(winner, space)
        steps += _still_rising(winner)
    if 0 < len(report.trials) <= _FEW_TRIALS:
        steps.append(
            f"{count_of(len(report.trials), 'trial')} is little: the search learns from the first "
            f"{_FEW_TRIALS}. The same command with --trials 40 adds to what is there."
        )
    return tuple(steps[:_MOST])


def _after_failures(report: SweepReport) -> list[str]:
    failed = [trial for trial in report.trials if trial.state == "failed"]
    if 2 * len(failed) <= len(report.trials) or not failed:
        return []
    return [
        f"{len(failed)} of {count_of(len(report.trials), 'trial')} failed, the first because: "
        f"{shorten(failed[0].error.rstrip('. '), 200)}. Search nearer to the default's values."
    ]


def _after_verdict(report: SweepReport) -> list[str]:
    verdict = report.verdict
    if verdict is None or verdict.difference is None:
        return []
    gap, seeds = verdict.difference, max(verdict.winner.width, verdict.default.width)
    best = next((run for run in report.finals if run.trial is not None and not run.error), None)
    if verdict.judgement == "better" and best is not None:
        return [f"Use the winner: {best.run} is a run folder with its config.yaml."]
    reach = (gap.high - gap.low) / 2
    if verdict.judgement != "no difference told" or abs(gap.value) > max(reach, seeds):
        return []
    if seeds > reach:
        return [
            f"Seeds alone move AP by {seeds:.3f}, more than winner and default differ. Longer or "
            "calmer training (--set schedule.ema_decay=0.998) makes runs more alike."
        ]
    return [
        f"{count_of(verdict.images, 'held-out image')} tell differences of about {reach:.3f} and "
        f"more; here it is {signed(gap.value)}. Four times the validation images halve that."
    ]


def _at_edges(winner: TrialRecord, space: Space) -> list[str]:
    """Ranges whose end the winner has; what is there by itself, as in the default, tells less."""
    steps = []
    for parameter in space.of_config[winner.config]:
        value = winner.values.get(parameter.key)
        wider = _widened(parameter, value)
        if wider:
            steps.append(
                f"{parameter.key} of the best trial, {short_value(value)}, lies at the end of what "
                f"was searched. Search beyond it, in another --out: --param {wider}."
            )
    return steps


def _widened(parameter: Parameter, value: object) -> str:
    """The range moved on past the end where the value lies; empty where it lies at none."""
    ends = parameter.choices or (parameter.low, parameter.high)
    are_numbers = all(isinstance(e, int | float) and not isinstance(e, bool) for e in ends)
    if not are_numbers or not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    low, high = min(ends), max(ends)
    if low <= 0 or (parameter.choices and len(ends) < 3):
        return ""  # zero ends by itself, and of two values one is always at an end
    whole = all(isinstance(end, int) for end in ends) or parameter.whole
    if parameter.choices:
        place = 0.0 if value == low else 1.0 if value == high else 0.5
    else:
        place = parameter.share(value)
    if _EDGE < place < 1 - _EDGE:
        return ""
    factor = 0.25 if place <= _EDGE else 4.0
    if parameter.choices:
        factor = factor**0.5
    new = [end * factor for end in ends]
    if whole:
        new = [max(1, round(end)) for end in new]
        if any(one >= other for one, other in pairwise(sorted(new))):
            return ""
    if parameter.choices:
        return f"{parameter.key}={','.join(f'{end:.3g}' for end in new)}"
    return f"{parameter.key}={'log:' if parameter.log else ''}{new[0]:.3g}..{new[1]:.3g}"


def _still_rising(winner: TrialRecord) -> list[str]:
    curve = winner.curve
    if len(curve) < 3:
        return []
    epochs, last = curve[-1]
    before = max((ap for epoch, ap in curve if epoch <= epochs * 2 / 3), default=last)
    if last - before < _RISE or last < winner.best_ap:
        return []
    return [
        f"The best trial still gained {signed(last - before)} AP in the last third of its "
        f"{epochs} epochs: try more, --set schedule.epochs={2 * epochs}."
    ]
