"""Files of tensors: what would grow when it is read is refused before it does."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from onward.errors import CheckpointDamaged
from onward.system.pickled import MAX_PICKLE_BYTES
from onward.system.tensors import load_tensors

GROWS = "would grow when read"


@pytest.fixture
def read(tmp_path):
    """Return a function that reads bytes, or what torch.save makes of an object."""

    def read(content, from_script=False):
        path = tmp_path / "x.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return load_tensors([path], "x", from_script)

    return read


def archive(pickled, members=()):
    """Return the bytes of an archive as torch writes it, with that pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        parts = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **dict(members)}
        for name, content in parts.items():
            file.writestr(f"x/{name}", content)
    return buffer.getvalue()


def test_what_is_plain_comes_back(read):
    """Tensors to the bit, also a view, an empty one and a scalar; a parameter as a tensor."""
    base = torch.arange(10.0)
    content = {
        "view": base[2:5],
        "again": base,
        "empty": torch.empty(0, 7),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "ordered": OrderedDict(a=[1, (2.5, None, True, b"bytes", "text")]),
    }
    found = read(content)
    assert torch.equal(found["view"], base[2:5])
    assert found["empty"].shape == (0, 7)
    assert (found["scalar"].item(), type(found["parameter"])) == (3, torch.Tensor)
    assert found["ordered"] == {"a": [1, (2.5, None, True, b"bytes", "text")]}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(1 << 30),
        torch.zeros(1).expand(1 << 20, 1 << 20),
        torch.zeros(200).as_strided((90, 90), (1, 1)),
    ],
    ids=["expanded", "expanded twice", "overlapping"],
)
def test_a_tensor_larger_than_its_storage_is_refused(read, tensor):
    """It saves small, and would be as large as it says as soon as it is copied."""
    for content in ({"a": tensor}, {"a": {"b": [tensor]}}, [(tensor,)]):
        with pytest.raises(CheckpointDamaged, match=r"a tensor of [\d,]+ bytes in it is made of"):
            read(content)


def test_tensors_that_all_share_one_storage_are_refused(read):
    """Each fits, but all of them copied do not."""
    base = torch.zeros(10_000)
    assert len(read([base, base])) == 2, "two models may share their weights"
    with pytest.raises(CheckpointDamaged, match=GROWS):
        read([base.view(-1)[i:] for i in range(100)])


def test_a_storage_that_reaches_over_its_neighbours_is_not_counted_twice(read):
    """Records that declare more than they are take their bytes from the rest of the file."""
    buffer = io.BytesIO()
    torch.save([torch.full((64,), float(i)) for i in range(300)], buffer)
    with zipfile.ZipFile(buffer) as file:
        names = {n.partition("/")[2]: file.read(n) for n in file.namelist()}
    pickled = names.pop("data.pkl").replace(b"K\x40tq", b"M\xff\xfftq")
    assert pickled.count(b"M\xff\xff") > 30
    with pytest.raises(CheckpointDamaged, match=rf"{GROWS}|cannot be read"):
        read(archive(pickled, names))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4).to_sparse(),
        torch.empty(1 << 40, device="meta"),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.zeros([1] * 65),
    ],
    ids=["sparse", "meta", "quantized", "65 dimensions"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused(read, tensor):
    """Only dense ones on the CPU are ever saved here."""
    with pytest.raises(CheckpointDamaged, match=r"it holds code \(torch|kind that is not read"):
        read({"a": tensor})


def pickled(*instructions):
    """Return a pickle of protocol 2 with those instructions."""
    return b"\x80\x02" + b"".join(instructions) + b"."


def text(value):
    """Return the instruction that makes a text."""
    return b"X" + struct.pack("<I", len(value)) + value


ENCODE = b"c_codecs\nencode\n"
MANY = b"\x8a\x05\x00\xe4\x0b\x54\x02"  # ten thousand million
SHORT = b"(" + b"K\x01" * 60_000 + b"t"
BOMBS = {
    "encoded again and again": pickled(
        ENCODE, b"q\x00", text(b"a" * 100_000), b"q\x01", text(b"latin1"), b"q\x02", b"](",
        b"h\x00h\x01h\x02\x86R" * 50_000, b"e",
    ),
    "a large shape again and again": pickled(
        b"ccollections\nOrderedDict\n", b"q\x00", SHORT, b"q\x01", b"](",
        b"h\x00h\x01\x85R" * 5_000, b"e",
    ),
    "a list of lists of lists": pickled(
        b"]q\x00(", b"K\x01" * 100, b"e",
        *(b"]" + bytes([0x71, i + 1]) + b"(" + bytes([0x68, i]) * 100 + b"e" for i in range(8)),
    ),
    "a list that holds itself": pickled(b"]q\x00h\x00a"),
    "filled after it was taken": pickled(
        b"]q\x00", *(b"]" + bytes([0x71, i + 1]) + b"(" + bytes([0x68, i]) * 100 + b"e"
                    for i in range(4)),
        b"h\x00(", b"N" * 1000, b"e", b"\x86",
    ),
    "deep": pickled(b"]" * 20_000, b"a" * 19_999),
    "an array of bytes": pickled(b"c__builtin__\nbytearray\n", MANY, b"\x85R"),
    "a storage": pickled(b"ctorch\nFloatStorage\n", MANY, b"\x85R"),
    "a bare storage type": pickled(b"ctorch.storage\nUntypedStorage\n", MANY, b"\x85R"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("from_script", [False, True])
def test_a_pickle_that_would_grow_is_refused(read, name, from_script):
    """A small pickle can make much of little; it is walked before anything of it is made."""
    with pytest.raises(CheckpointDamaged) as caught:
        read(archive(BOMBS[name]), from_script)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_an_old_file_is_refused_too(read, name):
    """Before torch 1.6 a file was five pickles, one behind the other."""
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    assert read(content, from_script=True) == {"a": 1}
    place = content.index(pickle.dumps({"a": 1}, 2)[:6])
    with pytest.raises(CheckpointDamaged):
        read(content[:place] + BOMBS[name] + content[place:], from_script=True)


def test_a_long_pickle_is_not_walked(read):
    """Names and histories are short; what is long is not looked at."""
    with pytest.raises(CheckpointDamaged, match="more than 32 MiB"):
        read(archive(pickled(text(b"a" * MAX_PICKLE_BYTES))))


def test_members_that_torch_could_mix_up_are_refused(read):
    """torch finds DATA.PKL by the name data.pkl, zipfile does not."""
    content = archive(pickled(b"}"), {"DATA.PKL": BOMBS["deep"]})
    with pytest.raises(CheckpointDamaged, match="two of its members have one name"):
        read(content)


def test_what_follows_an_archive_is_refused(read):
    """A comment could hold a second directory, which another reader would take."""
    with pytest.raises(CheckpointDamaged, match="its end is missing"):
        read(archive(pickled(b"}")) + b"more")


def test_a_directory_without_end_is_not_read(read):
    """How long the directory is says the file itself."""
    content = bytearray(archive(pickled(b"}")) + b"\0" * 0)
    start = content.rindex(b"PK\5\6")
    padding = b"\0" * (9 << 20)
    content[start + 12 : start + 16] = struct.pack("<I", len(padding) + 300)
    with pytest.raises(CheckpointDamaged, match=r"archive|directory"):
        read(bytes(content[:start]) + padding + bytes(content[start:]))


def test_a_method_put_over_a_dicts_own_is_not_called(read):
    """Attributes of an ordered dict come from the pickle: only what it holds is taken."""
    ordered = b"ccollections\nOrderedDict\n)R"
    hostile = pickled(ordered, text(b"a"), b"K\x01s}", text(b"items"), b"K\x03sb")
    assert torch.load(io.BytesIO(archive(hostile)), weights_only=True).items == 3
    assert read(archive(hostile)) == {"a": 1}


NUMBERS = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


@pytest.mark.parametrize("code", NUMBERS)
@pytest.mark.parametrize("numpy_version", [1, 2])
def test_numbers_of_numpy_are_read_from_scripts(read, code, numpy_version):
    """Scalars become Python's, arrays torch's, whatever their order of bytes and of axes."""
    array = np.arange(6).reshape(2, 3).astype(code)
    content = {
        "scalar": array[1, 1],
        "arrays": [array, array.T, array.astype(array.dtype.newbyteorder(">")), array[0, 0, None]],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as file:
        names = {n.partition("/")[2]: file.read(n) for n in file.namelist()}
    old = names.pop("data.pkl")
    if numpy_version == 1:
        assert b"numpy._core.multiarray" in old
        old = old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    found = read(archive(old, names), from_script=True)
    assert found["scalar"] == array[1, 1].item()
    assert type(found["scalar"]) is type(array[1, 1].item())
    for tensor, expected in zip(found["arrays"], content["arrays"], strict=True):
        assert np.array_equal(tensor.numpy(), expected)
    with pytest.raises(CheckpointDamaged, match=r"it holds code \(numpy"):
        read(archive(old, names))


def test_the_random_state_of_numpy_is_read(read):
    """A script saves it by np.random.get_state()."""
    state = np.random.get_state()
    found = read({"rng": state}, from_script=True)["rng"]
    assert found[0] == "MT19937"
    assert np.array_equal(found[1].numpy(), state[1])


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, "a", None], dtype=object),
        np.str_("x"),
        np.datetime64("2024-01-01"),
        np.zeros(2, dtype=[("a", "f4")]),
    ],
    ids=["objects", "text", "time", "record"],
)
def test_numpy_values_of_other_kinds_are_refused_by_name(read, value):
    """Nothing of NumPy's own reading is called, which believes what the file says."""
    with pytest.raises(CheckpointDamaged, match=r"NumPy values of type (O8|U1|M8|V4)"):
        read({"a": value}, from_script=True)


def numpy_array(shape, code, content):
    """Return the pickle of an array that says what it likes."""
    return pickled(
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85", text(b"b"), b"tR",
        b"(K\x01", shape, b"cnumpy\ndtype\n(", text(code), b"\x89\x88tR(K\x03", text(b"<"),
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb\x89",
        ENCODE, text(content), text(b"latin1"), b"\x86RtbK\x01\x86",
    )  # fmt: skip


def test_arrays_that_lie_about_their_shape_are_refused(read):
    """Shape, type and bytes must agree; flags of a type, such as one for pointers, are not used."""
    whole = numpy_array(b"K\x01\x85", b"f8", b"12345678")
    assert read(archive(whole), from_script=True)[0].shape == (1,)
    for shape, code in ((b"J\x00\x00\x00\x40\x85", b"f8"), (b"K\x01\x85", b"O8")):
        with pytest.raises(CheckpointDamaged, match="NumPy"):
            read(archive(numpy_array(shape, code, b"12345678")), from_script=True)


def test_what_a_pickle_names_is_told(read):
    """The class that its writer knows is named, not the way a pickle makes it."""
    import argparse
    import pathlib

    for value, name in (
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (pathlib.PurePosixPath("/a"), "pathlib.*PurePosixPath"),
    ):
        with pytest.raises(CheckpointDamaged, match=rf"it holds code \({name}\)"):
            read({"a": value}, from_script=True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "it is a web page"),
        (b"epoch,loss\n1,0.5\n", "it is plain text"),
        (b"\x1f\x8b\x08\x00", "gunzip"),
        (pickle.dumps({"epoch": 1}, 4), "a pickle of protocol 4"),
        (pickle.dumps({"epoch": 1}, 2), "a pickle that torch.save did not write"),
        (b"\x93NUMPY\x01\x00", "torch.save did not write it"),
        (b"\x80\x00", "torch.save did not write it"),
    ],
)
def test_what_a_file_really_is_is_told(read, content, told):
    """A pointer, a page or a text in place of the file is a common accident."""
    with pytest.raises(CheckpointDamaged, match=told):
        read(content, from_script=True)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_protocol_is_named(tmp_path, protocol):
    """torch.save can be told to write what its own safe reader does not read."""
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(2)}, path, pickle_protocol=protocol)
    with pytest.raises(CheckpointDamaged, match=f"with pickle protocol {protocol}"):
        load_tensors([path], "x", from_script=True)


def test_a_zip_of_something_else_is_told(read):
    """A table or a folder that was zipped is no checkpoint."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "a")
    with pytest.raises(CheckpointDamaged, match=r"a zip archive that torch\.save did not"):
        read(buffer.getvalue(), from_script=True)
