"""Cases for LlamaIndex's OpenAILike, as a chat model and over the completions route."""

import openai
from cases import KEY, MODEL, PICTURE, TWO_CALLS, URL, case, equal, main
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

common = {"model": MODEL, "api_base": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "timeout": 600}
chat = OpenAILike(**common, is_chat_model=True, is_function_calling_model=True, context_window=65_536)
text = OpenAILike(**common, max_tokens=40)


def get_weather(city: str, days: int = 1) -> str:
    """The weather of a city."""
    return f"{city}: warm for {days} days"


def now() -> str:
    """The time."""
    return "noon"


TOOLS = [FunctionTool.from_defaults(get_weather), FunctionTool.from_defaults(now)]


def user(said):
    return ChatMessage(role=MessageRole.USER, content=said)


@case
def chat_plain():
    found = chat.chat([ChatMessage(role=MessageRole.SYSTEM, content="Be brief."), user("Hi")])
    equal(found.message.content, "Hello! You said: Hi")
    equal(found.raw.usage.completion_tokens, 20)


@case
def chat_stream():
    equal("".join(part.delta or "" for part in chat.stream_chat([user("Grüße €")])), "Hello! You said: Grüße €")


@case
def complete_with_chat():
    equal(chat.complete("Hi").text, "Hello! You said: Hi")
    equal(list(chat.stream_complete("Hi"))[-1].text, "Hello! You said: Hi")


@case
def completions():
    equal(text.complete("Hi").text, "Hello! You said: Hi")


@case
def completions_stream():
    equal(list(text.stream_complete("Hi"))[-1].text, "Hello! You said: Hi")


@case
def chat_over_completions():
    assert text.chat([user("Hi")]).message.content.startswith("Hello! You said:")
    assert list(text.stream_chat([user("Hi")]))[-1].message.content.startswith("Hello! You said:")


@case
async def asynchronous():
    equal((await chat.achat([user("Hi")])).message.content, "Hello! You said: Hi")
    parts = [part async for part in await chat.astream_chat([user("Hi")])]
    equal("".join(part.delta or "" for part in parts), "Hello! You said: Hi")
    equal((await text.acomplete("Hi")).text, "Hello! You said: Hi")


@case
def tools():
    found = chat.chat_with_tools(TOOLS, user_msg=TWO_CALLS, allow_parallel_tool_calls=True)
    calls = chat.get_tool_calls_from_response(found)
    equal([(c.tool_name, c.tool_kwargs) for c in calls], [("get_weather", {"city": "Paris"}), ("now", {})])


@case
def tools_in_a_stream():
    last = list(chat.stream_chat_with_tools(TOOLS, user_msg=TWO_CALLS, allow_parallel_tool_calls=True))[-1]
    calls = chat.get_tool_calls_from_response(last)
    equal([(c.tool_name, c.tool_kwargs) for c in calls], [("get_weather", {"city": "Paris"}), ("now", {})])


@case
def one_call_of_several():
    found = chat.chat_with_tools(TOOLS, user_msg=TWO_CALLS)  # with `parallel_tool_calls: false`: it keeps the first
    equal([c.tool_name for c in chat.get_tool_calls_from_response(found)], ["get_weather"])


@case
def tool_loop():
    asked = user(TWO_CALLS)
    called = chat.chat_with_tools(TOOLS, chat_history=[asked], allow_parallel_tool_calls=True).message
    history = [asked, called]
    for call in called.additional_kwargs.get("tool_calls") or called.blocks:
        name = getattr(call, "id", None) or getattr(call, "tool_call_id", None)
        if name:
            history.append(ChatMessage(role=MessageRole.TOOL, content="fine", additional_kwargs={"tool_call_id": name}))
    assert len(history) == 4, history
    equal(chat.chat_with_tools(TOOLS, chat_history=history).message.content, "The tool said: fine")


@case
def required_tool():
    found = chat.chat_with_tools(TOOLS, user_msg="Hi", tool_required=True, max_tokens=2000)
    assert chat.get_tool_calls_from_response(found)


@case
def pictures():
    content = [TextBlock(text="See"), ImageBlock(url=PICTURE)]
    found = chat.chat([ChatMessage(role=MessageRole.USER, blocks=content)])
    equal(found.message.content, "I see 1 tiles.")


@case
def logprobs():
    made = OpenAILike(**common, is_chat_model=True, logprobs=True, top_logprobs=2)
    found = made.chat([user("WRITE abc")])
    equal([entry[0].token for entry in found.logprobs][:1], ["\0"])


@case
def settings():
    made = OpenAILike(**common, is_chat_model=True, temperature=0, max_tokens=3, additional_kwargs={"seed": 1})
    equal(made.chat([user("WRITE abcdef")]).message.content, "abc")
    equal(made.chat([user("WRITE abcdef")], stop=["c"]).message.content, "ab")


@case
def several():
    found = chat.chat([user("Hi")], n=2)
    equal(len(found.raw.choices), 2)


@case
def thoughts():
    found = chat.chat([user("THINK")], extra_body={"include_reasoning": True})
    equal(found.message.content, "Hello! You said: THINK")
    assert "Let me think." in str(found.message.blocks) + str(found.message.additional_kwargs)


@case
def errors():
    for options, kind in (
        ({"api_key": "wrong"}, openai.AuthenticationError),
        ({"model": "other"}, openai.NotFoundError),
        ({"max_tokens": 10**8}, openai.BadRequestError),
    ):
        try:
            OpenAILike(**(common | options), is_chat_model=True).chat([user("Hi")])
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__}")


if __name__ == "__main__":
    main()
