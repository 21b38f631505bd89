"""Whatever is killed or damaged, a store gives back what was computed, and computes only what is missing."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lthlib.errors import InputError
from lthlib.store import Store, checksum, key, seal, set_aside, verify, write_atomically, write_json, write_text

# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "note.txt"
    write_text(path, "grüß dich")
    assert path.read_text(encoding="utf-8") == "grüß dich"

    def killed(temporary: Path) -> None:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, killed)
    assert path.read_text(encoding="utf-8") == "grüß dich"
    assert [entry.name for entry in path.parent.iterdir()] == ["note.txt"]
    assert path.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o666


def test_json_is_readable_and_refuses_what_json_has_no_word_for(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "λ", "values": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "λ", "values": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["name"] == "λ"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write '.*file/inside/a.txt'.*choose a writable folder"):
        write_text(tmp_path / "file" / "inside" / "a.txt", "")
    with pytest.raises(InputError, match=r"cannot write '.*file'.*choose a writable folder"):
        run(Store(tmp_path / "file"), [1])


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, who may write anywhere.
    def refused(self: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    with pytest.raises(InputError, match=r"cannot write '.*store': Permission denied \(choose a writable folder\)"):
        run(Store(tmp_path / "store"), [1])


def test_a_checksum_is_of_the_content(tmp_path: Path) -> None:
    for name, content in (("a", b"x" * 100_000), ("b", b"x" * 100_000), ("c", b"x" * 99_999 + b"y")):
        (tmp_path / name).write_bytes(content)
    assert checksum(tmp_path / "a") == checksum(tmp_path / "b") != checksum(tmp_path / "c")
    assert len(checksum(tmp_path / "a")) == 32


def test_keys_depend_on_values_and_not_on_their_order() -> None:
    assert key({"a": 1, "b": (1, 2)}) == key({"b": [1, 2], "a": 1})
    assert len({key({"a": value}) for value in (1, 1.5, "1", None, [1], {"a": 1})}) == 6
    assert key({"path": Path("x")}) == key({"path": "x"})
    assert key({"a": 1}) == "165b44bb3d3e0923", "a key that changes loses every stored result"
    with pytest.raises(TypeError, match="cannot be part of a key"):
        key({"a": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        key({"a": float("inf")})


def test_a_damaged_thing_is_set_aside_under_a_free_name(tmp_path: Path) -> None:
    for expected in ("entry.damaged-1", "entry.damaged-2"):
        (tmp_path / "entry").mkdir()
        assert set_aside(tmp_path / "entry").name == expected
    assert not (tmp_path / "entry").exists()


def test_a_seal_tells_what_changed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    seal(tmp_path)
    verify(tmp_path)
    (tmp_path / "b").write_text("c")
    with pytest.raises(InputError, match=r"b' is missing or differs from its checksum"):
        verify(tmp_path)
    (tmp_path / "b").unlink()
    with pytest.raises(InputError, match=r"b' is missing or differs"):
        verify(tmp_path)


# ------------------------------------------------------------------------------------------------------------- store


def save(value: int, folder: Path) -> None:
    write_json(folder / "value.json", {"value": value})


def load(folder: Path) -> int:
    record = json.loads((folder / "value.json").read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise InputError(f"value.json holds no mapping but {record!r}")
    return record["value"]


def run(store: Store, numbers: list[int], done: list[int] | None = None, dies_at: int | None = None) -> list[int]:
    """Squares of `numbers`, noting in `done` which were computed."""

    def work(indices: list[int]) -> Iterator[int]:
        for i in indices:
            if numbers[i] == dies_at:
                raise KeyboardInterrupt
            if done is not None:
                done.append(numbers[i])
            yield numbers[i] ** 2

    return store.compute([{"number": number} for number in numbers], work, save, load)


def test_what_is_there_is_read_and_the_rest_computed(tmp_path: Path) -> None:
    store, done = Store(tmp_path / "store"), []
    assert run(store, [3, 1, 2], done) == [9, 1, 4]
    assert run(store, [2, 5, 3], done) == [4, 25, 9]
    assert done == [3, 1, 2, 5]
    assert run(store, [], done) == []


def test_what_a_killed_run_finished_is_kept(tmp_path: Path) -> None:
    store, done = Store(tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        run(store, [1, 2, 3, 4], done, dies_at=3)
    assert run(store, [1, 2, 3, 4], done) == [1, 4, 9, 16]
    assert done == [1, 2, 3, 4]


def test_a_run_killed_while_saving_leaves_no_result(tmp_path: Path) -> None:
    def killed(value: int, folder: Path) -> None:
        save(value, folder)
        raise KeyboardInterrupt

    store, done = Store(tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        store.compute([{"number": 3}], lambda _: [-1], killed, load)
    assert run(store, [3], done) == [9]
    assert done == [3]


def test_the_same_parameters_twice_give_the_same_result_twice(tmp_path: Path) -> None:
    assert run(Store(tmp_path), [2, 2, 3]) == [4, 4, 9]
    assert run(Store(tmp_path), [2, 2, 3], done := []) == [4, 4, 9]
    assert done == []


def entry_of(folder: Path, number: int) -> Path:
    return folder / key({"number": number})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("value.json", None),
        ("value.json", b'{"value": 5}'),
        ("parameters.json", b"{}"),
        ("checksums.json", b""),
        ("checksums.json", b"[1, 2]"),
        ("checksums.json", b"[\n 1,\n 2\n]\n"),  # laid out as ours are
        ("checksums.json", b'"text"'),
        ("checksums.json", b"\xff\xfe"),
        ("checksums.json", b'{"../value.json": "00"}'),
    ],
)
def test_a_damaged_entry_is_set_aside_and_computed_anew(tmp_path: Path, name: str, content: bytes | None) -> None:
    store, done = Store(tmp_path), []
    run(store, [3, 4])
    path = entry_of(tmp_path, 3) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"is damaged .* computed anew"):
        assert run(store, [3, 4], done) == [9, 16]
    assert done == [3]
    assert (tmp_path / f"{key({'number': 3})}.damaged-1").is_dir()
    assert run(store, [3, 4], done) == [9, 16]
    assert done == [3]


def test_an_entry_that_no_longer_loads_is_computed_anew(tmp_path: Path) -> None:
    store, done = Store(tmp_path), []
    run(store, [3])
    # Sealed as it is, but written by something else.
    write_json(entry_of(tmp_path, 3) / "value.json", [9])
    seal(entry_of(tmp_path, 3))
    with pytest.warns(UserWarning, match="is damaged"):
        assert run(store, [3], done) == [9]
    assert done == [3]


@pytest.mark.parametrize("content", [[9], {}, {"other": 9}])
def test_content_that_is_not_ours_is_damage(tmp_path: Path, content: object) -> None:
    run(Store(tmp_path), [3])
    write_json(entry_of(tmp_path, 3) / "value.json", content)
    seal(entry_of(tmp_path, 3))
    with pytest.warns(UserWarning, match="is damaged"):
        assert run(Store(tmp_path), [3]) == [9]


@pytest.mark.parametrize("mistake", [AttributeError, TypeError, RuntimeError])
def test_a_mistake_in_reading_is_no_damage(tmp_path: Path, mistake: type[Exception]) -> None:
    run(Store(tmp_path), [3])

    def mistaken(folder: Path) -> int:
        raise mistake("a bug of ours")

    with pytest.raises(mistake, match="a bug of ours"):
        Store(tmp_path).compute([{"number": 3}], lambda _: [0], save, mistaken)
    assert run(Store(tmp_path), [3], done := []) == [9]
    assert done == []
    assert not list(tmp_path.glob("*.damaged-*"))


def test_an_entry_says_what_it_is_of(tmp_path: Path) -> None:
    run(Store(tmp_path), [3])
    assert json.loads((entry_of(tmp_path, 3) / "parameters.json").read_text(encoding="utf-8")) == {"number": 3}


def test_too_few_results_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        Store(tmp_path).compute([{"number": 1}, {"number": 2}], lambda _: [1], save, load)


def test_two_that_ask_for_one_result_compute_it_once(tmp_path: Path) -> None:
    store, done, started, go_on = Store(tmp_path), [], threading.Event(), threading.Event()

    def slow(_: list[int]) -> list[int]:
        started.set()
        assert go_on.wait(20)
        done.append(3)
        return [9]

    results: list[list[int]] = []
    parameters = [{"number": 3}]
    first = threading.Thread(target=lambda: results.append(store.compute(parameters, slow, save, load)))
    first.start()
    assert started.wait(20)
    # In opposite orders, which must not end in each waiting for the other.
    second = threading.Thread(target=lambda: results.append(run(store, [4, 3], done)))
    second.start()
    go_on.set()
    first.join(20)
    second.join(20)
    assert sorted(results) == [[9], [16, 9]]
    assert sorted(done) == [3, 4]


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from lthlib.store import Store\n"
        "with Store(Path(sys.argv[1])).locked('name'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -9
    with Store(tmp_path).locked("name"):
        pass
