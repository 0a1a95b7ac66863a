"""LoRA adapters (folders of the library peft), merged into the weights of a base checkpoint when these are read."""

from workbench.checkpoint.adapter.merge import with_adapter
from workbench.checkpoint.adapter.settings import adapter_files

__all__ = ["adapter_files", "with_adapter"]
