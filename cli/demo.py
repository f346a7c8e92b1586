"""`demo`: the whole trip on sample domains."""
import click
@click.command()
def demo() -> None:
    """The whole trip on sample domains."""
