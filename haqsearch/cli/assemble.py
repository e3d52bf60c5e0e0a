"""The only place where names become objects: a recipe in, everything a search needs out."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haqsearch.cli.float_network import KeptNetwork, load_weights
from haqsearch.cli.names import Names
from haqsearch.cli.policies import load_policy
from haqsearch.config import Recipe
from haqsearch.errors import DataError, ModelError, RecipeError
from haqsearch.spec import OBJECTIVES, Evaluation, Limit, Policy, SearchSpace, Sensitivity

if TYPE_CHECKING:
    from torch import nn

    from haqsearch.agents import Agent, Problem
    from haqsearch.data import DataSet, Splits
    from haqsearch.evaluate import Evaluator, Prepared
    from haqsearch.evaluate.sensitivity import Sensitivities, Which
    from hwmodels import HardwareModel, Meter


@dataclass(frozen=True)
class Assembly:
    """A recipe with where its names are looked up. Everything is built on first use, and once.

    base   folder of the recipe file;  roots  data roots;  out  run folder, None where nothing is kept
    """

    recipe: Recipe
    base: Path
    roots: tuple[Path, ...]
    out: Path | None = None

    @cached_property
    def names(self) -> Names:
        return Names(self.base, self.roots)

    # -- model and data -------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        from haqsearch.data import split

        sizes = self.recipe.split
        return split(self.data, sizes.calibrate, sizes.search, sizes.report, self.recipe.seed)

    @cached_property
    def data(self) -> DataSet:
        from haqsearch.data import DATASETS, DataSet

        load = self.names.function("data", self.recipe.data, DATASETS)
        with self.names.users_code(f"data = {self.recipe.data!r}"):
            loaded = load(list(self.roots)) if inspect.signature(load).parameters else load()
            if isinstance(loaded, tuple) and len(loaded) in {2, 4}:
                loaded = DataSet(self.recipe.data, *[_tensor(part) for part in loaded])
        if not isinstance(loaded, DataSet):
            raise DataError(
                f"data {self.recipe.data!r} gives {type(loaded).__name__}; return a haqsearch.data.DataSet, (inputs, labels), or "
                "(inputs, labels, test inputs, test labels)"
            )
        return loaded

    def build_model(self) -> nn.Module:
        """A fresh network, as the recipe's function gives it."""
        from torch import nn

        from haqsearch.models import MODELS

        build = self.names.function("model", self.recipe.model, MODELS)
        with self.names.users_code(f"model = {self.recipe.model!r}"):
            model = build()
        if not isinstance(model, nn.Module):
            raise ModelError(f"model = {self.recipe.model!r} gives {type(model).__name__}; return a torch.nn.Module")
        return model

    @property
    def model_name(self) -> str:
        """A zoo name as it is; of ``my_package.my_net:build`` what tells it from others: ``my_net``."""
        return self.recipe.model.partition(":")[0].rpartition(".")[2]

    @cached_property
    def network(self) -> nn.Module:
        """The float network with its weights: the recipe's, or trained here and kept in the run folder."""
        if self.recipe.weights:
            model = self.build_model()
            load_weights(model, self.names.file(self.recipe.weights))
            return model.eval()
        return self._kept.network(self.build_model, self.splits)

    @property
    def _kept(self) -> KeptNetwork:
        return KeptNetwork(self.recipe, self.out)

    def has_kept_network(self) -> bool:
        """Whether the run folder holds the very network that this recipe trains."""
        return self._kept.exists()

    @cached_property
    def prepared(self) -> Prepared:
        from haqsearch.evaluate import prepare_network

        return prepare_network(self.network, self.splits, self.model_name, self.recipe.ptq.pipeline, self.out)

    @cached_property
    def weights_digest(self) -> str:
        return self.prepared.graph.digest

    def round_weights(self, say: Callable[[str], None]) -> None:
        """Integer weights of every layer, and ranges of every activation, in every format of the search space: made once, before
        searches ask for them.
        """
        from haqsearch.evaluate import WeightBank

        prepared, variables = self.prepared, self.space.variables
        bank = prepared.weight
        if isinstance(bank, WeightBank):
            weights = [v for v in variables if v.role == "weight"]
            bank.prepare(((v.layers[0], format) for v in weights for format in v.candidates), say)
        formats = {layer: v.candidates for v in variables if v.role == "activation" for layer in v.layers}
        for value, layer in prepared.plan.owner.items():
            for format in formats.get(layer, ()):
                prepared.ranges.params(value, format)

    @property
    def preparation_digest(self) -> str:
        """Digest of the keys that decide data, network and calibration: recipes alike in them share these."""
        content = self.recipe.model_dump(mode="json", include={"model", "weights", "data", "seed", "split", "train"})
        content["ptq"] = [step for step in self.recipe.ptq.pipeline if step != "in_order"]  # for chosen policies, later
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def with_recipe(self, recipe: Recipe) -> Assembly:
        """An assembly of ``recipe``, which prepares the same network in the same way: it is not prepared again."""
        other = Assembly(recipe, self.base, self.roots, self.out)
        if other.preparation_digest != self.preparation_digest:
            raise RecipeError("recipes of other data, networks or preparations have nothing to share")
        vars(other).update(data=self.data, splits=self.splits, network=self.network, prepared=self.prepared)
        return other

    # -- device, budget, search space -----------------------------------------------------------------------------

    @cached_property
    def device(self) -> HardwareModel:
        return self.load_device(self.recipe.hardware)

    def load_device(self, name: str) -> HardwareModel:
        """The device called ``name``; a relative TOML path is looked for from here and beside the recipe."""
        from hwmodels import load

        beside = self.base / name
        with self.names.users_code(f"hardware = {name!r}"):
            return load(str(beside) if name.endswith(".toml") and not Path(name).exists() and beside.exists() else name)

    @cached_property
    def meter(self) -> Meter:
        from hwmodels import Meter

        return Meter(self.device, self.prepared.spec)

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        int8 = self.meter.int8()
        return tuple(budget.resolve(int8) for budget in self.recipe.budgets)

    @cached_property
    def space(self) -> SearchSpace:
        recipe = self.recipe
        space = SearchSpace.build(
            self.prepared.spec,
            recipe.weights_allowed,
            recipe.activation_bits,
            recipe.fixed_choices,
            self.device.supports,
            self.device.name,
        )
        if not recipe.prune_dominated:
            return space
        from hwmodels.savings import without_dominated

        counted = (*recipe.tradeoff, *(limit.metric for limit in self.limits))
        return without_dominated(space, self.meter, list(dict.fromkeys(counted)))

    @cached_property
    def problem(self) -> Problem:
        from haqsearch.agents import Problem

        recipe = self.recipe
        for metric in recipe.tradeoff:
            if metric not in self.meter.metrics:
                known = ", ".join(self.meter.metrics)
                raise RecipeError(f"tradeoff: {self.device.name} has no {metric}; it knows {known}")
        objective = OBJECTIVES[recipe.objective]
        return Problem(
            self.space, self.meter, self.limits, objective, self.warm_starts, recipe.tradeoff, lambda: self.sensitivity
        )

    @cached_property
    def sensitivities(self) -> Sensitivities:
        """Sensitivity tables of the recipe's search space, kept in the run folder."""
        from haqsearch.evaluate.sensitivity import Sensitivities

        return Sensitivities(self.evaluator, self.space, self.out, self.recipe.split.sensitivity)

    @property
    def sensitivity_measure(self) -> Which:
        """What agents add up: as the recipe's ``sensitivity`` says."""
        return self.sensitivity_by(self.recipe.sensitivity)

    def sensitivity_by(self, text: str, key: str = "sensitivity") -> Which:
        """What ``text``, given as ``key``, stands for: an objective or a measure; RecipeError with the mend if for nothing.

        ``objective`` is the recipe's own, but the logits' error in place of accuracy, which saturates.
        """
        from haqsearch.evaluate.measures import MEASURES

        if text == "objective":
            return "logit_mse" if self.recipe.objective == "accuracy" else self.recipe.objective
        if text in OBJECTIVES or text in MEASURES:
            return text
        known = {"objective": "", **dict.fromkeys(OBJECTIVES, ""), **MEASURES}
        found = self.names.function(key, text, known)
        from haqsearch.evaluate.measures.base import Measure

        if not (inspect.isclass(found) and issubclass(found, Measure)):
            raise RecipeError(f"{key} = {text!r} is no subclass of haqsearch.evaluate.measures.base.Measure")
        return found

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """The table of ``sensitivity_measure``, measured on first use."""
        with self.names.users_code(f"sensitivity = {self.recipe.sensitivity!r}"):
            return self.sensitivities.table(self.sensitivity_measure)

    @cached_property
    def warm_starts(self) -> tuple[Policy, ...]:
        """The recipe's ``warm_start``: policy files and those of other tools, by their paths from here or from the recipe."""
        return tuple(load_policy(text, self) for text in self.recipe.warm_start)

    @cached_property
    def agent(self) -> Agent:
        return self.agent_for(self.problem, self.recipe.max_evaluations)

    def agent_for(self, problem: Problem, evaluations: int) -> Agent:
        """The recipe's agent, new, for a search of ``evaluations`` of a problem."""
        from haqsearch.agents import build_agent

        with self.names.users_code(f"agent = {self.recipe.agent!r}"):
            return build_agent(self.recipe.agent, problem, self.recipe.seed, evaluations)

    def check(self) -> None:
        """Raise what can be known to be wrong before anything is written: names, data, device, weights and budget.

        Where the recipe trains its network, ``check_prepared`` is left for after the training.
        """
        from haqsearch.agents import AGENTS, Agent, check_tradeoff

        kind = self.names.function("agent", self.recipe.agent, AGENTS)
        if inspect.isclass(kind) and issubclass(kind, Agent):  # what is none is refused when it is built
            check_tradeoff(self.recipe.agent, kind, self.recipe.tradeoff)
        self.sensitivity_by(self.recipe.sensitivity)
        _ = self.device, self.splits
        if self.recipe.weights:
            self.check_prepared()
        else:
            self.build_model()

    def check_prepared(self) -> None:
        """Raise if the network cannot be quantized, or no policy on this device can meet the budget."""
        self.meter.check_reachable(self.space, self.limits)
        _ = self.agent

    @cached_property
    def evaluator(self) -> Evaluator:
        from haqsearch.evaluate import Evaluator

        return Evaluator(self.prepared, self.splits, self.meter, self.limits)

    # -- what travels to workers ----------------------------------------------------------------------------------

    def to_config(self, threads: int) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "base": str(self.base.resolve()),
            "roots": [str(root.resolve()) for root in self.roots],
            "out": str(self.out.resolve()) if self.out else None,
            "folder": str(Path.cwd()),
            "threads": threads,
        }


def worker_evaluator(config: Mapping[str, Any]) -> Callable[[Policy], Evaluation]:
    """Factory for Ray actors: model, data and calibration are built once in the actor."""
    import torch

    torch.set_num_threads(int(config["threads"]))
    os.chdir(config["folder"])
    out = Path(config["out"]) if config["out"] else None
    assembly = Assembly(
        Recipe.model_validate(config["recipe"]),
        Path(config["base"]),
        tuple(Path(root) for root in config["roots"]),
        out,
    )
    evaluator = assembly.evaluator
    evaluator.reference("search")
    return evaluator.evaluate_in_order if config.get("in_order") else evaluator.evaluate


def _tensor(part: Any) -> Any:
    import torch

    tensor = torch.as_tensor(part)
    return tensor.float() if tensor.is_floating_point() else tensor.long()
