"""Data sets a recipe can name. A user's own: ``data = "my_module:load"``, a function (data_root) -> DataSet.

``splits`` cuts a DataSet into calibrate+train / search / report, disjoint and fixed by the seed.
"""

from haqsearch.data.dataset import DataSet, Splits, split

DATASETS = {
    "digits": "haqsearch.data.digits:load",
    "cifar10": "haqsearch.data.cifar10:load",
    "cifar10_bytes": "haqsearch.data.cifar10:load_bytes",
    "imagenet_compat500": "haqsearch.data.imagenet:load",
    "kws01": "haqsearch.data.kws:load",
}
"""Name in a recipe -> where it is loaded."""

__all__ = ["DATASETS", "DataSet", "Splits", "split"]
