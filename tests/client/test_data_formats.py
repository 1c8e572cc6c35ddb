"""Formats of shards: what is counted, what a batch looks like, and what is said about files that are none."""

import gc
import io
import json
import pickle
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from holdfast.data import formats
from holdfast.data.columns import Part, assemble, cut
from holdfast.data.errors import DataError
from holdfast.data.formats import examine, open_shard, suffix_of
from holdfast.data.memory import Memory

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.arange(6, dtype=np.int64) * 10
ROWS = np.array([4, 0, 4])


def counted(path):
    with path.open("rb") as content:
        return examine(path.name, content).samples


def taken(path, rows=ROWS):
    return assemble([Part(open_shard(path.name, str(path)), np.asarray(rows))], None, Memory(1))


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", X)
    assert counted(tmp_path / "a.npy") == 6
    assert taken(tmp_path / "a.npy").tolist() == X[ROWS].tolist()
    assert taken(tmp_path / "a.npy").dtype == np.float32


FIELDS = np.zeros((3, 2), [("a", "<i4"), ("b", "<f8", (2,))])


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<i8", ">f4", "<c16", "S5", "<U3", "V7", "<M8[ns]", FIELDS.dtype]
)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 2)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_headers_are_read_as_numpy_reads_them(tmp_path, dtype, shape, version):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, np.zeros(shape, dtype), version)
    wanted = np.load(tmp_path / "a.npy")
    found = taken(tmp_path / "a.npy", [0, 1, 2])
    assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


@pytest.fixture
def busy_collector():
    """Python code runs whenever some objects were made, and other threads get their turn in it."""
    before = gc.get_threshold(), sys.getswitchinterval()

    def callback(*_):
        pass

    gc.callbacks.append(callback)
    gc.set_threshold(10)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before[1])
    gc.set_threshold(*before[0])
    gc.callbacks.remove(callback)


def test_headers_are_read_in_several_threads(busy_collector):
    """Python's own parser, which numpy uses, breaks when two threads use it at the same moment."""
    shards = [saved(X), saved(FIELDS)]
    with ThreadPoolExecutor(8) as pool:
        counting = [pool.submit(examine, "a.npy", io.BytesIO(shards[n % 2])) for n in range(400)]
        assert {found.result().samples for found in counting} == {6, 3}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "a.npz", x=X, y=Y)
    assert counted(tmp_path / "a.npz") == 6
    found = taken(tmp_path / "a.npz")
    assert found.keys() == {"x", "y"}
    assert found["x"].tolist() == X[ROWS].tolist()
    assert found["y"].tolist() == Y[ROWS].tolist()
    assert (open_shard("a.npz", str(tmp_path / "a.npz")).held_bytes > 0) == (save is np.savez_compressed)


def test_safetensors_at_any_alignment(tmp_path):
    save_file({"flag": np.array([True] * 6), "x": X, "y": Y}, tmp_path / "a.safetensors")
    assert counted(tmp_path / "a.safetensors") == 6
    found = taken(tmp_path / "a.safetensors")
    assert found["x"].tolist() == X[ROWS].tolist()
    assert found["y"].tolist() == Y[ROWS].tolist()
    assert found["flag"].dtype == bool


def test_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"y": Y, "f": [1.0, None, 2.0, 3.0, 4.0, 5.0], "s": [None, *"bcdef"]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert counted(tmp_path / "a.parquet") == 6
    found = taken(tmp_path / "a.parquet")
    assert found["y"].tolist() == Y[ROWS].tolist()
    assert found["s"].tolist() == ["e", None, "e"]
    assert np.isnan(taken(tmp_path / "a.parquet", [1])["f"]).all()


def test_parquet_has_no_nulls_that_numpy_has_not(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"y": [1, None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: the column 'y' of type int64 has nulls"):
        taken(tmp_path / "a.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'holdfast\[parquet\]'"):
        examine("a.parquet", io.BytesIO())


LINES = st.lists(st.sampled_from([b'{"a":1}', b'{"b":"\xc3\xa9"}', b"", b"\r", b'{"c":[]}\r']), max_size=9)


@given(LINES, st.booleans(), st.integers(1, 40))
def test_jsonl_counts_the_lines_that_are_not_blank(tmp_path_factory, lines, ended, piece):
    """Also where a line, or its end, lies between two reads."""
    text = b"\n".join(lines) + (b"\n" if ended else b"")

    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, piece))

    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_bytes(text)
    wanted = [json.loads(line) for line in text.split(b"\n") if line.strip()]
    assert examine("a.jsonl", Slow(text)).samples == counted(path) == len(wanted)
    if wanted:
        assert taken(path, range(len(wanted))) == wanted


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"a\.jsonl: the 2\. line .* is no JSON"):
        taken(tmp_path / "a.jsonl", [1])


class Trap:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=np.array([Trap()], dtype=object))
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Trap()))
    for name, sentence in [
        ("a.npy", "Python objects"),
        ("b.npz", "Python objects"),
        ("c.npy", "c.npy is no npy"),
    ]:
        with pytest.raises(DataError, match=sentence):
            counted(tmp_path / name)
        with pytest.raises(DataError, match=sentence):
            taken(tmp_path / name)


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def tensors(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


WRONG = {
    "empty.npy": (b"", "empty.npy is no npy file"),
    "scalar.npy": (saved(np.float64(1)), "a single number"),
    "fortran.npy": (saved(np.asfortranarray(X)), "Fortran's order"),
    "hollow.npy": (saved(np.empty((3, 0))), "its rows are empty"),
    "torn.npy": (saved(X)[:20], "torn.npy is no npy file"),
    "lengths.npz": (zipped(x=X, y=Y[:5]), r"of one length, not \{'x': 6, 'y': 5\}"),
    "none.npz": (zipped(), "holds no array"),
    "torn.npz": (zipped(x=X)[:-9], "torn.npz is no npz file"),
    "other.npz": (b"PK", "other.npz is no npz file"),
    "bf16.safetensors": (tensors({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}), "BF16"),
    "scalar.safetensors": (
        tensors({"x": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}),
        "'x' is a single number",
    ),
    "shape.safetensors": (
        tensors({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        "'x' is of 8 bytes",
    ),
    "text.safetensors": (b"\xff" * 30, "text.safetensors is no safetensors file"),
    "none.safetensors": (tensors({"__metadata__": {"a": "b"}}), "holds no array"),
    "other.parquet": (b"PAR1", "other.parquet is no parquet file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_said_about_files_that_are_none(name):
    content, sentence = WRONG[name]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=sentence) as wrong:
        examine(name, io.BytesIO(content))
    assert name in str(wrong.value)


def test_a_file_that_is_shorter_than_its_header_says_is_refused_when_it_is_opened(tmp_path):
    (tmp_path / "a.npy").write_bytes(saved(X)[:-1])
    with pytest.raises(DataError, match=r"a\.npy is no npy file"):
        taken(tmp_path / "a.npy")


def test_rows_of_several_shards_come_in_the_order_that_is_asked_for(tmp_path):
    parts = []
    for n in range(3):
        np.savez(tmp_path / f"{n}.npz", x=X + 100 * n, y=Y + n)
        parts.append(Part(open_shard(f"{n}.npz", str(tmp_path / f"{n}.npz")), np.array([n, n + 1])))
    found = assemble(parts, np.array([5, 0, 3, 1, 4, 2]), Memory(1))
    assert found["y"].tolist() == [10, 21, 32, 11, 22, 0]
    assert found["x"][5].tolist() == X[0].tolist()
    assert cut(found, 1, 3)["y"].tolist() == [21, 32]


def test_shards_of_other_types_are_never_mixed(tmp_path):
    np.save(tmp_path / "a.npy", Y)
    np.save(tmp_path / "b.npy", Y.astype(float))
    parts = [Part(open_shard(name, str(tmp_path / name)), np.array([0])) for name in ("a.npy", "b.npy")]
    with pytest.raises(DataError, match=r"a\.npy and b\.npy hold arrays of different"):
        assemble(parts, None, Memory(1))


def test_hidden_files_are_no_shards():
    assert [suffix_of(name) for name in ("d/a.npy", "_a.npy", "d/.a.npy", "a.txt", ".npy")] == [
        ".npy",
        "",
        "",
        "",
        "",
    ]


def test_an_npz_of_another_program_is_mapped_where_its_data_are(tmp_path):
    """The local header of a member may be longer than the central directory says."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        info = zipfile.ZipInfo("x.npy")
        info.extra = b"\xfe\xca\x04\x00abcd"
        archive.writestr(info, saved(X))
    assert taken(tmp_path / "a.npz")["x"].tolist() == X[ROWS].tolist()
    assert formats.open_shard("a.npz", str(tmp_path / "a.npz")).held_bytes == 0
