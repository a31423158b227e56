"""What the seeds allow to say, in sentences: the same for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachedet.comparison.results import CellResult
from cachedet.comparison.summary import Comparison, Group, Spread, Summary, compare_groups
from cachedet.live.mode_names import PARTIAL, is_frozen, kind_of, mode_label

# How often two modes whose runs differ by seed alone are judged "beyond", in words, by number of
# seeds: 21.5 %, 4.9 %, 1.1 % for normal noise; tests/comparison/test_summary.py draws it again.
_BY_CHANCE = {2: "one in five", 3: "one in twenty", 4: "one in a hundred"}
_FEWEST_SAFE = 5


def describe_best(summary: Summary) -> tuple[str, ...]:
    """Name the way and heads of the best mean AP, and how the best of the other kind compares."""
    best = summary.best_of()
    if best is None:
        return ("No run was scored, so there is nothing to compare.",)
    lines = [f"The best mean AP is {_ap(best.ap)}: {_describe_group(best)}."]
    others = [mode for mode in summary.modes if is_frozen(mode) is not is_frozen(best.mode)]
    other = summary.best_of(others)
    if other is not None:
        kind = "a backbone that learns" if not is_frozen(other.mode) else "a frozen backbone"
        lines.append(
            f"The best with {kind} is {_ap(other.ap)}: {_describe_group(other)}. "
            + _describe_gap(compare_groups(best, other))
        )
    return tuple(lines)


def describe_freezing(summary: Summary) -> tuple[str, ...]:
    """Hold cached against fine-tuned, and say how sure that is; of several heads, which win."""
    comparisons = summary.compare("cached", "tuned")
    if not comparisons:
        return (
            "Whether freezing costs or gains AP is not answered here: that takes the modes cached "
            "and tuned with the same heads.",
        )
    one = len(comparisons) == 1
    line = judge_difference(comparisons[0]) if one else _count_wins(comparisons)
    return (line, *_caution(comparisons))


def describe_partial(summary: Summary) -> tuple[str, ...]:
    """Hold training of the last stages against fine-tuning and against all frozen."""
    partial = [mode for mode in summary.modes if kind_of(mode) == PARTIAL]
    comparisons = [
        comparison
        for mode in partial
        for other in ("tuned", "cached")
        for comparison in summary.compare(mode, other)
    ]
    return tuple(judge_difference(comparison) for comparison in comparisons)


def describe_agreement(summary: Summary) -> tuple[str, ...]:
    """Hold cached against live: one computation on the same images, where there is no jitter."""
    comparisons = summary.compare("cached", "live")
    if not comparisons:
        return ("Not looked at: that takes the modes cached and live with the same heads.",)
    return tuple(_judge_agreement(comparison) for comparison in comparisons)


def judge_difference(comparison: Comparison) -> str:
    """Judge one heads, cached against fine-tuned or any other two."""
    gap, seeds = comparison.difference, len(comparison.seeds)
    first, second = (mode_label(group.mode) for group in (comparison.first, comparison.second))
    heads = comparison.first.heads
    if comparison.judgement == "nothing":
        return f"{heads}: {first} and {second} have no scored seed in common."
    if comparison.judgement == "one seed":
        one_seed = _describe_one_seed(comparison)
        return f"{heads}: {one_seed} One seed: another may turn it round, so no verdict."
    shown, spread = _shown(comparison)
    line = (
        f"{heads}: {first} {_ap(comparison.first_ap)} is {_apart(gap.mean, shown)} {second} "
        f"{_ap(comparison.second_ap)} in the mean of {seeds} seeds, seed by seed from "
        f"{_apart(gap.least).removesuffix(' with')} to {_apart(gap.most).removesuffix(' with')}."
    )
    if comparison.judgement == "within":
        return f"{line} Seeds alone move AP by {spread}: no difference can be told."
    return f"{line} That is more than the {spread} that seeds alone move AP."


def describe_failed(failed: Sequence[CellResult]) -> str:
    """Name the failed cells; empty where all went well."""
    names = ", ".join(cell.key.folder for cell in failed)
    return f"Failed, and left out of every figure: {names}." if failed else ""


def _judge_agreement(comparison: Comparison) -> str:
    heads = comparison.first.heads
    if comparison.judgement == "nothing":
        return f"{heads}: cached and live have no scored seed in common."
    if comparison.judgement == "one seed":
        one_seed = _describe_one_seed(comparison)
        return f"{heads}: {one_seed} One seed does not say how far apart two runs may lie."
    gap, spread = _shown(comparison)
    first, second = _ap(comparison.first_ap), _ap(comparison.second_ap)
    line = f"Cached {first} and live {second} are {gap} apart"
    if comparison.judgement == "within":
        return f"{heads}: they agree. {line}; seeds alone move AP by {spread}."
    return (
        f"{heads}: they differ. {line}, more than the {spread} that seeds alone move AP. Jitter, "
        "which live draws anew every epoch, or equal time in the place of equal epochs may do "
        "that; without both of them it is the codec, or few seeds."
    )


def _count_wins(comparisons: Sequence[Comparison]) -> str:
    if all(comparison.judgement in ("nothing", "one seed") for comparison in comparisons):
        return (
            f"With {len(comparisons)} heads, cached and fine-tuned share one seed at most: no "
            "verdict, as another seed may turn any difference round."
        )
    winners: dict[str, list[str]] = {"better": [], "worse": []}
    for each in comparisons:
        if each.judgement == "beyond":
            winners["better" if each.difference.mean > 0 else "worse"].append(each.first.heads)
    wins = [f"{word} with {', '.join(names)}" for word, names in winners.items() if names]
    number, left = len(comparisons), len(comparisons) - sum(map(len, winners.values()))
    if not wins:
        return f"With none of the {number} heads can these seeds tell cached from fine-tuned."
    rest = f"; with the other {left} these seeds cannot tell" if left else ""
    return f"Of {number} heads, cached against fine-tuned is {' and '.join(wins)}{rest}."


def _caution(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Say how often the rule is wrong, at the smallest number of seeds that was judged beyond."""
    seeds = [len(c.seeds) for c in comparisons if c.judgement == "beyond"]
    if not seeds or min(seeds) >= _FEWEST_SAFE:
        return ()
    return (
        f"With {min(seeds)} seeds a mode, {_BY_CHANCE[min(seeds)]} comparisons of equals would "
        "look like that.",
    )


def _describe_gap(comparison: Comparison) -> str:
    if comparison.judgement == "nothing":
        return "They have no seed in common."
    gap, spread = _shown(comparison)
    end = {"within": "within the", "beyond": "more than the"}.get(comparison.judgement)
    why = f"{end} {spread} that seeds alone move AP" if end else "from one seed"
    return f"They are {gap} apart, {why}."


def _shown(comparison: Comparison) -> tuple[str, str]:
    """Difference and spread, with as many digits as it takes to see which is larger."""
    gap, spread = abs(comparison.difference.mean), comparison.spread
    digits = next((d for d in (3, 4, 5) if f"{gap:.{d}f}" != f"{spread:.{d}f}"), 3)
    return f"{gap:.{digits}f}", f"{spread:.{digits}f}"


def _describe_one_seed(comparison: Comparison) -> str:
    described = []
    for group in (comparison.first, comparison.second):
        cell = group.of_seed(comparison.seeds[0])
        interval = _describe_interval(cell.low, cell.high)
        note = f" ({interval})" if interval else ""
        described.append(f"{mode_label(group.mode)} {cell.ap:.3f}{note}")
    return f"{described[0]} is {_apart(comparison.difference.mean)} {described[1]}."


def _describe_group(group: Group) -> str:
    """Mode, heads and how far apart the seeds lie."""
    low, high = group.ends
    if group.ap.count > 1:
        seeds = f"{low:.3f} to {high:.3f} over {group.ap.count} seeds"
    else:
        seeds = ", ".join(filter(None, ("one seed", _describe_interval(low, high))))
    return f"{mode_label(group.mode)} with {group.heads} ({seeds})"


def _describe_interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"95 % interval over the images {low:.3f} to {high:.3f}"


def _apart(gap: float, shown: str = "") -> str:
    """Write a gap, such as 0.012 above; `shown` is the figure where more digits are wanted."""
    shown = shown or f"{abs(gap):.3f}"
    if not float(shown):
        return "level with"
    return f"{shown} {'above' if gap >= 0 else 'below'}"


def _ap(spread: Spread) -> str:
    return f"{spread.mean:.3f}"
