"""What `penstock up` prints for pasting: a `curl` line and an `openai` program, with model, port and key filled in.

The texts are long enough to fill cached blocks, so that a second question with the same beginning shows a prefix hit.
"""

import json
import shlex

_QUESTION = "Why is the pipe that feeds a turbine called a penstock?"
_KEY_PLACEHOLDER = "YOUR-API-KEY"


def curl(url: str, model: str, *, with_key: bool) -> str:
    """One streamed chat request, with the header that shows where it went."""
    body = {"model": model, "stream": True, "max_tokens": 32, "messages": [{"role": "user", "content": _QUESTION}]}
    headers = ["content-type: application/json", "x-penstock-explain: 1"]
    if with_key:
        headers.append(f"authorization: Bearer {_KEY_PLACEHOLDER}")
    shown = " ".join(f"-H {shlex.quote(header)}" for header in headers)
    return f"curl -iN {url}/v1/chat/completions {shown} \\\n  -d {shlex.quote(json.dumps(body))}"


def openai(url: str, model: str, *, with_key: bool) -> str:
    """Two questions with the same beginning: the second one's usage shows cached tokens."""
    key = _KEY_PLACEHOLDER if with_key else "none"
    return f"""from openai import OpenAI

client = OpenAI(base_url={json.dumps(url + "/v1")}, api_key={json.dumps(key)})
messages = [{{"role": "system", "content": "You explain hydropower to newcomers, briefly and kindly. " * 40}}]
for question in ({json.dumps(_QUESTION)}, "And what closes it?"):
    messages.append({{"role": "user", "content": question}})
    stream = client.chat.completions.create(
        model={json.dumps(model)}, messages=messages, max_tokens=32, stream=True, stream_options={{"include_usage": True}}
    )
    answer = ""
    for event in stream:
        if event.choices and event.choices[0].delta.content:
            answer += event.choices[0].delta.content
            print(event.choices[0].delta.content, end="", flush=True)
        if event.usage:
            print("\\n  cached tokens:", event.usage.prompt_tokens_details.cached_tokens)
    messages.append({{"role": "assistant", "content": answer}})"""
