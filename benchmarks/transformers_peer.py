"""The same train step in Hugging Face transformers on PyTorch, as a worker."""

import argparse
import contextlib
import resource
import time
from typing import Any

import torch
import transformers
from transformers import Llama4ForCausalLM, Llama4TextConfig

from benchmarks.shapes import B1, B2, CLIP_NORM, LEARNING_RATE, SHAPES, WEIGHT_DECAY, Shape
from benchmarks.worker import serve


class TransformersTrainStep:
    """The train step of a randomly initialized Llama 4 text model in transformers, after one step."""

    def __init__(self, shape: Shape, *, dtype: str):
        torch.manual_seed(0)
        config = Llama4TextConfig(
            **shape.model_fields(),
            use_qk_norm=False,
            use_cache=False,
            max_position_embeddings=shape.sequence_length,
            attn_implementation="sdpa",
        )
        self._model = Llama4ForCausalLM(config).train()
        self._dtype = dtype
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=LEARNING_RATE,
            betas=(B1, B2),
            weight_decay=WEIGHT_DECAY,
            fused=True,  # PyTorch's fastest on a CPU: 10 ms at `tiny`; foreach and the plain loop take 150 ms
        )
        tokens = torch.from_numpy(shape.random_tokens())
        self._inputs, self._labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        loss = self.step()["loss"]
        self.facts: dict[str, Any] = {
            "first_step_cpu_seconds": time.process_time(),  # since the start of the process
            "first_loss": loss,
            "num_parameters": sum(p.numel() for p in self._model.parameters()),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def step(self) -> dict[str, float]:
        """Run a step; returns its wall and CPU time, the loss before it, and the peak memory of the process."""
        cpu, began = time.process_time(), time.perf_counter()
        with self._autocast():
            loss = self._model(input_ids=self._inputs, labels=self._labels, shift_labels=self._labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "loss": loss.item(),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def _autocast(self):
        if self._dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast("cpu", getattr(torch, self._dtype))


def _start(args: argparse.Namespace):
    torch.set_num_threads(args.threads)
    measured = TransformersTrainStep(SHAPES[args.shape], dtype=args.dtype)
    return measured.facts, {"step": measured.step}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    serve(lambda: _start(args))


if __name__ == "__main__":
    main()
