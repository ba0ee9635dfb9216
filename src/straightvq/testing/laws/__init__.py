"""The laws, one file for each chapter or two. Importing this package fills ``LAWS``."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
