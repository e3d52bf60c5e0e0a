"""Quantization-aware training: a short fine-tune of a chosen policy, ended by lowering to integers again."""

from haqsearch.qat.files import load_finetuned, save_finetuned
from haqsearch.qat.finetune import Finetuned, FinetuneSettings, finetune

__all__ = ["FinetuneSettings", "Finetuned", "finetune", "load_finetuned", "save_finetuned"]
