"""Which options of a panel were said on the command line: those that mean nothing with what else was said are refused, not passed over.

`up`, `plan` and `simulate` ask it.
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
