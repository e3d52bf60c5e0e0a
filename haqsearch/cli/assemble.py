"""The only place where names become objects: a recipe in, everything a search needs out."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haqsearch.config import Recipe
from haqsearch.errors import DataError, HaqError, ModelError, RecipeError
from haqsearch.spec import OBJECTIVES, Evaluation, Limit, Policy, SearchSpace, Sensitivity

if TYPE_CHECKING:
    from torch import nn

    from haqsearch.agents import Agent, Problem
    from haqsearch.data import DataSet, Splits
    from haqsearch.evaluate import Evaluator, Prepared
    from haqsearch.evaluate.sensitivity import Sensitivities
    from hwmodels import HardwareModel, Meter

FLOAT_FILE = "float.safetensors"
RECIPE_FILE = "recipe.toml"


def data_roots(option: Path | None) -> list[Path]:
    """Folders searched for data and weights: --data-root, HAQSEARCH_DATA (several, as PATH), ./data, ../shared/data."""
    named = [str(option)] if option else []
    named += [part for part in os.environ.get("HAQSEARCH_DATA", "").split(os.pathsep) if part]
    for folder in named:
        if not Path(folder).is_dir():
            raise DataError(f"data root {folder}: no such folder")
    return [Path(folder) for folder in [*named, "data", "../shared/data"] if Path(folder).is_dir()]


@dataclass(frozen=True)
class Assembly:
    """A recipe with where its names are looked up. Everything is built on first use, and once.

    base   folder of the recipe file;  roots  data roots;  out  run folder, None where nothing is kept
    """

    recipe: Recipe
    base: Path
    roots: tuple[Path, ...]
    out: Path | None = None

    # -- model and data -------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        from haqsearch.data import split

        sizes = self.recipe.split
        return split(self.data, sizes.calibrate, sizes.search, sizes.report, self.recipe.seed)

    @cached_property
    def data(self) -> DataSet:
        from haqsearch.data import DATASETS, DataSet

        load = self._named("data", self.recipe.data, DATASETS)
        with self._users_code(f"data = {self.recipe.data!r}"):
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

        build = self._named("model", self.recipe.model, MODELS)
        with self._users_code(f"model = {self.recipe.model!r}"):
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
            load_weights(model, self.find(self.recipe.weights))
            return model.eval()
        return self._trained()

    @property
    def _kept(self) -> Path | None:
        return self.out / FLOAT_FILE if self.out else None

    @property
    def _training_digest(self) -> str:
        content = self.recipe.model_dump(mode="json", include={"model", "data", "seed", "split", "train"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def has_kept_network(self) -> bool:
        """Whether the run folder holds the very network that this recipe trains."""
        return self._kept_digest() == self._training_digest

    def _kept_digest(self) -> str:
        """Digest of the recipe that trained the network in the run folder; empty if there is none to be read."""
        from safetensors import SafetensorError, safe_open

        if self._kept is None or not self._kept.is_file():
            return ""
        try:
            with safe_open(str(self._kept), framework="pt") as file:
                return str((file.metadata() or {}).get("recipe_digest", ""))
        except SafetensorError:
            return ""

    def _trained(self) -> nn.Module:
        from safetensors.torch import save_file

        from haqsearch.files import replacing
        from haqsearch.models.train import train_float

        recipe, kept = self.recipe, self._kept
        if kept and self.has_kept_network():
            model = self.build_model()
            load_weights(model, kept)
            return model.eval()
        settings = recipe.train
        model = train_float(
            self.build_model, self.splits, settings.epochs, settings.batch, settings.learning_rate, recipe.seed
        )
        # A run that has begun in the folder keeps the network it began with, whoever asks for another one.
        if kept and not (self._kept_digest() and (kept.parent / RECIPE_FILE).is_file()):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as temporary:
                save_file(
                    {key: value.contiguous() for key, value in model.state_dict().items()},
                    str(temporary),
                    {"recipe_digest": self._training_digest},
                )
        return model

    @cached_property
    def prepared(self) -> Prepared:
        from haqsearch.evaluate import prepare_network

        return prepare_network(self.network, self.splits, self.model_name, self.recipe.ptq.pipeline, self.out)

    @cached_property
    def weights_digest(self) -> str:
        return self.prepared.graph.digest

    def round_weights(self, say: Callable[[str], None]) -> None:
        """Integer weights of every layer in every format of the search space: made once, before searches ask for them."""
        from haqsearch.evaluate import WeightBank

        bank = self.prepared.weight
        if isinstance(bank, WeightBank):
            variables = [v for v in self.space.variables if v.role == "weight"]
            bank.prepare(((v.layers[0], format) for v in variables for format in v.candidates), say)

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
        with self._users_code(f"hardware = {name!r}"):
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
        """Sensitivity tables of the recipe's search space on its search split, kept in the run folder."""
        from haqsearch.evaluate.sensitivity import Sensitivities

        return Sensitivities(self.evaluator, self.space, self.out)

    @property
    def sensitivity_measure(self) -> str:
        """What agents add up: the recipe's objective, but the logits' error in place of accuracy, which saturates."""
        return "logit_mse" if self.recipe.objective == "accuracy" else self.recipe.objective

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """The table of ``sensitivity_measure``, measured on first use."""
        return self.sensitivities.table(self.sensitivity_measure)

    @cached_property
    def warm_starts(self) -> tuple[Policy, ...]:
        """The recipe's ``warm_start``: policy files and those of other tools, by their paths from here or from the recipe."""
        return tuple(load_policy(text, self) for text in self.recipe.warm_start)

    def of_warm_starts(self) -> Iterator[str]:
        """What there is to say of each: what its file leaves open, and what the space or the budget makes of it."""
        from haqsearch.agents.repair import repair

        problem = self.problem
        for text, given in zip(self.recipe.warm_start, self.warm_starts, strict=True):
            said: list[str] = []
            load_policy(text, self, said.append)
            yield from said
            wish = problem.space.nearest(given)
            if moved := sum(wish[layer] != given[layer] for layer in given):
                yield f"{text}: {moved} of {len(given)} layers moved to the nearest formats of the search space"
            if excess := problem.violation(wish):
                policy = repair(problem, wish, problem.known_feasible)
                cut = sum(wish[layer] != policy[layer] for layer in wish)
                yield f"{text}: exceeds the budget by {excess:.1%}; bits of {cut} layers are cut until it fits"

    @cached_property
    def agent(self) -> Agent:
        from haqsearch.agents import build_agent

        recipe = self.recipe
        with self._users_code(f"agent = {recipe.agent!r}"):
            return build_agent(recipe.agent, self.problem, recipe.seed, recipe.max_evaluations)

    def check(self) -> None:
        """Raise what can be known to be wrong before anything is written: names, data, device, weights and budget.

        Where the recipe trains its network, ``check_prepared`` is left for after the training.
        """
        from haqsearch.agents import AGENTS, Agent, check_tradeoff

        kind = self._named("agent", self.recipe.agent, AGENTS)
        if inspect.isclass(kind) and issubclass(kind, Agent):  # what is none is refused when it is built
            check_tradeoff(self.recipe.agent, kind, self.recipe.tradeoff)
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

    # -- names ----------------------------------------------------------------------------------------------------

    def _named(self, key: str, text: str, known: Mapping[str, str]) -> Any:
        """The function that a zoo name or ``my_module:function`` stands for. RecipeError with the mend otherwise."""
        if text not in known and ":" not in text:
            near = get_close_matches(text, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "one of your own is written my_module:function"
            raise RecipeError(f"{key} = {text!r}: there are {', '.join(known)}; {hint}")
        module, _, attribute = known.get(text, text).partition(":")
        with self._users_code(f"{key} = {text!r}"):
            try:
                found = getattr(import_module(module), attribute)
            except (ImportError, AttributeError, ValueError) as error:
                raise RecipeError(f"{key} = {text!r} cannot be imported: {error}") from error
        if not callable(found):
            raise RecipeError(f"{key} = {text!r} is a {type(found).__name__}, not a function")
        return found

    @contextmanager
    def _users_code(self, what: str) -> Iterator[None]:
        """Where code of the user's may run: its modules are found, and what it raises becomes one line with the place."""
        with _import_paths(self.base):
            try:
                yield
            except HaqError:
                raise
            except Exception as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{frame.filename}:{frame.lineno}"
                raise RecipeError(f"{what} raised {type(error).__name__}: {error} ({place}); mend it there") from error

    def find(self, name: str) -> Path:
        """A file by its path from here, from the recipe's folder, or under a data root; DataError if it is in none."""
        places = [Path(), self.base, *self.roots]
        for place in places:
            if (place / name).is_file():
                return place / name
        raise DataError(
            f"{name}: no such file here, beside the recipe or in a data root ({', '.join(map(str, self.roots)) or 'none'})"
        )

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
    return evaluator.evaluate


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file, or a torch checkpoint read without unpickling objects. DataError if it does not fit."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state) if isinstance(state, dict) else state
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise DataError(f"{path}: not readable, or truncated ({error})") from error
    except Exception as error:  # unpickling errors have no common base
        raise DataError(f"{path}: not a plain state dict; save one with torch.save(model.state_dict(), ...)") from error
    if not isinstance(state, dict):
        raise DataError(f"{path}: holds a {type(state).__name__}, not a state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        wrong = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown"
        raise DataError(f"{path}: weights of another model: {wrong} ({len(missing)} missing, {len(unknown)} unknown)")
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise DataError(f"{path}: {key!r} has shape {tuple(value.shape)}, the model's has {tuple(own[key].shape)}")
    model.load_state_dict(state, strict=False)


def load_policy(text: str, assembly: Assembly, say: Callable[[str], None] = lambda sentence: None) -> Policy:
    """``uniform:w4a8`` (the recipe's fixed layers keep theirs), a policy file, or another tool's (``haq:FILE``), checked
    against the model.

    ``say`` hears what another tool's file leaves open. A file that names another model's weights is refused.
    """
    from haqsearch.errors import PolicyError
    from haqsearch.importers import IMPORTERS, import_policy
    from haqsearch.spec import Choice

    spec = assembly.prepared.spec
    if text.startswith("uniform:"):
        return Policy.uniform(spec, Choice.parse(text.removeprefix("uniform:")), assembly.recipe.fixed_choices)
    tool, colon, name = text.partition(":")
    path = Path(name if colon and not Path(text).is_file() else text)
    if not path.is_file() and (assembly.base / path).is_file():
        path = assembly.base / path
    if colon and not Path(text).is_file():
        imported = import_policy(tool, path, spec)
        for note in imported.notes:
            say(f"{text}: {note}")
        return imported.policy
    if not path.is_file():
        tools = ", ".join(f"{tool}:FILE" for tool in IMPORTERS)
        raise PolicyError(f"{text}: no such policy file; write a file's path, uniform:w4a8, or another tool's: {tools}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: not valid JSON: {error}") from None
    return Policy.from_json(content, str(path)).check(spec, str(path))


def check_policy_widths(policy: Policy, assembly: Assembly) -> None:
    """Raise PolicyError or HardwareError if the device or the integer kernels lack a width the policy asks for."""
    from haqsearch.errors import HardwareError, PolicyError

    for layer in assembly.prepared.spec.quantizable:
        choice = policy[layer.name]
        for format in (choice.weight, choice.activation):
            if format.is_float or format.width > 8:
                raise PolicyError(f"layer {layer.name!r}: integer programs take 2 to 8 bits, not {format}")
        if not assembly.device.supports(layer, choice.computed):
            raise HardwareError(f"{assembly.device.name} does not support {choice} in layer {layer.name!r}")


def _tensor(part: Any) -> Any:
    import torch

    tensor = torch.as_tensor(part)
    return tensor.float() if tensor.is_floating_point() else tensor.long()


class _import_paths:
    """While it holds, modules are found from the current folder and from the recipe's."""

    def __init__(self, base: Path) -> None:
        self.paths = [path for path in (str(Path.cwd()), str(base.resolve())) if path not in sys.path]

    def __enter__(self) -> None:
        sys.path[:0] = self.paths

    def __exit__(self, *_: object) -> None:
        for path in self.paths:
            sys.path.remove(path)
