"""Files that are written atomically, and folders that one process may write to."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import scfmlip.files
from scfmlip.files import check_new, locked, replacing, write_text, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.suffix == ".txt"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_names_cannot_be_foreseen_and_links_are_not_followed(tmp_path):
    """Whoever may write to the folder could lead a known name to any file of the user's."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (f".a.txt.{os.getpid()}", f"a.txt.part-{os.getpid()}", "a.txt.part", ".a.txt.tmp"):
        (tmp_path / name).symlink_to(victim)
    seen = set()
    for _ in range(3):
        with replacing(tmp_path / "a.txt") as part:
            seen.add(part.name)
            part.write_text("mine")
    assert len(seen) == 3
    (tmp_path / "link").symlink_to(victim)
    write_text(tmp_path / "link", "mine")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()


def test_a_name_that_is_taken_is_not_written_through(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(scfmlip.files.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / ".part-guessed-a.txt").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a.txt", "mine")
    assert victim.read_text() == "precious"


def test_permissions_are_kept(tmp_path):
    path = tmp_path / "a.txt"
    old = os.umask(0o027)
    try:
        write_text(path, "one")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_text(path, "two")
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(old)


def test_what_is_no_file_or_protected_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="is a folder"):
        write_text(tmp_path, "x")
    with pytest.raises(FileExistsError, match="not an ordinary file"):
        write_text(Path(os.devnull), "x")
    path = tmp_path / "a.txt"
    write_text(path, "one")
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_new(path, False)
    check_new(path, True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to everything
    with pytest.raises(PermissionError, match="read-only"):
        write_text(path, "two")


def test_what_was_done_is_kept_where_asked(tmp_path):
    def fail(text):
        with replacing(tmp_path / "a.txt", keep=True) as part:
            part.write_text(text)
            raise OSError("the disk is full")

    for text, left in (("", []), ("done", ["partial-1-a.txt"])):
        with pytest.raises(OSError, match="full"):
            fail(text)
        assert [f"{n[:8]}1{n[16:]}" for n in names(tmp_path)] == left


def test_very_long_names(tmp_path):
    write_text(tmp_path / ("ä" * 127), "x")
    assert len(names(tmp_path)) == 1


def test_one_holds_a_folder(tmp_path):
    folder = tmp_path / "run"
    with locked(folder, "trains"):
        second = locked(folder, "trains")
        with pytest.raises(BlockingIOError, match=r"another process trains in .*run"):
            second.__enter__()
        (folder / "a").write_text("x")
    assert names(folder) == ["a"]
    with locked(folder, "trains"):
        pass
    # a folder that was made for nothing goes again
    with locked(tmp_path / "empty", "trains"):
        pass
    assert names(tmp_path) == ["run"]


def test_what_killed_processes_left_is_cleared(tmp_path):
    for name in (".part-1234abcd-a.txt", ".part-1234abcd-b.txt", "partial-1234abcd-a.txt"):
        (tmp_path / name).write_text("half")
    with locked(tmp_path, "trains", ["a.txt"]):
        pass
    assert names(tmp_path) == [".part-1234abcd-b.txt", "partial-1234abcd-a.txt"]


HOLDER = """
import importlib.util, os, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.locked(Path(sys.argv[2]), "trains"):
    end, start = os.pipe()
    if os.fork() == 0:
        os.write(start, b".")
        time.sleep(60)  # a worker that does not notice
        os._exit(0)
    os.read(end, 1)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_lets_go_even_if_its_child_lives_on(tmp_path):
    command = [sys.executable, "-c", HOLDER, scfmlip.files.__file__, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked(tmp_path, "trains"):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path, "trains"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
