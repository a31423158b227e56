"""What the seeds allow to say, in sentences: the same for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachedet.comparison.results import CellResult
from cachedet.comparison.summary import (
    FROZEN,
    LEARNED,
    Comparison,
    Group,
    Spread,
    Summary,
    compare_groups,
)
from cachedet.live.modes import Mode

MODE_NAMES: dict[Mode, str] = {
    "cached": "cached",
    "live": "live frozen",
    "tuned": "fine-tuned",
    "scratch": "from scratch",
}
# How often two modes whose runs differ by seed alone are judged "beyond", in words, by number of
# seeds: 21.5 %, 4.9 %, 1.1 % for normal noise; tests/comparison/test_summary.py draws it again.
_BY_CHANCE = {2: "one in five", 3: "one in twenty", 4: "one in a hundred"}
_FEWEST_SAFE = 5


def describe_best(summary: Summary) -> tuple[str, ...]:
    """Which way and heads have the best mean AP, and how the best of the other kind compares."""
    best = summary.best
    if best is None:
        return ("No run was scored, so there is nothing to compare.",)
    said = [f"The best mean AP is {_ap(best.ap)}: {_name(best)}{_over_seeds(best)}."]
    other = summary.best_of(LEARNED if best.mode in FROZEN else FROZEN)
    if other is not None:
        kind = "a backbone that learns" if other.mode in LEARNED else "a frozen backbone"
        said.append(
            f"The best with {kind} is {_ap(other.ap)}: {_name(other)}{_over_seeds(other)}. "
            + _gap(compare_groups(best, other))
        )
    return tuple(said)


def describe_freezing(summary: Summary) -> tuple[str, ...]:
    """Cached against fine-tuned, and how sure that is; of several heads, with which it wins."""
    found = summary.compare("cached", "tuned")
    if not found:
        return (
            "Whether freezing costs or gains AP is not answered here: that takes the modes cached "
            "and tuned with the same heads.",
        )
    said = judge_difference(found[0]) if len(found) == 1 else _count_wins(found)
    return (said, *_caution(found))


def describe_agreement(summary: Summary) -> tuple[str, ...]:
    """Cached against live: the same computation on the same images, where there is no jitter."""
    found = summary.compare("cached", "live")
    if not found:
        return ("Not looked at: that takes the modes cached and live with the same heads.",)
    return tuple(_judge_agreement(own) for own in found)


def judge_difference(own: Comparison) -> str:
    """One heads, cached against fine-tuned or any other two."""
    heads, first, second = own.first.heads, _mode(own.first), _mode(own.second)
    if own.judgement == "nothing":
        return f"{heads}: {first} and {second} have no scored seed in common."
    if own.judgement == "one seed":
        return f"{heads}: {_of_one_seed(own)} One seed: another may turn it round, so no verdict."
    gap, spread = _pair(own)
    told = (
        f"{heads}: {first} {_ap(own.first_ap)} is {_apart(own.difference.mean, gap)} {second} "
        f"{_ap(own.second_ap)} in the mean of {len(own.seeds)} seeds, seed by seed from "
        f"{_apart(own.difference.least).removesuffix(' with')} to "
        f"{_apart(own.difference.most).removesuffix(' with')}."
    )
    if own.judgement == "within":
        return f"{told} Seeds alone move AP by {spread}: no difference can be told."
    return f"{told} That is more than the {spread} that seeds alone move AP."


def describe_failed(failed: Sequence[CellResult]) -> str:
    """Empty where all went well."""
    if not failed:
        return ""
    names = ", ".join(own.key.folder for own in failed)
    return f"Failed, and left out of every figure: {names}."


def _judge_agreement(own: Comparison) -> str:
    heads = own.first.heads
    if own.judgement == "nothing":
        return f"{heads}: cached and live have no scored seed in common."
    if own.judgement == "one seed":
        return f"{heads}: {_of_one_seed(own)} One seed does not say how far apart two runs may lie."
    gap, spread = _pair(own)
    told = f"Cached {_ap(own.first_ap)} and live {_ap(own.second_ap)} are {gap} apart"
    if own.judgement == "within":
        return f"{heads}: they agree. {told}; seeds alone move AP by {spread}."
    return (
        f"{heads}: they differ. {told}, more than the {spread} that seeds alone move AP. Jitter, "
        "which live draws anew every epoch, or equal time in the place of equal epochs may do "
        "that; without both of them it is the codec, or few seeds."
    )


def _count_wins(found: Sequence[Comparison]) -> str:
    above = [o.first.heads for o in found if o.judgement == "beyond" and o.difference.mean > 0]
    below = [o.first.heads for o in found if o.judgement == "beyond" and o.difference.mean < 0]
    if all(own.judgement in ("nothing", "one seed") for own in found):
        return (
            f"With {len(found)} heads, cached and fine-tuned share one seed at most: no verdict, "
            "as another seed may turn any difference round."
        )
    left = len(found) - len(above) - len(below)
    told = [
        f"{word} with {', '.join(names)}"
        for word, names in (("better", above), ("worse", below))
        if names
    ]
    if not told:
        return f"With none of the {len(found)} heads can these seeds tell cached from fine-tuned."
    rest = f"; with the other {left} these seeds cannot tell" if left else ""
    return f"Of {len(found)} heads, cached against fine-tuned is {' and '.join(told)}{rest}."


def _caution(found: Sequence[Comparison]) -> tuple[str, ...]:
    """How often the rule is wrong, at the smallest number of seeds that was judged beyond."""
    seeds = [len(own.seeds) for own in found if own.judgement == "beyond"]
    if not seeds or min(seeds) >= _FEWEST_SAFE:
        return ()
    return (
        f"With {min(seeds)} seeds a mode, {_BY_CHANCE[min(seeds)]} comparisons of equals would "
        "look like that.",
    )


def _gap(own: Comparison) -> str:
    gap, spread = _pair(own)
    if own.judgement == "nothing":
        return "They have no seed in common."
    if own.judgement == "one seed":
        return f"They are {gap} apart, from one seed."
    if own.judgement == "within":
        return f"They are {gap} apart, within the {spread} that seeds alone move AP."
    return f"They are {gap} apart, more than the {spread} that seeds alone move AP."


def _pair(own: Comparison) -> tuple[str, str]:
    """Difference and spread, with as many digits as it takes to see which is larger."""
    gap, spread = abs(own.difference.mean), own.spread
    digits = next((d for d in (3, 4, 5) if f"{gap:.{d}f}" != f"{spread:.{d}f}"), 3)
    return f"{gap:.{digits}f}", f"{spread:.{digits}f}"


def _of_one_seed(own: Comparison) -> str:
    first, second = (_of_seed(group, own.seeds[0]) for group in (own.first, own.second))
    return f"{first} is {_apart(own.difference.mean)} {second}."


def _of_seed(group: Group, seed: int) -> str:
    cell = next(own for own in group.cells if own.key.seed == seed)
    interval = _interval(cell)
    return f"{_mode(group)} {cell.ap:.3f}" + (f" ({interval})" if interval else "")


def _over_seeds(group: Group) -> str:
    ap = group.ap
    if ap.count > 1:
        return f" ({ap.least:.3f} to {ap.most:.3f} over {ap.count} seeds)"
    interval = _interval(next(own for own in group.cells if not math.isnan(own.ap)))
    return f" (one seed, {interval})" if interval else " (one seed)"


def _interval(cell: CellResult) -> str:
    if math.isnan(cell.low):
        return ""
    return f"95 % interval over the images {cell.low:.3f} to {cell.high:.3f}"


def _apart(gap: float, shown: str = "") -> str:
    """Such as 0.012 above; `shown`: the figure where more digits are wanted."""
    shown = shown or f"{abs(gap):.3f}"
    if not float(shown):
        return "level with"
    return f"{shown} {'above' if gap >= 0 else 'below'}"


def _ap(spread: Spread) -> str:
    return f"{spread.mean:.3f}"


def _mode(group: Group) -> str:
    return MODE_NAMES[group.mode]


def _name(group: Group) -> str:
    return f"{_mode(group)} with {group.heads}"
