"""A pytest plugin, for `-p tests.kernels.another_build`: tests the native module that HAQ_NATIVE names, not the installed one."""

import importlib.util
import os
import sys

NAME = "haqsearch.kernels.native._native"

spec = importlib.util.spec_from_file_location(NAME, os.environ["HAQ_NATIVE"])
assert spec and spec.loader
sys.modules[NAME] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[NAME])
