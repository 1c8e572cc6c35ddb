"""A row is read as what was written, or not at all."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_coordinator.core.model import Commit, Gang, JobState, Progress, Worker, WorkerState
from holdfast_coordinator.store.rows import TABLES, from_row, key_of, to_row
from tests.store.strategies import items

FROM_OTHERS = {Gang: ["commit"], Commit: ["shards"]}
"""Fields that come from other tables."""
WORKER = Worker("job", 3, gang=0, state=WorkerState.RUNNING, progress=Progress(step=7, metrics={"loss": 0.5}))


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_kind_of_row_comes_back_from_plain_json(kind, data):
    item = data.draw(items(kind))
    plain = json.loads(json.dumps(to_row(item)))
    of_others = {name: getattr(item, name) for name in FROM_OTHERS.get(kind, ())}
    assert from_row(kind, plain, **of_others) == item


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_columns_and_fields_have_the_same_names(kind):
    fields = {field.name for field in dataclasses.fields(kind)}
    assert set(TABLES[kind].columns.keys()) == fields - ({"shards"} if kind is Commit else set())


def test_states_are_written_as_plain_strings():
    assert type(to_row(WORKER)["state"]) is str


def test_a_whole_number_is_read_as_the_float_that_it_was():
    row = to_row(WORKER)
    row["progress"]["metrics"]["loss"] = 1
    loss = from_row(Worker, row).progress.metrics["loss"]
    assert (loss, type(loss)) == (1.0, float)


def test_keys_tell_rows_apart():
    assert key_of(WORKER) == ("job", 3)
    assert key_of(Gang("job", 1)) == ("job", 1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"attempt": "2"}, "str in place of int"),
        ({"attempt": True}, "bool in place of int"),
        ({"attempt": None}, "NoneType in place of int"),
        ({"gpus": {}}, "dict in place of list"),
        ({"gpus": [0.5]}, "float in place of int"),
        ({"state": "asleep"}, "asleep"),
        ({"state": JobState.PENDING.value}, "pending"),
        ({"progress": {"step": 1}}, "the fields of a Progress"),
        ({"progress": {}}, "the fields of a Progress"),
        ({"exit": []}, "the fields of a Exit"),
        ({"surplus": 1}, "the fields of a Worker"),
    ],
)
def test_what_was_not_written_like_this_is_not_read(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        from_row(Worker, to_row(WORKER) | change)
