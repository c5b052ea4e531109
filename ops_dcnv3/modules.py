"""The import path of the layers in code written for the original project."""

from .dcnv4 import DCNv4
from .module import DCNv3, DCNv3_pytorch

__all__ = ["DCNv3", "DCNv3_pytorch", "DCNv4"]
