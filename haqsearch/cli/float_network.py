"""The weights of the float network: from a file of the user's, or of the training that a recipe asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haqsearch.cli.names import RECIPE_FILE
from haqsearch.config import Recipe
from haqsearch.errors import DataError
from haqsearch.files import replacing

if TYPE_CHECKING:
    from torch import nn

    from haqsearch.data import Splits

FLOAT_FILE = "float.safetensors"


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


@dataclass(frozen=True)
class KeptNetwork:
    """The network that ``recipe`` trains, kept in the run folder; ``folder`` is None where nothing is kept."""

    recipe: Recipe
    folder: Path | None

    @property
    def path(self) -> Path | None:
        return self.folder / FLOAT_FILE if self.folder else None

    @property
    def digest(self) -> str:
        """Digest of what decides the training."""
        content = self.recipe.model_dump(mode="json", include={"model", "data", "seed", "split", "train"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def found(self) -> str:
        """Digest of the training that made the network in the folder; empty if there is none to be read."""
        from safetensors import SafetensorError, safe_open

        if self.path is None or not self.path.is_file():
            return ""
        try:
            with safe_open(str(self.path), framework="pt") as file:
                return str((file.metadata() or {}).get("recipe_digest", ""))
        except SafetensorError:
            return ""

    def exists(self) -> bool:
        """Whether the folder holds the very network that this recipe trains."""
        return self.found == self.digest

    def network(self, build: Callable[[], nn.Module], splits: Splits) -> nn.Module:
        """The trained network, in eval mode: read if it is there, else trained and kept."""
        from haqsearch.models.train import train_float

        if self.path and self.exists():
            model = build()
            load_weights(model, self.path)
            return model.eval()
        train = self.recipe.train
        model = train_float(build, splits, train.epochs, train.batch, train.learning_rate, self.recipe.seed)
        # A run that has begun in the folder keeps the network it began with, whoever asks for another one.
        if self.path and not (self.found and (self.path.parent / RECIPE_FILE).is_file()):
            self._write(model, self.path)
        return model

    def _write(self, model: nn.Module, path: Path) -> None:
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        with replacing(path) as temporary:
            save_file(tensors, str(temporary), {"recipe_digest": self.digest})
