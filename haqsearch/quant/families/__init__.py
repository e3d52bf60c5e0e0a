"""The families of number formats on tensors, one file each; to add one: a file, a line here, a line in ``spec.KINDS``."""

from haqsearch.quant.families.affine import Affine
from haqsearch.quant.families.family import Family, Field, Stepped
from haqsearch.quant.families.floats import Floats
from haqsearch.quant.families.kmeans import KMeans
from haqsearch.quant.families.mx import MX
from haqsearch.quant.families.ocp import OCP
from haqsearch.quant.families.signs import Binary, Ternary
from haqsearch.quant.families.vsq import VSQ

FAMILIES: dict[str, type[Family]] = {
    "int": Affine,
    "uint": Affine,
    "vsq": VSQ,
    "mx": MX,
    "mxfp": OCP,
    "mxint": OCP,
    "kmeans": KMeans,
    "binary": Binary,
    "ternary": Ternary,
    "float": Floats,
    "bfloat": Floats,
}
STEPPED: dict[str, type[Stepped]] = {"int": Affine, "vsq": VSQ, "mx": MX, "mxfp": OCP, "mxint": OCP}
"""Those of formats with steps (``Format.has_steps``)."""

__all__ = ["FAMILIES", "STEPPED", "Family", "Field", "Stepped"]
