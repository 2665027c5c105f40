import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from tasks.errors import Refused, Unavailable
from tasks.processes import (
    PIPE,
    Account,
    ProgramFailed,
    StderrTail,
    TimedOut,
    Watchdog,
    death_signal_tool,
    run,
    running,
    start,
    stop_group,
    unprivileged_account,
)

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
needs_death_signal = pytest.mark.skipif(
    death_signal_tool() is None, reason="no setpriv --pdeathsig here"
)


def wait_for(condition, seconds: float = 10):
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)
    return answer


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def number_in(path: Path) -> int:
    return int(wait_for(lambda: path.exists() and path.read_text().strip()))


def test_run_returns_what_the_program_wrote():
    finished = run(["sh", "-c", "cat; echo bad >&2"], timeout_seconds=5, input_bytes=b"fed\n")
    assert finished.text == "fed"
    assert finished.lines == ["bad"]
    assert finished.returncode == 0


def test_a_failure_carries_the_program_the_code_and_the_last_lines_redacted():
    script = "for i in 1 2 3 4 5 6; do echo line $i >&2; done; echo password=hidden >&2; exit 7"
    with pytest.raises(ProgramFailed) as caught:
        run(["sh", "-c", script], timeout_seconds=5)
    assert caught.value.program == "sh"
    assert caught.value.returncode == 7
    assert str(caught.value).startswith("sh failed (exit 7): line 3 |")
    assert "hidden" not in str(caught.value) + repr(caught.value.lines)


def test_a_failure_can_be_looked_at_instead():
    assert run(["false"], timeout_seconds=5, check=False).returncode == 1


def test_a_missing_program_is_refused_by_name():
    with pytest.raises(Refused, match="no-such-program"):
        run(["no-such-program"], timeout_seconds=5)


def test_a_folder_to_run_in_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match="cannot be started"):
        start(["true"], cwd=tmp_path / "absent")


def test_a_timeout_kills_grandchildren_too(tmp_path: Path):
    note = tmp_path / "pid"
    # The grandchild ignores TERM and holds the pipes, as a stuck program does.
    script = f"(trap '' TERM; sh -c 'echo $PPID' > {note}; while :; do sleep 1; done) & wait"
    started = time.monotonic()
    with pytest.raises(TimedOut, match="within 1 s") as caught:
        run(["sh", "-c", script], timeout_seconds=1)
    assert isinstance(caught.value, Unavailable)
    assert time.monotonic() - started < 10
    grandchild = number_in(note)
    wait_for(lambda: not is_running(grandchild))


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGPASSWORD", "leak")
    monkeypatch.setenv("PGHOST", "leak")
    monkeypatch.setenv("ONEVAULT_SECRET", "leak")
    seen = run(["env"], timeout_seconds=5, env={"PGAPPNAME": "mine"}).text
    assert "leak" not in seen
    names = {line.split("=")[0] for line in seen.splitlines()}
    assert names <= {"PATH", "LC_ALL", "LANG", "HOME", "TZ", "PGAPPNAME", "PWD", "SHLVL", "_"}
    assert "LC_ALL=C" in seen


def test_nothing_of_ours_is_inherited(tmp_path: Path):
    with (tmp_path / "open").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        seen = run(["sh", "-c", "ls -l /proc/self/fd; pwd"], timeout_seconds=5).text
    assert str(tmp_path) not in seen
    assert seen.endswith("\n/")


def test_a_child_has_a_process_group_of_its_own():
    with running(["sleep", "60"]) as process:
        assert os.getpgid(process.pid) == process.pid
    assert process.returncode == -signal.SIGTERM


def test_running_ends_the_group_when_its_block_fails():
    with pytest.raises(KeyboardInterrupt), running(["sleep", "60"], stdout=PIPE) as process:
        raise KeyboardInterrupt
    assert not is_running(process.pid)
    assert process.stdout is not None
    assert process.stdout.closed


def test_stopping_twice_is_harmless_and_stopping_the_stubborn_works():
    process = start(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    stop_group(process, grace_seconds=0.2)
    assert process.returncode == -signal.SIGKILL
    stop_group(process)
    process.stdout.close()


def test_stopping_reaches_what_an_ended_program_left_behind(tmp_path: Path):
    note = tmp_path / "pid"
    process = start(["sh", "-c", f"sleep 60 & echo $! > {note}"])
    process.wait(5)
    left_behind = number_in(note)
    assert is_running(left_behind)
    stop_group(process)
    wait_for(lambda: not is_running(left_behind))


def test_the_watchdog_ends_a_program_at_its_deadline():
    with running(["sleep", "60"], stdout=PIPE) as process, Watchdog(process, 0.2) as watchdog:
        assert process.stdout is not None
        assert process.stdout.read() == b""  # blocks until the watchdog bites
    assert watchdog.expired
    assert process.returncode is not None


def test_the_watchdog_leaves_a_quick_program_alone():
    with running(["true"]) as process, Watchdog(process, 60) as watchdog:
        assert process.wait(5) == 0
    assert not watchdog.expired


def test_a_chatty_program_does_not_block_and_its_last_lines_are_kept():
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i password=p$i >&2; i=$((i+1)); done"
    heard: list[str] = []
    with running(["sh", "-c", script], stderr=PIPE) as process:
        assert process.stderr is not None
        tail = StderrTail(process.stderr, limit=3, on_line=heard.append)
        assert process.wait(30) == 0
        lines = tail.lines()
    assert lines == [f"line {n} password=***" for n in (19997, 19998, 19999)]
    assert len(heard) == 20000


def test_a_failing_listener_does_not_stop_the_reading(caplog: pytest.LogCaptureFixture):
    def fail(line: str) -> None:
        raise ValueError(line)

    with running(["sh", "-c", "echo one >&2; echo two >&2"], stderr=PIPE) as process:
        assert process.stderr is not None
        tail = StderrTail(process.stderr, on_line=fail)
        process.wait(5)
        assert tail.lines() == ["one", "two"]
    assert "a listener of standard error failed" in caplog.text


OWNER = """
    import sys, threading
    from pathlib import Path
    from tasks.processes import PIPE, start

    def work():
        argv = ["sh", "-c", "echo ready; exec sleep 300"]
        child = start(argv, stdout=PIPE, death_signal="KILL")
        child.stdout.readline()
        Path(sys.argv[1]).write_text(str(child.pid))

    # A thread that ends must not take its child with it; the end of the process must.
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    Path(sys.argv[1] + ".joined").touch()
    threading.Event().wait(300)
"""


@needs_death_signal
def test_a_child_survives_its_thread_and_dies_with_its_killed_owner(tmp_path: Path):
    note = tmp_path / "pid"
    argv = [sys.executable, "-c", textwrap.dedent(OWNER), str(note)]
    with subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as owner:
        try:
            child = number_in(note)
            wait_for((tmp_path / "pid.joined").exists)
            threading.Event().wait(0.2)
            assert is_running(child)
        finally:
            owner.kill()
    wait_for(lambda: not is_running(child))


@needs_root
def test_a_child_runs_as_another_user_without_our_groups():
    account = unprivileged_account()
    assert account is not None
    assert account.uid != 0
    assert run(["id", "-u"], timeout_seconds=5, account=account).text == str(account.uid)
    assert run(["id", "-G"], timeout_seconds=5, account=account).text == str(account.gid)


@needs_root
def test_the_user_to_run_as_can_be_named_and_is_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONEVAULT_RUN_AS", "nobody")
    assert unprivileged_account() == Account("nobody", 65534, 65534)
    monkeypatch.setenv("ONEVAULT_RUN_AS", "no-such-user")
    with pytest.raises(Refused, match="no-such-user"):
        unprivileged_account()
    monkeypatch.setenv("ONEVAULT_RUN_AS", "root")
    with pytest.raises(Refused, match="names root"):
        unprivileged_account()


@needs_root
def test_a_number_without_a_passwd_entry_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(Refused, match="54321"):
        unprivileged_account()


def test_an_ordinary_user_runs_everything_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert unprivileged_account() is None
