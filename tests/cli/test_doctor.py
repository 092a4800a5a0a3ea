"""``kdtable doctor``."""

from tests.cli.command import Call


def test_a_check_of_a_device_is_kept_and_shown(call: Call) -> None:
    done = call("doctor", "--device", "cpu", "--only", "synchronisations,speed of cohorts")
    assert done.code == 0
    assert "skipped: synchronisations (0 s): the host waits on CUDA devices only" in done.out
    shown = call("doctor")
    assert shown.code == 0
    assert "can be written to" in shown.out
    assert "skipped: speed of cohorts" in shown.out


def test_bad_requests(call: Call) -> None:
    for arguments, said in (
        (("--device", "cpu", "--only", "nothing"), "there is no check 'nothing': use some of"),
        (("--device", "abacus"), "unknown device 'abacus'"),
    ):
        done = call("doctor", *arguments)
        assert done.code == 2
        assert said in done.err
        assert "Traceback" not in done.err
