"""The compiler around a run: its cache on disk, and the memory it leaves behind."""

import ctypes
import logging
import os
import pathlib

import jax

log = logging.getLogger(__name__)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in a directory that only this user may write: they are trusted code.

    `JAX_COMPILATION_CACHE_DIR` chooses another place; empty turns the cache off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return
    root = os.environ.get("MAVERICK_CACHE") or pathlib.Path.home() / ".cache" / "maverick-jax"
    directory = pathlib.Path(root) / "compiled"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid() or directory.stat().st_mode & 0o077:
        log.warning("not using the compilation cache %s: others may write there", directory)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # JAX's limit of 1 s leaves out the many small programs of a save and an evaluation: seconds at every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def return_freed_memory() -> None:
    """Give the operating system back what the compiler has freed, which glibc would keep: hundreds of MiB that would
    otherwise stay on top of the run's own peak for good. Elsewhere does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
