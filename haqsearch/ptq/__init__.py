"""Post-training quantization steps: each takes a graph and gives a graph, or weights, that quantize better."""

from haqsearch.ptq.fold import fold_batch_norms, fuse_clamps, prepare

__all__ = ["fold_batch_norms", "fuse_clamps", "prepare"]
