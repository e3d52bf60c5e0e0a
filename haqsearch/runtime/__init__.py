"""The whole network in integers.

program     IntegerProgram: a list of integer operations with their constants; what is searched, exported and run
lower       (graph, policy, ranges) -> IntegerProgram
verify      the executable specification every program is checked against
interpret   runs a program on a kernel backend
"""

from haqsearch.runtime.interpret import run_codes, run_program
from haqsearch.runtime.lower import Ranges, lower
from haqsearch.runtime.program import Instruction, IntegerProgram, TensorInfo, load_program, save_program
from haqsearch.runtime.verify import verify

__all__ = [
    "Instruction",
    "IntegerProgram",
    "Ranges",
    "TensorInfo",
    "load_program",
    "lower",
    "run_codes",
    "run_program",
    "save_program",
    "verify",
]
