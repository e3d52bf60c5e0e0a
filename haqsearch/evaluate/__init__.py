"""What a policy is worth: splits, metrics, and the evaluator that scores integer programs."""

from haqsearch.evaluate.evaluator import Evaluator
from haqsearch.evaluate.metrics import float_logits, score_logits
from haqsearch.evaluate.prepared import Prepared, prepare_network
from haqsearch.evaluate.weights import WeightBank

__all__ = ["Evaluator", "Prepared", "WeightBank", "float_logits", "prepare_network", "score_logits"]
