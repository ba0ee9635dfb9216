"""What a step would start on an accelerator, counted on torch's meta device."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Notes every operator that starts a kernel: not those that make a view, take memory or ask for a type."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and not name.startswith(("empty", "new_empty", "promote_types")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))
