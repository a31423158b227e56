"""The search itself, by Optuna: which values to try next, and which trials to give up.

Nothing else imports Optuna. The study lies in a journal file that only this process writes. What a
trial draws follows from the seed, its number, the parameter's name and the trials before it: a
sweep that was killed and goes on draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from cachedet.errors import InputError
from cachedet.sweeping.parameters import Label, Parameter
from cachedet.sweeping.sweep_plan import Rules, Space

OPTUNA = optuna.__version__
CONFIG = "config"  # the parameter that says which of several configs
ERROR = "error"  # an attribute of a trial that failed
_GIVEN_UP = "given_up"  # of one whose end has been decided
_UNDRAWN = "undrawn"  # keys of the default, whose values the space does not hold
_CURVE = "curve"  # of a trial with two objectives
_NAME = "sweep"
_RANDOM_FIRST = 10  # trials before TPE has something to learn from
_RATE = 3  # of successive halving: a third goes on
_RUNGS = 9  # the first decision falls after a ninth of the epochs, or when AP tells something:
_TELLING = 0.5  # of the AP that the default ends with, on its way there
_JUDGED = (TrialState.COMPLETE, TrialState.PRUNED)
_HOPELESS = 5  # trials, the first ones, that all failed
_DEFAULT = 0  # number of the trial that is never given up


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a trial is to be trained with."""

    number: int
    config: str  # its name
    values: dict[str, Any]  # of the config, by dotted key


class SweepStudy:
    """One study of one folder."""

    version = OPTUNA

    def __init__(self, journal: Path, rules: Rules, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").handlers.clear()  # what it has to say, we say
        _repair(journal)
        self._space = space
        self._rules = rules
        try:
            self._study: Study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))),
                study_name=_NAME,
                directions=list(rules.directions),
                sampler=_ReseededSampler(rules),
                pruner=_make_pruner(rules, {}),
                load_if_exists=True,
            )
        except (KeyError, ValueError, OSError) as error:
            raise InputError(
                f"{journal} is damaged ({error}); choose another --out, or copy it from a backup"
            ) from error
        if self.trials and self.trials[_DEFAULT].state == TrialState.COMPLETE:
            self._set_pruner()

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def seconds(self) -> float:
        """What the search took so far, all calls together."""
        return float(self._study.user_attrs.get("seconds", 0.0))

    def spend(self, seconds: float) -> None:
        self._study.set_user_attr("seconds", self.seconds + seconds)

    def begin_with(self, config: str, values: Mapping[str, Any]) -> None:
        """Let the first trial of a new study be this one, the default.

        A value of it that the space does not hold is not drawn: the trial is trained with it.
        """
        if self.trials:
            return
        first: dict[str, Label] = {CONFIG: config} if len(self._space.of_config) > 1 else {}
        undrawn = []
        for parameter in self._space.of_config[config]:
            if parameter.holds(value := values.get(parameter.key)):
                first[self._space.name_of(config, parameter)] = parameter.label_of(value)
            else:
                undrawn.append(parameter.key)
        self._study.enqueue_trial(first, user_attrs={_UNDRAWN: undrawn})

    def running(self) -> list[Draw]:
        """Trials that an earlier call began and did not end."""
        begun = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in begun:
            if trial.user_attrs.get(_GIVEN_UP):
                self._study.tell(trial.number, state=TrialState.PRUNED)
        left = (trial for trial in begun if not trial.user_attrs.get(_GIVEN_UP))
        return [self._draw(Trial(self._study, trial._trial_id)) for trial in left]

    def ask(self) -> Draw:
        """The next trial."""
        return self._draw(self._study.ask())

    def _draw(self, trial: Trial) -> Draw:
        """Draw what has not been drawn yet."""
        names = list(self._space.of_config)
        config = names[0]
        if len(names) > 1:
            config = str(trial.suggest_categorical(CONFIG, names))
        values = {}
        for parameter in self._space.of_config[config]:
            if parameter.key in trial.user_attrs.get(_UNDRAWN, ()):
                continue
            name = self._space.name_of(config, parameter)
            values[parameter.key] = parameter.value_of(_suggest(trial, name, parameter))
        return Draw(number=trial.number, config=config, values=values)

    def report(self, number: int, epoch: int, ap: float, *, is_last: bool) -> bool:
        """Keep the AP of an epoch; whether the trial is to be given up, which is kept, too."""
        trial = self._trial(number)
        if len(self._rules.directions) > 1:  # of which Optuna keeps no reports
            trial.set_user_attr(_CURVE, [*dict([*self.curve_of(number), (epoch, ap)]).items()])
            return False
        if epoch not in self.trials[number].intermediate_values:
            trial.report(ap, epoch)
        if is_last or not self._can_decide() or not trial.should_prune():
            return False
        trial.set_user_attr(_GIVEN_UP, True)
        return True

    def _set_pruner(self) -> None:
        """Let decisions fall once AP tells something: the default's curve says when."""
        self._study.pruner = _make_pruner(self._rules, self.trials[_DEFAULT].intermediate_values)

    def _enter_default(self) -> None:
        """Hold the later trials against the default's AP at the epochs where they are judged."""
        for epoch in sorted(self.trials[_DEFAULT].intermediate_values):
            then = copy(self.trials[_DEFAULT])
            then.intermediate_values = {
                at: ap for at, ap in then.intermediate_values.items() if at <= epoch
            }
            self._study.pruner.prune(self._study, then)

    def _can_decide(self) -> bool:
        """Whether the default's trial has ended: until then neither it nor others are judged."""
        return self.trials[_DEFAULT].state.is_finished()

    def finish(
        self,
        number: int,
        figures: Mapping[str, Any],
        values: Sequence[float],
        *,
        curve: Sequence[tuple[int, float]] = (),
    ) -> None:
        """Keep what a trial reached, and of its curve what was not reported."""
        self._complete_curve(number, curve)
        if number == _DEFAULT and len(self._rules.directions) == 1:
            self._set_pruner()
            self._enter_default()
        trial = self._trial(number)
        for name, value in figures.items():
            trial.set_user_attr(name, value)
        if self.trials[number].user_attrs.get(_GIVEN_UP):
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, list(values))

    def _complete_curve(self, number: int, curve: Sequence[tuple[int, float]]) -> None:
        known = dict(self.curve_of(number))
        missing = {epoch: ap for epoch, ap in curve if epoch not in known}
        if len(self._rules.directions) > 1 and missing:
            self._trial(number).set_user_attr(_CURVE, [*{**known, **missing}.items()])
            return
        for epoch, ap in missing.items():
            self._trial(number).report(ap, epoch)

    def fail(self, number: int, error: str) -> None:
        """Keep why a trial failed."""
        self._trial(number).set_user_attr(ERROR, error)
        self._study.tell(number, state=TrialState.FAIL)

    def is_hopeless(self) -> bool:
        """Whether the default and the trials after it have failed, one and all."""
        ended = [trial.state for trial in self.trials if trial.state.is_finished()]
        return len(ended) >= _HOPELESS and set(ended) == {TrialState.FAIL}

    def importances(self) -> dict[str, float]:
        """The share of each parameter in what sets good trials apart; empty where unknown.

        Of few trials it is noise, and of one parameter no news.
        """
        ended = self._study.get_trials(deepcopy=False, states=_JUDGED)
        searched = {name for trial in ended for name in trial.params}
        few = len(ended) < _RANDOM_FIRST
        if len(self._rules.directions) > 1 or few or len(searched) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            with warnings.catch_warnings(action="error"):  # too few trials, or all alike
                return optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        except (RuntimeError, UserWarning, ValueError):
            return {}

    def drawn(self) -> list[FrozenTrial]:
        """Trials that were begun."""
        return [trial for trial in self.trials if trial.state != TrialState.WAITING]

    def best(self) -> list[int]:
        """Numbers of the best trials: one, or the front of two objectives; none yet: empty."""
        numbers = sorted(trial.number for trial in self._study.best_trials)
        return numbers if len(self._rules.directions) > 1 else numbers[:1]

    def winner(self) -> int | None:
        """The best trial; of a front, the one with the best figure."""
        return max(self.best(), key=self.value_of, default=None)

    def curve_of(self, number: int) -> list[tuple[int, float]]:
        """Epochs done and AP of each validation of a trial."""
        trial = self.trials[number]
        kept = trial.user_attrs.get(_CURVE) or trial.intermediate_values.items()
        return sorted((int(epoch), float(ap)) for epoch, ap in kept)

    def value_of(self, number: int) -> float:
        """The figure that a trial reached."""
        values = self.trials[number].values
        assert values is not None
        return float(values[0])

    def values_of(self, number: int) -> Draw:
        """What a trial was or is trained with, as far as it was drawn."""
        trial = self.trials[number]
        config = str(trial.params.get(CONFIG, next(iter(self._space.of_config))))
        values = {
            parameter.key: parameter.value_of(trial.params[name])
            for parameter in self._space.of_config[config]
            if (name := self._space.name_of(config, parameter)) in trial.params
        }
        return Draw(number=trial.number, config=config, values=values)

    def _trial(self, number: int) -> Trial:
        return Trial(self._study, self.trials[number]._trial_id)


class _ReseededSampler(BaseSampler):
    """Draws every parameter of every trial with a random state of its own."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        text = f"{self._rules.seed}/{trial.number}/{param_name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        sampler: BaseSampler = RandomSampler(seed=seed)
        if self._rules.sampler == "tpe":
            sampler = TPESampler(
                seed=seed,
                multivariate=False,
                n_startup_trials=_RANDOM_FIRST,
                constant_liar=self._rules.parallel > 1,
            )
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _make_pruner(rules: Rules, curve: Mapping[int, float]) -> BasePruner:
    """`curve` is the default's AP by epoch, empty where it is not known."""
    epochs = sorted(epoch for epoch in curve if not math.isnan(curve[epoch]))
    telling = (epoch for epoch in epochs if curve[epoch] >= _TELLING * curve[epochs[-1]] > 0)
    least = max(1, rules.most_epochs // _RUNGS, next(telling, 0))
    if rules.pruner == "halving":
        return SuccessiveHalvingPruner(min_resource=least, reduction_factor=_RATE)
    if rules.pruner == "hyperband":
        return HyperbandPruner(
            min_resource=least, max_resource=rules.most_epochs, reduction_factor=_RATE
        )
    return NopPruner()


def _suggest(trial: Trial, name: str, parameter: Parameter) -> Label:
    low, high, log = parameter.low, parameter.high, parameter.log
    if parameter.choices:
        return trial.suggest_categorical(name, parameter.labels)
    if parameter.whole:
        return trial.suggest_int(name, int(low), int(high), log=log)
    return trial.suggest_float(name, low, high, log=log)


def _repair(journal: Path) -> None:
    """Cut off the line that a crash left half written, and the lock of a process that is gone."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)
