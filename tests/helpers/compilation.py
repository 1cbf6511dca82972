"""How tests have XLA compile. Imported before JAX: only what the installed version takes may be asked of it."""

import importlib.metadata

HAS_OLD_EMITTERS = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
"""Whether XLA can still be told not to use its fusion emitters; later ones end the process at a flag they lack."""

QUICK_FLAGS = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * HAS_OLD_EMITTERS
"""XLA_FLAGS of the suite: most of a test's time would be LLVM's."""
AS_USERS_DO = {"xla_backend_optimization_level": 3} | (
    {"xla_cpu_use_fusion_emitters": True} if HAS_OLD_EMITTERS else {}
)
"""Compiler options of a program that is to be compiled as users' programs are, in a process with `QUICK_FLAGS`."""
