"""A small zoo of architectures a recipe can name. A user's own network needs none of this: ``model = "my_module:build"``.

A model is a function without required arguments that returns a ``torch.nn.Module`` taking one float tensor (B, ...).
"""

MODELS = {
    "digits_cnn": "haqsearch.models.digits_cnn:digits_cnn",
    "resnet20": "haqsearch.models.resnet_cifar:resnet20",
    "resnet32": "haqsearch.models.resnet_cifar:resnet32",
    "resnet44": "haqsearch.models.resnet_cifar:resnet44",
    "resnet56": "haqsearch.models.resnet_cifar:resnet56",
}
"""Name in a recipe -> where it is built."""
