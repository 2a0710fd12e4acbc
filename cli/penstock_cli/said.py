"""What was said on the command line, and how it is refused: options that mean nothing with the others, and values with what is allowed.

`main`, `up`, `plan` and `simulate` ask it.
"""

import typer

WITH_AUTOSCALER = "With the autoscaler"
"""Panel of options that mean nothing without it."""


def said_in(context: typer.Context, panel: str) -> list[str]:
    """Names of the panel's options that were given, as on the command line (`--goal`)."""
    found = []
    for one in context.command.params:
        source = context.get_parameter_source(one.name) if one.name else None
        if getattr(one, "rich_help_panel", None) == panel and source is not None and source.name == "COMMANDLINE":
            found.append(one.opts[0])
    return found


def refuse_said(context: typer.Context, panel: str, lacking: str, allowed: str) -> None:
    """Raises ValueError where any of the panel's options was given."""
    if said := said_in(context, panel):
        raise ValueError(f"{', '.join(said)}: of no use {lacking}; allowed: with {allowed}")


def with_value(error: typer.BadParameter) -> str:
    """The parser's message, with the value that it refuses and, for a number out of its range, what is allowed."""
    told = getattr(error.__cause__, "errors", None)
    first = told()[0] if callable(told) else {}
    if "input" not in first:
        return error.message
    bounds = first.get("ctx", {})
    allowed = f"allowed: {bounds['ge']:g} or more" if "ge" in bounds else f"allowed: up to {bounds['le']:.10g}" if "le" in bounds else ""
    return f"{first['input']} is given; {allowed or error.message}"
