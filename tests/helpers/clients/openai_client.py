"""Cases for openai-python, the same for its majors 2 and 3."""

import json
import warnings

import openai
import pydantic
from cases import KEY, MODEL, ONE_CALL, PICTURE, TOOLS, TWO_CALLS, URL, WEATHER, case, equal, main

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
anew = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
warnings.simplefilter("ignore")


def valid(found):
    """The object, after the package's own model has validated it strictly: it does not do so when it reads."""
    type(found).model_validate_json(found.model_dump_json(exclude_unset=True))
    adapter = pydantic.TypeAdapter(type(found))
    adapter.validate_python(found.model_dump(exclude_unset=True))
    return found


def valid_completion(found):
    """The models of the completions route know no null, which OpenAI's own server sends too: as the reason of a part
    that is not the last, and as the score of a prompt's first token."""
    whole = found.model_copy(deep=True)
    for choice in whole.choices:
        choice.finish_reason = choice.finish_reason or "stop"
        if choice.logprobs:
            choice.logprobs.token_logprobs = [x or 0.0 for x in choice.logprobs.token_logprobs]
            choice.logprobs.top_logprobs = [x or {} for x in choice.logprobs.top_logprobs]
    valid(whole)
    return found


def chat(text="Hi", **fields):
    return valid(client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **fields))


def chunks(text="Hi", **fields):
    found = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], stream=True, **fields
    )
    return [valid(chunk) for chunk in found]


def fails(kind, status, code=None, **fields):
    try:
        chat(**fields)
    except kind as error:
        equal(error.status_code, status)
        if code:
            equal(error.code, code)
        return error
    raise AssertionError("no error")


@case
def models():
    equal([valid(model).id for model in client.models.list()], [MODEL])
    equal(valid(client.models.retrieve(MODEL)).owned_by, "maverick-jax")


@case
def plain():
    found = chat("Hi")
    equal(found.choices[0].message.content, "Hello! You said: Hi")
    equal(found.choices[0].finish_reason, "stop")


@case
def usage():
    found = chat("Hi").usage
    equal(found.total_tokens, found.prompt_tokens + found.completion_tokens)
    equal(found.prompt_tokens_details.cached_tokens, 0)


@case
def stream():
    text = "".join(c.choices[0].delta.content or "" for c in chunks("Grüße €"))
    equal(text, "Hello! You said: Grüße €")


@case
def stream_usage():
    found = chunks("Hi", stream_options={"include_usage": True})
    equal(found[-1].choices, [])
    assert found[-1].usage.completion_tokens > 0 and all(c.usage is None for c in found[:-1])


@case
def stream_helper():
    messages = [{"role": "user", "content": TWO_CALLS}]
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=TOOLS, n=2) as events:
        for _ in events:
            pass
        final = events.get_final_completion()
    for choice in final.choices:
        equal([call.function.name for call in choice.message.tool_calls], ["get_weather", "now"])
        equal(json.loads(choice.message.tool_calls[0].function.arguments), {"city": "Paris"})
        equal(choice.message.tool_calls[1].function.arguments, "{}")
        equal(choice.finish_reason, "tool_calls")


@case
async def asynchronous():
    found = await anew.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True)
    equal("".join([valid(c).choices[0].delta.content or "" async for c in found]), "Hello! You said: Hi")


@case
def tools():
    found = chat(TWO_CALLS, tools=TOOLS).choices[0]
    equal(found.finish_reason, "tool_calls")
    equal(found.message.content, None)
    equal([json.loads(c.function.arguments) for c in found.message.tool_calls], [{"city": "Paris"}, {}])


@case
def tools_in_a_stream():
    calls = [call for c in chunks(TWO_CALLS, tools=TOOLS) for call in c.choices[0].delta.tool_calls or []]
    equal([(c.index, c.function.name, c.function.arguments) for c in calls],
          [(0, "get_weather", '{"city": "Paris"}'), (1, "now", "{}")])  # fmt: skip


@case
def tool_loop():
    messages = [{"role": "user", "content": TWO_CALLS}]
    message = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS).choices[0].message
    messages.append(message)  # as the package dumps it, with its null fields
    for call in message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} is fine"})
    found = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    equal(found.choices[0].message.content, "The tool said: now is fine")
    messages += [found.choices[0].message.model_dump(), {"role": "user", "content": "Thanks"}]
    equal(client.chat.completions.create(model=MODEL, messages=messages).choices[0].finish_reason, "stop")


@case
def tool_choice():
    equal(chat(ONE_CALL, tools=TOOLS, tool_choice="none").choices[0].message.tool_calls, None)
    found = chat("Hi", tools=TOOLS, tool_choice="required", max_tokens=2000).choices[0].message
    assert found.tool_calls and found.tool_calls[0].function.name in ("get_weather", "now")
    named = {"type": "function", "function": {"name": "now"}}
    found = chat("Hi", tools=TOOLS, tool_choice=named, parallel_tool_calls=False).choices[0].message
    equal([call.function.name for call in found.tool_calls], ["now"])


@case
def pydantic_tools():
    class GetWeather(pydantic.BaseModel):
        city: str

    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    messages = [{"role": "user", "content": 'WRITE [get_weather(city="Oslo")]'}]
    found = client.chat.completions.parse(model=MODEL, messages=messages, tools=[tool])
    equal(found.choices[0].message.tool_calls[0].function.parsed_arguments, GetWeather(city="Oslo"))


@case
def structured_answer():
    class Answer(pydantic.BaseModel):
        yes: bool
        size: int

    messages = [{"role": "user", "content": "Hi"}]
    for seed in range(5):
        found = client.chat.completions.parse(
            model=MODEL, messages=messages, response_format=Answer, seed=seed, max_tokens=200
        )
        assert isinstance(found.choices[0].message.parsed, Answer)


@case
def pictures():
    content = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    found = valid(client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}]))
    equal(found.choices[0].message.content, "I see 1 tiles.")


@case
def pictures_of_a_network():
    content = [{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}]
    try:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    except openai.BadRequestError as error:
        equal("network" in error.message, True)
    else:
        raise AssertionError("no error")


@case
def several():
    found = chat("Hi", n=3)
    equal([c.index for c in found.choices], [0, 1, 2])
    equal(found.usage.completion_tokens, 3 * 20)


@case
def several_in_a_stream():
    texts = {}
    for c in chunks("Hi", n=3):
        choice = c.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    equal(texts, dict.fromkeys(range(3), "Hello! You said: Hi"))


@case
def logprobs():
    found = chat("WRITE é!", logprobs=True, top_logprobs=3).choices[0].logprobs.content
    equal([entry.bytes for entry in found], [[0xC3], [0xA9], [33]])
    equal([len(entry.top_logprobs) for entry in found], [3, 3, 3])


@case
def logprobs_in_a_stream():
    parts = [c.choices[0].logprobs for c in chunks("WRITE é!", logprobs=True)]
    equal([e.bytes for part in parts if part for e in part.content], [[0xC3], [0xA9], [33]])


@case
def limits_and_stops():
    equal(chat("WRITE abcdef", max_tokens=3).choices[0].message.content, "abc")
    equal(chat("WRITE abcdef", max_completion_tokens=3).choices[0].finish_reason, "length")
    equal(chat("WRITE abcdef", stop=["d"]).choices[0].message.content, "abc")
    equal(chat("WRITE abc", seed=1, temperature=0, top_p=0.5, frequency_penalty=0.5, presence_penalty=-1,
               logit_bias={"65": -100}, user="u").choices[0].message.content, "abc")  # fmt: skip


@case
def thoughts():
    found = chat("THINK")
    equal(found.usage.completion_tokens_details.reasoning_tokens, 15)
    assert "reasoning" not in found.choices[0].message.model_dump()
    shown = chat("THINK", extra_body={"include_reasoning": True}).choices[0].message
    equal(shown.reasoning_content, "Let me think.")
    joined = [c.choices[0].delta for c in chunks("THINK", extra_body={"include_reasoning": True})]
    equal("".join(getattr(delta, "reasoning", None) or "" for delta in joined), "Let me think.")


@case
def roles():
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "name": "ann", "content": "Hi"}]
    equal(client.chat.completions.create(model=MODEL, messages=messages).choices[0].finish_reason, "stop")


@case
def wrong_key():
    other = client.with_options(api_key="wrong")
    try:
        other.models.list()
    except openai.AuthenticationError as error:
        equal(error.code, "invalid_api_key")
    else:
        raise AssertionError("no error")


@case
def wrong_model():
    try:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "Hi"}])
    except openai.NotFoundError as error:
        equal(error.code, "model_not_found")
    else:
        raise AssertionError("no error")


@case
def bad_requests():
    equal(fails(openai.BadRequestError, 400, extra_body={"temprature": 1}).param, "temprature")
    equal(fails(openai.BadRequestError, 400, temperature=9).param, "temperature")
    fails(openai.BadRequestError, 400, "context_length_exceeded", max_tokens=10**8)


@case
def too_large():
    fails(openai.APIStatusError, 413, text="x" * (33 << 20))


@case
def completions():
    found = valid(client.completions.create(model=MODEL, prompt="Hi", max_tokens=40))
    equal(found.choices[0].text, "Hello! You said: Hi")
    found = client.completions.create(model=MODEL, prompt="Hi", max_tokens=40, stream=True)
    equal("".join(valid_completion(part).choices[0].text for part in found), "Hello! You said: Hi")


@case
def scored_prompts():
    found = client.completions.create(model=MODEL, prompt=[[72, 105]], echo=True, logprobs=1, max_tokens=1)
    valid_completion(found)
    equal(len(found.choices[0].logprobs.token_logprobs), 3)
    equal(found.choices[0].logprobs.token_logprobs[0], None)


@case
def responses():
    first = valid(client.responses.create(model=MODEL, input="Hi", instructions="Be brief."))
    equal(first.output_text, "Hello! You said: Hi")
    second = valid(client.responses.create(model=MODEL, input="And?", previous_response_id=first.id))
    equal(second.output_text, "Hello! You said: And?")
    assert second.usage.input_tokens_details.cached_tokens > 0 or second.usage.input_tokens > first.usage.total_tokens
    equal(valid(client.responses.retrieve(first.id)).id, first.id)
    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
    except openai.NotFoundError:
        return
    raise AssertionError("no error")


@case
def responses_stream():
    texts = []
    with client.responses.stream(model=MODEL, input="THINK", reasoning={"summary": "auto"}) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                texts.append(event.delta)
        final = events.get_final_response()
    equal("".join(texts), "Hello! You said: THINK")
    equal([item.type for item in final.output], ["reasoning", "message"])
    for event in client.responses.create(model=MODEL, input="Hi", stream=True):
        valid(event)


@case
def responses_tools():
    tool = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}
    given = [{"role": "user", "content": ONE_CALL}]
    first = valid(client.responses.create(model=MODEL, input=given, tools=[tool]))
    call = first.output[0]
    equal(
        (call.type, call.name, json.loads(call.arguments)),
        ("function_call", "get_weather", {"city": "Paris", "days": 2}),
    )
    given += first.output
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "warm"})
    equal(client.responses.create(model=MODEL, input=given, tools=[tool]).output_text, "The tool said: warm")
    kinds = [event.type for event in client.responses.create(model=MODEL, input=ONE_CALL, tools=[tool], stream=True)]
    assert "response.function_call_arguments.done" in kinds


@case
def responses_structured():
    class Answer(pydantic.BaseModel):
        yes: bool

    found = client.responses.parse(model=MODEL, input="Hi", text_format=Answer)
    assert isinstance(found.output_parsed, Answer)


@case
def responses_pictures():
    content = [{"type": "input_text", "text": "See"}, {"type": "input_image", "image_url": PICTURE, "detail": "auto"}]
    found = valid(client.responses.create(model=MODEL, input=[{"role": "user", "content": content}]))
    equal(found.output_text, "I see 1 tiles.")


if __name__ == "__main__":
    main()
