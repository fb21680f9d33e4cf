"""A signal stops training at the next step; a second one ends the process as usual."""

import signal

import pytest

from train.errors import Interrupted
from train.signals import SIGNALS, StopRequest


@pytest.fixture
def stop():
    """Return a stop request that is installed during the test."""
    for number in SIGNALS:  # as in a process that nobody has prepared
        signal.signal(number, signal.SIG_DFL)
    request = StopRequest()
    request.install()
    yield request
    request.uninstall()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_until_it_is_asked_for(stop, number):
    """Nothing happens at the signal itself; the next check stops, with its name and the epoch."""
    stop.check(3)
    signal.raise_signal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after 3 epochs") as caught:
        stop.check(3)
    assert (caught.value.signal_name, caught.value.epoch) == (number.name, 3)
    with pytest.raises(Interrupted):
        stop.check(4)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_of_a_kind_is_the_defaults(stop, number):
    """Whoever sends it twice means it: the second one ends the process at once."""
    signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_DFL
    others = [other for other in SIGNALS if other is not number]
    assert all(signal.getsignal(other) is not signal.SIG_DFL for other in others)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number):
    """Under `nohup` a hangup does not stop training."""
    signal.signal(number, signal.SIG_IGN)
    stop = StopRequest()
    stop.install()
    signal.raise_signal(number)
    stop.check(1)
    stop.uninstall()
    assert signal.getsignal(number) is signal.SIG_IGN


def test_the_signals_are_given_back():
    """After a run the handlers are those from before, also when a signal came."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = StopRequest()
    stop.install()
    assert all(signal.getsignal(number) != handler for number, handler in before.items())
    signal.raise_signal(signal.SIGHUP)
    stop.uninstall()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    stop.uninstall()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
