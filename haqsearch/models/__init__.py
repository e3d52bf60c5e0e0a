"""A small zoo of architectures a recipe can name. A user's own network needs none of this: ``model = "my_module:build"``.

A model is a function without required arguments that returns a ``torch.nn.Module`` taking one float tensor (B, ...).
"""

MODELS = {
    "autoencoder_ad01": "haqsearch.models.mlperf_tiny:autoencoder_ad01",
    "digits_cnn": "haqsearch.models.digits_cnn:digits_cnn",
    "ds_cnn": "haqsearch.models.mlperf_tiny:ds_cnn",
    "mobilenet_v1_025": "haqsearch.models.mlperf_tiny:mobilenet_v1_025",
    "mobilenet_v2": "haqsearch.models.mobilenet_v2:mobilenet_v2",
    "resnet8": "haqsearch.models.mlperf_tiny:resnet8",
    "resnet18": "haqsearch.models.resnet_imagenet:resnet18",
    "resnet20": "haqsearch.models.resnet_cifar:resnet20",
    "resnet32": "haqsearch.models.resnet_cifar:resnet32",
    "resnet44": "haqsearch.models.resnet_cifar:resnet44",
    "resnet56": "haqsearch.models.resnet_cifar:resnet56",
}
"""Name in a recipe -> where it is built."""
