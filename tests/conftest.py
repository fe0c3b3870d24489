"""What holds for every test."""

import signal

from hypothesis import HealthCheck, settings

# A shell gives processes in its background an interrupt that is ignored, and programs pass that on: then no Ctrl-C of a
# test would reach anybody.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-clock")
