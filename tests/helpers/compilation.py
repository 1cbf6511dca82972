"""XLA flags of the tests. This file is imported before JAX and sets only flags that the installed version knows."""

import importlib.metadata

HAS_OLD_EMITTERS = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
"""Whether XLA still has the flag that turns off its fusion emitters; later versions end the process at an unknown
flag."""

QUICK_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    + " --xla_cpu_use_fusion_emitters=false" * HAS_OLD_EMITTERS
)
"""XLA_FLAGS of the suite. With the default flags, LLVM would take most of a test's time, and simulated devices could
run independent collectives in different orders and wait for each other forever."""
AS_USERS_DO = {"xla_backend_optimization_level": 3} | (
    {"xla_cpu_use_fusion_emitters": True} if HAS_OLD_EMITTERS else {}
)
"""Compiler options that compile a program as for users, in a process with `QUICK_FLAGS`."""
