import os
import signal

from vitlab.train.signals import StopRequest


def test_the_first_signal_asks_and_the_second_would_end_the_process(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.startswith("SIGTERM: saving, then stopping")
