"""The compiler's cache on disk, and the memory that it frees."""

import ctypes
import logging
import os
import pathlib

import jax

log = logging.getLogger(__name__)


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs. They are trusted code, so only this user may write to their directory.

    `JAX_COMPILATION_CACHE_DIR` sets another directory; an empty value turns the cache off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return
    root = os.environ.get("MAVERICK_CACHE") or pathlib.Path.home() / ".cache" / "maverick-jax"
    directory = pathlib.Path(root) / "compiled"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid() or directory.stat().st_mode & 0o077:
        log.warning("not using the compilation cache %s: other users may write there", directory)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # JAX's minimum of 1 s would exclude many small programs of saves and evaluations, which take seconds in total
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def return_freed_memory() -> None:
    """Returns memory that the compiler has freed to the operating system. Otherwise glibc would keep hundreds of MiB on
    top of the run's own peak. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
