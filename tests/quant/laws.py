"""Hypothesis settings for laws about tensors: the first call of torch is slow, so there is no deadline."""

from hypothesis import settings

laws = settings(deadline=None, max_examples=60)
