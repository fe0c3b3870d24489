#!/usr/bin/env bash
# hack/node-suite.sh SECONDS: runs the tests on a real node where so many seconds are enough, else says that it left them out.
# What is left out fails nothing. Once the tests have begun nothing is forgiven, neither a failure nor a suite that hangs.
set -euo pipefail
cd "$(dirname "$0")/.."

left=$1
suite=${FINETUNE_NODE_SUITE_SECONDS:-2100} # What the tests may take; one worker alone took 1335 on two quiet cores.

leave_out() {
    echo "LEFT OUT: the tests on a real node, because $1. They are run by: make e2e (as root, on Linux)" >&2
    exit 0
}

# Under CI a missing right is a failure, and the tests themselves say so.
if [[ -z ${CI:-} && $(id -u) -ne 0 ]]; then
    leave_out "they need root"
fi
if ((left <= suite)); then
    leave_out "of the $((suite / 60)) minutes that they may take $((left / 60)) are left"
fi

began=$SECONDS
code=0
# INT, so that Python ends what it has started, such as a docker daemon.
timeout --signal=INT --kill-after=30 $((left - suite)) make e2e-ready || code=$?
if ((code == 124 || code == 137)); then
    leave_out "their programs and images were not built in $(((left - suite) / 60)) minutes; what was built stays for the next run"
elif ((code != 0)); then
    exit "$code"
fi
timeout --signal=INT --kill-after=30 $((left - (SECONDS - began))) make e2e
