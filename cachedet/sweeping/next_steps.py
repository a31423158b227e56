"""What to try after a sweep, by rules that each say what they saw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
    steps = [*_after_failures(report), *_after_verdict(report), *_after_pruning(report)]
    if winner is not None:
        steps += _at_edges(winner, space)
        steps += _still_rising(winner)
    if winner is not None and len(report.trials) <= _FEW_TRIALS:
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


def _after_pruning(report: SweepReport) -> list[str]:
    """Where the choice was made after few validations."""
    whole, given_up = report.count("complete"), report.count("pruned")
    if whole > 2 or given_up < 2 * max(whole, 1):
        return []
    return [
        f"{given_up} of {count_of(len(report.trials), 'trial')} were given up on the way: what "
        "starts slowly had no chance. --pruner none, in another --out, trains all to the end."
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
    """Ranges at whose end the winner lies."""
    steps = []
    for parameter in space.of_config[winner.config]:
        value = winner.values.get(parameter.key)
        if value is not None and (wider := _widened(parameter, value)):
            steps.append(
                f"{parameter.key} of the best trial, {short_value(value)}, lies at the end of what "
                f"was searched. Search beyond it, in another --out: --param {wider}."
            )
    return steps


def _widened(parameter: Parameter, value: Any) -> str:
    """The range moved on past the end where the value lies, as --param takes it; empty: at none.

    Zero is an end by itself, and of two choices one is always at an end.
    """
    ends = parameter.examples()
    if not all(type(end) in (int, float) for end in ends) or min(ends) <= 0:
        return ""
    if parameter.choices and len(ends) < 3:
        return ""
    ends = tuple(sorted(ends))
    place = (ends.index(value) / (len(ends) - 1)) if parameter.choices else parameter.share(value)
    if _EDGE < place < 1 - _EDGE:
        return ""
    factor = 2.0 if parameter.choices else 4.0
    new = [end / factor if place <= _EDGE else end * factor for end in ends]
    if all(isinstance(end, int) for end in ends):
        new = sorted({max(1, round(end)) for end in new})
    if len(new) < len(ends) or new == list(ends):
        return ""
    if parameter.choices:
        return replace(parameter, choices=tuple(new)).describe()
    return replace(parameter, low=new[0], high=new[-1]).describe()


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
