"""A command with others below it: arguments that begin with none of their names are its own."""

from typing import Any

import typer
from typer.core import TyperGroup


class CommandWithOthers(TyperGroup):
    """A group whose first command is the group itself: it runs where no other is named, and its options stand in the group's help."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        return self._own().get_params(ctx)

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return super().list_commands(ctx)[1:]

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Leave the arguments to the command that they are for."""
        if args[:1] and args[0] in ctx.help_option_names:
            typer.echo(ctx.get_help())
            ctx.exit()
        ctx.args = args
        return args

    def invoke(self, ctx: typer.Context) -> Any:
        named = ctx.args[0] if ctx.args and ctx.args[0] in self.list_commands(ctx) else None
        if named is None:
            inner = self._own().make_context(ctx.info_name, [*ctx.args], parent=ctx.parent)
        else:
            inner = self.commands[named].make_context(named, ctx.args[1:], parent=ctx)
        with inner:
            return inner.command.invoke(inner)

    def _own(self) -> Any:
        return next(iter(self.commands.values()))
