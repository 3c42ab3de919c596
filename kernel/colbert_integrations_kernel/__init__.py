"""Where the compiled kernel lies; ``colbert_integrations.kernel`` loads it."""

from pathlib import Path

__all__ = ["LIBRARY", "__version__"]

__version__ = "0.1.0"
LIBRARY = Path(__file__).with_name("kernel.so")
