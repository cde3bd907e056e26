"""What cffi generates from native/binding.py, as far as the type checker needs to know."""

from typing import Any

ffi: Any
lib: Any
