"""One small handwritten trajectory in each format: find a flight, fail to book it, book another, answer."""

import json

FIND, BAD, GOOD = {"to": "SFO"}, {"flight": "A1", "seats": 2}, {"flight": "B2", "seats": 2}
RESULTS = ('["A1", "B2"]', "Error: flight A1 is full", "booked B2")
TOOLS = [
    {"type": "function", "function": {"name": n, "description": f"{n} a flight", "parameters": {"type": "object"}}}
    for n in ("find", "book")
]


def openai_call(name, arguments, call_id):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def openai_messages():
    def acts(name, arguments, call_id, result, said=None):
        return [
            {"role": "assistant", "content": said, "tool_calls": [openai_call(name, arguments, call_id)]},
            {"role": "tool", "tool_call_id": call_id, "name": name, "content": result},
        ]

    return [
        {"role": "system", "content": "Book flights."},
        {"role": "user", "content": "To SFO, for two."},
        *acts("find", FIND, "c1", RESULTS[0], "I look."),
        *acts("book", BAD, "c2", RESULTS[1]),
        *acts("book", GOOD, "c3", RESULTS[2]),
        {"role": "assistant", "content": "B2 is booked."},
    ]


def openai():
    return {"messages": openai_messages(), "tools": TOOLS, "reward": 1, "task_id": 7, "id": "r1"}


def tau_bench():
    return {"task_id": 7, "trial": 2, "reward": 1.0, "info": {"source": "user"}, "traj": openai_messages()}


def sharegpt():
    def acts(name, arguments, result):
        return [
            {"from": "function_call", "value": json.dumps({"name": name, "arguments": arguments})},
            {"from": "observation", "value": result},
        ]

    return {
        "system": "Book flights.",
        "tools": json.dumps([tool["function"] for tool in TOOLS]),
        "conversations": [
            {"from": "human", "value": "To SFO, for two."},
            *acts("find", FIND, RESULTS[0]),
            *acts("book", BAD, RESULTS[1]),
            *acts("book", GOOD, RESULTS[2]),
            {"from": "gpt", "value": "B2 is booked."},
        ],
    }


def atif():
    def acts(number, name, arguments, result, said="", **flags):
        return {
            "step_id": number,
            "source": "agent",
            "message": said,
            "model_name": "m",
            "tool_calls": [{"tool_call_id": f"c{number}", "function_name": name, "arguments": arguments}],
            "observation": {"results": [{"source_call_id": f"c{number}", "content": result, **flags}]},
            "metrics": {"prompt_tokens": 10 * number},
        }

    return {
        "schema_version": "ATIF-v1.7",
        "session_id": "s-1",
        "agent": {"name": "a", "version": "1", "tool_definitions": TOOLS},
        "steps": [
            {"step_id": 1, "source": "system", "message": "Book flights."},
            {"step_id": 2, "source": "user", "message": "To SFO, for two."},
            acts(3, "find", FIND, RESULTS[0], "I look."),
            acts(4, "book", BAD, "no seat", extra={"is_error": True}),
            acts(5, "book", GOOD, RESULTS[2]),
            {"step_id": 6, "source": "agent", "message": "B2 is booked.", "reasoning_content": "All is done."},
        ],
        "final_metrics": {"total_steps": 6},
    }


def adp():
    def acts(call_id, name, kwargs, result):
        return [
            {"class_": "api_action", "function": name, "kwargs": kwargs, "description": None, "tool_call_id": call_id},
            {"class_": "text_observation", "content": result, "source": "environment", "tool_call_id": call_id},
        ]

    return {
        "schema_version": "1.2.0",
        "id": "x-1",
        "content": [
            {"class_": "text_observation", "content": "Book flights.", "source": "system"},
            {"class_": "text_observation", "content": "To SFO, for two.", "source": "user"},
            *acts("c1", "find", FIND, RESULTS[0]),
            *acts("c2", "book", BAD, RESULTS[1]),
            *acts("c3", "book", GOOD, RESULTS[2]),
            {"class_": "message_action", "content": "B2 is booked.", "description": "All is done."},
        ],
        "details": {"dataset": "made up"},
    }


def swe_agent():
    """A record with commands in the text instead of calls."""

    def acts(thought, action, observation):
        return [
            {
                "role": "assistant",
                "content": f"DISCUSSION\n{thought}\n```\n{action}\n```",
                "thought": thought,
                "action": action,
                "agent": "main",
                "message_type": "action",
            },
            {"role": "user", "content": observation, "agent": "main", "message_type": "observation"},
        ]

    steps = [("Look.", "ls", "a.py"), ("Run it.", "python b.py", "bash: python: command not found"),
             ("Again.", "python a.py", "1")]  # fmt: skip
    return {
        "environment": "swe_main",
        "trajectory": [
            {"action": a, "observation": o, "response": "...", "thought": t, "query": [{}], "execution_time": 0.5,
             "state": {"open_file": "n/a"}}
            for t, a, o in steps
        ],
        "history": [
            {"role": "system", "content": "You fix bugs.", "agent": "main", "message_type": "system_prompt"},
            {"role": "user", "content": "A demonstration.", "agent": "main", "is_demo": True,
             "message_type": "demonstration"},
            {"role": "user", "content": [{"type": "text", "text": "Fix it."}], "agent": "main",
             "message_type": "observation"},
            *[message for step in steps for message in acts(*step)],
            {"role": "assistant", "content": "Done.", "thought": "Done.", "action": "", "agent": "main",
             "message_type": "action"},
        ],
        "info": {"exit_status": "submitted", "submission": "diff", "model_stats": {"api_calls": 3}},
        "replay_config": "{}",
    }  # fmt: skip


def ours():
    messages = openai_messages()
    for message in messages:
        message.pop("name", None)
    messages[5]["error"] = True
    messages[8] |= {"weight": 2.0, "reward": 0.5, "extra": {"seen": [1, None, {"a": "é"}]}}
    return {
        "format": "maverick-trajectory",
        "version": 1,
        "tools": TOOLS,
        "messages": messages,
        "outcome": {"reward": -1.0, "success": True, "termination": "user left"},
        "provenance": {"format": "openai", "file": "a/b.jsonl", "record": 0, "line": 1, "id": "r", "task": "t"},
        "extra": {"language": "en"},
    }


def alpaca():
    """Has no calls."""
    return {"instruction": "To SFO, for two.", "input": "", "output": "B2 is booked.", "system": "Book flights."}


def prompt_completion():
    messages = openai_messages()
    return {"prompt": messages[:2], "completion": messages[2:], "tools": TOOLS, "id": "p-1"}


ALL = {
    make.__name__: make for make in (ours, openai, tau_bench, swe_agent, sharegpt, atif, adp, alpaca, prompt_completion)
}
