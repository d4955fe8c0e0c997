"""The safetensors reader and writer: what they agree on, and what they refuse."""

from __future__ import annotations

import io
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refkd.errors import CheckpointError
from refkd.train.safetensors import parse, read_arrays, read_safetensors, serialize
from refkd.train.safetensors_header import read_header

DTYPES = [
    "bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8",
]  # fmt: skip
LAYOUTS = ["C", "F", "reversed", "strided", "big-endian"]
MEMORY_SLACK = 64_000_000


def random_array(
    rng: np.random.Generator, dtype: str, shape: tuple[int, ...], layout: str = "C"
) -> np.ndarray:
    """Random bits, NaNs with payloads included, in one of the layouts a user may have."""
    target = np.dtype(dtype)
    raw = rng.integers(0, 256, (*shape, target.itemsize), dtype=np.uint8)
    raw = raw % 2 if dtype == "bool" else raw
    array = np.ascontiguousarray(raw).view(target).reshape(shape)
    match layout:
        case "F":
            return np.asfortranarray(array)
        case "reversed":
            return array[(..., *(slice(None, None, -1) for _ in shape))]
        case "strided":
            wide = np.zeros((*shape, 2), target)
            wide[..., 0] = array
            return wide[..., 0]
        case "big-endian":
            return array.byteswap().view(target.newbyteorder(">"))
    return array


def little_endian(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def file_of(header: Any, data: bytes = b"") -> bytes:
    """A file with this header, valid or not; text and bytes are taken as they are."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@st.composite
def named_arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
    specs = draw(
        st.dictionaries(
            names.filter(lambda name: name != "__metadata__"),
            st.tuples(st.sampled_from(DTYPES), shapes, st.sampled_from(LAYOUTS)),
            max_size=5,
        )
    )
    return {name: random_array(rng, *spec) for name, spec in specs.items()}


metadata_texts = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    st.text(st.characters(codec="utf-8"), max_size=8),
    max_size=3,
)


@given(named_arrays(), metadata_texts)
def test_what_is_written_is_read_back_bit_for_bit_in_the_same_order(arrays, metadata):
    data = b"".join(serialize(arrays, metadata))
    found, found_metadata = parse(data, "memory")
    assert list(found) == list(arrays)
    assert found_metadata == metadata
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert found[name].shape == array.shape
        assert little_endian(found[name]) == little_endian(array)
        assert found[name].flags.writeable
        assert found[name].flags.c_contiguous


@given(named_arrays(), metadata_texts)
def test_the_safetensors_package_reads_what_refkd_writes(arrays, metadata):
    oracle = pytest.importorskip("safetensors", reason="the oracle of the format")
    found = dict(oracle.deserialize(b"".join(serialize(arrays, metadata))))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tuple(found[name]["shape"]) == array.shape
        assert bytes(found[name]["data"]) == little_endian(array)


def test_the_safetensors_package_reads_the_metadata_refkd_writes(tmp_path):
    oracle = pytest.importorskip("safetensors", reason="the oracle of the format")
    path = tmp_path / "é.safetensors"
    arrays = {"λ": np.arange(3.0)}
    path.write_bytes(b"".join(serialize(arrays, {"temperature": "4", "note": '"é\n'})))
    with oracle.safe_open(path, "numpy") as file:
        assert file.metadata() == {"temperature": "4", "note": '"é\n'}
        np.testing.assert_array_equal(file.get_tensor("λ"), arrays["λ"])


@given(named_arrays(), metadata_texts)
def test_refkd_reads_what_the_safetensors_package_writes(arrays, metadata):
    oracle = pytest.importorskip("safetensors.numpy", reason="the oracle of the format")
    native = {
        name: np.ascontiguousarray(a, a.dtype.newbyteorder("=")).reshape(a.shape)
        for name, a in arrays.items()
    }
    # The package writes invalid JSON for no tensors and metadata {}.
    found, found_metadata = parse(oracle.save(native, metadata or None), "memory")
    assert found.keys() == arrays.keys()
    assert found_metadata == metadata
    for name, array in native.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_every_tensor_is_aligned_to_its_item_size_in_the_file():
    arrays = {"flag": np.array([True]), "half": np.ones(3, "f2"), "double": np.ones(2)}
    data = b"".join(serialize(arrays))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    for name, array in arrays.items():
        assert header[name]["data_offsets"][0] % array.itemsize == 0


def test_contiguous_little_endian_arrays_are_written_without_a_copy():
    array = np.zeros(1_000_000)
    tracemalloc.start()
    chunks = list(serialize({"x": array}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert np.shares_memory(np.frombuffer(chunks[1], "u1"), array)


def test_bfloat16_is_widened_to_the_float32_that_begins_with_its_bits():
    codes = np.arange(2**16, dtype="<u2")
    found, _ = parse(file_of({"x": entry("BF16", [2**16], [0, 2**17])}, codes.tobytes()), "f")
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"].view("u4"), codes.astype("u4") * 2**16)


def float8(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The definition of an 8-bit float, without its non-finite codes."""
    sign = -1.0 if code >> 7 else 1.0
    exponent = code >> mantissa_bits & (2**exponent_bits - 1)
    fraction = (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)


def read_float8(dtype: str) -> np.ndarray:
    found, _ = parse(file_of({"x": entry(dtype, [256], [0, 256])}, bytes(range(256))), "f")
    assert found["x"].dtype == np.float32
    return found["x"]


def test_float8_e4m3_has_its_254_values_and_two_nans():
    found = read_float8("F8_E4M3")
    expected = [math.nan if c & 0x7F == 0x7F else float8(c, 4, 3) for c in range(256)]
    np.testing.assert_array_equal(found, expected)
    assert np.nanmax(found) == 448
    assert np.signbit(found[128])


def test_float8_e5m2_has_its_248_values_two_infinities_and_six_nans():
    found = read_float8("F8_E5M2")
    expected = [float8(c, 5, 2) for c in range(256)]
    for sign in (0, 128):
        expected[sign + 0x7C] = -math.inf if sign else math.inf
        expected[sign + 0x7D : sign + 0x80] = [math.nan] * 3
    np.testing.assert_array_equal(found, expected)
    assert np.signbit(found[128])


@pytest.mark.slow  # importing torch takes seconds
@pytest.mark.parametrize(
    ("name", "torch_name"),
    [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("BF16", "bfloat16")],
)
def test_widened_values_equal_those_of_torch(name, torch_name):
    torch = pytest.importorskip("torch", reason="the oracle of the formats NumPy lacks")
    save = pytest.importorskip("safetensors.torch", reason="the oracle of the format").save
    codes = torch.arange(256, dtype=torch.uint8)
    tensor = codes.view(getattr(torch, torch_name))
    found, _ = parse(save({"x": tensor}), "f")
    np.testing.assert_array_equal(found["x"], tensor.to(torch.float32).numpy())


ONE = bytes(4)
REFUSED = {
    "an empty file": b"",
    "half a length": bytes(7),
    "a header longer than the file": (3).to_bytes(8, "little") + b"{}",
    "a header over 100 MB": (100_000_001).to_bytes(8, "little") + b"{}",
    "a length of 2**64 - 1": b"\xff" * 8 + b"{}",
    "a header that is a list": file_of([]),
    "a header that starts with a space": file_of(" {}"),
    "a header with a byte order mark": file_of("\ufeff{}"),
    "text after the header": file_of("{} {}"),
    "invalid UTF-8": file_of(b'{"\xff":{}}'),
    "a lone surrogate in a name": file_of({"\ud800": entry()}, ONE),
    "a lone surrogate in the metadata": file_of({"__metadata__": {"a": "\ud800"}}),
    "a name with NUL": file_of({"a\0": entry()}, ONE),
    "a metadata name with NUL": file_of({"__metadata__": {"a\0": ""}}),
    "a tensor twice": file_of(f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry())}}}', ONE),
    "an entry's key twice": file_of(
        '{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', ONE
    ),
    "a metadata key twice": file_of('{"__metadata__":{"a":"1","a":"1"}}'),
    "metadata that is a list": file_of({"__metadata__": []}),
    "metadata that is null": file_of({"__metadata__": None}),
    "metadata that is a number": file_of({"__metadata__": {"a": 1}}),
    "an entry that is a list": file_of({"a": []}),
    "an entry without shape": file_of({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, ONE),
    "an entry with another key": file_of({"a": entry() | {"strides": [1]}}, ONE),
    "an unknown dtype": file_of({"a": entry("F4")}, ONE),
    "a dtype that is a list": file_of({"a": entry(["F32"])}, ONE),
    "a shape that is a number": file_of({"a": entry(shape=1)}, ONE),
    "a negative axis": file_of({"a": entry(shape=[-1])}, ONE),
    "two negative axes": file_of({"a": entry(shape=[-1, -1])}, ONE),
    "minus zero": file_of('{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', ONE),
    "a float axis": file_of({"a": entry(shape=[1.0])}, ONE),
    "a bool axis": file_of({"a": entry(shape=[True])}, ONE),
    "a text axis": file_of({"a": entry(shape=["1"])}, ONE),
    "a NaN axis": file_of({"a": entry(shape=[math.nan])}, ONE),
    "an infinite offset": file_of({"a": entry(offsets=[0, math.inf])}, ONE),
    "a bool offset": file_of({"a": entry("U8", [1], [False, 1])}, b"\0"),
    "an axis of 2**64": file_of({"a": entry(shape=[2**64])}, ONE),
    "axes that overflow 64 bits to 1": file_of({"a": entry(shape=[2**32 + 1, 2**32 - 1])}, ONE),
    "an empty tensor no array can have": file_of({"a": entry(shape=[0, 2**62], offsets=[0, 0])}),
    "65 axes": file_of({"a": entry(shape=[1] * 65)}, ONE),
    "an axis of 5,000 digits": file_of(f'{{"a":{{"shape":[{"9" * 5000}]}}}}'),
    "offsets of 2**64": file_of({"a": entry(offsets=[2**64, 2**64 + 4])}, ONE),
    "one offset": file_of({"a": entry(offsets=[4])}, ONE),
    "three offsets": file_of({"a": entry(offsets=[0, 4, 4])}, ONE),
    "offsets that run backwards": file_of({"a": entry(offsets=[4, 0])}, ONE),
    "a range shorter than its shape": file_of({"a": entry(shape=[2])}, ONE),
    "a range longer than its shape": file_of({"a": entry(offsets=[0, 8])}, bytes(8)),
    "missing data": file_of({"a": entry()}, bytes(3)),
    "trailing bytes": file_of({"a": entry()}, bytes(5)),
    "trailing bytes without a tensor": file_of({}, b"\0"),
    "a hole before the first tensor": file_of({"a": entry(offsets=[4, 8])}, bytes(8)),
    "a hole": file_of({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)),
    "an overlap": file_of({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)),
    "a shared range": file_of({"a": entry(), "b": entry()}, ONE),
    "an empty tensor past the end": file_of({"a": entry(shape=[0], offsets=[9, 9])}),
    "a BOOL of 2": file_of({"a": entry("BOOL", [1], [0, 1])}, b"\2"),
    "10,000 nested lists": file_of('{"a":' + "[" * 10_000 + "]" * 10_000 + "}"),
    "100,000 nested entries": file_of('{"a":' * 100_000),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_an_invalid_file_is_refused_with_its_name(data):
    with pytest.raises(CheckpointError, match=r"^teacher\.bin: no valid safetensors file: ."):
        parse(data, "teacher.bin")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("a hole before the first tensor", "unused bytes at 0"),
        ("a hole", "unused bytes at 4"),
        ("trailing bytes", "unused bytes at 4"),
        ("an overlap", "an overlap, or missing bytes, at 4"),
        ("missing data", "an overlap, or missing bytes, at 4"),
        ("a range shorter than its shape", r"shape \[2\] takes 8 bytes"),
        ("a range longer than its shape", r"shape \[1\] takes 4 bytes"),
        ("a tensor twice", "has the key 'a' twice"),
        ("a header over 100 MB", "header of at most 2 bytes, got 100000001"),
        ("10,000 nested lists", "recursion"),
    ],
)
def test_the_reason_of_a_refusal_says_what_is_wrong(case, reason):
    with pytest.raises(CheckpointError, match=reason):
        parse(REFUSED[case], "f")


def test_a_file_cut_while_it_is_read_is_refused():
    data = file_of({"a": entry("F64", [300_000], [0, 2_400_000])}, bytes(2_400_000))
    stream = io.BytesIO(data[:-1])
    header = read_header(stream, len(data), "f")
    with pytest.raises(CheckpointError, match="ends before its data does"):
        read_arrays(stream, header)


def test_the_files_refused_above_differ_from_valid_ones_only_in_their_fault():
    valid = file_of({"a": entry(), "b": entry(offsets=[4, 8])}, bytes(8))
    found, _ = parse(valid, "f")
    assert list(found) == ["a", "b"]
    assert parse(file_of("{}  "), "f") == ({}, {})
    assert parse(file_of({"__metadata__": {"a": ""}}), "f") == ({}, {"a": ""})
    assert parse(file_of({"a": entry(shape=[1] * 64)}, ONE), "f")[0]["a"].ndim == 64
    assert parse(file_of({"a": entry(shape=[0], offsets=[0, 0])}), "f")[0]["a"].shape == (0,)


@pytest.mark.parametrize(
    ("arrays", "metadata", "reason"),
    [
        ({"a": [1.0]}, {}, "must be a NumPy array, got list"),
        ({"a": np.float32(1)}, {}, "must be a NumPy array, got float32"),
        ({"a": np.zeros(1, "c16")}, {}, "got complex128"),
        ({"a": np.array(["x"])}, {}, "got <U1"),
        ({"a": np.array([None])}, {}, "got object"),
        ({"__metadata__": np.zeros(1)}, {}, "reserved"),
        ({"a\0": np.zeros(1)}, {}, "NUL"),
        ({"\ud800": np.zeros(1)}, {}, "surrogates"),
        ({1: np.zeros(1)}, {}, "got 1"),
        ({}, {"step": 1}, "expected metadata as text, got 1"),
        ({}, {1: "step"}, "got 1"),
        ({}, {"a": "\ud800"}, "surrogates"),
        ({}, {"a": "x" * 100_000_000}, "at most 100000000 bytes"),
        ({}, {"a": "," * 1_000_000}, "too much memory"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_the_first_byte(arrays, metadata, reason):
    with pytest.raises(CheckpointError, match=reason):
        serialize(arrays, metadata)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: no such file"):
        read_safetensors(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: cannot be read"):
        read_safetensors(tmp_path)


def parse_within_memory(data: bytes) -> Any:
    """Parse, or None if refused; fails on other exceptions and on memory over the bound."""
    tracemalloc.start()
    try:
        result = parse(data, "fuzz")
    except CheckpointError:
        result = None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= 4 * len(data) + MEMORY_SLACK
    return result


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_checkpoint_errors(data):
    parse_within_memory(data)
    parse_within_memory(len(data).to_bytes(8, "little") + data)
    parse_within_memory((len(data) + 1).to_bytes(8, "little") + b"{" + data)


VALID = file_of(
    {
        "__metadata__": {"step": "7"},
        "w": entry("F64", [2, 1], [0, 16]),
        "b": entry("BOOL", [2], [16, 18]),
        "e": entry("BF16", [0], [18, 18]),
    },
    bytes(18),
)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "insert", "delete"]),
            st.integers(0, len(VALID) - 1),
            st.one_of(st.integers(0, 255), st.sampled_from(b'{}[]",:-.0129eFB\\u')),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_mutated_file_is_refused_or_read_as_the_safetensors_package_reads_it(mutations):
    oracle = pytest.importorskip("safetensors", reason="the oracle of the format")
    data = bytearray(VALID)
    for kind, position, value in mutations:
        stop = position if kind == "insert" else position + 1
        data[position:stop] = b"" if kind == "delete" else bytes([value])
    result = parse_within_memory(bytes(data))
    if result is not None:
        found = dict(oracle.deserialize(bytes(data)))
        assert found.keys() == result[0].keys()
        for name, array in result[0].items():
            assert tuple(found[name]["shape"]) == array.shape
            if found[name]["dtype"] != "BF16":
                assert bytes(found[name]["data"]) == array.tobytes()


numbers = st.one_of(
    st.integers(-2, 20),
    st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**400]),
    st.floats(),
    st.booleans(),
    st.none(),
)
number_lists = st.one_of(st.lists(numbers, max_size=4), st.lists(st.integers(0, 9), max_size=3))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "U8", "BOOL", "BF16", "F8_E5M2", "F4", "", 7]),
        "shape": number_lists,
        "data_offsets": number_lists,
    },
    optional={"strides": st.none()},
)
json_values = st.recursive(
    st.one_of(numbers, st.text(max_size=4), entries),
    lambda children: st.one_of(
        st.lists(children, max_size=3), st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=8,
)
headers = st.dictionaries(
    st.one_of(st.sampled_from(["a", "b", "__metadata__"]), st.text(max_size=3)),
    st.one_of(entries, json_values),
    max_size=4,
)


@settings(max_examples=400)
@given(headers, st.binary(max_size=40))
@example({"a": entry(shape=[2**62, 2], offsets=[0, 0])}, b"")
def test_a_structured_header_is_refused_or_describes_exactly_its_data(header, data):
    result = parse_within_memory(file_of(header, data))
    if result is not None:
        stored = {"BF16": 2, "F8_E5M2": 1}
        sizes = [
            array.size * stored.get(header[name]["dtype"], array.itemsize)
            for name, array in result[0].items()
        ]
        assert sum(sizes) == len(data)


# Headers of about n bytes made of what costs the most memory per byte.
GREEDY = {
    "lists": lambda n: '{"a":[' + "[]," * (n // 3) + "0]}",
    "objects": lambda n: '{"a":[' + "{}," * (n // 3) + "0]}",
    "small objects": lambda n: '{"a":[' + '{"a":0},' * (n // 8) + "0]}",
    "texts": lambda n: '{"a":[' + '"ab",' * (n // 5) + "0]}",
    "keys": lambda n: "{" + ",".join(f'"{i:x}":300' for i in range(n // 10)) + "}",
    "entries": lambda n: json.dumps(
        {str(i): entry(shape=[0], offsets=[0, 0]) for i in range(n // 60)}
    ),
    "ASCII": lambda n: '{"__metadata__":{"a":"' + "a" * n + '"}}',
    "escapes": lambda n: '{"__metadata__":{"a":"' + "a" * n + '\\ud83d\\ude00"}}',
    "emoji": lambda n: '{"__metadata__":{"a":"' + "a" * n + '😀\\n"}}',
}


@pytest.mark.parametrize("size", [4_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", GREEDY)
def test_a_header_made_to_waste_memory_stays_within_the_bound(kind, size):
    header = GREEDY[kind](size)
    result = parse_within_memory(file_of(header))
    if result is not None:
        expected = json.loads(header)
        assert result[1] == expected.pop("__metadata__", {})
        assert result[0].keys() == expected.keys()


def test_a_header_of_10_000_tensors_is_read():
    arrays = {f"blocks.{i}.attn.qkv.weight": np.empty(0) for i in range(10_000)}
    assert parse_within_memory(b"".join(serialize(arrays)))[0].keys() == arrays.keys()


@pytest.mark.parametrize("dtype", ["F64", "BOOL", "BF16", "F8_E4M3", "F8_E5M2"])
def test_large_data_takes_at_most_four_times_the_file(dtype, tmp_path):
    size = 24_000_000
    itemsize = {"F64": 8, "BF16": 2}.get(dtype, 1)
    header = {"a": entry(dtype, [size // itemsize], [0, size])}
    path = tmp_path / "large.safetensors"
    path.write_bytes(file_of(header, bytes(size)))
    tracemalloc.start()
    arrays, _ = read_safetensors(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert arrays["a"].nbytes == size * (4 // itemsize if dtype[:2] in ("BF", "F8") else 1)
    assert peak <= 4 * size + 6_000_000
