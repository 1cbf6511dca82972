"""The answer of `/v1/responses`, as one object or as events."""

import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from launch.serve.asking import AnswerPiece, count
from launch.serve.chat import arguments_text, new_id
from launch.serve.parsing import WholeReply
from launch.serve.prompts import Prompt
from launch.serve.response_request import ResponseRequest
from launch.serve.running import Spent
from launch.serve.served import Served
from launch.serve.streaming import event


class ResponseAnswer:
    """One response while it is made."""

    def __init__(self, served: Served, body: ResponseRequest):
        self.served, self.body = served, body
        self.id, self.created, self.spent = new_id("resp_"), time.time(), Spent()
        self.prompt = Prompt([])
        self.keep: Callable[[dict[str, Any], WholeReply, list[int]], None] = lambda shown, whole, ids: None
        self.message_id, self.reasoning_id = new_id("msg_"), new_id("rs_")
        self._number = -1
        self._ids: list[int] = []
        self._thought = ""
        self._sent: list[dict[str, Any]] = []
        """Items that were sent before the last piece: thoughts."""
        self._open: int | None = None
        """Output index of the message whose text is being sent."""

    async def whole(self, pieces: AsyncIterator[AnswerPiece]) -> dict[str, Any]:
        last = None
        async for piece in pieces:
            last = self._take(piece) or last
        assert last is not None
        return self._finished(last)

    async def events(self, pieces: AsyncIterator[AnswerPiece]) -> AsyncGenerator[bytes]:
        begun = self._object("in_progress", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        async for piece in pieces:
            last = self._take(piece)
            if self.body.shows_thoughts:
                self._thought += piece.piece.thought
            if piece.piece.text:
                for one in self._text_events(piece.piece.text):
                    yield one
            if last is not None:
                for one in self._last_events(last):
                    yield one

    def _take(self, piece: AnswerPiece) -> AnswerPiece | None:
        """Counts a piece, and returns it if it is the last."""
        count(self.spent, piece)
        self._ids += piece.tokens
        if piece.whole is None:
            return None
        piece.whole.calls = [dataclasses.replace(call, id=new_id("call_")) for call in piece.whole.calls]
        return piece

    def _finished(self, last: AnswerPiece) -> dict[str, Any]:
        """The whole response, which is kept now."""
        assert last.whole is not None
        status = "incomplete" if last.finish_reason == "length" else "completed"
        found = self._object(status, self._items(last.whole, status))
        if last.whole.error is not None:
            found["malformed"] = last.whole.error
        if last.whole.held is not None:
            found["held_back"] = last.whole.held
        found["usage"] = self._usage()
        self.keep(found, last.whole, self._ids)
        return found

    def _items(self, whole: WholeReply, status: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if self.body.shows_thoughts and whole.thought:
            found.append(self._reasoning(whole.thought))
        if whole.text or not whole.calls:
            found.append(self._message(whole.text, status))
        for call in whole.calls:
            fields = {"call_id": call.id, "name": call.name, "arguments": arguments_text(call)}
            found.append({"type": "function_call", "id": new_id("fc_"), "status": "completed", **fields})
        return found

    def _reasoning(self, thought: str) -> dict[str, Any]:
        summary = [{"type": "summary_text", "text": thought}]
        return {"type": "reasoning", "id": self.reasoning_id, "summary": summary, "status": "completed"}

    def _message(self, text: str, status: str) -> dict[str, Any]:
        content = [_text_part(text)] if status != "in_progress" else []
        return {"type": "message", "id": self.message_id, "role": "assistant", "status": status, "content": content}

    # ---- events ------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _text_events(self, text: str) -> list[bytes]:
        found = self._open_events() if self._open is None else []
        return [*found, self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message_id, "output_index": self._open, "content_index": 0}

    def _open_events(self) -> list[bytes]:
        """The thought, which is over where text begins, and the beginning of the message."""
        if self._thought:
            self._sent.append(self._reasoning(self._thought))
        found = [one for index, item in enumerate(self._sent) for one in self._item_events(index, item)]
        self._open = len(self._sent)
        item = self._message("", "in_progress")
        return [
            *found,
            self._event("response.output_item.added", output_index=self._open, item=item),
            self._event("response.content_part.added", **self._place(), part=_text_part("")),
        ]

    def _last_events(self, last: AnswerPiece) -> list[bytes]:
        """The end of the text, what was not sent in pieces, and the whole response."""
        shown = self._finished(last)
        found: list[bytes] = []
        for index, item in enumerate(shown["output"]):
            if item["type"] == "message":
                found += self._message_events(item)
            elif index >= len(self._sent):
                found += self._item_events(index, item)
        return [*found, self._event(f"response.{shown['status']}", response=shown)]

    def _item_events(self, index: int, item: dict[str, Any]) -> list[bytes]:
        """An item that is sent at once: a thought or a call."""
        started = {**item, "status": "in_progress"} | ({"arguments": ""} if "arguments" in item else {})
        found = [self._event("response.output_item.added", output_index=index, item=started)]
        if item["type"] == "function_call":
            place, text = {"item_id": item["id"], "output_index": index}, item["arguments"]
            found += [
                self._event("response.function_call_arguments.delta", **place, delta=text),
                self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=text),
            ]
        return [*found, self._event("response.output_item.done", output_index=index, item=item)]

    def _message_events(self, item: dict[str, Any]) -> list[bytes]:
        found = self._open_events() if self._open is None else []
        part = item["content"][0]
        return [
            *found,
            self._event("response.output_text.done", **self._place(), text=part["text"], logprobs=[]),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=self._open, item=item),
        ]

    # ---- objects -----------------------------------------------------------------------------------------------------

    def _object(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self.body
        effort, summary = (body.reasoning.effort, body.reasoning.summary) if body.reasoning else (None, None)
        form = body.text.format.model_dump(by_alias=True, exclude_none=True) if body.text and body.text.format else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": effort, "summary": summary},
            "store": body.is_kept,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": form or {"type": "text"}},
            "tool_choice": body.tool_choice_shown,
            "tools": [{"strict": False, "parameters": None, **tool} for tool in body.tools or ()],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": len(self.prompt.ids),
            "input_tokens_details": {
                "cached_tokens": self.spent.cached,
                "cache_write_tokens": 0,
                "latent_tokens": self.prompt.latent_tokens,
            },
            "output_tokens": self.spent.completion,
            "output_tokens_details": {"reasoning_tokens": self.spent.reasoning},
            "total_tokens": len(self.prompt.ids) + self.spent.completion,
        }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
