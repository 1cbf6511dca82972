"""`maverick serve`: loads a model, starts its engine and serves it until it is stopped."""

import argparse
import os
import pathlib
import re

from launch.gate import gate_of
from launch.serve import keys
from launch.serve.app import application
from launch.serve.http import bind, hosts_of, http_server
from launch.serve.served import Served, ServeOptions
from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig
from maverick_jax.inference.engine import EngineSettings, SlotEngine
from maverick_jax.inference.engine.latents import require_latents
from maverick_jax.pretrained import load_layers
from maverick_jax.progress import Working, say
from maverick_jax.text import load_tokenizer

KEY_FILE = "serve_key"


def serve(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM. What can be refused is refused before the model is loaded."""
    options = options_of(args)
    settings = EngineSettings(slots=args.slots, context=args.context)
    tokenizer = load_tokenizer(args.checkpoint)
    with bind(args.host, args.port, remote=args.remote) as listening:
        key_file = pathlib.Path(args.key_file) if args.key_file else _default_key_file()
        key = keys.key_of(key_file)
        model = load_layers(args.checkpoint, dtype=args.dtype)
        vision = model.config.vision
        require_latents(model.config, args.latents)
        with Working("compiling the engine"):
            engine = SlotEngine(model, tokenizer, settings)
        served = Served(engine, tokenizer, ImageConfig.of(vision) if vision else None, options)
        try:
            server = http_server(application(served, key, hosts_of(listening, args.allow_host)), served.limits)
            port = listening.getsockname()[1]
            where = keys.VARIABLE if os.environ.get(keys.VARIABLE) else key_file
            say(f"serving {options.name} at http://{_shown(args.host)}:{port}/v1 (key: {where}); Ctrl-C ends it")
            server.run(sockets=[listening])
        finally:
            served.close()


def options_of(args: argparse.Namespace) -> ServeOptions:
    """Raises InputError for a folder of pictures that is none, for a policy file with mistakes, and for a risk model
    that is none."""
    root = pathlib.Path(args.image_root) if args.image_root else None
    if root is not None and not root.is_dir():
        raise InputError(f"--image-root {root}: no such folder")
    name = args.name or pathlib.Path(args.checkpoint).resolve().name
    if not re.fullmatch(r"[\w.:@+-][\w.:@+/-]{0,199}", name):
        raise InputError(f"--name {name!r:.80}; expected letters, digits and . _ - : @ + /")
    return ServeOptions(name, args.dialect, root, args.begin_prompts, gate_of(args), latents=args.latents)


def _default_key_file() -> pathlib.Path:
    root = os.environ.get("MAVERICK_CACHE") or pathlib.Path.home() / ".cache" / "maverick-jax"
    return pathlib.Path(root) / KEY_FILE


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
