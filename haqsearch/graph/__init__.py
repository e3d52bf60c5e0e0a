"""A traced network as a small graph of known operations, and what is made of it.

trace     torch.export -> Graph
spec      Graph -> ModelSpec: shapes, MACs, ties, buffer lifetimes
plan      which tensors are kept in which formats under a policy
execute   the float network, node by node
apply     (Graph, Policy, ranges) -> a quantized copy that can be trained; the input is untouched
"""

from haqsearch.graph.execute import run_float
from haqsearch.graph.ir import Graph, Node
from haqsearch.graph.spec import model_spec
from haqsearch.graph.trace import trace

__all__ = ["Graph", "Node", "model_spec", "run_float", "trace"]
