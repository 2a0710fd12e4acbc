"""Renders a model's own chat template the way Hugging Face's libraries do, in Jinja's immutable sandbox.

`rendering` makes one from the model's folder. Pure after that: messages and fields in, text out. A template is the model's,
not the client's: templates sent with a request are not rendered here.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class CannotRender(ValueError):
    """This prompt cannot be laid out here; the engine may well be able to serve it."""


class ChatTemplate:
    """One model's template."""

    def __init__(self, source: str, tool_source: str | None, words: Mapping[str, str]) -> None:
        """`tool_source` is a template of its own for requests with tools. Raises CannotRender for a template that is not one."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._words = dict(words)
        try:
            self._parts = _walks_parts(environment.parse(source))
            self._plain = environment.from_string(source)
            self._tools = environment.from_string(tool_source) if tool_source else self._plain
        except jinja2.TemplateError as error:
            raise CannotRender(f"the chat template: {error}") from None

    def render(self, fields: Mapping[str, Any]) -> str:
        """The prompt of a chat request's decoded body. Raises CannotRender."""
        if "chat_template" in fields:
            raise CannotRender("the request brings a chat template")
        tools = fields.get("tools") if fields.get("tool_choice") != "none" else None
        messages = [self._message(one) for one in _messages(fields)]
        further = fields.get("chat_template_kwargs") or {}
        if "reasoning_effort" in fields:
            further = {"reasoning_effort": fields["reasoning_effort"], **further}
        last = fields.get("continue_final_message", False)
        if last:
            raise CannotRender("the last message is to be continued")
        try:
            return (self._tools if tools else self._plain).render(
                messages=messages,
                tools=tools,
                documents=fields.get("documents"),
                add_generation_prompt=fields.get("add_generation_prompt", True),
                **{**self._words, **further},
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise CannotRender(f"the chat template: {error}") from None

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        seen = dict(message)
        if isinstance(content, list):
            texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
            if any(not isinstance(text, str) for text in texts):
                raise CannotRender("a message has a part that is not text")
            seen["content"] = content if self._parts else "\n".join(str(text) for text in texts)
        elif isinstance(content, str) and self._parts:
            seen["content"] = [{"type": "text", "text": content}]
        for call in seen.get("tool_calls") or ():
            _read_arguments(call)
        return seen


def template_of(folder: Path) -> ChatTemplate | None:
    """The folder's template; None where it has none. Raises CannotRender or OSError."""
    settings = json.loads((folder / "tokenizer_config.json").read_bytes()) if (folder / "tokenizer_config.json").exists() else {}
    named: dict[str, str] = {}
    written = settings.get("chat_template")
    if isinstance(written, str):
        named["default"] = written
    elif isinstance(written, list):
        named.update({str(one.get("name")): str(one.get("template")) for one in written if isinstance(one, dict)})
    if (folder / "chat_template.jinja").exists():
        named["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if "default" not in named:
        return None
    words = {}
    for name in _SPECIAL:
        word = settings.get(name)
        if isinstance(word, dict):
            word = word.get("content")
        if isinstance(word, str):
            words[name] = word
    return ChatTemplate(named["default"], named.get("tool_use"), words)


def _walks_parts(template: nodes.Template) -> bool:
    """Whether a template goes through a message's parts itself; other templates get one text, as vLLM gives it to them."""
    for loop in template.find_all(nodes.For):
        for node in (loop.iter, *loop.iter.find_all((nodes.Getitem, nodes.Getattr, nodes.Name))):
            if isinstance(node, nodes.Getattr) and node.attr == "content":
                return True
            if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content":
                return True
            if isinstance(node, nodes.Name) and node.name == "content":
                return True
    return False


def _messages(fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise CannotRender("messages is no list of objects")
    return messages


def _read_arguments(call: Any) -> None:
    """Templates want a tool call's arguments as an object; clients send them as text."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"] or "{}")
        except ValueError as error:
            raise CannotRender(f"the arguments of a tool call: {error}") from None


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)
