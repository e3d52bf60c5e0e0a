"""The vocabulary everything is said in: formats, layers, policies, budgets. Standard library only."""

from haqsearch.spec.budget import METRICS, Budget, Costing, Limit, Metric, violation
from haqsearch.spec.evaluation import OBJECTIVES, Evaluation, Objective
from haqsearch.spec.formats import FLOAT32, Format
from haqsearch.spec.model import ActivationSpec, LayerSpec, ModelSpec
from haqsearch.spec.pareto import dominates, front, hypervolume
from haqsearch.spec.policy import Choice, Policy
from haqsearch.spec.sensitivity import Sensitivity
from haqsearch.spec.space import SearchSpace, Variable

__all__ = [
    "FLOAT32",
    "METRICS",
    "OBJECTIVES",
    "ActivationSpec",
    "Budget",
    "Choice",
    "Costing",
    "Evaluation",
    "Format",
    "LayerSpec",
    "Limit",
    "Metric",
    "ModelSpec",
    "Objective",
    "Policy",
    "SearchSpace",
    "Sensitivity",
    "Variable",
    "dominates",
    "front",
    "hypervolume",
    "violation",
]
