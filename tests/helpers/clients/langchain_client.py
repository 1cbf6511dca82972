"""Cases for LangChain (langchain-openai), and an agent of LangGraph with tools."""

import openai
import pydantic
from cases import KEY, MODEL, ONE_CALL, PICTURE, TWO_CALLS, URL, case, equal, main
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

common = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
chat = ChatOpenAI(**common)


@tool
def get_weather(city: str, days: int = 1) -> str:
    """The weather of a city."""
    return f"{city}: warm for {days} days"


@tool
def now() -> str:
    """The time."""
    return "noon"


TOOLS = [get_weather, now]


@case
def plain():
    found = chat.invoke("Hi")
    equal(found.content, "Hello! You said: Hi")
    equal(found.response_metadata["finish_reason"], "stop")
    equal(found.usage_metadata["output_tokens"], 20)


@case
def messages():
    equal(chat.invoke([SystemMessage("Be brief."), HumanMessage("Hi", name="ann")]).content, "Hello! You said: Hi")


@case
def stream():
    equal("".join(part.content for part in chat.stream("Grüße €")), "Hello! You said: Grüße €")


@case
def stream_usage():
    parts = list(ChatOpenAI(**common, stream_usage=True).stream("Hi"))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    equal(whole.usage_metadata["output_tokens"], 20)


@case
async def asynchronous():
    equal((await chat.ainvoke("Hi")).content, "Hello! You said: Hi")
    equal("".join([part.content async for part in chat.astream("Hi")]), "Hello! You said: Hi")


@case
def batch():
    equal([m.content for m in chat.batch(["a", "b", "c"])], [f"Hello! You said: {x}" for x in "abc"])


@case
def tools():
    found = chat.bind_tools(TOOLS).invoke(TWO_CALLS)
    equal([(c["name"], c["args"]) for c in found.tool_calls], [("get_weather", {"city": "Paris"}), ("now", {})])
    equal(found.invalid_tool_calls, [])


@case
def tools_in_a_stream():
    whole = None
    for part in chat.bind_tools(TOOLS).stream(TWO_CALLS):
        whole = part if whole is None else whole + part
    equal([(c["name"], c["args"]) for c in whole.tool_calls], [("get_weather", {"city": "Paris"}), ("now", {})])


@case
def tool_loop():
    asked = HumanMessage(TWO_CALLS)
    called = chat.bind_tools(TOOLS).invoke([asked])
    results = [ToolMessage(f"{call['name']} is fine", tool_call_id=call["id"]) for call in called.tool_calls]
    found = chat.bind_tools(TOOLS).invoke([asked, called, *results])
    equal(found.content, "The tool said: now is fine")
    equal(chat.invoke([asked, called, *results, found, HumanMessage("Hi")]).content, "Hello! You said: Hi")


@case
def tool_choice():
    found = chat.bind_tools(TOOLS, tool_choice="now").invoke("Hi")
    equal([call["name"] for call in found.tool_calls], ["now"])
    assert chat.bind_tools(TOOLS, tool_choice="any").invoke("Hi", max_tokens=2000).tool_calls


@case
def agent():
    from langchain.agents import create_agent

    made = create_agent(chat, tools=TOOLS, system_prompt="You help.")
    found = made.invoke({"messages": [HumanMessage(ONE_CALL)]})["messages"]
    equal([type(m) for m in found], [HumanMessage, AIMessage, ToolMessage, AIMessage])
    equal(found[-1].content, "The tool said: Paris: warm for 2 days")


@case
def structured_answer():
    class Answer(pydantic.BaseModel):
        """An answer."""

        yes: bool

    for method in ("json_schema", "function_calling"):
        found = chat.with_structured_output(Answer, method=method).invoke("Hi")
        assert isinstance(found, Answer), method


@case
def pictures():
    content = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    equal(chat.invoke([HumanMessage(content)]).content, "I see 1 tiles.")


@case
def several():
    found = chat.generate([[HumanMessage("Hi")]], n=3)
    equal([g.text for g in found.generations[0]], ["Hello! You said: Hi"] * 3)


@case
def logprobs():
    found = ChatOpenAI(**common, logprobs=True, top_logprobs=2).invoke("WRITE abc")
    equal([entry["token"] for entry in found.response_metadata["logprobs"]["content"]], ["a", "b", "c"])


@case
def settings():
    found = ChatOpenAI(**common, temperature=0, seed=1, max_tokens=3, stop=["z"], top_p=0.5, frequency_penalty=0.1)
    equal(found.invoke("WRITE abcdef").content, "abc")


@case
def stops():
    equal(chat.invoke("WRITE abcdef", stop=["d"]).content, "abc")


@case
def thoughts():
    equal(chat.invoke("THINK").usage_metadata["output_token_details"]["reasoning"], 15)


@case
def errors():
    for options, text, kind in (
        ({"api_key": "wrong"}, "Hi", openai.AuthenticationError),
        ({"model": "other"}, "Hi", openai.NotFoundError),
        ({"max_tokens": 10**8}, "Hi", openai.BadRequestError),
    ):
        try:
            ChatOpenAI(**(common | options)).invoke(text)
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__}")


@case
def completions():
    equal(OpenAI(**common, max_tokens=40).invoke("Hi"), "Hello! You said: Hi")
    equal("".join(OpenAI(**common, max_tokens=40).stream("Hi")), "Hello! You said: Hi")


@case
def responses():
    conversing = ChatOpenAI(**common, use_responses_api=True, use_previous_response_id=True)
    first = conversing.invoke("Hi")
    equal(first.text if isinstance(first.text, str) else first.text(), "Hello! You said: Hi")
    called = conversing.bind_tools(TOOLS).invoke([HumanMessage("Hi"), first, HumanMessage(ONE_CALL)])
    equal([call["args"] for call in called.tool_calls], [{"city": "Paris", "days": 2}])


if __name__ == "__main__":
    main()
