"""What a number format means, on tensors; stateless. README.md in this folder derives the arithmetic."""

from haqsearch.quant.affine import (
    QParams,
    affine_params,
    dequantize,
    quantize,
    round_stochastic,
    storage_dtype,
    symmetric_params,
)
from haqsearch.quant.fixed_point import decompose, requantize
from haqsearch.quant.qtensor import QTensor, encode, from_packed_state, packed_state
from haqsearch.quant.weights import QWeight, quantize_weight

__all__ = [
    "QParams",
    "QTensor",
    "QWeight",
    "affine_params",
    "decompose",
    "dequantize",
    "encode",
    "from_packed_state",
    "packed_state",
    "quantize",
    "quantize_weight",
    "requantize",
    "round_stochastic",
    "storage_dtype",
    "symmetric_params",
]
