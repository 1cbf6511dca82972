"""The compiler's cache on disk, and the memory that it frees."""

import ctypes
import grp
import logging
import os
import pathlib
import pwd
import stat

import jax

log = logging.getLogger(__name__)


VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs. They are trusted code, so nobody but this user may write to their directory
    or exchange it: otherwise there is no cache, and a warning.

    `JAX_COMPILATION_CACHE_DIR` sets another directory, which is checked too; an empty value turns the cache off. A
    directory that a program has set in `jax.config` is left as it is.
    """
    chosen, named = jax.config.jax_compilation_cache_dir, os.environ.get(VARIABLE)
    if named is not None or chosen:
        if named and chosen == named and "://" not in named and (why := _why_not(pathlib.Path(named))):
            log.warning("%s: not using the compilation cache %s: %s", VARIABLE, named, why)
            jax.config.update("jax_compilation_cache_dir", None)
        return
    root = os.environ.get("MAVERICK_CACHE") or pathlib.Path.home() / ".cache" / "maverick-jax"
    directory = pathlib.Path(root) / "compiled"
    if why := _why_not(directory):
        log.warning("not using the compilation cache %s: %s", directory, why)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # JAX's minimum of 1 s would exclude many small programs of saves and evaluations, which take seconds in total
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _why_not(directory: pathlib.Path) -> str | None:
    """Why a directory, which is created, cannot be trusted; None: it can."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return exposed(directory)
    except OSError as error:
        return f"it cannot be used: {error.strerror}"


def exposed(directory: pathlib.Path) -> str | None:
    """Why somebody else could put files into `directory`, or another directory in its place: it or a folder above it,
    also of what links lead to, belongs to another user than this one and root, or others may write to it. (In a folder
    above it that is sticky, such as /tmp, they may not rename what is ours.) None: nobody could."""
    ways = {directory.absolute(), directory.resolve()}
    for folder in sorted({folder for way in ways for folder in (way, *way.parents)}, reverse=True):
        status = folder.stat()
        if status.st_uid not in (0, os.getuid()):
            return f"{folder} belongs to another user"
        others = stat.S_IWOTH if _is_own_group(status.st_gid) else stat.S_IWOTH | stat.S_IWGRP
        sticky = status.st_mode & stat.S_ISVTX and folder not in ways
        if status.st_mode & others and not sticky:
            return f"other users may write to {folder}"
    return None


def _is_own_group(gid: int) -> bool:
    """Whether it is the group that bears this user's name and has no other members, as many systems make it."""
    try:
        name, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}


def return_freed_memory() -> None:
    """Returns memory that the compiler has freed to the operating system. Otherwise glibc would keep hundreds of MiB on
    top of the run's own peak. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
