"""Quantization-aware training: a short fine-tune of a chosen policy, ended by lowering to integers again."""

from haqsearch.qat.finetune import FinetuneSettings, finetune

__all__ = ["FinetuneSettings", "finetune"]
