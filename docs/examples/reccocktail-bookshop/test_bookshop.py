"""What the plugin's author runs: the contract, and what is the shop's own."""

from reccocktail.engine.recipes import load_recipe
from reccocktail.tasks import describe, read_domain
from reccocktail.trainers.testing import check_trainer
from reccocktail_bookshop import Bookshop, write_books


def test_the_trainer_keeps_the_contract(tmp_path):
    options = {"epochs": 2, "examples": 4, "rank": 2}
    check_trainer(Bookshop, tmp_path, options=options, deterministic=True, check_recipe=load_recipe)


def test_every_reader_reads_on_in_a_series(tmp_path):
    write_books(tmp_path)
    data = read_domain(tmp_path)
    assert describe(data).too_short == 0
    assert all(len({item[:2] for item in history.items}) == 1 for history in data.sequences)
