"""What holds for every test."""

import signal

import pytest
from hypothesis import HealthCheck, settings

# What they assert for tests is told with its values, as what tests assert themselves.
pytest.register_assert_rewrite("tests.support")

# A shell gives processes in its background an interrupt that is ignored, and programs pass that on: then no Ctrl-C of a
# test would reach anybody.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-clock")
